"""The tables and the verdict say what the runs were."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from featx._comparison.comparison import (
    Comparison,
    TrainingRun,
    accuracy_interval,
    difference_interval,
)
from featx._comparison.splits import Split


def run(strategy: str, hits: list[int], **params: Any) -> TrainingRun:
    trains = params.get("trains", not strategy.startswith("frozen"))
    rows = np.array(params.get("rows", range(len(hits))))
    split = Split(params.get("fold", 1), params.get("budget", "all"), np.arange(100), rows)
    seconds = params.get("seconds", 1.0)
    labels = np.array(params.get("labels", ["cat"] * len(hits)))
    predicted = np.where(np.array(hits, bool), labels, "another")
    return TrainingRun(strategy, strategy, trains, split, labels, predicted, seconds, 0.01)


RIGHT, WRONG = [1], [0]


def test_the_best_frozen_one_is_what_the_others_are_measured_against() -> None:
    frozen, weaker = RIGHT * 80 + WRONG * 20, RIGHT * 70 + WRONG * 30
    tuned = WRONG * 2 + RIGHT * 88 + WRONG * 10
    comparison = Comparison((
        run("frozen a", weaker, seconds=1.0),
        run("frozen b", frozen, seconds=2.0),
        run("tuned", tuned, seconds=50.0),
    ))  # fmt: skip
    table = comparison.summary().set_index("strategy")
    assert list(table.index) == ["tuned", "frozen b", "frozen a"]
    assert list(table["cost"]) == [25, 1, 0.5]
    assert tuple(table.loc["frozen b", ["gain", "gain_low", "gain_high"]]) == (0, 0, 0)
    expected = difference_interval(np.array(tuned, float), np.array(frozen, float))
    assert tuple(table.loc["tuned", ["gain", "gain_low", "gain_high"]]) == expected
    expected = accuracy_interval(np.array(tuned, float))
    assert tuple(table.loc["tuned", ["accuracy", "low", "high"]]) == expected


def test_folds_are_pooled_image_by_image() -> None:
    parts = [
        run("frozen", [1, 1, 0, 0], rows=[0, 2, 4, 6], fold=1, seconds=1.0),
        run("frozen", [1, 1, 1, 0], rows=[1, 3, 5, 7], fold=2, seconds=3.0),
        # The same images, met in another order.
        run("tuned", [1, 1, 0, 0], rows=[0, 2, 4, 6], fold=1, seconds=10.0),
        run("tuned", [0, 1, 1, 1], rows=[7, 5, 3, 1], fold=2, seconds=30.0),
    ]
    table = Comparison(tuple(parts)).summary().set_index("strategy")
    assert list(table["accuracy"]) == [5 / 8, 5 / 8]
    assert list(table["test_images"]) == [8, 8]
    assert list(table["gain"]) == [0, 0]
    assert table.loc["tuned", "std"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    assert list(table["cost"]) == [1, 10]


def test_an_image_that_is_tested_twice_is_one_image() -> None:
    once = Comparison((run("frozen", [1, 0, 1]),)).summary()
    twice = Comparison((run("frozen", [1, 0, 1]), run("frozen", [1, 0, 1], fold=2))).summary()
    columns = ["test_images", "accuracy", "low", "high"]
    assert once[columns].equals(twice[columns])
    assert math.isnan(once["std"][0])


def test_learning_curves_have_a_column_for_each_number_of_labels() -> None:
    runs = [
        run(name, RIGHT * right + WRONG * (10 - right), budget=budget)
        for budget, rights in (("all", (9, 8)), (5, (3, 6)), (10, (4, 7)))
        for name, right in zip(("tuned", "frozen"), rights, strict=True)
    ]
    curves = Comparison(tuple(runs)).learning_curves()
    assert list(curves.columns) == [5, 10, "all"]
    assert list(curves.index) == ["tuned", "frozen"]
    assert curves.to_numpy().tolist() == [[0.3, 0.4, 0.9], [0.6, 0.7, 0.8]]
    assert list(Comparison(tuple(runs)).summary()["labels_per_class"]) == [
        5,
        5,
        10,
        10,
        "all",
        "all",
    ]


@pytest.mark.parametrize(
    ("tuned", "beginning"),
    [(96, "Training the network pays: tuned is 0.160 above frozen"),
     (60, "The network is better left frozen: tuned is 0.200 below frozen"),
     (84, "These images cannot tell: tuned is 0.040 above frozen"),
     (79, "Frozen is enough: tuned is 0.010 below frozen")],
)  # fmt: skip
def test_the_verdict_follows_the_interval(tuned: int, beginning: str) -> None:
    runs = (
        run("frozen", RIGHT * 80 + WRONG * 20, seconds=2.0),
        run("tuned", RIGHT * tuned + WRONG * (100 - tuned), seconds=30.0),
    )
    verdict = Comparison(runs).verdict()
    assert verdict.startswith(beginning)
    assert "15 times as long to train." in verdict


def test_what_is_not_known_to_train_decides_nothing() -> None:
    runs = (
        run("frozen", [1, 0, 0, 0]),
        run("tuned", [1, 1, 0, 0]),
        run("guess", [1, 1, 1, 1], trains=None),
    )
    assert "guess" not in Comparison(runs).verdict()
    assert Comparison(runs[::2]).verdict() == "Best: guess, accuracy 1.000."


def test_before_the_end_only_images_that_both_have_met_are_compared() -> None:
    runs = (
        run("frozen", [1, 0], rows=[0, 1]),
        run("tuned", [1, 1], rows=[0, 1]),
        run("frozen", [0, 0], rows=[2, 3], fold=2),
    )
    table = Comparison(runs).summary().set_index("strategy")
    assert table.loc["tuned", "gain"] == 0.5
    assert table.loc["frozen", "accuracy"] == 0.25


def test_predictions_and_balanced_accuracy() -> None:
    runs = (run("frozen", [1, 1, 1, 0], rows=[4, 2, 7, 5], labels=["cat", "cat", "cat", "dog"]),)
    comparison = Comparison(runs)
    table = comparison.predictions()
    assert list(table["row"]) == [4, 2, 7, 5]
    assert list(table["label"] == table["predicted"]) == [True, True, True, False]
    assert comparison.results["balanced_accuracy"][0] == 0.5
    assert comparison.summary()["balanced_accuracy"][0] == 0.5


def test_without_a_choice_the_verdict_names_the_best() -> None:
    runs = (run("tuned", [1, 0]), run("other", [1, 1], trains=True))
    assert Comparison(runs).verdict() == "Best: other, accuracy 1.000."
    runs = (run("frozen", [1, 0]), run("other", [0, 0], trains=False))
    assert Comparison(runs).verdict() == "Best: frozen, accuracy 0.500."


def test_the_verdict_is_that_of_the_most_labels() -> None:
    runs = tuple(
        run(name, RIGHT * right + WRONG * (100 - right), budget=budget)
        for budget, rights in ((5, (80, 10)), (20, (50, 95)))
        for name, right in zip(("frozen", "tuned"), rights, strict=True)
    )
    assert Comparison(runs).verdict().startswith("Training the network pays")
