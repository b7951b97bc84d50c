"""The held-out score: how often a model is right on images that took no part in its choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from featx._selection.labelled_embeddings import LabelledEmbeddings


@dataclass(frozen=True)
class HeldOutScore:
    """Accuracy on images that took no part in the search, with its 95 % Wilson interval.

    Examples
    --------
    >>> score = HeldOutScore(correct=90, total=100)
    >>> score.accuracy
    0.9
    >>> [round(end, 3) for end in score.interval]
    [0.826, 0.945]
    """

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of the images whose label was predicted."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the interval (Wilson, 1927)."""
        interval = binomtest(self.correct, self.total).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def score_held_out(model: Pipeline, test: LabelledEmbeddings) -> HeldOutScore:
    """Return the score of a model on embeddings, which its first step would make.

    Parameters
    ----------
    model : Pipeline
        Fitted; its first step is the embedder.
    test : LabelledEmbeddings
        What it is scored on.
    """
    predicted = model[1:].predict(test.vectors)
    return HeldOutScore(int(np.sum(predicted == test.labels)), len(test.labels))
