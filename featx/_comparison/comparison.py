"""Comparison: the outcome of several strategies under the same splits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from featx._comparison.splits import in_order
from featx._public import public

if TYPE_CHECKING:
    from featx._comparison.splits import Split
    from featx._errors import DecodeFailure


# A gain in accuracy that nobody would train a network for.
_WORTH = 0.02

_QUANTILE = float(norm.ppf(0.975))


@dataclass(frozen=True)
class TrainingRun:
    """What one strategy came to under one split.

    Attributes
    ----------
    strategy, description : str
        Of the strategy.
    trains : bool or None
        Whether it trained layers of the network; None where that is not known.
    split : Split
        What it was trained and tested on.
    labels, predicted : ndarray of shape (n_test_images,)
        The label of each image that was tested, and what was predicted.
    fit_seconds : float
        Of its training; where the network is frozen, the embedding of the images included.
    predict_seconds : float
        Of one image, from its file to its label.
    """

    strategy: str
    description: str
    trains: bool | None
    split: Split
    labels: np.ndarray
    predicted: np.ndarray
    fit_seconds: float
    predict_seconds: float

    @property
    def hits(self) -> np.ndarray:
        """Whether the label of each image was predicted."""
        hits: np.ndarray = self.predicted == self.labels
        return hits

    @property
    def accuracy(self) -> float:
        """Share of the images whose label was predicted."""
        return float(self.hits.mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that were tested of the share of their images."""
        shares = [self.hits[self.labels == label].mean() for label in np.unique(self.labels)]
        return float(np.mean(shares))


@public
@dataclass(frozen=True)
class Comparison:
    """Strategies, trained and tested on the same images.

    Attributes
    ----------
    runs : tuple of TrainingRun
        Each strategy under each split.
    failures : tuple of DecodeFailure
        Images that were left out because they could not be read; those of a test set are counted
        on from the others.

    See Also
    --------
    featx.compare_strategies : Returns it, with an example.
    """

    runs: tuple[TrainingRun, ...]
    failures: tuple[DecodeFailure, ...] = ()

    @property
    def results(self) -> pd.DataFrame:
        """One row per run.

        Its columns are ``strategy``, ``labels_per_class`` (a number or ``"all"``), ``fold``,
        ``train_images``, ``test_images``, ``accuracy``, ``balanced_accuracy`` (the mean of the
        shares of each class), ``fit_seconds`` and ``predict_seconds`` (of one image).
        """
        return pd.DataFrame(
            {
                "strategy": run.strategy,
                "labels_per_class": run.split.labels_per_class,
                "fold": run.split.fold,
                "train_images": len(run.split.train),
                "test_images": len(run.split.test),
                "accuracy": run.accuracy,
                "balanced_accuracy": run.balanced_accuracy,
                "fit_seconds": run.fit_seconds,
                "predict_seconds": run.predict_seconds,
            }
            for run in self.runs
        )

    def predictions(self) -> pd.DataFrame:
        """Return one row per image and run that tested it.

        Returns
        -------
        DataFrame
            ``row`` of the image, counted over those that could be read, a test set's after the
            others; ``strategy``, ``labels_per_class``, ``fold``, ``label`` and ``predicted``.
        """
        return pd.concat(
            pd.DataFrame(
                {
                    "row": run.split.test,
                    "strategy": run.strategy,
                    "labels_per_class": run.split.labels_per_class,
                    "fold": run.split.fold,
                    "label": run.labels,
                    "predicted": run.predicted,
                }
            )
            for run in self.runs
        ).reset_index(drop=True)

    def summary(self) -> pd.DataFrame:
        """Return one row per strategy and number of labels, the most accurate first.

        Returns
        -------
        DataFrame
            - ``strategy``, ``description``, ``labels_per_class`` (``"all"`` last);
            - ``train_images``: mean over the folds; ``test_images``: how many different ones;
            - ``accuracy``, ``low``, ``high``: share of the tested images whose label was predicted,
              with its 95 % interval (Wilson, 1927). It says how far the images tested leave the
              accuracy of these trainings open, not how much trainings differ by chance;
            - ``std``: of the accuracy over the folds; NaN of one;
            - ``balanced_accuracy``: mean of the shares of each class, over the folds;
            - ``gain``, ``gain_low``, ``gain_high``: over the frozen network with its best head (or,
              where none was run, over what was the fastest to train), image by image, with the
              95 % interval of `difference_interval`, which is of these trainings too;
            - ``fit_seconds``, ``predict_seconds``: medians over the folds;
            - ``cost``: times as long to train as the one that it is measured against.
        """
        tables = [self._summarize(budget) for budget in self._budgets()]
        return pd.concat(tables, ignore_index=True)

    def learning_curves(self) -> pd.DataFrame:
        """Return the accuracy of each strategy (rows) by the labels of each class (columns)."""
        curves = self.summary().pivot(
            index="description", columns="labels_per_class", values="accuracy"
        )
        curves = curves[self._budgets()]
        order = np.argsort(-curves[self._budgets()[-1]].to_numpy(), kind="stable")
        return curves.iloc[order]

    def verdict(self) -> str:
        """Return, in a sentence or two, whether training the network was worth it.

        With all labels, or the most that were compared: the best strategy that trains layers of the
        network is measured against the frozen network with its best head. A gain of less than 0.02
        counts as none. The interval is of the images tested and of these trainings: how much
        trainings differ by chance, other folds or another ``random_state`` tell.
        """
        table = self._summarize(self._budgets()[-1])
        frozen, trained = (
            table[table["strategy"].isin(self._names(trains))] for trains in (False, True)
        )
        if frozen.empty or trained.empty:
            best = table.iloc[0]
            return f"Best: {best['description']}, accuracy {best['accuracy']:.3f}."
        reference, best = frozen.iloc[0], trained.iloc[0]
        gain = (
            f"{best['description']} is {abs(best['gain']):.3f} "
            f"{'above' if best['gain'] >= 0 else 'below'} {reference['description']} "
            f"(95 % interval of the difference {best['gain_low']:+.3f} to {best['gain_high']:+.3f})"
        )
        digits = 0 if best["cost"] >= 10 else 1
        cost = f"takes {best['cost']:.{digits}f} times as long to train"
        if best["gain_low"] > 0:
            return f"Training the network pays: {gain}. It {cost}."
        if best["gain_high"] < 0:
            return f"The network is better left frozen: {gain}, and {cost}."
        if best["gain_high"] <= _WORTH:
            return f"Frozen is enough: {gain}, and {cost}."
        return f"These images cannot tell: {gain}, and {cost}. More test images would."

    def _budgets(self) -> list[int | str]:
        return in_order(run.split.labels_per_class for run in self.runs)

    def _names(self, trains: bool) -> list[str]:
        return [run.strategy for run in self.runs if run.trains is trains]

    def _summarize(self, budget: int | str) -> pd.DataFrame:
        """Return the rows of one number of labels per class."""
        results, predictions = (
            table[table["labels_per_class"] == budget]
            for table in (self.results, self.predictions())
        )
        # Of each image that was tested, by its row: how often its label was predicted.
        is_hit = (predictions["label"] == predictions["predicted"]).astype(float)
        hits = {
            name: of_strategy.groupby(predictions["row"]).mean()
            for name, of_strategy in is_hit.groupby(predictions["strategy"], sort=False)
        }
        seconds: dict[Any, float] = results.groupby("strategy")["fit_seconds"].median().to_dict()
        # What the others are measured against.
        frozen = [name for name in hits if name in self._names(trains=False)]
        reference = min(seconds, key=lambda name: seconds[name])
        if frozen:
            reference = max(frozen, key=lambda name: (hits[name].mean(), -seconds[name]))
        descriptions: dict[Any, str] = {run.strategy: run.description for run in self.runs}
        rows = []
        for name, runs in results.groupby("strategy", sort=False):
            accuracy = accuracy_interval(hits[name].to_numpy())
            # On the images that both have met: before the end, one may be ahead.
            both = pd.concat([hits[name], hits[reference]], axis=1, join="inner")
            gain = difference_interval(*both.to_numpy().T)
            is_reference = name == reference
            rows.append(
                {
                    "strategy": name,
                    "description": descriptions[name],
                    "labels_per_class": budget,
                    "train_images": runs["train_images"].mean(),
                    "test_images": len(hits[name]),
                    "accuracy": accuracy.value,
                    "low": accuracy.low,
                    "high": accuracy.high,
                    "std": runs["accuracy"].std(),
                    "balanced_accuracy": runs["balanced_accuracy"].mean(),
                    "gain": gain.value,
                    "gain_low": 0.0 if is_reference else gain.low,
                    "gain_high": 0.0 if is_reference else gain.high,
                    "fit_seconds": seconds[name],
                    "predict_seconds": runs["predict_seconds"].median(),
                    "cost": seconds[name] / seconds[reference],
                }
            )
        return pd.DataFrame(rows).sort_values(
            ["accuracy", "fit_seconds"], ascending=[False, True], kind="stable", ignore_index=True
        )


