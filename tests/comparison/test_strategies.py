"""Strategies: what each trains, and that all of them begin with the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from featx import FineTunedClassifier, FrozenBackbone, ImageEmbedder
from featx._comparison.strategies import DEFAULT_NAMES, NAMES, Strategy, choose_strategies
from featx._errors import InputError


def choose(names: Any = "all", own_strategies: Any = None, **params: Any) -> dict[str, Strategy]:
    chosen = choose_strategies(
        names, own_strategies, embedder=ImageEmbedder(**params), epochs=4, random_state=7
    )
    return {strategy.name: strategy for strategy in chosen}


def test_groups_and_names_are_run_in_one_order() -> None:
    assert tuple(choose()) == NAMES
    assert tuple(choose("default")) == DEFAULT_NAMES
    assert list(choose(["from_scratch", "rbf_svm"])) == ["rbf_svm", "from_scratch"]
    assert list(choose("linear_head")) == ["linear_head"]


def test_trained_ones_take_network_and_device_from_the_embedder() -> None:
    shared = {
        "backbone": "timm/test_efficientnet",
        "weights": None,
        "image_size": 64,
        "device": "cpu",
        "num_workers": 0,
        "max_pixels": 10**6,
        "max_file_bytes": 10**6,
        "progress": False,
    }
    trained = [strategy for strategy in choose(**shared).values() if strategy.trains]
    assert [strategy.classifier.unfreeze for strategy in trained] == [1, "all", "all"]
    for strategy in trained:
        params = strategy.classifier.get_params(deep=False)
        assert {name: params[name] for name in shared} == shared
        assert params["random_state"] == 7
    assert [strategy.classifier.epochs for strategy in trained] == [4, 4, 12]
    pretrained = choose(backbone="efficientnet_lite0")
    assert pretrained["all_layers"].classifier.weights == "default"
    assert pretrained["from_scratch"].classifier.weights is None


def test_a_network_that_is_no_name_cannot_be_made_anew() -> None:
    backbone = FrozenBackbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    assert tuple(choose("default", backbone=backbone)) == DEFAULT_NAMES[:-1]
    with pytest.raises(InputError, match="layers cannot be made anew"):
        choose(["from_scratch"], backbone=backbone)


def test_neighbours_and_folds_fit_the_images() -> None:
    strategy = choose()["k_nearest_neighbors"]
    search = strategy.make_classifier(np.array([0, 0, 0, 1, 1]), 0)
    assert search.cv.get_n_splits() == 2
    assert search.param_grid == {"head__n_neighbors": [2]}
    search = strategy.make_classifier(np.arange(40) % 2, 0)
    assert search.cv.get_n_splits() == 5
    assert search.param_grid == {"head__n_neighbors": [3, 7, 15]}


def test_own_strategies_train_the_network_where_that_can_be_told() -> None:
    tuned = FineTunedClassifier(epochs=1)
    own = {
        "tuned": tuned,
        "searched": GridSearchCV(tuned, {"unfreeze": [1, 2]}),
        "frozen": make_pipeline(ImageEmbedder(), LogisticRegression()),
        "neither": DummyClassifier(),
    }
    trains = {name: strategy.trains for name, strategy in choose([], own).items()}
    assert trains == {"tuned": True, "searched": True, "frozen": False, "neither": None}


def test_own_strategies_come_last() -> None:
    own = FineTunedClassifier(epochs=1)
    assert list(choose("rbf_svm", {"mine": own})) == ["rbf_svm", "mine"]
    assert list(choose([], {"mine": DummyClassifier()})) == ["mine"]


@pytest.mark.parametrize(
    ("names", "own_strategies", "message"),
    [
        ("rbf_smv", None, "did you mean 'rbf_svm'"),
        ([], None, "Got no strategies"),
        ("rbf_svm", {"rbf_svm": DummyClassifier()}, "is taken"),
        ("rbf_svm", {"mine": Ridge()}, "expected a classifier of images"),
        ("rbf_svm", {"mine": DummyClassifier}, "expected a classifier of images"),
        ("rbf_svm", [DummyClassifier()], "expected a mapping of names"),
    ],
)
def test_strategies_that_cannot_be_are_refused(
    names: Any, own_strategies: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose(names, own_strategies)
