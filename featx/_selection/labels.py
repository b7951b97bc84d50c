"""Labels: the classes of images as numbers, and the embeddings that they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from featx._errors import InputError


def encode_labels(labels: Any) -> np.ndarray:
    """Return the class of each image as a number from 0 on, in the order of first appearance.

    Parameters
    ----------
    labels : array-like of shape (n_images,)
        Anything that can be told apart and hashed.

    Returns
    -------
    ndarray of int64, shape (n_images,)

    Raises
    ------
    InputError
        When labels are no sequence, are missing, are numbers of a regression, or all the same.

    Examples
    --------
    >>> from featx._selection.labels import encode_labels
    >>> encode_labels(["dog", "cat", "dog"])
    array([0, 1, 0])
    """
    codes = encode(labels, "labels")
    if codes.max() == 0:
        only = np.asarray(labels).tolist()[0]
        raise InputError(f"Got one class only, {only!r}, but expected at least 2 to tell apart")
    return codes


def check_folds(labels: Any, folds: int) -> None:
    """Raise InputError unless each class has an image for every fold, of which there are two."""
    if folds < 2:
        raise InputError(f"Got {folds!r} folds but expected at least 2")
    codes = encode_labels(labels)
    counts = np.bincount(codes)
    smallest = int(counts.argmin())
    if counts[smallest] < folds:
        label = np.asarray(labels)[codes == smallest].tolist()[0]
        raise InputError(
            f"Got a class {label!r} of {counts[smallest]} image(s) but a linear probe expected at "
            f"least {folds}, one for each fold; add images, leave the class out, or leave the "
            "linear probe out"
        )


def checked(
    embeddings: Any, labels: Any, what: str = "embeddings"
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings in float64, a copy, and the classes as numbers.

    Raises
    ------
    InputError
        When the embeddings are no finite matrix, or as `encode_labels` does.
    """
    codes = encode_labels(labels)
    try:
        features = np.array(embeddings, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Got {what} that are no numbers but expected a matrix: {error}") from None
    if features.ndim != 2 or features.shape[1] == 0:
        raise InputError(f"Got {what} of shape {features.shape} but expected (n_images, dimension)")
    check_lengths(len(features), len(codes))
    infinite = ~np.isfinite(features).all(axis=1)
    if infinite.any():
        raise InputError(
            f"Got {what} with {int(infinite.sum())} rows that are not finite, the first of them "
            f"row {int(infinite.argmax())}, but expected numbers only; leave out the images that "
            "could not be read"
        )
    return features, codes


def check_lengths(rows: int, labels: int) -> None:
    """Raise InputError unless there is one label per row."""
    if rows != labels:
        raise InputError(f"Got {rows} rows and {labels} labels but expected one label per row")


def encode(labels: Any, what: str) -> np.ndarray:
    """Return labels as numbers from 0 on; all of them may be the same."""
    expected = "expected one per image, each of a kind that can be told apart"
    try:
        values = np.asarray(labels)
        if values.ndim != 1 or len(values) == 0:
            raise InputError(f"Got {what} of shape {values.shape} but {expected}")
        # From the labels themselves: an array of mixed ones holds text where numbers were.
        codes, _ = pd.factorize(pd.Series(list(labels), dtype=object))
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # of several shapes, or unhashable
        raise InputError(f"Got {what} that cannot be read but {expected}: {error}") from None
    if values.dtype.kind == "f" and (values[np.isfinite(values)] % 1 != 0).any():
        raise InputError(f"Got {what} with fractions but expected classes; bin the numbers first")
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise InputError(
            f"Got {len(missing)} missing {what}, the first in row {missing[0]}, but expected one "
            "per image"
        )
    return codes


def one_hot(codes: np.ndarray) -> np.ndarray:
    """Return a column per class that is 1 for its images and 0 for the others."""
    targets: np.ndarray = np.eye(codes.max() + 1)[codes]
    return targets
