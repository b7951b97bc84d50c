"""Any layer, pooled in any way, several in one forward."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import nn

from featx._backbones.frozen import FrozenBackbone
from featx._backbones.taps import Tap
from featx._errors import InputError
from featx._images.faults import no_warnings
from featx._images.preprocess import Preprocessing

HALF = (0.5, 0.5, 0.5)


def recipe(side: int = 64) -> Preprocessing:
    return Preprocessing(side, side, "bilinear", HALF, HALF)


@functools.cache
def load(name: str) -> FrozenBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.startswith("torchvision/"):
            module = torchvision.models.get_model(name.removeprefix("torchvision/"))
        else:
            module = timm.create_model(name)
    side = 160 if name.startswith("test_") else 224
    return FrozenBackbone(module, recipe(side), name=name)


def images(backbone: FrozenBackbone, count: int = 2) -> torch.Tensor:
    side = backbone.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def compute(backbone: FrozenBackbone, taps: tuple[Tap, ...]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(backbone.network(taps)(images(backbone)))


def outputs_of(backbone: FrozenBackbone, layers: list[str]) -> dict[str, torch.Tensor]:
    """Return copies of the outputs of some layers, by hooks of the test's own."""
    network = backbone.network(backbone.taps())
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for layer in layers:

        def keep(_module: Any, _inputs: Any, output: torch.Tensor, layer: str = layer) -> None:
            kept[layer] = output.clone()

        handles.append(network.module.get_submodule(layer).register_forward_hook(keep))
    with torch.inference_mode():
        network(images(backbone))
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("test_efficientnet", ["conv_stem", "bn1", "blocks.1", "blocks.3.0.conv_pw", "blocks.4"]),
        ("torchvision/resnet18", ["conv1", "relu", "layer2.0.bn2", "layer3", "avgpool"]),
    ],
)
def test_each_layer_is_read_as_it_left_its_module(name: str, layers: list[str]) -> None:
    # Among them are maps that later modules change in place.
    backbone = load(name)
    kept = outputs_of(backbone, layers)
    for pooling in ("avg", "flatten"):
        for layer, vectors in zip(
            layers, compute(backbone, backbone.taps(layers, pooling)), strict=True
        ):
            maps = kept[layer]
            expected = maps.mean((2, 3)) if pooling == "avg" else maps.flatten(1)
            torch.testing.assert_close(vectors, expected)


def test_several_taps_cost_one_forward_and_are_the_vectors_of_each_alone() -> None:
    backbone = load("test_efficientnet")
    taps = backbone.taps(
        ["penultimate", "blocks.3", "blocks.4", "penultimate"], ["avg", "grid2", "gem", "max"]
    )
    network = backbone.network(taps)
    runs: list[int] = []
    handle = network.module.conv_stem.register_forward_hook(lambda *_: runs.append(1))
    together = compute(backbone, taps)
    handle.remove()
    assert len(runs) == 1
    for tap, vectors in zip(taps, together, strict=True):
        assert torch.equal(vectors, compute(backbone, (tap,))[0])
        assert vectors.shape[1] == backbone.dimension(tap) == len(backbone.feature_names(tap))


@pytest.mark.parametrize(
    ("name", "dimension", "tokens"),
    [
        ("test_efficientnet", 256, None),
        ("torchvision/squeezenet1_1", 512, None),
        ("torchvision/mobilenet_v3_small", 1024, None),
        ("test_vit", 64, 100),
    ],
)
def test_penultimate_is_the_networks_own_vector(
    name: str, dimension: int, tokens: int | None
) -> None:
    backbone = load(name)
    assert backbone.dimension(Tap("penultimate", "avg")) == dimension
    (maps,) = backbone.taps("penultimate", "grid2")
    assert backbone.dimension(maps) % 4 == 0
    if tokens:
        (cls, avg) = compute(backbone, backbone.taps(["penultimate"] * 2, ["cls", "max"]))
        assert cls.shape == avg.shape


def test_penultimate_by_another_pooling_is_the_last_map_before_the_networks_own() -> None:
    backbone = load("torchvision/resnet18")
    own, grid = compute(backbone, backbone.taps(["penultimate"] * 2, ["avg", "grid2"]))
    last_stage = compute(backbone, backbone.taps("layer4", "grid2"))[0]
    assert own.shape == (2, 512)
    assert torch.equal(grid, last_stage)


