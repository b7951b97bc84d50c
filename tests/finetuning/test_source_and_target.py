"""What was trained on one task is the frozen backbone of another."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from networks import NAMED, OWN, make_images, tensors_of
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from featx import FrozenBackbone, ImageEmbedder, load_backbone
from featx._errors import InputError
from featx._finetuning.classifier import FineTunedClassifier

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("parameters", [OWN, NAMED | {"unfreeze": 2}], ids=["own", "named"])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_its_features_are_those_that_its_own_head_takes(
    parameters: dict[str, Any], hidden: tuple[int, ...]
) -> None:
    images, labels = make_images(12)
    source = FineTunedClassifier(**parameters, epochs=2, hidden_layer_sizes=hidden)
    source.fit(images, labels)
    embedder = ImageEmbedder(source.freeze(), device="cpu", runtime="torch")
    features = torch.from_numpy(embedder.fit_transform(images))
    with torch.inference_mode():
        probabilities = source.network_.head(features).softmax(1)
    np.testing.assert_allclose(probabilities, source.predict_proba(images), atol=1e-5)


def test_the_target_is_learnt_on_frozen_features_in_a_search() -> None:
    source = FineTunedClassifier(**OWN | {"epochs": 10}).fit(*make_images(60))
    embedder = ImageEmbedder(source.freeze(), device="cpu", runtime="torch")
    pipe = make_pipeline(embedder, LogisticRegression(C=100))
    images, labels = make_images(30, ["warm", "cold"], seed=1)
    before = tensors_of(source.network_)
    assert cross_val_score(pipe, images, labels, cv=3).mean() > 0.9
    assert all(
        tensor.tobytes() == before[name].tobytes()
        for name, tensor in tensors_of(source.network_).items()
    )


def test_the_frozen_network_is_a_copy() -> None:
    images, labels = make_images(12)
    source = FineTunedClassifier(**OWN, epochs=1).fit(images, labels)
    backbone = source.freeze()
    settings: dict[str, Any] = {"device": "cpu", "runtime": "torch", "cache": None}
    expected = ImageEmbedder(backbone, **settings).transform(images)
    with torch.no_grad():
        for parameter in source.network_.parameters():
            parameter.zero_()
    again = ImageEmbedder(backbone, **settings).transform(images)
    assert again.tobytes() == expected.tobytes()
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_another_training_is_another_fingerprint() -> None:
    images, labels = make_images(12)
    fingerprints = {
        ImageEmbedder(
            FineTunedClassifier(**NAMED, unfreeze=unfreeze, epochs=1).fit(images, labels).freeze(),
            device="cpu",
            runtime="torch",
        )
        .fit(images)
        .recipe_
        for unfreeze in (1, 2, "all")
    }
    assert len(fingerprints) == 3


def test_first_layers_of_the_source_stay_frozen_in_a_training_for_the_target() -> None:
    source = FineTunedClassifier(**OWN | {"epochs": 2}).fit(*make_images(12))
    parameters = {name: value for name, value in OWN.items() if name not in ("image_size",)}
    target = FineTunedClassifier(
        **parameters
        | {"backbone": source.freeze(), "unfreeze": ["8", "9"], "epochs": 1}
        | {"batch_norm": "update"}
    ).fit(*make_images(12, ["warm", "cold"]))
    first, second = tensors_of(source.network_.module), tensors_of(target.network_.module)
    for name in first:
        if not name.startswith("14."):
            is_same = first[name].tobytes() == second[name].tobytes()
            assert is_same == (not name.startswith(("8.", "9."))), name


def test_a_frozen_network_goes_through_pickle_and_clone() -> None:
    images, labels = make_images(8)
    backbone = FineTunedClassifier(**NAMED, epochs=1).fit(images, labels).freeze()
    embedder = ImageEmbedder(backbone, device="cpu", runtime="torch")
    expected = embedder.fit_transform(images)
    for same in (pickle.loads(pickle.dumps(embedder)), clone(embedder)):
        assert same.fit_transform(images).tobytes() == expected.tobytes()


def test_saved_weights_are_read_as_those_of_the_network(tmp_path: Path) -> None:
    images, labels = make_images(12)
    source = FineTunedClassifier(**NAMED, unfreeze="all", epochs=1, hidden_layer_sizes=(4,))
    source.fit(images, labels).save_weights(tmp_path / "own.safetensors")
    backbone = load_backbone(NAMED["backbone"], weights=tmp_path / "own.safetensors", image_size=32)
    taken = ImageEmbedder(backbone, device="cpu", runtime="torch").transform(images)
    frozen = ImageEmbedder(source.freeze(), device="cpu", runtime="torch").transform(images)
    np.testing.assert_allclose(taken, frozen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["own.pth", "nowhere/own.safetensors", "."])
def test_a_file_that_cannot_be_written_is_said(name: str, tmp_path: Path) -> None:
    source = FineTunedClassifier(**OWN, epochs=1).fit(*make_images(6))
    with pytest.raises(InputError, match="Got "):
        source.save_weights(tmp_path / name)


def test_a_frozen_backbone_keeps_its_recipe() -> None:
    source = FineTunedClassifier(**OWN, epochs=1).fit(*make_images(6))
    backbone = source.freeze()
    assert isinstance(backbone, FrozenBackbone)
    assert backbone.preprocessing == source.preprocessing_
    assert backbone.preprocessing.image_size == OWN["image_size"]
    assert backbone.name == "TinyCNN_finetuned"
