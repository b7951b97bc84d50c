"""Backbones compute what the library of each network computes by its own recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from PIL import Image, ImageOps
from torch import nn

from featx._backbones import providers
from featx._backbones.providers import load_backbone
from featx._images.decode import decode_content

if TYPE_CHECKING:
    from pathlib import Path

    from featx._backbones.frozen import FrozenBackbone

QUICK = [
    "timm/test_vit",
    "timm/test_efficientnet",
    "timm/test_convnext",
    "torchvision/squeezenet1_1",
]

TIMM = [
    "tf_efficientnet_lite0",
    "resnet50",
    "vgg16",
    "densenet121",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "regnety_004",
    "ghostnet_100",
    "inception_v3",
    "dpn68",
    "hrnet_w18_small",
    "res2net50_14w_8s",
    "poolformer_s12",
    "coatnet_nano_rw_224",
    "mobilevit_xs",
    "rexnet_100",
    "dla34",
    "repvgg_a0",
    "xception41",
    "eva02_tiny_patch14_224",
    "convnextv2_nano.fcmae_ft_in22k_in1k_384",  # squashes
]

TORCHVISION = [
    "alexnet",
    "vgg16",
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
]


def reference_by_timm(name: str, state: dict[str, torch.Tensor]) -> tuple[nn.Module, Any]:
    """Return timm's own network without its classifier, and timm's own transform."""
    network = timm.create_model(name)
    network.load_state_dict(state)
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(network), is_training=False
    )
    network.reset_classifier(0)
    return network.eval(), transform


def reference_by_torchvision(name: str, state: dict[str, torch.Tensor]) -> tuple[nn.Module, Any]:
    """Return torchvision's network with its last linear layer replaced, and its transform."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, **options)
    # The auxiliary classifiers serve training alone, so that a backbone may come without them.
    strict = name not in ("googlenet", "inception_v3")
    network.load_state_dict(state, strict=strict)
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    if name.startswith("squeezenet"):
        network = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        linear = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
        parent, _, last = linear[-1].rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())
    return network.eval(), transform


def stir(backbone: FrozenBackbone) -> None:
    """Give BatchNorm statistics and scales of its own: fresh ones are 0 and 1, and hide faults."""
    generator = torch.Generator().manual_seed(1)
    for part in backbone.module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)) and part.weight is not None:
            part.weight.uniform_(0.8, 1.2, generator=generator)
            part.bias.uniform_(-0.1, 0.1, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1, generator=generator)
            part.running_var.uniform_(0.8, 1.2, generator=generator)


def least_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    assert first.abs().max() > 0
    return float(nn.functional.cosine_similarity(first.double(), second.double()).min())


def check_faithful(name: str, photographs: list[Path]) -> None:
    backbone = load_backbone(name, weights=None)
    stir(backbone)
    providers._load.cache_clear()  # nobody else shall get it: it is another network now
    provider, _, architecture = name.partition("/")
    build = reference_by_timm if provider == "timm" else reference_by_torchvision
    network, transform = build(architecture, backbone.module.state_dict())
    taps = backbone.taps()
    ours = backbone.network(taps)
    side = backbone.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        (vectors,) = ours(pixels)
        on_tensors = least_cosine(vectors, network(ours.normalization(pixels)))
        crops, reference = [], []
        for path in photographs:
            crops.append(backbone.preprocessing.apply(decode_content(path.read_bytes())))
            with Image.open(path) as image:
                reference.append(transform(ImageOps.exif_transpose(image).convert("RGB")))
        (vectors,) = ours(torch.stack(crops))
        on_photographs = least_cosine(vectors, network(torch.stack(reference)))
    assert vectors.shape[1] == backbone.dimension(taps[0])
    print(f"{name}: {vectors.shape[1]}, {on_tensors:.8f}, {on_photographs:.7f}")
    assert on_tensors >= 0.99999
    assert on_photographs >= 0.9999


@pytest.fixture
def photographs(sample_folder: Path) -> list[Path]:
    beside = sample_folder.parents[2] / "shared" / "data" / "clothing" / "test"
    real = sorted(beside.rglob("*.jpg"))[::150]
    return [*sorted((sample_folder / "test").rglob("*.*"))[:2], *real[:2]]


@pytest.mark.parametrize("name", QUICK)
def test_a_network_computes_what_its_own_library_computes(
    name: str, photographs: list[Path]
) -> None:
    check_faithful(name, photographs)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_compute_what_timm_computes(name: str, photographs: list[Path]) -> None:
    check_faithful(f"timm/{name}", photographs)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_compute_what_torchvision_computes(
    name: str, photographs: list[Path]
) -> None:
    check_faithful(f"torchvision/{name}", photographs)
