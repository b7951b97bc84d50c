"""Selection: from labelled images to a model that was chosen, scored and can be saved."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

from featx._embedder import ImageEmbedder
from featx._errors import InputError
from featx._files import json_text
from featx._labels import check_folds, check_known_classes
from featx._persistence import save_model
from featx._progress import busy_line
from featx._public import public
from featx._selection.heads import head_name
from featx._selection.labelled_embeddings import (
    HeldOutScore,
    LabelledEmbeddings,
    embed_labelled,
)
from featx._selection.search import head_search

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sklearn.model_selection import GridSearchCV

    from featx._errors import DecodeFailure


# What a selection may write.
_FILES = (
    "model.skops",
    "cv_results.csv",
    "summary.json",
    "embeddings.parquet",
    "test_embeddings.parquet",
)

_FEWER_FOLDS = "lower the number of folds (--cv)"


@public
@dataclass(frozen=True)
class Selection:
    """A finished search and the model that it chose.

    Attributes
    ----------
    search : GridSearchCV
        The fitted search.
    model : Pipeline
        Its ``best_estimator_``; where that has no ``predict_proba``, the same with its classifier
        calibrated.
    scores : DataFrame
        One row per head, best first: ``head``, ``mean`` and ``std`` of the score over the folds of
        its best candidate, ``fit_seconds``, ``params``.
    train, test : LabelledEmbeddings
        What it was fitted and scored on; ``test`` is None where none was given.
    held_out : HeldOutScore or None
        The model's score on ``test``.

    See Also
    --------
    featx.select_model : Returns it, with an example.
    """

    search: GridSearchCV
    model: Pipeline
    scores: pd.DataFrame
    train: LabelledEmbeddings
    test: LabelledEmbeddings | None
    held_out: HeldOutScore | None

    @property
    def failures(self) -> tuple[DecodeFailure, ...]:
        """The images that were left out of either set."""
        return self.train.failures + (() if self.test is None else self.test.failures)

    @property
    def shared_images(self) -> int:
        """How many images of the test set are, byte for byte, also in the training set."""
        if self.test is None:
            return 0
        known = set(self.train.digests)
        return sum(digest in known for digest in self.test.digests)

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain types of JSON, but NaN where a score is none."""
        best = self.scores.iloc[0]
        summary: dict[str, Any] = {
            "train_images": len(self.train.images),
            "train_unreadable": len(self.train.failures),
            "classes": [str(label) for label in self.search.classes_],
            "scores": self.scores.to_dict("records"),
            "best_head": best["head"],
            "best_params": best["params"],
        }
        if self.test is not None and self.held_out is not None:
            low, high = self.held_out.interval
            summary |= {
                "test_images": self.held_out.total,
                "test_unreadable": len(self.test.failures),
                "test_images_also_in_train": self.shared_images,
                "test_accuracy": self.held_out.accuracy,
                "test_accuracy_95_low": low,
                "test_accuracy_95_high": high,
            }
        return summary

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the model, the scores and the embeddings.

        Every file is complete before the first one takes its place.

        Parameters
        ----------
        folder : path
            Made where it is missing; the files of an earlier selection in it are replaced, or
            removed where this one has none of that name.

        Returns
        -------
        list of Path
            ``model.skops``, ``cv_results.csv``, ``summary.json``, ``embeddings.parquet`` and, with
            a test set, ``test_embeddings.parquet``.
        """
        target = Path(folder)
        check_output_folder(target)
        made = [parent for parent in (target, *target.parents) if not parent.exists()]
        target.mkdir(parents=True, exist_ok=True)
        # Inside the target: the folder above it may not be ours to write.
        partial = Path(tempfile.mkdtemp(dir=target, prefix=".partial-"))
        try:
            self._write(partial)
            files = {file.name: file for file in partial.iterdir()}
            for name in _FILES:
                if name in files:
                    files[name].replace(target / name)
                else:
                    (target / name).unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:
                with suppress(OSError):  # somebody else has put something there
                    parent.rmdir()
            raise
        partial.rmdir()
        return [target / name for name in _FILES if name in files]

    def _write(self, folder: Path) -> None:
        provenance = self.model.steps[0][1].get_provenance()
        save_model(self.model, folder / "model.skops")
        pd.DataFrame(self.search.cv_results_).to_csv(folder / "cv_results.csv", index=False)
        summary = json_text(self.summary()) + "\n"
        (folder / "summary.json").write_text(summary, encoding="utf-8")
        self.train.save(folder / "embeddings.parquet", provenance)
        if self.test is not None:
            self.test.save(folder / "test_embeddings.parquet", provenance)


def check_output_folder(folder: Path) -> None:
    """Raise InputError where results cannot go, before any work is done."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"Got {folder} to write results into, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"Got {folder} to write results into, but {existing} cannot be written")


