"""Intervals agree with their sources, and hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from featx._comparison.comparison import accuracy_interval, difference_interval

counts = st.integers(0, 40)


@given(right=counts, wrong=counts)
def test_the_interval_of_an_accuracy_is_wilsons(right: int, wrong: int) -> None:
    if right + wrong == 0:
        return
    hits = np.array([1.0] * right + [0.0] * wrong)
    expected = binomtest(right, right + wrong).proportion_ci(method="wilson")
    interval = accuracy_interval(hits)
    assert interval == pytest.approx((hits.mean(), expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@given(both=counts, only=counts, other=counts, neither=counts)
def test_the_interval_of_a_difference_is_that_of_the_four_cells(
    both: int, only: int, other: int, neither: int
) -> None:
    count = both + only + other + neither
    if count == 0:
        return
    hits = np.array([1.0] * (both + only) + [0.0] * (other + neither))
    reference = np.array([1.0] * both + [0.0] * only + [1.0] * other + [0.0] * neither)
    # Agresti and Min (2005): the cells that differ, half an image more in each.
    up, down, total = only + 0.5, other + 0.5, count + 2
    mean = (up - down) / total
    half = norm.ppf(0.975) * np.sqrt(((up + down) - (up - down) ** 2 / total) / total**2)
    expected = ((only - other) / count, max(mean - half, -1), min(mean + half, 1))
    assert difference_interval(hits, reference) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_other_way_round_is_the_same_difference(pairs: list[tuple[bool, bool]]) -> None:
    hits, reference = np.array(pairs, dtype=float).T
    forth, back = difference_interval(hits, reference), difference_interval(reference, hits)
    assert forth == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)


def test_images_on_which_both_agree_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    reference = (random.random(200) < 0.8).astype(float)
    alike = reference.copy()
    alike[:10] = 1 - alike[:10]
    unlike = (random.random(200) < 0.8).astype(float)
    widths = [
        interval.high - interval.low
        for interval in (
            difference_interval(alike, reference),
            difference_interval(unlike, reference),
        )
    ]
    assert widths[0] < widths[1] / 2


def test_nineteen_of_twenty_intervals_hold_the_true_difference() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        reference = random.random(120) < 0.8
        # Right on nine of ten where the other is right, and on every second where it is wrong.
        hits = np.where(reference, random.random(120) < 0.9, random.random(120) < 0.5)
        interval = difference_interval(hits.astype(float), reference.astype(float))
        held.append(interval.low <= 0.8 * 0.9 + 0.2 * 0.5 - 0.8 <= interval.high)
    assert 0.93 < np.mean(held) < 0.97