class Interval(NamedTuple):
    """A value and the 95 % interval about it."""

    value: float
    low: float
    high: float


def accuracy_interval(hits: np.ndarray) -> Interval:
    """Return an accuracy with its 95 % interval (Wilson, 1927).

    ``hits`` are of each image 1 if its label was predicted and 0 if not; a share where it was
    tested several times, which does not make it several images.

    Examples
    --------
    >>> import numpy as np
    >>> interval = accuracy_interval(np.array([1.0] * 90 + [0.0] * 10))
    >>> [round(end, 3) for end in interval]
    [0.9, 0.826, 0.945]
    """
    count, share = len(hits), float(hits.mean())
    square = _QUANTILE**2
    center = (share + square / (2 * count)) / (1 + square / count)
    deviation = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    half = _QUANTILE * deviation / (1 + square / count)
    # At 0 and 1 an end is exactly this, which rounding can miss.
    low = max(min(center - half, share), 0.0)
    return Interval(share, low, min(max(center + half, share), 1.0))


def difference_interval(hits: np.ndarray, reference: np.ndarray) -> Interval:
    """Return how much more accurate one classifier is than another, with a 95 % interval.

    Both were tested on the same images, so that only those count on which they differ, and the
    interval is narrower than two single ones suggest. Before the interval is computed from the
    variance of the differences, half an image is added to each of the four cases (both right, both
    wrong, only the one, only the other), as Agresti and Min propose ("Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24, 2005).

    The value is the plain difference; both arguments are as of `accuracy_interval`.

    Examples
    --------
    >>> import numpy as np
    >>> reference = np.array([1.0] * 80 + [0.0] * 20)
    >>> hits = np.array([1.0] * 90 + [0.0] * 10)
    >>> [round(end, 3) for end in difference_interval(hits, reference)]
    [0.1, 0.037, 0.159]
    """
    differences = hits - reference
    # Two of the four half images differ, once up and once down.
    count = len(differences) + 2
    mean = float(differences.sum()) / count
    variance = (float((differences**2).sum()) + 1) / count - mean**2
    half = _QUANTILE * math.sqrt(variance / count)
    value = float(differences.mean())
    return Interval(value, max(mean - half, -1.0), min(mean + half, 1.0))
