"""Intervals: how far an accuracy, or the difference of two, is known from the images tested."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from scipy.stats import norm

if TYPE_CHECKING:
    import numpy as np

_QUANTILE = float(norm.ppf(0.975))


class Interval(NamedTuple):
    """A value and the 95 % interval about it."""

    value: float
    low: float
    high: float


def accuracy_interval(hits: np.ndarray) -> Interval:
    """Return an accuracy with its 95 % interval (Wilson, 1927).

    Parameters
    ----------
    hits : ndarray of float64, shape (n_images,)
        Of each image 1 if its label was predicted and 0 if not; a share where it was tested
        several times, which does not make it several images.

    Returns
    -------
    Interval

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

    Parameters
    ----------
    hits, reference : ndarray of float64, shape (n_images,)
        Of each image 1 if its label was predicted and 0 if not, or the share of several times.

    Returns
    -------
    Interval
        About the plain difference of the two accuracies.

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
