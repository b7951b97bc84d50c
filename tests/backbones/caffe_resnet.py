"""The real ResNet-50 beside the project: how its metadata says it must be built and fed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torchvision
from safetensors.torch import load_file
from torch import nn

from featx._backbones.frozen import FrozenBackbone
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

CAFFE = Preprocessing(
    224,
    256,
    "bilinear",
    mean=(103.939, 116.779, 123.68),
    std=(1, 1, 1),
    channel_order="bgr",
    pixel_scale=255,
)


def caffe_resnet50(weights: Path, preprocessing: Preprocessing = CAFFE) -> FrozenBackbone:
    """Build the first version of ResNet-50: its stages stride in their first 1 x 1 convolution."""
    network = torchvision.models.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1.001e-5
    network.load_state_dict(load_file(weights))
    return FrozenBackbone(network, preprocessing, name="resnet50_caffe", weights=weights.name)