@public
def select_model(
    train: Any,
    test: Any = None,
    *,
    heads: str | Iterable[str] = "all",
    embedder: ImageEmbedder | None = None,
    cv: int = 5,
    scoring: Any = "accuracy",
    n_jobs: int | None = None,
    random_state: int | None = 0,
    skip_unreadable: bool = False,
) -> Selection:
    """Choose the head for labelled images by cross-validation, and score it on held-out ones.

    Parameters
    ----------
    train, test : Bunch
        As `load_image_folder` and `load_manifest` return them: ``data`` and ``target``.
    heads, embedder, scoring, n_jobs, random_state
        As `head_search` takes them.
    cv : int, default=5
        Number of folds.
    skip_unreadable : bool, default=False
        Leave out images that cannot be read before splitting, instead of raising at the first.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        When there is one class only, a class has fewer images than folds, or the test set has
        a label that the training set has not.
    ImageDecodeError
        When an image cannot be read and ``skip_unreadable`` is False, or when none can.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import ImageEmbedder, select_model
    >>> from sklearn.utils import Bunch
    >>> images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    >>> images[6:, :, ::4] = 0
    >>> train = Bunch(data=list(images), target=["plain"] * 6 + ["striped"] * 6)
    >>> selection = select_model(
    ...     train, heads=["logistic_regression", "rbf_svm"], cv=3,
    ...     embedder=ImageEmbedder(image_size=64, runtime="torch"),
    ... )
    >>> sorted(selection.scores["head"])
    ['logistic_regression', 'rbf_svm']
    >>> selection.model.predict(images[[0, 11]])
    array(['plain', 'striped'], dtype='<U7')
    """
    embedder = ImageEmbedder() if embedder is None else embedder
    search = head_search(
        heads, embedder=embedder, cv=cv, scoring=scoring, n_jobs=n_jobs, random_state=random_state
    )
    check_folds(train.target, cv, _FEWER_FOLDS)
    if test is not None:
        check_known_classes(test.target, train.target)
    with _kept_embeddings(embedder) as cached:
        embed = partial(embed_labelled, embedder=cached, skip_unreadable=skip_unreadable)
        # Every image is embedded before the search: unreadable ones are met before hours of
        # fitting, and the progress bar runs once. The search finds the embeddings in the cache.
        train_set = embed(train.data, train.target)
        test_set = None if test is None else embed(test.data, test.target)
        check_folds(train_set.labels, cv, _FEWER_FOLDS)
        candidates = len(ParameterGrid(search.param_grid))
        work = f"Cross-validating {candidates} candidates over {cv} folds"
        search.set_params(estimator__embedder=cached)
        with busy_line(work, embedder.progress):
            search.fit(train_set.images, train_set.labels)
    # The cache of the search may have been one of its own, which is gone now.
    search.set_params(estimator__embedder=embedder)
    search.best_estimator_.set_params(embedder__cache=embedder.cache)
    model = _with_probabilities(search, train_set)
    held_out = None
    if test_set is not None:
        predicted = model[1:].predict(test_set.vectors)
        held_out = HeldOutScore(int(np.sum(predicted == test_set.labels)), len(predicted))
    return Selection(
        search=search,
        model=model,
        scores=tabulate_scores(search),
        train=train_set,
        test=test_set,
        held_out=held_out,
    )


@contextmanager
def _kept_embeddings(embedder: ImageEmbedder) -> Iterator[ImageEmbedder]:
    """Give an embedder that keeps what it computes, at least as long as the search runs.

    Without a cache, or with one that cannot be written, every fold and candidate would compute all
    images again.
    """
    if embedder.keeps_embeddings():
        yield embedder
        return
    with tempfile.TemporaryDirectory(prefix="featx-") as folder:
        yield clone(embedder).set_params(cache=folder)


def tabulate_scores(search: GridSearchCV) -> pd.DataFrame:
    """Return the best candidate of each head of a fitted search, best head first."""
    results = search.cv_results_
    table = pd.DataFrame(
        {
            "head": [head_name(head) for head in results["param_head"]],
            "mean": results["mean_test_score"],
            "std": results["std_test_score"],
            "fit_seconds": results["mean_fit_time"],
            "params": [
                {
                    name.removeprefix("head__").removeprefix("estimator__"): value
                    for name, value in params.items()
                    if name not in ("head", "scaler")
                }
                for params in results["params"]
            ],
            "rank": results["rank_test_score"],
        }
    )
    best = table.sort_values("rank", kind="stable").groupby("head", sort=False).head(1)
    return best.drop(columns="rank").reset_index(drop=True)


def _with_probabilities(search: GridSearchCV, train: LabelledEmbeddings) -> Pipeline:
    """Return the winner, calibrated where its classifier has no probabilities of its own.

    Only the winner is calibrated (Platt, 1999): calibrating every candidate would multiply the
    fits of the search by the folds of the calibration. Scaler and classifier are calibrated
    together, over as many folds as the search has, so that no fold has seen the scaling of
    another.
    """
    model: Pipeline = search.best_estimator_
    if hasattr(model, "predict_proba"):
        return model
    embedder, rest = model.steps[0][1], model.steps[1:]
    classifier = CalibratedClassifierCV(clone(Pipeline(rest)), cv=search.n_splits_, ensemble=False)
    classifier.fit(train.vectors, train.labels)
    return Pipeline([("embedder", embedder), ("classifier", classifier)])
