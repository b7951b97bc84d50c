"""Frozen layers are bit-identical after a training, unfrozen ones are changed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMED, OWN, TinyCNN, make_images, tensors_of
from torch import nn
from torchvision.models import VisionTransformer

from featx import FrozenBackbone, Preprocessing, load_backbone
from featx._backbones.probe import probe_network
from featx._errors import InputError
from featx._finetuning.classifier import FineTunedClassifier
from featx._finetuning.network import assemble_network, locate_classifier
from featx._finetuning.unfreezing import list_stages, modules_to_train

BLOCKS = [f"blocks.{number}" for number in range(5)]


def changed_and_frozen(classifier: FineTunedClassifier) -> tuple[set[str], set[str]]:
    """Return the tensors that a training changed, and those that it did not."""
    before = tensors_of(load_backbone("timm/test_efficientnet", weights=None, image_size=32).module)
    after = tensors_of(classifier.network_.module)
    same = {
        name
        for name in after
        if after[name].shape == before[name].shape
        and after[name].tobytes() == before[name].tobytes()
    }
    return set(after) - same, same


@settings(max_examples=8, deadline=None)
@given(
    chosen=st.lists(st.sampled_from(["conv_stem", "bn1", *BLOCKS, "conv_head"]), unique=True),
    augment=st.sampled_from([None, "light"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
)
def test_what_is_named_changes_and_nothing_else_by_a_bit(
    chosen: list[str], augment: Any, optimizer: str
) -> None:
    images, labels = make_images(6)
    classifier = FineTunedClassifier(
        **NAMED, unfreeze=chosen or "head", augment=augment, optimizer=optimizer,
        learning_rate=0.1, weight_decay=0.1, epochs=1,
    ).fit(images, labels)  # fmt: skip
    changed, frozen = changed_and_frozen(classifier)
    expected = {
        name
        for name in changed | frozen
        for layer in [*chosen, "classifier"]
        if name.startswith(f"{layer}.")
    }
    assert changed == expected


@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_the_last_stages_change(stages: int) -> None:
    images, labels = make_images(6)
    classifier = FineTunedClassifier(**NAMED, unfreeze=stages, learning_rate=0.1, epochs=1)
    changed, frozen = changed_and_frozen(classifier.fit(images, labels))
    assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == {
        str(number) for number in range(5 - stages, 5)
    }
    assert any(name.startswith("conv_head") for name in changed) == (stages > 0)
    assert any(name.startswith("conv_stem") for name in changed) == (stages == 5)
    assert bool(frozen) == (stages < 5)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_the_first_stages_stay_frozen(stages: int) -> None:
    images, labels = make_images(6)
    parameters = NAMED | {"learning_rate": 0.1, "epochs": 1}
    behind, last = (
        FineTunedClassifier(**parameters, unfreeze=unfreeze).fit(images, labels)
        for unfreeze in (-stages, 5 - stages)
    )
    assert changed_and_frozen(behind) == changed_and_frozen(last)
    changed, _ = changed_and_frozen(behind)
    assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == {
        str(number) for number in range(stages, 5)
    }


def test_all_changes_everything() -> None:
    images, labels = make_images(6)
    classifier = FineTunedClassifier(**NAMED, unfreeze="all", learning_rate=0.1, epochs=1)
    _, frozen = changed_and_frozen(classifier.fit(images, labels))
    assert frozen == set()


def test_neither_the_backbone_nor_a_given_module_is_changed() -> None:
    images, labels = make_images(6)
    module = TinyCNN()
    backbone = FrozenBackbone(module)
    before, before_frozen = tensors_of(module), tensors_of(backbone.module)
    for given_backbone in (module, backbone):
        size = {} if given_backbone is backbone else {"image_size": 16}
        parameters = {name: value for name, value in OWN.items() if name != "image_size"}
        FineTunedClassifier(**parameters | size | {"backbone": given_backbone}, epochs=1).fit(
            images, labels
        )
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training
    for name, tensor in tensors_of(module).items():
        np.testing.assert_array_equal(tensor, before[name])
        np.testing.assert_array_equal(tensors_of(backbone.module)[name], before_frozen[name])


def test_frozen_modules_stay_in_eval_mode_while_others_train() -> None:
    backbone = FrozenBackbone(TinyCNN())
    network = assemble_network(backbone, ["8", "9"], 3, (), 0.0, seed=0).train()
    training = {name for name, part in network.module.named_modules() if part.training}
    assert training == {"8", "9", "14"}


class SmallVGG(nn.Module):
    """Three blocks of convolutions, dense layers, a classifier; forward as in torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for taken, given_channels in pairwise((3, 4, 6, 8)):
            layers += [nn.Conv2d(taken, given_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(values)).flatten(1))