def test_transformers_with_maps_of_channels_last_are_pooled_over_their_places() -> None:
    module = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    backbone = FrozenBackbone(module, recipe(224), name="swin")
    assert backbone.list_layers()["layers.2"] == (14, 14, 384)
    assert backbone.dimension(Tap("layers.2", "avg")) == 384
    kept = outputs_of(backbone, ["layers.2"])["layers.2"]
    (vectors,) = compute(backbone, backbone.taps("layers.2"))
    torch.testing.assert_close(vectors, kept.mean((1, 2)))
    assert backbone.dimension(Tap("layers.2", "grid3")) == 9 * 384


def test_tokens_are_pooled_over_the_patches_only() -> None:
    backbone = load("test_vit")
    prefix = backbone.module.num_prefix_tokens
    kept = outputs_of(backbone, ["blocks.3"])["blocks.3"]
    avg, cls = compute(backbone, backbone.taps(["blocks.3"] * 2, ["avg", "cls"]))
    torch.testing.assert_close(avg, kept[:, prefix:].mean(1))
    assert torch.equal(cls, kept[:, 0])


def test_the_layers_are_listed_with_the_shapes_of_their_outputs() -> None:
    layers = load("torchvision/resnet18").list_layers()
    assert layers["layer4"] == (512, 7, 7)
    assert layers["fc"] == (1000,)
    assert list(layers)[:2] == ["conv1", "bn1"]


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        ("layer5", "avg", r"no such layer; did you mean 'layer\d'.*list_layers\(\)"),
        ("penultimat", "avg", "did you mean 'penultimate'"),
        ("zebra", "avg", r"no such layer; list_layers\(\)"),
        ("", "avg", "no such layer"),
        ("layer4", "average", "expected 'avg', 'max'"),
        ("layer4", "grid", "did you mean .*'grid2'"),
        ("layer4", "cls", "has no class token"),
        ("fc", "grid2", "a vector of 1000 numbers"),
        (["layer3", "layer4"], ["avg"], "expected one pooling for all 2 layers"),
        (["layer3", "layer3"], "avg", "one layer twice"),
        ([], "avg", "Got layers="),
        (3, "avg", "Got layers=3"),
        ([3], "avg", "Got layers="),
        ("layer4", 3, "Got pooling=3"),
        ("layer4", [3], "Got pooling=3"),
        ("multilevel", "max", "sets its own poolings"),
    ],
)
def test_what_cannot_be_tapped_is_refused_with_the_way_out(
    layers: Any, pooling: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load("torchvision/resnet18").taps(layers, pooling)


def test_lists_of_numpy_are_lists_of_names() -> None:
    backbone = load("torchvision/resnet18")
    assert backbone.taps(np.array(["layer3", "layer4"])) == (
        Tap("layer3", "avg"),
        Tap("layer4", "avg"),
    )


def test_names_say_layer_pooling_cell_and_channel() -> None:
    backbone = load("torchvision/resnet18")
    assert backbone.feature_names(Tap("penultimate", "avg"))[-1] == "511"
    names = backbone.feature_names(Tap("layer1", "grid2"))
    assert names[:5] == [
        "layer1_grid2_0_0_00",
        "layer1_grid2_0_1_00",
        "layer1_grid2_1_0_00",
        "layer1_grid2_1_1_00",
        "layer1_grid2_0_0_01",
    ]
    assert len(set(names)) == len(names) == 256
    flat = backbone.feature_names(Tap("layer4", "flatten"))
    assert flat[50] == "layer4_flatten_0_1_001"
    # A name finds its number: row 0, column 1 of channel 1.
    kept = outputs_of(backbone, ["layer4"])["layer4"]
    assert torch.equal(
        compute(backbone, backbone.taps("layer4", "flatten"))[0][:, 50], kept[:, 1, 0, 1]
    )


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("tf_efficientnet_lite0", ["blocks.4", "blocks.5"]),
        ("resnet18", ["layer3", "layer4"]),
        ("torchvision/resnet18", ["layer3", "layer4"]),
        ("torchvision/densenet121", ["features.denseblock3", "features"]),
        ("test_vit", ["blocks.4", "blocks.5"]),
    ],
)
def test_the_preset_is_the_penultimate_vector_and_two_late_stages(
    name: str, stages: list[str]
) -> None:
    assert load(name).taps("multilevel") == (
        Tap("penultimate", "avg"),
        *(Tap(stage, "grid2") for stage in stages),
    )


