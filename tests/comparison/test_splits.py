"""Splits: every strategy meets the same images, none of them on both sides."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, RepeatedStratifiedKFold

from featx._comparison.splits import check_budgets, make_splits, split_folds
from featx._errors import InputError


@given(
    sizes=st.lists(st.integers(6, 30), min_size=2, max_size=5),
    budgets=st.lists(st.integers(2, 12), min_size=1, max_size=3, unique=True),
    folds=st.integers(2, 3),
    seed=st.integers(0, 100),
)
def test_fewer_labels_are_some_of_the_more(
    sizes: list[int], budgets: list[int], folds: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).permutation(np.repeat(range(len(sizes)), sizes))
    pairs = split_folds(codes, folds, seed)
    largest = min(np.bincount(codes[train]).max() for train, _ in pairs)
    chosen = check_budgets([*(budget for budget in budgets if budget < largest), "all"])
    splits = make_splits(pairs, codes, chosen, seed)
    assert [split.labels_per_class for split in splits] == chosen * folds
    assert sorted(row for split in splits[:: len(chosen)] for row in split.test) == [
        *range(len(codes))
    ]
    for number in range(folds):
        of_fold = splits[number * len(chosen) : (number + 1) * len(chosen)]
        all_labels = of_fold[-1]
        assert {*all_labels.train, *all_labels.test} == {*range(len(codes))}
        for fewer, more in pairwise(of_fold):
            assert set(fewer.train) <= set(more.train)
            assert np.array_equal(fewer.test, more.test)
        for split in of_fold:
            assert not set(split.train) & set(split.test)
            counts = np.bincount(codes[split.train], minlength=len(sizes))
            available = np.bincount(codes[all_labels.train], minlength=len(sizes))
            if split.labels_per_class != "all":
                available = np.minimum(available, split.labels_per_class)
            assert np.array_equal(counts, available)


def test_the_same_seed_draws_the_same_images_and_another_one_others() -> None:
    codes = np.arange(60) % 3

    def rows(seed: int) -> list[list[int]]:
        splits = make_splits(split_folds(codes, 3, seed), codes, [4, "all"], seed)
        return [split.train.tolist() for split in splits]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_a_splitter_is_taken_as_it_is() -> None:
    codes = np.arange(12) % 2
    splitter = RepeatedStratifiedKFold(n_splits=2, n_repeats=3, random_state=0)
    assert len(split_folds(codes, splitter, None)) == 6


def test_groups_are_kept_by_the_pairs_of_a_splitter() -> None:
    codes, groups = np.arange(12) % 2, np.arange(12) // 4
    folds = split_folds(codes, GroupKFold(3).split(codes, codes, groups), None)
    assert len(folds) == 3
    for train, test in folds:
        assert not {*groups[train]} & {*groups[test]}
    [(train, test)] = split_folds(codes, [(groups > 0, groups == 0)], None)
    assert test.tolist() == [0, 1, 2, 3]
    assert train.tolist() == list(range(4, 12))


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (GroupKFold(2), r"pairs of rows such as list\(GroupKFold"),
        ([([0, 1, 2, 3], [3, 4])], "fold 1 has 1 rows on both sides, the first of them 3"),
        ([], r"Got cv=\[\] but .* there are none"),
        ([([0, 1], [12])], "index 12 is out of bounds for axis 0 with size 12"),
        ("five", "Got cv='five' but expected a number of folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(cv: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_folds(np.arange(12) % 2, cv, None)


def test_a_test_without_images_is_said() -> None:
    [(train, test)] = split_folds(np.arange(4) % 2, [(range(4), [])], None)
    with pytest.raises(InputError, match="Got no image to test on"):
        make_splits([(train, test)], np.arange(4) % 2, ["all"], 0)


def test_a_class_that_is_only_tested_is_said() -> None:
    codes = np.array([0, 1] * 4 + [2, 2])
    with pytest.raises(InputError, match="1 classes in a test of which no image is trained on"):
        make_splits([(np.arange(8), np.arange(8, 10))], codes, ["all"], 0)


@pytest.mark.parametrize("budgets", [[], 1, 0, "some", ["all", 2.5], [True], None])
def test_numbers_of_labels_that_cannot_be_are_refused(budgets: Any) -> None:
    with pytest.raises(InputError, match="expected 'all' or a whole number of at least 2"):
        check_budgets(budgets)


@pytest.mark.parametrize(
    ("codes", "folds", "budgets", "message"),
    [
        ([0] * 6 + [1], 2, ["all"], "a class 1 of 1 image"),
        ([0, 1] * 6, 1, ["all"], "Got cv=1 but expected a whole number of at least 2"),
        ([0, 1] * 6, 2, [3], "the largest class has 3 images to train on"),
        ([0] * 6 + [1, 1], 2, ["all"], "a class with 1 image to train on"),
    ],
)
def test_labels_that_are_too_few_are_said(
    codes: list[int], folds: int, budgets: list[int | str], message: str
) -> None:
    array = np.array(codes)
    with pytest.raises(InputError, match=message):
        make_splits(split_folds(array, folds, 0), array, budgets, 0)
