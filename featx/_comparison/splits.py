"""Splits: which images each strategy is trained on, and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, check_cv

from featx._checks import check_whole_number, refuse
from featx._errors import InputError
from featx._labels import check_folds, encode_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALL = "all"
"""What stands for every label that there is."""

FEWEST_LABELS = 2
"""Labels of a class below which no setting of a head can be chosen by cross-validation."""


@dataclass(frozen=True)
class Split:
    """The rows of one training and of its test.

    Attributes
    ----------
    fold : int
        From 1; those with the same number have the same test images.
    labels_per_class : int or "all"
        How many labels of each class are used, at most.
    train, test : ndarray of int64
        Rows.
    """

    fold: int
    labels_per_class: int | str
    train: np.ndarray
    test: np.ndarray


def check_budgets(labels_per_class: Any) -> list[int | str]:
    """Return numbers of labels per class, the fewest first and ``"all"`` last.

    Raises
    ------
    InputError
        When there is none, or one is neither ``"all"`` nor an integer from 2 on.

    Examples
    --------
    >>> check_budgets(["all", 50, 10])
    [10, 50, 'all']
    """
    is_single = isinstance(labels_per_class, str) or not np.iterable(labels_per_class)
    given = [labels_per_class] if is_single else list(labels_per_class)
    for count in given or [labels_per_class]:
        check_whole_number("labels_per_class", count, FEWEST_LABELS, also=[ALL])
    return in_order(count if isinstance(count, str) else int(count) for count in given)


def in_order(budgets: Iterable[int | str]) -> list[int | str]:
    """Return different numbers of labels per class, the fewest first and ``"all"`` last."""
    return sorted(set(budgets), key=lambda budget: (budget == ALL, budget))


def split_folds(
    labels: Sequence[Any] | np.ndarray, cv: Any, random_state: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of each fold's training and test.

    A number as ``cv`` makes stratified, shuffled folds.

    Raises
    ------
    InputError
        When a class has fewer images than there are folds, there are fewer than two folds, or
        those that are given are no pairs of rows with other images on either side.
    """
    codes = encode_labels(labels)
    if isinstance(cv, int | np.integer):
        check_folds(labels, int(cv), "lower the number of folds")
        cv = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    rows = np.arange(len(codes))
    try:
        # An iterable of pairs may be one that can be gone through once only; masks become rows.
        pairs = list(check_cv(cv, codes, classifier=True).split(codes, codes))
        folds = [(rows[list(train)], rows[list(test)]) for train, test in pairs]
        if not folds:
            raise ValueError("there are none")
        for number, fold in enumerate(folds, start=1):
            shared = np.intersect1d(*fold)
            if len(shared):
                first = f"the first of them {shared[0]}"
                raise ValueError(f"fold {number} has {len(shared)} rows on both sides, {first}")
    except (TypeError, ValueError, IndexError) as error:
        expected = (
            "a number of folds, a splitter, or pairs of rows such as "
            f"list(GroupKFold(3).split(images, labels, groups)): {error}"
        )
        raise refuse("cv", cv, expected) from error
    return folds


def make_splits(
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    codes: np.ndarray,
    budgets: Sequence[int | str],
    random_state: int | None,
) -> list[Split]:
    """Return the splits of a comparison: each fold with each number of labels per class.

    The images of a smaller number are among those of a greater one, so that a learning curve shows
    what further labels add, and not other images. ``codes`` are the classes as numbers.

    Raises
    ------
    InputError
        When no class has more labels than a number, or a class has too few to train on.

    Examples
    --------
    >>> import numpy as np
    >>> codes = np.array([0, 1] * 4)
    >>> [split] = make_splits([(np.arange(6), np.array([6, 7]))], codes, [2], 0)
    >>> np.bincount(codes[split.train])
    array([2, 2])
    """
    splits = []
    for number, (train, test) in enumerate(folds, start=1):
        random = np.random.default_rng(None if random_state is None else [random_state, number])
        shuffled = pd.Series(random.permutation(train))
        counts = np.bincount(codes[train], minlength=codes.max() + 1)
        _check_fold(counts, codes[test])
        for budget in budgets:
            rows = train
            if not isinstance(budget, str):
                if budget >= counts.max():
                    largest = f"the largest class has {counts.max()} images to train on"
                    raise refuse("labels_per_class", budget, f"fewer, or {ALL!r}: {largest}")
                rows = shuffled.groupby(codes[shuffled]).head(budget).to_numpy()
            splits.append(Split(number, budget, np.sort(rows), np.asarray(test)))
    return splits


def _check_fold(counts: np.ndarray, tested: np.ndarray) -> None:
    """Check the numbers of images of each class to train on, and the classes of the test."""
    present = counts[counts > 0]
    if len(present) < 2:
        raise InputError("Got one class only to train on but expected at least 2 to tell apart")
    if present.min() < FEWEST_LABELS:
        raise InputError(
            f"Got a class with {present.min()} image to train on but expected at least "
            f"{FEWEST_LABELS}: the settings of a head are chosen by cross-validation; add images, "
            "or leave the class out"
        )
    if not len(tested):
        raise InputError("Got no image to test on but expected at least 1 that can be read")
    unknown = np.unique(tested[counts[tested] == 0])
    if len(unknown):
        raise InputError(
            f"Got {len(unknown)} classes in a test of which no image is trained on; expected each "
            "to have some: add images, leave these classes out, or choose other folds"
        )
