"""Comparing real images: the figures are those of the parts, and each image is embedded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from featx import FineTunedClassifier, ImageEmbedder, compare_strategies, load_image_folder
from featx._comparison.splits import make_splits, split_folds
from featx._errors import ImageDecodeError, ImageDecodeWarning, InputError
from featx._extraction.torch_runtime import TorchRuntime
from featx._labels import encode_labels
from featx._selection.heads import choose_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.utils import Bunch

    from featx._comparison.comparison import Comparison

pytestmark = pytest.mark.usefixtures("short_searches")

TINY: dict[str, Any] = {
    "backbone": "timm/test_efficientnet",
    "weights": None,
    "image_size": 32,
    "batch_size": 4,
    "runtime": "torch",
    "device": "cpu",
    "num_workers": 0,
    "progress": False,
}
QUICK = ["logistic_regression", "linear_head"]


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"blue": 8, "green": 8, "red": 8}))


def compare(photos: Bunch, strategies: Any = QUICK, **params: Any) -> Comparison:
    embedder = ImageEmbedder(**(TINY | params.pop("embedder", {})))
    settings: dict[str, Any] = {"strategies": strategies, "cv": 2, "epochs": 1} | params
    return compare_strategies(photos.paths, photos.target, embedder=embedder, **settings)


def test_every_default_strategy_runs(photos: Bunch) -> None:
    seen: list[tuple[int, int]] = []

    def report(so_far: Comparison, total: int) -> None:
        assert len(so_far.summary()) == min(len(so_far.runs), 7)
        assert so_far.verdict()
        seen.append((len(so_far.runs), total))

    comparison = compare(photos, "default", report=report)
    assert seen == [(number, 14) for number in range(1, 15)]
    summary = comparison.summary()
    assert set(summary["test_images"]) == {24}
    assert (summary[["fit_seconds", "predict_seconds", "cost"]] > 0).all(axis=None)
    assert len(comparison.results) == 14
    # Classes of one colour each: even a random network tells them apart.
    assert summary.set_index("strategy").loc["logistic_regression", "accuracy"] > 0.9


def test_a_frozen_strategy_is_a_search_inside_each_fold(photos: Bunch) -> None:
    comparison = compare(photos, "rbf_svm", random_state=3)
    vectors = ImageEmbedder(**TINY).transform(photos.paths)
    [head] = choose_heads("rbf_svm", 3)
    for run in comparison.runs:
        model = make_pipeline(clone(head.scaler), clone(head.classifier))
        train, test = run.split.train, run.split.test
        searched = [
            model.set_params(svc__C=c, svc__gamma=gamma)
            .fit(vectors[train], photos.target[train])
            .predict(vectors[test])
            == photos.target[test]
            for c in head.grid["C"]
            for gamma in head.grid["gamma"]
        ]
        assert any(np.array_equal(hits, run.hits) for hits in searched)


@pytest.mark.parametrize(
    ("strategies", "count"),
    [
        (["rbf_svm", "k_nearest_neighbors", "linear_head", "last_stage"], 40),
        pytest.param("all", 60, marks=pytest.mark.slow),
    ],
)
def test_labels_drawn_at_random_cannot_be_predicted(strategies: Any, count: int) -> None:
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))
    comparison = compare_strategies(
        images, random.permutation([0, 1] * (count // 2)), strategies=strategies, cv=2, epochs=1,
        embedder=ImageEmbedder(**TINY),
    )  # fmt: skip
    assert (comparison.summary()["accuracy"] < 0.75).all(), "the test is seen in training"


def test_folds_that_are_given_are_those_of_the_images_as_they_were_given(
    photos: Bunch,
) -> None:
    groups = np.arange(24) % 4
    pairs = GroupKFold(2).split(photos.paths, photos.target, groups)
    for path in photos.paths[:2]:
        Path(path).write_bytes(b"no image")
    with pytest.warns(ImageDecodeWarning):
        comparison = compare(photos, "logistic_regression", cv=pairs, skip_unreadable=True)
    assert len(comparison.runs) == 2
    left = groups[2:]
    for run in comparison.runs:
        assert not {*left[run.split.train]} & {*left[run.split.test]}
    assert sum(len(run.split.test) for run in comparison.runs) == 22


def test_a_trained_strategy_is_the_classifier_by_itself(photos: Bunch) -> None:
    own = FineTunedClassifier(
        **{name: TINY[name] for name in ("backbone", "weights", "image_size", "device")},
        epochs=1, num_workers=0, progress=False,
    )  # fmt: skip
    comparison = compare(
        photos, "linear_head", own_strategies={"mine": own}, labels_per_class=[2, "all"]
    )
    codes = encode_labels(photos.target)
    splits = make_splits(split_folds(codes, 2, 0), codes, [2, "all"], 0)
    mine = [run for run in comparison.runs if run.strategy == "mine"]
    for run, split in zip(mine, splits, strict=True):
        assert np.array_equal(run.split.train, split.train)
        images = [photos.paths[row] for row in split.train]
        fitted = clone(own).fit(images, photos.target[split.train])
        predicted = fitted.predict([photos.paths[row] for row in split.test])
        assert np.array_equal(predicted == photos.target[split.test], run.hits)


@pytest.mark.parametrize("cache", ["auto", None])
def test_each_image_is_embedded_once(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch, cache: Any
) -> None:
    rows: list[int] = []
    run = TorchRuntime.run

    def counted(self: TorchRuntime, pixels: Any, lanes: int = 1) -> list[np.ndarray]:
        rows.append(len(pixels))
        return run(self, pixels, lanes)

    # What is timed is embedded anew on purpose.
    monkeypatch.setattr("featx._comparison.compare.seconds_per_image", lambda *_: 0.0)
    monkeypatch.setattr(TorchRuntime, "run", counted)
    compare(
        photos,
        ["linear_svm", "k_nearest_neighbors"],
        labels_per_class=[2, "all"],
        embedder={"cache": cache},
    )
    assert sum(rows) == 24


def test_the_same_seed_gives_the_same_figures(photos: Bunch) -> None:
    columns = ["strategy", "labels_per_class", "fold", "accuracy"]
    first, again = (
        compare(photos, [*QUICK, "all_layers"], labels_per_class=[2, "all"]).results[columns]
        for _ in range(2)
    )
    assert first.equals(again)


def test_a_test_set_takes_the_place_of_the_folds(
    photos: Bunch, make_image_folder: Callable[..., Path]
) -> None:
    test = load_image_folder(make_image_folder({"blue": 3, "red": 2}, name="test"))
    comparison = compare(photos, X_test=test.paths, y_test=test.target, labels_per_class=[3, "all"])
    assert set(comparison.results["fold"]) == {1}
    assert set(comparison.results["test_images"]) == {5}
    assert list(comparison.summary()["train_images"]) == [9, 9, 24, 24]
    for run in comparison.runs:
        assert run.split.train.max() < 24 <= run.split.test.min()


def test_unreadable_images_are_left_out_of_both_sides(
    photos: Bunch, make_image_folder: Callable[..., Path]
) -> None:
    test = load_image_folder(make_image_folder({"blue": 3, "red": 2}, name="test"))
    for path in (photos.paths[0], photos.paths[9], test.paths[1]):
        Path(path).write_bytes(b"no image")
    held_out = {"X_test": test.paths, "y_test": test.target}
    with pytest.raises(ImageDecodeError, match="row 0"):
        compare(photos, **held_out)
    with pytest.warns(ImageDecodeWarning):
        comparison = compare(photos, [*QUICK, "last_stage"], skip_unreadable=True, **held_out)
    assert [failure.row for failure in comparison.failures] == [0, 9, 25]
    assert set(comparison.results["train_images"]) == {22}
    assert set(comparison.results["test_images"]) == {4}


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [0.0, 1.0, 2.0], ["b", "g", "r"], [True, False, True]]
)
def test_labels_of_any_kind(photos: Bunch, labels: list[Any]) -> None:
    photos.target = [labels[number // 8] for number in range(24)]
    summary = compare(photos, ["logistic_regression", "linear_head", "last_stage"]).summary()
    assert len(summary) == 3
    assert summary.set_index("strategy").loc["logistic_regression", "accuracy"] > 0.8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"embedder": {"on_error": "nan"}}, "on_error='nan'"),
        ({"strategies": "frozen"}, "Got strategies='frozen'"),
        ({"labels_per_class": 1}, "whole number of at least 2"),
        ({"labels_per_class": 12}, "the largest class has 12 images to train on|has 4 images"),
        ({"cv": 9}, "Got a class 'blue' of 8 images"),
        ({"y_test": ["blue"]}, "Got y_test without X_test"),
        ({"X_test": ["a.png"], "y_test": ["violet"]}, "class 'violet'"),
        ({"X_test": [], "y_test": []}, r"Got y_test of shape \(0,\)"),
        ({"random_state": -1}, "Got random_state=-1"),
        ({"own_strategies": [1]}, "expected a mapping"),
        ({"X_test": ["a.png"], "y_test": []}, "y_test of shape .0,. but expected one per image"),
        ({"X_test": ["a.png"], "y_test": ["blue", "red"]}, "1 rows and 2 labels"),
        ({"own_strategies": {"mine": DummyClassifier}}, "expected a classifier of images"),
    ],
)
def test_what_is_wrong_is_said_before_any_image_is_read(
    photos: Bunch, params: dict[str, Any], message: str
) -> None:
    for path in photos.paths:
        Path(path).unlink()
    with pytest.raises(InputError, match=message):
        compare(photos, **params)


def test_what_is_no_label_or_embedder_is_one_line(photos: Bunch) -> None:
    with pytest.raises(InputError, match="but expected one per image"):
        compare_strategies(photos.paths, None, embedder=ImageEmbedder(**TINY))
    with pytest.raises(InputError, match="expected an ImageEmbedder, such as"):
        compare_strategies(photos.paths, photos.target, embedder="efficientnet_lite0")


def test_a_test_set_of_which_nothing_can_be_read_is_said(photos: Bunch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with (
        pytest.warns(ImageDecodeWarning),
        pytest.raises(InputError, match="no image to test on but expected at least 1"),
    ):
        compare(photos, X_test=[broken], y_test=["blue"], skip_unreadable=True)
