"""A trained network is written without code, and read as the same classifier."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from networks import NAMED, OWN, TinyCNN, make_images
from safetensors.torch import save_file
from torch import nn

from featx import ImageEmbedder
from featx._errors import InputError, SchemaError, WeightsError
from featx._finetuning.classifier import FineTunedClassifier

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "labels",
    [["cat", "dög"], np.array(["a", "bc"], dtype=object), [3, 7], [False, True], [0.0, 2.0]],
    ids=str,
)
def test_what_is_written_is_read_as_the_same_classifier(labels: Any, tmp_path: Path) -> None:
    images, y = make_images(8, labels)
    parameters = NAMED | {"unfreeze": "all", "epochs": 1, "hidden_layer_sizes": (4,)}
    classifier = FineTunedClassifier(**parameters).fit(images, y)
    classifier.save_weights(tmp_path / "own.safetensors")
    same = FineTunedClassifier(**parameters).load_weights(tmp_path / "own.safetensors")
    assert same.classes_.dtype == classifier.classes_.dtype
    assert same.classes_.tolist() == classifier.classes_.tolist()
    assert same.predict_proba(images).tobytes() == classifier.predict_proba(images).tobytes()
    assert same.score(images, y) == classifier.score(images, y)
    assert same.freeze().weights_sha256 == classifier.freeze().weights_sha256


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    classifier = FineTunedClassifier(**OWN, epochs=1).fit(*make_images(6))
    classifier.save_weights(tmp_path / "own.safetensors")
    others = {
        "backbone 'TinyCNN', but this one has 'timm/test_efficientnet'": NAMED,
        r"hidden_layer_sizes \[\], but this one has \[4\]": OWN | {"hidden_layer_sizes": (4,)},
        "image_size 16, but this one has 32": OWN | {"image_size": 32},
    }
    for message, other in others.items():
        with pytest.raises(SchemaError, match=message):
            FineTunedClassifier(**other).load_weights(tmp_path / "own.safetensors")
    wider = TinyCNN()
    wider[0], wider[4] = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 6, 3, padding=1)
    wider[1] = nn.BatchNorm2d(9)
    with pytest.raises(WeightsError, match="do not fit the network"):
        FineTunedClassifier(**OWN | {"backbone": wider}).load_weights(tmp_path / "own.safetensors")


def test_a_file_of_before_says_that_it_does_not_know_its_network(tmp_path: Path) -> None:
    images, labels = make_images(6)
    classifier = FineTunedClassifier(**OWN, epochs=1).fit(images, labels)
    module = classifier.network_.module
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    described = describe(classes=["blue", "green", "red"], dtype="<U5")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        tmp_path / "old.safetensors",
        described,
    )
    with pytest.warns(UserWarning, match="written by featx 0.1"):
        same = FineTunedClassifier(**OWN).load_weights(tmp_path / "old.safetensors")
    assert same.predict_proba(images).tobytes() == classifier.predict_proba(images).tobytes()


def describe(**changes: Any) -> dict[str, str]:
    described = {"version": 1, "classes": ["a", "b"], "dtype": "<U1"} | changes
    return {"featx": json.dumps(described)}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"featx": "{"},
        describe(version=2),
        describe(classes="ab"),
        describe(classes=["a"]),
        describe(classes=[["a", "b"]]),
        describe(dtype="nothing"),
        describe(dtype="<M8[s]"),
    ],
)
def test_a_file_of_somebody_else_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "own.safetensors", metadata)
    with pytest.raises(SchemaError, match="was not written by save_weights"):
        FineTunedClassifier(**OWN).load_weights(tmp_path / "own.safetensors")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    FineTunedClassifier(**OWN, epochs=1).fit(*make_images(6)).save_weights(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SchemaError, match="or is damaged"):
        FineTunedClassifier(**OWN).load_weights(file)
    with pytest.raises(InputError, match="There is no weights file"):
        FineTunedClassifier(**OWN).load_weights(tmp_path / "nothing.safetensors")


def test_an_embedder_over_a_file_takes_images_of_the_size_that_it_was_trained_at(
    tmp_path: Path,
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    classifier = FineTunedClassifier(
        "timm/test_efficientnet", weights=None, image_size=32, epochs=1, progress=False
    )
    classifier.fit(images, ["cat", "dog"] * 3).save_weights(tmp_path / "pets.safetensors")
    vectors = [
        embedder.transform(images)
        for embedder in (
            ImageEmbedder(classifier.freeze(), progress=False, cache=None),
            ImageEmbedder(
                "timm/test_efficientnet",
                weights=str(tmp_path / "pets.safetensors"),
                progress=False,
                cache=None,
            ),
        )
    ]
    np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-6)
