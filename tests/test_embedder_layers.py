"""Layers, pooling and views of the embedder: what they are, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from featx import (
    FrozenBackbone,
    ImageEmbedder,
    head_search,
    load_backbone,
    load_image_folder,
    save_model,
)
from featx._errors import InputError
from featx._extraction.onnx_runtime import OnnxRuntime, export_onnx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}
CHOICES = ["penultimate", ("blocks.2", "grid2"), ("blocks.3", "max"), ("blocks.1", "gem")]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 60, 50, 3), dtype=np.uint8)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each call."""
    rows: list[int] = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, pixels: torch.Tensor, lanes: int = 1) -> list[np.ndarray]:
        rows.append(len(pixels))
        return run(self, pixels, lanes)

    monkeypatch.setattr(OnnxRuntime, "run", counted)
    return rows


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_several_layers_are_the_concatenation_of_each(images: np.ndarray, runtime: str) -> None:
    together = ImageEmbedder(
        **TINY,
        runtime=runtime,
        cache=None,
        layers=["penultimate", "blocks.2"],
        pooling=["avg", "grid2"],
    )
    embeddings = together.fit_transform(images)
    alone = [
        ImageEmbedder(**TINY, runtime=runtime, cache=None, layers=layer, pooling=pooling)
        for layer, pooling in (("penultimate", "avg"), ("blocks.2", "grid2"))
    ]
    np.testing.assert_array_equal(embeddings, np.hstack([one.transform(images) for one in alone]))
    names = together.get_feature_names_out()
    assert len(names) == len(set(names)) == embeddings.shape[1] == together.n_features_out_
    assert list(names) == [name for one in alone for name in one.get_feature_names_out()]
    fingerprints = {one.fit(images).recipe_ for one in [together, *alone]}
    assert len(fingerprints) == 3


def test_a_layer_is_one_row_of_the_cache_whoever_asked_for_it(
    images: np.ndarray, forwards: list[int]
) -> None:
    ImageEmbedder(**TINY, layers="blocks.2", pooling="grid2").transform(images)
    assert sum(forwards) == 10
    forwards.clear()
    both = ImageEmbedder(**TINY, layers=["blocks.2", "blocks.3"], pooling=["grid2", "max"])
    first = both.transform(images)
    assert sum(forwards) == 10, "one layer is missing, and one forward brings it"
    forwards.clear()
    np.testing.assert_array_equal(both.transform(images), first)
    np.testing.assert_array_equal(
        ImageEmbedder(**TINY, layers="blocks.3", pooling="max").transform(images), first[:, -48:]
    )
    assert forwards == []


def test_also_cache_changes_neither_rows_nor_fingerprint_and_saves_the_forward(
    images: np.ndarray, forwards: list[int]
) -> None:
    plain = ImageEmbedder(**TINY, cache=None).fit(images)
    wide = ImageEmbedder(**TINY, also_cache=CHOICES[1:]).fit(images)
    assert wide.recipe_ == plain.recipe_
    np.testing.assert_array_equal(wide.transform(images), plain.transform(images))
    forwards.clear()
    for layers, pooling in CHOICES[1:]:
        later = ImageEmbedder(**TINY, layers=layers, pooling=pooling)
        fresh = clone(later).set_params(cache=None)
        rows = later.transform(images)
        assert forwards == []
        np.testing.assert_array_equal(rows, fresh.transform(images))
        forwards.clear()


def test_a_list_among_choices_is_several_layers_and_a_tuple_is_a_pair() -> None:
    choices = [["penultimate", "blocks.2"], ("blocks.2", "grid2")]
    search = head_search(["linear_svm"], embedder=ImageEmbedder(**TINY), layers=choices)
    assert [
        (grid["embedder__layers"], grid["embedder__pooling"]) for grid in search.param_grid
    ] == [
        ([["penultimate", "blocks.2"]], ["avg"]),
        (["blocks.2"], ["grid2"]),
    ]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_four_layers_two_heads_and_five_folds_costs_one_forward_an_image(
    make_image_folder: Callable[..., Path],
    private_cache: Path,
    forwards: list[int],
    n_jobs: int,
) -> None:
    photos = load_image_folder(make_image_folder({"red": 20, "green": 20}))
    search = head_search(
        ["logistic_regression", "k_nearest_neighbors"],
        embedder=ImageEmbedder(**TINY),
        layers=CHOICES,
        cv=5,
        n_jobs=n_jobs,
    )
    search.fit(photos.paths, photos.target)
    rows = list(private_cache.rglob("*.arrow"))
    assert len({path.parent for path in rows}) == 4
    if n_jobs == 1:
        # The first fold of the first candidate brings 32 images, the second the 8 others.
        assert sum(forwards) == 40
    forwards.clear()
    assert search.predict(photos.paths[:2]).shape == (2,)
    for layers, pooling in CHOICES[1:]:
        embedder = ImageEmbedder(**TINY, layers=layers, pooling=pooling)
        assert embedder.transform(photos.paths).shape[0] == 40
    assert forwards == []