def test_a_network_without_stages_has_no_preset_but_layers() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Linear(4, 2))
    backbone = FrozenBackbone(module, recipe(8))
    with pytest.raises(InputError, match="stages of Sequential cannot be told"):
        backbone.taps("multilevel")
    assert backbone.dimension(backbone.taps()[0]) == 4
    with pytest.raises(InputError, match="no map before its own pooling"):
        backbone.taps("penultimate", "max")


def test_where_the_classifier_is_can_be_told_or_found() -> None:
    def network(last: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

    assert compute(replaced := FrozenBackbone(network(nn.Identity()), recipe(8)), replaced.taps())[
        0
    ].shape == (2, 5)
    headless = FrozenBackbone(network(nn.Softmax(1)), recipe(8), name="headless")
    with pytest.raises(InputError, match="classifier of headless cannot be told; pass penultimate"):
        headless.taps()
    told = FrozenBackbone(network(nn.Softmax(1)), recipe(8), penultimate="3")
    assert compute(told, told.taps())[0].shape == (2, 5)
    with pytest.raises(InputError, match="no such layer"):
        FrozenBackbone(network(nn.Softmax(1)), recipe(8), penultimate="7")


def test_outputs_that_are_no_vectors_of_images_are_refused() -> None:
    class Windows(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.reshape(-1, 4, 3)

    module = nn.Sequential(Windows(), nn.Flatten(0), nn.Unflatten(0, (-1, 192)), nn.Linear(192, 2))
    backbone = FrozenBackbone(module, recipe(8))
    assert "0" not in backbone.list_layers()
    with pytest.raises(InputError, match=r"has the shape \(16, 4, 3\); expected a vector"):
        backbone.taps("0")


def run_as_onnx(backbone: FrozenBackbone, taps: tuple[Tap, ...]) -> list[np.ndarray]:
    pixels = images(backbone, 4)
    with no_warnings:
        program = torch.onnx.export(backbone.network(taps), (pixels,), dynamo=True, verbose=False)
    content = io.BytesIO(program.model_proto.SerializeToString()).getvalue()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: pixels.numpy()}))


@pytest.mark.parametrize("alone", [(3,), pytest.param((0, 1, 2, 4), marks=pytest.mark.slow)])
def test_under_onnx_a_vector_does_not_depend_on_what_else_is_tapped(alone: tuple[int, ...]) -> None:
    backbone = load("test_efficientnet")
    taps = backbone.taps("multilevel") + backbone.taps(["blocks.3.0.conv_pw", "penultimate"], "gem")
    together = run_as_onnx(backbone, taps)
    with torch.inference_mode():
        reference = backbone.network(taps)(images(backbone, 4))
    for vectors, expected in zip(together, reference, strict=True):
        np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
    for position in alone:
        (vectors,) = run_as_onnx(backbone, (taps[position],))
        assert np.array_equal(vectors, together[position]), taps[position]


def test_a_copy_of_the_network_is_wired_to_itself() -> None:
    import copy

    backbone = load("test_efficientnet")
    taps = backbone.taps("multilevel")
    copied = copy.deepcopy(backbone.network(taps))
    with torch.inference_mode():
        got = copied(images(backbone))
    assert all(map(torch.equal, got, compute(backbone, taps)))


@pytest.mark.slow
def test_the_network_of_several_taps_can_be_compiled() -> None:
    backbone = load("test_efficientnet")
    taps = backbone.taps("multilevel")
    compiled = torch.compile(backbone.network(taps), backend="eager", fullgraph=True)
    with torch.inference_mode():
        got = compiled(images(backbone))
    for vectors, expected in zip(got, compute(backbone, taps), strict=True):
        torch.testing.assert_close(vectors, expected)
