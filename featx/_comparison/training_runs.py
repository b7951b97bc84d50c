"""Runs: one strategy, trained on the images of one split and tested on the others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._comparison.splits import Split
    from featx._comparison.strategies import Strategy


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


@dataclass(frozen=True)
class TrainingData:
    """Labelled images as every strategy needs them.

    Attributes
    ----------
    images : sequence
        Images, for strategies that train the network.
    vectors : ndarray of float32, shape (n_images, dimension), or None
        Their embeddings, for those that do not.
    labels : ndarray of shape (n_images,)
    codes : ndarray of int64, shape (n_images,)
        The labels as numbers.
    seconds_per_image : float
        What an embedding costs that is in no cache.
    """

    images: Sequence[Any]
    vectors: np.ndarray | None
    labels: np.ndarray
    codes: np.ndarray
    seconds_per_image: float


def run_strategy(
    strategy: Strategy, split: Split, data: TrainingData, random_state: int | None
) -> TrainingRun:
    """Train a strategy on a split, and test it."""
    train, test = split.train, split.test
    classifier = strategy.make_classifier(data.codes[train], random_state)
    if strategy.takes_vectors:
        # The heads' matrices are small: several threads for each product cost more than they save.
        with threadpool_limits(1, user_api="blas"):
            predicted, fitting, predicting = _measure(classifier, data.vectors, data.labels, split)
        # The embeddings were there; whoever trains this alone pays for them too.
        fitting += len(train) * data.seconds_per_image
        predicting += len(test) * data.seconds_per_image
    else:
        predicted, fitting, predicting = _measure(classifier, data.images, data.labels, split)
    return TrainingRun(
        strategy=strategy.name,
        description=strategy.description,
        trains=strategy.trains,
        split=split,
        labels=data.labels[test],
        predicted=predicted,
        fit_seconds=fitting,
        predict_seconds=predicting / len(test),
    )


def _measure(
    classifier: Any, samples: Any, labels: np.ndarray, split: Split
) -> tuple[np.ndarray, float, float]:
    """Return the labels that were predicted, and the seconds of fitting and of predicting."""
    train, test = _rows(samples, split.train), _rows(samples, split.test)
    start = time.perf_counter()
    classifier.fit(train, labels[split.train])
    fitted = time.perf_counter()
    # Some classifiers of others give a column.
    predicted = np.ravel(classifier.predict(test))
    return predicted, fitted - start, time.perf_counter() - fitted


def _rows(samples: Any, rows: np.ndarray) -> Any:
    return samples[rows] if isinstance(samples, np.ndarray) else [samples[row] for row in rows]
