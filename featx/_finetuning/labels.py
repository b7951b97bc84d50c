"""Labels: of any type outside, numbers of classes inside; and which samples are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from featx._errors import InputError
from featx._finetuning.seeding import SPLIT, derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN = 5


def encode_labels(y: Any, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, sorted, and the number of the class of each sample.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Strings, integers, booleans or other labels that can be sorted.
    n_samples : int
        How many there must be.

    Returns
    -------
    classes : ndarray
        Of the labels' own type.
    codes : ndarray of int64, shape (n_samples,)

    Raises
    ------
    InputError
        If there is not one label per sample, or there are fewer than two classes.

    Examples
    --------
    >>> classes, codes = encode_labels(["dog", "cat", "dog"], 3)
    >>> classes.tolist(), codes.tolist()
    (['cat', 'dog'], [1, 0, 1])
    """
    labels = _as_column(y)
    if len(labels) != n_samples:
        raise InputError(
            f"Got {n_samples} samples and {len(labels)} labels but expected one label per sample"
        )
    try:
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        raise InputError(
            f"Got labels of the types {', '.join(kinds)}, which cannot be sorted; expected one type"
        ) from error
    if len(classes) < 2:
        raise InputError(
            f"Got one class, {_names(classes)}, but a classifier needs more than 1 class; "
            "expected at least 2"
        )
    return classes, codes.astype(np.int64)


def check_known_labels(y: Any, classes: np.ndarray) -> None:
    """Raise InputError where a label is none of the classes that were there at fit."""
    labels = _as_column(y)
    known = set(classes.tolist())
    unknown = list(dict.fromkeys(label for label in labels.tolist() if label not in known))
    if unknown:
        found = "a label" if len(unknown) == 1 else f"{len(unknown)} labels"
        were = "was" if len(unknown) == 1 else "were"
        raise InputError(
            f"Got {found} in y that {were} not there at fit, {_names(unknown)}; expected labels "
            f"among the {len(classes)} classes {_names(classes)}"
        )


def _as_column(y: Any) -> np.ndarray:
    if y is None:
        raise InputError("Got y=None but a classifier requires y to be passed: a label per sample")
    labels: np.ndarray = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InputError("Got labels that are NaN or infinity but expected a label per sample")
    if labels.dtype == object and any(_is_missing(label) for label in labels):
        raise InputError("Got labels that are missing (None or NaN) but expected one per sample")
    return labels


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and np.isnan(label))


def weigh_classes(class_weight: Any, classes: np.ndarray, codes: np.ndarray) -> np.ndarray | None:
    """Return the weight of each class in the loss, float32; None where all weigh the same.

    Parameters
    ----------
    class_weight : None, "balanced" or dict
        As scikit-learn takes it: ``"balanced"`` weighs a class by n_samples / (n_classes × its
        number of samples); a dict gives the weight of each class, 1 where it is not named.
    classes, codes : ndarray
        As `encode_labels` returns them.

    Raises
    ------
    InputError
        If it is none of these, or names a class that is not there.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, dict):
        check_known_labels(list(class_weight), classes)
    elif not (isinstance(class_weight, str) and class_weight == "balanced"):
        raise InputError(
            f"Got class_weight={class_weight!r} but expected None, 'balanced' or a dict of class "
            "to weight"
        )
    weights = compute_class_weight(class_weight, classes=classes, y=classes[codes])
    return np.asarray(weights, dtype=np.float32)


def split_rows(
    codes: np.ndarray, classes: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are trained on, and those that are held out; each class is in both.

    Parameters
    ----------
    codes, classes : ndarray
        As `encode_labels` returns them.
    fraction : float
        Share that is held out.
    seed : int
        Decides which.

    Raises
    ------
    InputError
        If a class has a single sample.

    Examples
    --------
    >>> rows, held_out = split_rows(np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "b"]), 0.4, 0)
    >>> len(rows), len(held_out)
    (4, 2)
    """
    counts = np.bincount(codes, minlength=len(classes))
    single = classes[counts < 2]
    if len(single):
        raise InputError(
            f"Got a single sample of {_names(single)} but early stopping holds some of each class "
            "out; expected at least 2 of each; give more, or set early_stopping=False"
        )
    random = np.random.default_rng(derive_seed(seed, SPLIT))
    held_out = np.zeros(len(codes), dtype=bool)
    for code, count in enumerate(counts):
        size = min(max(1, round(fraction * count)), count - 1)
        held_out[random.permutation(np.flatnonzero(codes == code))[:size]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _names(labels: Sequence[Any] | np.ndarray) -> str:
    shown = [repr(label) for label in np.asarray(labels, dtype=object)[:_SHOWN].tolist()]
    return ", ".join(shown) + (", …" if len(labels) > _SHOWN else "")