def test_flip_is_the_average_of_an_image_and_its_mirror_image() -> None:
    embedder = ImageEmbedder(**TINY, cache=None)
    side = load_backbone(TINY["backbone"], weights=None).preprocessing.resize
    images = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    both = clone(embedder).set_params(views="flip").transform(images)
    apart = [embedder.transform(images), embedder.transform(images[:, :, ::-1])]
    np.testing.assert_allclose(both, np.mean(apart, axis=0), rtol=1e-5, atol=1e-6)
    assert not np.allclose(both, apart[0])


@pytest.mark.parametrize("views", ["flip", "five_crops", "ten_crops", "multiscale"])
def test_views_keep_the_laws(images: np.ndarray, views: str) -> None:
    embedder = ImageEmbedder(**TINY, views=views, cache=None)
    whole = embedder.transform(images)
    order = np.random.default_rng(2).permutation(len(images))[:7]
    np.testing.assert_array_equal(embedder.transform(images[order]), whole[order])
    # In a cache that holds the same images without these views.
    center = ImageEmbedder(**TINY).transform(images)
    cached = clone(embedder).set_params(cache="auto", batch_size=32)
    np.testing.assert_array_equal(cached.transform(images), whole)
    np.testing.assert_array_equal(ImageEmbedder(**TINY).transform(images), center)
    assert not np.allclose(whole, center)


class Doubled(nn.Module):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 5, stride=4)
        self.classifier = nn.Linear(6, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stem(pixels).mean((2, 3)))


def test_a_network_of_ones_own_is_a_backbone_in_a_pipeline_and_a_search(
    images: np.ndarray, tmp_path: Path
) -> None:
    backbone = FrozenBackbone(Doubled(), name="doubled")
    embedder = ImageEmbedder(backbone, device="cpu", batch_size=4)
    assert clone(embedder).backbone is backbone
    labels = np.arange(len(images)) % 2
    pipeline = make_pipeline(embedder, LogisticRegression())
    search = GridSearchCV(
        pipeline, {"imageembedder__layers": ["penultimate", "stem"]}, cv=2, n_jobs=2
    ).fit(images, labels)
    assert search.best_estimator_[0].get_feature_names_out()[0].startswith("doubled_")
    with pytest.raises(InputError, match=r"imageembedder__backbone is FrozenBackbone\('doubled'"):
        save_model(search.best_estimator_, tmp_path / "model.skops")
    save_model(search.best_estimator_[1:], tmp_path / "head.skops")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": "block.2"}, "blocks.2"),
        ({"pooling": "average"}, "avg"),
        ({"views": "mirror"}, "views='mirror'"),
        ({"layers": ["blocks.1", "blocks.2"], "pooling": ["avg"]}, "pooling"),
        ({"also_cache": "blocks.2"}, "also_cache='blocks.2'"),
        ({"also_cache": [("blocks.2",)]}, "pairs of layers and pooling"),
        ({"also_cache": [("blocks.2", "grid2", "max")]}, "pairs of layers and pooling"),
    ],
)
def test_a_wrong_choice_is_one_line_that_names_it(
    images: np.ndarray, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        ImageEmbedder(**TINY).set_params(**params).fit(images)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_search_over_layers_exports_the_network_once(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[int] = []

    def counted(network: nn.Module, rows: int, side: int) -> bytes:
        exports.append(rows)
        return export_onnx(network, rows, side)

    monkeypatch.setattr("featx._extraction.onnx_runtime.export_onnx", counted)
    # Fresh weights: nothing of them is open or kept from another test.
    backbone = FrozenBackbone(load_backbone("timm/test_efficientnet", weights=None).module)
    search = head_search(
        "logistic_regression",
        embedder=ImageEmbedder(backbone, batch_size=4, device="cpu"),
        layers=CHOICES,
        cv=2,
    )
    search.fit(list(images), ["a", "b"] * 5)
    assert exports == [4]