SMALL = {
    "vgg": SmallVGG,
    "transformer": lambda: VisionTransformer(32, 8, 3, 2, hidden_dim=16, mlp_dim=32),
}


@pytest.mark.parametrize(
    ("name", "size", "count", "last"),
    [
        ("timm/resnet18", 64, 5, "layer4.0.conv1"),
        ("efficientnet_lite0", 64, 5, "conv_head"),
        ("timm/vit_tiny_patch16_224", None, 12, "blocks.11.mlp.fc1"),
        ("vgg", None, 4, "classifier.0"),
        ("torchvision/resnet18", 64, 5, "layer4.1.bn2"),
        ("transformer", None, 3, "encoder.layers.encoder_layer_2.mlp.0"),
    ],
)
def test_stages_are_those_of_the_literature(
    name: str, size: int | None, count: int, last: str
) -> None:
    if name in SMALL:
        recipe = Preprocessing(32, 32, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
        backbone = FrozenBackbone(SMALL[name](), recipe)
    else:
        backbone = load_backbone(name, weights=None, image_size=size)
    classifier = locate_classifier(backbone)
    module, side = backbone.module, backbone.preprocessing.image_size
    outputs = probe_network(module, side, classifier, name).outputs
    stages = list_stages(module, classifier, outputs)
    assert len(stages) == count
    assert last in stages[-1]
    # Each module that works is in one stage, but for those of the classifier.
    members = [member for stage in stages for member in stage]
    assert len(members) == len(set(members))
    owners = {parameter.rpartition(".")[0] for parameter, _ in module.named_parameters()}
    assert owners - set(members) == {classifier}
    # More stages never train less, and all of them train everything.
    chosen = [
        modules_to_train(module, number, classifier, outputs, name) for number in range(count + 1)
    ]
    assert all(fewer < more for fewer, more in pairwise(chosen))
    assert owners <= chosen[-1]


def test_a_network_of_one_resolution_has_its_layers_as_stages() -> None:
    images, labels = make_images(6)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip
    parameters = OWN | {"backbone": module, "unfreeze": 1, "epochs": 1}
    after = tensors_of(FineTunedClassifier(**parameters).fit(images, labels).network_.module)
    before = tensors_of(module)
    assert after["0.weight"].tobytes() == before["0.weight"].tobytes()
    assert after["1.weight"].tobytes() != before["1.weight"].tobytes()


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        (
            "bloks.4",
            "Got unfreeze='bloks.4' but expected .* timm/test_eff.* did you mean 'blocks.4'",
        ),
        (["blocks.4", "nothing"], "Got unfreeze='nothing' but expected a layer that"),
        ("heads", "did you mean 'head'"),
        (6, "Got unfreeze=6 but expected 0 to 5, -1 to -5 for all but the first .* has 5 stages"),
        (-6, "Got unfreeze=-6"),
        ([], "expected 'head', 'all', a number of stages"),
        (None, "Got unfreeze=None but expected"),
        (True, "Got unfreeze=True but expected"),
        ([1], "expected 'head', 'all'"),
    ],
)
def test_a_layer_that_does_not_exist_is_said(unfreeze: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FineTunedClassifier(**NAMED, unfreeze=unfreeze).fit(*make_images(6))


@pytest.mark.parametrize(
    ("batch_norm", "fresh", "moves"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("keep", True, False),
        ("update", False, True),
    ],
)
def test_statistics_that_were_measured_are_kept(batch_norm: str, fresh: bool, moves: bool) -> None:
    module = TinyCNN()
    if not fresh:
        module(torch.rand(8, 3, 16, 16))
    parameters = OWN | {"backbone": module, "batch_norm": batch_norm, "epochs": 1}
    classifier = FineTunedClassifier(**parameters).fit(*make_images(12))
    before, after = tensors_of(module), tensors_of(classifier.network_.module)
    for name in before:
        has_moved = before[name].tobytes() != after[name].tobytes()
        is_statistic = "running" in name or "batches" in name
        assert has_moved == (moves or not is_statistic), name
