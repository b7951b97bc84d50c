"""The scores of transferability are what their papers define, on every kind of problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from featx._errors import InputError
from featx._selection.transferability import (
    linear_probe_score,
    log_me,
    maximum_log_evidence,
    nearest_neighbour_score,
    project_targets,
)

OF_EMBEDDINGS = (log_me, nearest_neighbour_score, linear_probe_score)

KINDS = (
    "more images than dimensions",
    "more dimensions than images",
    "as many",
    "rank-deficient, tall",
    "rank-deficient, wide",
    "constant and zero columns",
    "badly scaled columns",
    "string labels",
    "a class missing between numbers",
    "separable",
)


def problem(seed: int) -> tuple[np.ndarray, Any]:
    """Return embeddings and labels of one of the kinds."""
    random = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    rows, columns = int(random.integers(14, 26)), int(random.integers(3, 12))
    if "more dimensions" in kind or "wide" in kind:
        columns = rows + int(random.integers(1, 15))
    elif kind == "as many":
        columns = rows
    labels: Any = np.arange(rows) % int(random.integers(2, 5))
    means = random.normal(size=(5, columns)) * random.choice([0.0, 0.5, 2.0])
    features = np.maximum(random.normal(size=(rows, columns)) + means[labels], -0.5)
    if "rank-deficient" in kind:
        rank = int(random.integers(1, min(rows, columns)))
        features = features[:, :rank] @ random.normal(size=(rank, columns))
    elif kind == "constant and zero columns":
        features[:, 0], features[:, 1] = 0, 3
    elif kind == "badly scaled columns":
        features *= np.logspace(-1.5, 1.5, columns)
    elif kind == "string labels":
        labels = np.array(["cat", "a dog", "Größe", "fish"])[labels]
    elif kind == "a class missing between numbers":
        labels = np.array([0, 2, 7, 9])[labels]
    elif kind == "separable":
        features[:, 0] += 10 * labels
    return features, labels


def log_evidence_by_density(features: np.ndarray, target: np.ndarray) -> float:
    """Return the greatest log density of a target under N(0, b (a F F' + I)), over a and b.

    The definition of the evidence, with the weights integrated out by hand: the dense
    covariance of the images, and a search in two variables.
    """
    rows = len(features)
    kernel = features @ features.T
    kernel /= np.trace(kernel) / rows

    def cost(logarithms: Any) -> Any:
        ratio, noise = logarithms
        covariance = np.exp(ratio) * kernel + np.eye(rows)
        _, log_determinant = np.linalg.slogdet(covariance)
        fit = target @ np.linalg.solve(covariance, target)
        # The noise may be many at once.
        return (fit / np.exp(noise) + rows * (noise + np.log(2 * np.pi)) + log_determinant) / 2

    noises = np.linspace(-20, 6, 53)
    grid = [(cost((ratio, noises)), ratio) for ratio in np.arange(-12.0, 28.0)]
    # The best noise for each ratio: neighbours of one good start do not crowd out another peak.
    starts = sorted((costs.min(), ratio, noises[costs.argmin()]) for costs, ratio in grid)[:4]
    bounds = [(-30, 28), (-30, 6)]
    ends = [minimize(cost, start[1:], method="L-BFGS-B", bounds=bounds) for start in starts]
    end = min(ends, key=lambda end: end.fun)
    # Without gradients to the end: on a flat ridge their differences are rounding.
    options = {"xatol": 1e-6, "fatol": 1e-11}
    return -minimize(cost, end.x, method="Nelder-Mead", bounds=bounds, options=options).fun


@pytest.mark.parametrize(
    "seed",
    [*range(2 * len(KINDS)), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 200))],
)
def test_log_me_is_the_greatest_density_found_by_an_independent_way(seed: int) -> None:
    features, labels = problem(seed)
    expected = np.mean(
        [
            log_evidence_by_density(features, (labels == label).astype(float)) / len(labels)
            for label in np.unique(labels)
        ]
    )
    assert log_me(features, labels) == pytest.approx(expected, abs=1e-6)


def test_the_density_of_the_tests_is_that_of_scipy() -> None:
    features, labels = problem(0)
    target = (labels == labels[0]).astype(float)
    kernel = features @ features.T
    best = minimize(
        lambda p: (
            -multivariate_normal(
                np.zeros(len(target)), np.exp(p[0]) * kernel + np.exp(p[1]) * np.eye(len(target))
            ).logpdf(target)
        ),
        [-4, -2],
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-12},
    )
    assert log_evidence_by_density(features, target) == pytest.approx(-best.fun, abs=1e-7)


def test_log_me_is_where_the_fixed_point_of_the_paper_ends() -> None:
    # Algorithm 1 of You et al. (2021) to its end, in the terms of the full matrices.
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = random.normal(size=(60, 10)) + random.normal(size=(3, 10))[labels]
    scores = []
    for label in range(3):
        target = (labels == label).astype(float)
        a = b = 1.0
        for _ in range(2000):
            matrix = a * np.eye(10) + b * features.T @ features
            mean = b * np.linalg.solve(matrix, features.T @ target)
            effective = 10 - a * np.trace(np.linalg.inv(matrix))
            error = np.sum((features @ mean - target) ** 2)
            a, b = effective / (mean @ mean), (60 - effective) / error
        evidence = (
            30 * np.log(b) + 5 * np.log(a) - 30 * np.log(2 * np.pi) - b / 2 * error
            - a / 2 * mean @ mean - np.linalg.slogdet(matrix)[1] / 2
        )  # fmt: skip
        scores.append(evidence / 60)
    assert log_me(features, labels) == pytest.approx(np.mean(scores), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1e-30, -7.5])
def test_embeddings_that_say_nothing_have_the_score_of_no_features(value: float) -> None:
    labels = np.array([0] * 5 + [1] * 15)
    features = np.full((20, 3), value)
    # A constant is a feature all the same: the model has no intercept of its own.
    if value == 0:
        lengths = np.array([5, 15]) / 20
        assert log_me(features, labels) == pytest.approx(
            np.mean(-(np.log(2 * np.pi * lengths) + 1) / 2)
        )
    else:
        expected = np.mean(
            [log_evidence_by_density(features, (labels == c).astype(float)) / 20 for c in (0, 1)]
        )
        assert log_me(features, labels) == pytest.approx(expected, abs=1e-7)


def test_classes_that_are_reproduced_exactly_have_no_bound() -> None:
    labels = np.arange(30) % 3
    one_hot = np.eye(3)[labels]
    assert log_me(one_hot, labels) == np.inf
    assert log_me(one_hot @ np.random.default_rng(0).normal(size=(3, 8)), labels) == np.inf
    # A little noise is a bound again.
    noise = np.random.default_rng(1).normal(size=(30, 3))
    noisy = [log_me(one_hot + size * noise, labels) for size in (1e-1, 1e-3, 1e-5)]
    assert np.isfinite(noisy).all()
    assert sorted(noisy) == noisy
    # With as many directions as images any target is reproduced, and that is no merit.
    wide = np.random.default_rng(0).normal(size=(30, 200))
    assert np.isfinite(log_me(wide, labels))


def test_a_class_that_the_embeddings_do_not_touch_is_scored_as_by_no_features() -> None:
    target = np.array([[0.0], [1.0], [1.0], [0.0]])
    features = np.array([[1.0], [0.0], [0.0], [0.0]])
    found = maximum_log_evidence(project_targets(features, target))
    assert found == pytest.approx(-(np.log(2 * np.pi * 2 / 4) + 1) / 2)


def test_the_evidence_is_found_where_the_ratio_is_extreme() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 4))
    target = features @ random.normal(size=(4, 1))
    for noise in 10.0 ** -np.arange(1, 11):
        noisy = target + noise * random.normal(size=(40, 1))
        found = maximum_log_evidence(project_targets(features, noisy))[0]
        # The density of the noise in the 36 directions that the four weights leave to it.
        expected = -0.9 * np.log(noise) - (np.log(2 * np.pi) + 1) / 2
        assert found == pytest.approx(expected, abs=0.4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_log_me_does_not_depend_on_order_names_and_units(seed: int, data: st.DataObject) -> None:
    features, labels = problem(seed)
    shuffled = data.draw(st.permutations(range(len(labels))))
    factor = data.draw(st.floats(1e-3, 1e3))
    named = np.array([f"class {label}" for label in labels])[shuffled]
    expected = log_me(features, labels)
    assert log_me(factor * features[shuffled], named) == pytest.approx(expected, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_log_me_does_not_depend_on_the_axes(seed: int) -> None:
    features, labels = problem(seed)
    turn = ortho_group.rvs(features.shape[1], random_state=seed)
    expected = log_me(features, labels)
    assert log_me(features @ turn, labels) == pytest.approx(expected, abs=1e-7)
    padded = np.hstack([features, np.zeros((len(features), 40))])
    assert log_me(padded, labels) == pytest.approx(expected, abs=1e-9)


def test_neighbours_vote_as_leaving_one_image_out_does() -> None:
    random = np.random.default_rng(0)
    labels = np.array(["a", "b"])[random.integers(0, 2, 60)]
    features = random.normal(size=(60, 8)) + (labels == "a")[:, None]
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    for count in (1, 3, 7):
        predicted = cross_val_predict(KNeighborsClassifier(count), unit, labels, cv=LeaveOneOut())
        expected = (predicted == labels).mean()
        assert nearest_neighbour_score(features, labels, n_neighbors=count) == expected
    # More neighbours than images: all the others vote.
    assert nearest_neighbour_score(features[:3], ["a", "a", "b"], n_neighbors=9) <= 2 / 3


def test_the_probe_tells_what_can_be_told_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    noise = random.normal(size=(300, 10))
    assert linear_probe_score(noise + 8 * np.eye(3, 10)[labels], labels) > 0.99
    assert 0.2 < linear_probe_score(noise, labels) < 0.47
    first, second = (linear_probe_score(noise, labels) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("score", OF_EMBEDDINGS)
def test_the_more_noise_the_lower_the_score(score: Any) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(["ant", "bee", "cow", "dog"], 40)
    signal = np.repeat(random.normal(size=(4, 30)), 40, axis=0)
    noise = random.normal(size=(160, 30))
    scores = [score(signal + level * noise, labels) for level in (0.5, 1.5, 3, 6, 20)]
    assert sorted(scores, reverse=True) == scores
    assert len(set(scores)) >= 4


@pytest.mark.parametrize("score", OF_EMBEDDINGS)
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.eye(4), ["a", "a", "a", "a"], "one class only, 'a'"),
        (np.eye(4), ["a", "b", "a"], "4 rows and 3 labels"),
        (np.eye(4), ["a", None, "b", "b"], "1 missing labels, the first in row 1"),
        (np.eye(4), [1.0, np.nan, 2.0, 2.0], "missing labels"),
        (np.eye(4), [0.1, 0.2, 0.3, 0.4], "with fractions but expected classes"),
        (np.eye(4), np.eye(4), "labels of shape"),
        (np.eye(4), iter("aabb"), "labels of shape"),
        (np.eye(4), [["a"], ["a", "b"], ["b"], ["b"]], "labels that cannot be read"),
        (np.eye(4), [{"a"}, {"a"}, {"b"}, {"b"}], "labels that cannot be read"),
        (np.full((4, 2), np.nan), list("aabb"), "not finite, the first of them row 0"),
        (np.zeros(4), list("aabb"), "of shape"),
        (np.zeros((4, 0)), list("aabb"), "of shape"),
        ([["x"]] * 4, list("aabb"), "are no numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    score: Any, features: Any, labels: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score(features, labels)


def test_the_probe_refuses_a_class_of_fewer_images_than_folds() -> None:
    with pytest.raises(InputError, match="class 'b' of 2 image"):
        linear_probe_score(np.eye(5), list("aaabb"))


def test_labels_of_any_kind_name_the_same_classes() -> None:
    features, labels = problem(0)
    expected = log_me(features, labels)
    kinds: list[Any] = [
        labels.tolist(),
        labels.astype(float),
        labels.astype(str),
        [f"{label}" for label in labels],
        np.array([f"{label}" for label in labels], dtype=object),
        [("cat", int(label)).__repr__() for label in labels],
        [int(label) if label else "nought" for label in labels],
    ]
    for kind in kinds:
        assert log_me(features, kind) == pytest.approx(expected, abs=1e-12)
    assert log_me(features.astype(np.float32), labels) == pytest.approx(expected, abs=1e-4)
