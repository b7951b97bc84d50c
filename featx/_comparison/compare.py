"""Comparing: whether a frozen network is enough, or training it pays."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from featx._checks import check_whole_number, refuse
from featx._comparison.comparison import Comparison
from featx._comparison.splits import ALL, check_budgets, make_splits, split_folds
from featx._comparison.strategies import TrainingData, choose_strategies, run_strategy
from featx._embedder import ImageEmbedder
from featx._errors import ImageDecodeWarning, InputError
from featx._images.sources import as_image_list
from featx._labels import check_known_classes, check_lengths, encode_labels
from featx._public import public
from featx._selection.labelled_embeddings import embed_labelled
from featx._selection.ranking import seconds_per_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from featx._comparison.strategies import Strategy
    from featx._errors import DecodeFailure

_TIMED_IMAGES = 128


@public
def compare_strategies(
    X: Any,
    y: Any,
    *,
    X_test: Any = None,
    y_test: Any = None,
    strategies: str | Iterable[str] = "default",
    own_strategies: Mapping[str, Any] | None = None,
    embedder: ImageEmbedder | None = None,
    labels_per_class: Any = ALL,
    cv: Any = 3,
    epochs: int = 10,
    random_state: int | None = 0,
    skip_unreadable: bool = False,
    report: Callable[[Comparison, int], None] | None = None,
) -> Comparison:
    """Compare a frozen network with ways of training it, under the same splits.

    Every strategy is trained on the same images and tested on the same others: in each fold, or,
    where a test set is given, once. What is frozen is embedded once for all.

    Parameters
    ----------
    X : sequence of images
        As `ImageEmbedder` takes them.
    y : array-like of shape (n_images,)
        The class of each image.
    X_test, y_test : optional
        Held-out images and their classes; then there are no folds.
    strategies : "default", "all", str or iterable of str, default="default"
        Any of these, in whose order they are run:

        - ``"logistic_regression"``, ``"linear_svm"``, ``"rbf_svm"``, ``"random_forest"``,
          ``"k_nearest_neighbors"``: heads of `head_search` on the embeddings of the frozen network,
          their settings chosen by five folds inside the images that are trained on;
        - ``"linear_head"``: a new linear layer on the same, by stochastic gradient descent;
        - ``"last_stage"``, ``"all_layers"``: `FineTunedClassifier` from a linear head on, with
          ``augment="light"``, for the last stage of the network and for all of it;
        - ``"from_scratch"``: all of it from random weights, three times as many epochs.

        ``"default"`` leaves out linear SVM and neighbours. From scratch needs a network by name.
    own_strategies : mapping of str to classifier, optional
        More strategies: unfitted classifiers of images, such as a `FineTunedClassifier` with other
        settings, or a pipeline. They are timed as they are: an `ImageEmbedder` in them finds in
        its cache what was embedded before.
    embedder : ImageEmbedder, optional
        Network, weights, image size and device of all strategies; layers, pooling, views, runtime
        and cache of the frozen ones. By default ``ImageEmbedder()``.
    labels_per_class : "all", int or sequence of these, default="all"
        How many labels of each class are used at most: several numbers give learning curves. The
        images of a smaller number are among those of a greater one.
    cv : int, splitter or iterable, default=3
        A number of folds makes stratified, shuffled ones with ``random_state``. Images that belong
        together, such as those of one patient, are kept on one side by the pairs of rows that a
        splitter with groups returns: ``GroupKFold(3).split(images, labels, groups)``.
    epochs : int, default=10
        Passes over the images when pretrained layers are trained.
    random_state : int or None, default=0
        Seed of folds, draws, heads and trainings.
    skip_unreadable : bool, default=False
        Leave out images that cannot be read, with one `ImageDecodeWarning`, instead of raising.
    report : callable, optional
        Called after each run with the comparison as it is by then and the number of all runs.

    Returns
    -------
    Comparison
        ``summary()``, ``learning_curves()``, ``verdict()``, and ``results``, a row per run.

    Raises
    ------
    InputError
        When a strategy is not known or cannot be had of the network; labels are not one per image,
        of one class only, or too few for the folds; the test set has a class that the other has
        not; or the embedder would hand out NaN rows.
    ImageDecodeError
        When an image cannot be read and ``skip_unreadable`` is False, or when none can. The images
        of a test set are counted on from the others.

    Notes
    -----
    The seconds of a frozen strategy include those of embedding its images, as measured on up to 128
    of them past the cache, although they are embedded once for all; and those of choosing the
    settings of its head. The fine-tuned strategies run with one setting each: somebody who searches
    over theirs pays each time, and may get more out of them.

    Which of the frozen strategies is the best is known only after the test, as is which of the
    trained ones: both figures are a little too good.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import ImageEmbedder
    >>> from featx._comparison.compare import compare_strategies
    >>> random = np.random.default_rng(0)
    >>> images = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    >>> images[12:, :, ::4] = 0
    >>> labels = ["plain"] * 12 + ["striped"] * 12
    >>> comparison = compare_strategies(
    ...     images, labels, strategies=["logistic_regression", "last_stage"], cv=2, epochs=1,
    ...     embedder=ImageEmbedder(image_size=64),
    ... )
    >>> sorted(comparison.summary()["description"])
    ['frozen + logistic_regression', 'last stage fine-tuned']
    >>> comparison.results[["fold", "train_images", "test_images"]].drop_duplicates()
       fold  train_images  test_images
    0     1            12           12
    2     2            12           12
    """
    embedder = _checked_embedder(embedder)
    check_whole_number("random_state", random_state, also=[None])
    budgets = check_budgets(labels_per_class)
    chosen = choose_strategies(
        strategies, own_strategies, embedder=embedder, epochs=epochs, random_state=random_state
    )
    images, labels, n_training = _gather(X, y, X_test, y_test)
    codes = encode_labels(labels)
    folds = [(np.arange(n_training), np.arange(n_training, len(images)))]
    if X_test is None:
        folds = split_folds(labels, cv, random_state)
    # What is wrong with the labels is said before any image is embedded.
    make_splits(folds, codes, budgets, random_state)
    data, read, failures = _prepare(chosen, images, labels, embedder, skip_unreadable)
    folds = [(_among(train, read), _among(test, read)) for train, test in folds]
    splits = make_splits(folds, codes[read], budgets, random_state)
    runs = []
    for split in splits:
        for strategy in chosen:
            runs.append(run_strategy(strategy, split, data, random_state))
            if report is not None:
                report(Comparison(tuple(runs), failures), len(splits) * len(chosen))
    return Comparison(tuple(runs), failures)


def _checked_embedder(embedder: Any) -> ImageEmbedder:
    chosen = ImageEmbedder() if embedder is None else embedder
    if not isinstance(chosen, ImageEmbedder):
        expected = "an ImageEmbedder, such as ImageEmbedder('efficientnet_lite0')"
        raise refuse("embedder", embedder, expected)
    if chosen.on_error == "nan":
        raise InputError(
            "Got an embedder with on_error='nan' but expected on_error='raise': no head takes NaN "
            "rows; pass skip_unreadable=True to leave unreadable images out"
        )
    return chosen


def _gather(X: Any, y: Any, X_test: Any, y_test: Any) -> tuple[list[Any], list[Any], int]:
    """Return all images and labels, those for training first, and how many these are."""
    if (X_test is None) != (y_test is None):
        given, missing = ("y_test", "X_test") if X_test is None else ("X_test", "y_test")
        raise InputError(f"Got {given} without {missing} but expected both or neither")
    images, labels = _pair(X, y, "y")
    if X_test is None:
        return images, labels, len(images)
    test_images, test_labels = _pair(X_test, y_test, "y_test")
    check_known_classes(test_labels, labels)
    return images + test_images, labels + test_labels, len(images)


def _pair(images: Any, labels: Any, name: str) -> tuple[list[Any], list[Any]]:
    """Return images and their labels as lists of one length."""
    encode_labels(labels, name, may_be_one=True)  # says what is wrong with them
    pair = list(as_image_list(images)), list(labels)
    check_lengths(*map(len, pair))
    return pair


def _prepare(
    strategies: Sequence[Strategy],
    images: list[Any],
    labels: list[Any],
    embedder: ImageEmbedder,
    skip_unreadable: bool,
) -> tuple[TrainingData, np.ndarray, tuple[DecodeFailure, ...]]:
    """Return what the strategies take, the rows that could be read, and what could not."""
    needs_vectors = any(strategy.takes_vectors for strategy in strategies)
    if not needs_vectors and not skip_unreadable:
        return TrainingData(images, None, np.asarray(labels), 0.0), np.arange(len(images)), ()
    embedded = embed_labelled(images, labels, embedder, skip_unreadable=skip_unreadable)
    if embedded.failures:
        warnings.warn(ImageDecodeWarning(embedded.failures, len(images)), stacklevel=3)
    images = list(embedded.images)
    seconds = seconds_per_image(embedder, images, _TIMED_IMAGES) if needs_vectors else 0.0
    data = TrainingData(images, embedded.vectors, embedded.labels, seconds)
    return data, embedded.rows, embedded.failures


def _among(rows: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Return where the images of some rows stand among those that could be read."""
    return np.searchsorted(read, rows[np.isin(rows, read)])
