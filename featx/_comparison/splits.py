"""Splits: which images each strategy is trained on, and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import StratifiedKFold, check_cv

from featx._errors import InputError

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
    labels_per_class : int or None
        How many labels of each class are used, at most; None for all.
    train, test : ndarray of int64
        Rows.
    """

    fold: int
    labels_per_class: int | None
    train: np.ndarray
    test: np.ndarray


def check_budgets(labels_per_class: Any) -> list[int | None]:
    """Return numbers of labels per class, the fewest first and None, for all, last.

    Raises
    ------
    InputError
        When there is none, or one is neither ``"all"`` nor an integer from 2 on.

    Examples
    --------
    >>> check_budgets(["all", 50, 10])
    [10, 50, None]
    >>> check_budgets("all")
    [None]
    """
    is_single = isinstance(labels_per_class, str) or not np.iterable(labels_per_class)
    given = [labels_per_class] if is_single else list(labels_per_class)
    expected = f"'all' or whole numbers from {FEWEST_LABELS} on"
    if not given:
        raise InputError(f"Got no labels_per_class but expected {expected}")
    counts: set[int] = set()
    for count in given:
        if isinstance(count, str) and count == ALL:
            continue
        is_whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not is_whole or count < FEWEST_LABELS:
            raise InputError(f"Got labels_per_class={count!r} but expected {expected}")
        counts.add(int(count))
    return [*sorted(counts), *([None] if ALL in [c for c in given if isinstance(c, str)] else [])]


def split_folds(
    codes: np.ndarray, cv: Any, random_state: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of each fold's training and test.

    ``codes`` are the classes of the images as numbers; a number as ``cv`` makes stratified,
    shuffled folds.

    Raises
    ------
    InputError
        When a class has fewer images than there are folds, or there are fewer than two folds.
    """
    if not isinstance(cv, int | np.integer):
        return _check_folds(_folds_of(cv, codes), len(codes))
    if cv < 2:
        raise InputError(f"Got cv={cv!r} but expected at least 2 folds")
    fewest = int(np.bincount(codes).min())
    if fewest < cv:
        raise InputError(
            f"Got a class of {fewest} image(s) but expected at least {cv}, one for each fold; add "
            "images, leave the class out, or lower the number of folds"
        )
    folds = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    return list(folds.split(codes, codes))


def _folds_of(cv: Any, codes: np.ndarray) -> list[Any]:
    try:
        # An iterable of pairs may be one that can be gone through once only.
        return list(check_cv(cv, codes, classifier=True).split(codes, codes))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Got cv={cv!r} but expected a number of folds, a splitter, or pairs of rows such as "
            f"list(GroupKFold(3).split(images, labels, groups)): {error}"
        ) from error


def _check_folds(folds: list[Any], n_images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of given folds, none of which is on both sides."""
    checked = []
    for number, (train, test) in enumerate(folds, start=1):
        learnt, tested = (_rows_of(part, n_images, number) for part in (train, test))
        shared = np.intersect1d(learnt, tested)
        if len(shared):
            raise InputError(
                f"Got fold {number} of cv with {len(shared)} rows on both sides, the first of them "
                f"{shared[0]}, but expected other images in the test than in the training"
            )
        if not len(tested):
            raise InputError(f"Got fold {number} of cv with no image to test on")
        checked.append((learnt, tested))
    if not checked:
        raise InputError("Got no folds in cv but expected at least 1")
    return checked


def _rows_of(part: Any, n_images: int, fold: int) -> np.ndarray:
    """Return the rows that integers or a mask choose."""
    chosen = np.asarray(part)
    try:
        rows: np.ndarray = np.arange(n_images)[chosen if chosen.size else slice(0)]
    except IndexError as error:
        raise InputError(
            f"Got fold {fold} of cv with rows that are not among the {n_images} images; expected "
            f"two arrays of row numbers: {error}"
        ) from None
    return rows


def make_splits(
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    codes: np.ndarray,
    budgets: Sequence[int | None],
    random_state: int | None,
) -> list[Split]:
    """Return the splits of a comparison: each fold with each number of labels per class.

    The images of a smaller number are among those of a greater one, so that a learning curve shows
    what further labels add, and not other images.

    ``folds`` are pairs of rows, of training and of test, ``codes`` the classes of the images as
    numbers, ``budgets`` what `check_budgets` returns.

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
        shuffled = random.permutation(train)
        counts = np.bincount(codes[train])
        _check_training(counts)
        _check_test(test, counts, codes)
        for budget in budgets:
            rows = train if budget is None else _first_of_each(shuffled, codes, budget, counts)
            splits.append(Split(number, budget, np.sort(rows), np.asarray(test)))
    return splits


def _check_training(counts: np.ndarray) -> None:
    present = counts[counts > 0]
    if len(present) < 2:
        raise InputError("Got one class only to train on but expected at least 2 to tell apart")
    if present.min() < FEWEST_LABELS:
        raise InputError(
            f"Got a class with {present.min()} image to train on but expected at least "
            f"{FEWEST_LABELS}: the settings of a head are chosen by cross-validation; add images, "
            "or leave the class out"
        )


def _check_test(test: np.ndarray, counts: np.ndarray, codes: np.ndarray) -> None:
    if not len(test):
        raise InputError("Got no image to test on but expected at least 1 that can be read")
    unknown = [code for code in np.unique(codes[test]) if code >= len(counts) or not counts[code]]
    if unknown:
        raise InputError(
            f"Got {len(unknown)} classes in a test of which no image is trained on; expected each "
            "to have some: add images, leave these classes out, or choose other folds"
        )


def _first_of_each(
    shuffled: np.ndarray, codes: np.ndarray, budget: int, counts: np.ndarray
) -> np.ndarray:
    if budget >= counts.max():
        raise InputError(
            f"Got labels_per_class={budget} but the largest class has {counts.max()} images to "
            f"train on; expected fewer, or {ALL!r}"
        )
    classes = range(len(counts))
    return np.concatenate([shuffled[codes[shuffled] == number][:budget] for number in classes])
