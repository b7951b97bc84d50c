"""Labels: the classes of images or vectors, of any type outside and numbers inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from featx._checks import as_seen, check_whole_number, refuse
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SHOWN = 5

# Of fewer numbers with fractions, as the doses of an experiment, each may be a class.
_MANY_NUMBERS = 10


def encode_labels(labels: Any, name: str = "labels", *, may_be_one: bool = False) -> np.ndarray:
    """Return the class of each image as a number from 0 on, in the order of first appearance.

    Raises
    ------
    InputError
        When labels are no sequence, are missing, are numbers of a regression, or all the same and
        may not be.

    Examples
    --------
    >>> encode_labels(["dog", "cat", "dog"])
    array([0, 1, 0])
    """
    expected = "expected one per image, each of a kind that can be told apart"
    try:
        values = np.asarray(labels)
        if values.ndim != 1 or len(values) == 0:
            raise InputError(f"Got {name} of shape {values.shape} but {expected}")
        # From the labels themselves: an array of mixed ones holds text where numbers were.
        codes, classes = pd.factorize(pd.Series(list(labels), dtype=object))
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # of several shapes, or unhashable
        raise InputError(f"Got {name} that cannot be read but {expected}: {error}") from None
    if values.dtype.kind == "f" and (values[np.isfinite(values)] % 1 != 0).any():
        raise InputError(f"Got {name} with fractions but expected classes; bin the numbers first")
    if len(classes) >= _MANY_NUMBERS and _have_fractions(classes):
        shown = list_labels([str(label) for label in classes])
        raise InputError(
            f"Got {name} like measurements, {shown}, but expected classes; bin the numbers first"
        )
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise InputError(
            f"Got {len(missing)} missing {name}, the first in row {missing[0]}, but expected one "
            "per image"
        )
    if codes.max() == 0 and not may_be_one:
        only = values.tolist()[0]
        raise InputError(f"Got one class only, {only!r}, but expected at least 2 to tell apart")
    return codes


def _have_fractions(classes: Iterable[Any]) -> bool:
    """Tell whether labels are numbers, or texts of numbers, and not all of them whole."""
    try:
        remainders = [float(label) % 1 for label in classes]
    except (TypeError, ValueError):
        return False
    return any(remainders)


def sort_classes(y: Any, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, sorted as ``classes_`` of a classifier, and the number of each sample's.

    Raises
    ------
    InputError
        If there is not one label per sample, or there are fewer than two classes.

    Examples
    --------
    >>> classes, codes = sort_classes(["dog", "cat", "dog"], 3)
    >>> classes.tolist(), codes.tolist()
    (['cat', 'dog'], [1, 0, 1])
    """
    labels = _as_column(y)
    check_lengths(n_samples, len(labels))
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
            f"Got one class, {list_labels(classes)}, but a classifier needs more than 1 class; "
            "expected at least 2"
        )
    return classes, codes.astype(np.int64)


def match_classes(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the number of each label's class, -1 where it is none of the classes.

    Examples
    --------
    >>> match_classes(["dog", "bird"], np.array(["cat", "dog"]))
    array([ 1, -1])
    """
    codes = {label: code for code, label in enumerate(classes.tolist())}
    labels = _as_column(y).tolist()
    return np.array([codes.get(label, -1) for label in labels], dtype=np.int64)


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

    As scikit-learn does: ``"balanced"`` weighs a class by n_samples / (n_classes × its number of
    samples); a dict gives the weight of each class, 1 where it is not named. InputError where it is
    none of these, or names a class that is not there.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, dict):
        known = set(classes.tolist())
        unknown = [label for label in class_weight if label not in known]
        if unknown:
            raise InputError(
                f"Got class_weight of {list_labels(unknown)} but expected only labels among the "
                f"{len(classes)} classes {list_labels(classes)}"
            )
    elif not (isinstance(class_weight, str) and class_weight == "balanced"):
        expected = "None, 'balanced' or a dict of class to weight"
        raise refuse("class_weight", class_weight, expected, ["balanced"])
    weights = compute_class_weight(class_weight, classes=classes, y=classes[codes])
    return np.asarray(weights, dtype=np.float32)


def check_folds(labels: Any, folds: int, remedy: str) -> None:
    """Raise InputError unless each class has an image for every fold, of which there are two."""
    check_whole_number("cv", folds, at_least=2)
    codes = encode_labels(labels)
    counts = np.bincount(codes)
    smallest = int(counts.argmin())
    if counts[smallest] < folds:
        label = np.asarray(labels)[codes == smallest].tolist()[0]
        advice = "; bin the labels first if they are measurements" if _is_number(label) else ""
        images = "1 image" if counts[smallest] == 1 else f"{counts[smallest]} images"
        raise InputError(
            f"Got a class {label!r} of {images} but expected at least {folds}, one for each fold; "
            f"add images, leave the class out, or {remedy}{advice}"
        )


def _is_number(label: Any) -> bool:
    return str(label).removeprefix("-").replace(".", "", 1).isdigit()


def check_known_classes(test: Any, train: Any) -> None:
    """Raise InputError where a test image has a class that no image to train on has."""
    # As Python's own types, which are shown without those of NumPy.
    known = dict.fromkeys(np.asarray(train, dtype=object).tolist())
    others = np.asarray(test, dtype=object).tolist()
    unknown = next((label for label in others if label not in known), None)
    if unknown is not None:
        alike = next((label for label in known if as_seen(label) == as_seen(unknown)), None)
        hint = f"; {alike!a} and {unknown!a} differ in form only" if alike is not None else ""
        raise InputError(
            f"Got test images of class {unknown!r} but expected only classes of the training set: "
            f"{list_labels(list(known))}{hint}"
        )


def check_lengths(rows: int, labels: int) -> None:
    """Raise InputError unless there is one label per row."""
    if rows != labels:
        raise InputError(f"Got {rows} rows and {labels} labels but expected one label per row")


def check_embeddings(
    embeddings: Any, labels: Any, name: str = "embeddings"
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
        raise InputError(f"Got {name} that are no numbers but expected a matrix: {error}") from None
    if features.ndim != 2 or features.shape[1] == 0:
        raise InputError(f"Got {name} of shape {features.shape} but expected (n_images, dimension)")
    check_lengths(len(features), len(codes))
    infinite = ~np.isfinite(features).all(axis=1)
    if infinite.any():
        raise InputError(
            f"Got {name} with {int(infinite.sum())} rows that are not finite, the first of them "
            f"row {int(infinite.argmax())}, but expected numbers only; leave out the images that "
            "could not be read"
        )
    return features, codes


def one_hot(codes: np.ndarray) -> np.ndarray:
    """Return a column per class that is 1 for its images and 0 for the others."""
    targets: np.ndarray = np.eye(codes.max() + 1)[codes]
    return targets


def list_labels(labels: Sequence[Any] | np.ndarray) -> str:
    """Return the first labels of some as the text of an error."""
    shown = [repr(label) for label in np.asarray(labels, dtype=object)[:_SHOWN].tolist()]
    return ", ".join(shown) + (", …" if len(labels) > _SHOWN else "")
