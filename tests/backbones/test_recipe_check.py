"""A wrong recipe is caught by what the network remembers of its training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from caffe_resnet import CAFFE, caffe_resnet50
from torch import nn

from featx._backbones.frozen import IMAGENET_RECIPE, FrozenBackbone
from featx._backbones.providers import load_backbone
from featx._backbones.recipe_check import check_recipe
from featx._errors import InputError
from featx._images.decode import decode_content
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

HALF = Preprocessing(224, 256, "bilinear", (0.5,) * 3, (0.5,) * 3)


def photographs(folder: Path, step: int) -> list[torch.Tensor]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    return [decode_content(path.read_bytes()) for path in paths[::step]]


@pytest.mark.slow
def test_the_real_resnet_fits_its_own_recipe_and_no_other(shared_folder: Path) -> None:
    weights = shared_folder / "weights" / "resnet50_imagenet_caffe.safetensors"
    images = photographs(shared_folder / "data" / "clothing" / "test", 31)
    right = check_recipe(caffe_resnet50(weights), images)
    assert right.is_right is True
    assert "fits the weights" in right.summary()
    wrong = check_recipe(caffe_resnet50(weights, HALF), images)
    assert wrong.is_right is False
    assert wrong.best.preprocessing.pixel_scale == 255
    assert "does not fit the weights" in wrong.summary()
    # And the figures that a person knows: fed wrongly, it is sure of nothing.
    assert (right.declared.confidence or 0) > 2 * (wrong.declared.confidence or 0)
    assert (right.declared.entropy or 9) < (wrong.declared.entropy or 0)
    caffe = next(fit for fit in wrong.fits if fit.preprocessing == CAFFE)
    assert (caffe.agreement or 0) < 0.5


def test_the_default_backbone_is_told_from_one_fed_with_the_statistics_of_imagenet(
    shared_folder: Path,
) -> None:
    backbone = load_backbone()
    images = photographs(shared_folder / "data" / "clothing" / "test", 24)
    assert check_recipe(backbone, images).is_right is True
    wrong = check_recipe(FrozenBackbone(backbone.module, IMAGENET_RECIPE, name="mine"), images)
    assert wrong.best.recipe == "RGB in [-1, 1]"
    assert wrong.is_right is False


def test_small_images_do_not_make_a_right_recipe_wrong(sample_folder: Path) -> None:
    backbone = load_backbone()
    images = photographs(sample_folder / "test", 20)
    assert check_recipe(backbone, images).is_right is True
    wrong = FrozenBackbone(backbone.module, CAFFE, name="mine")
    assert check_recipe(wrong, images).is_right is False


def test_a_network_that_remembers_nothing_gives_no_verdict() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
    images = [torch.zeros(3, 40, 40, dtype=torch.uint8)] * 2
    result = check_recipe(FrozenBackbone(module, replace(HALF, image_size=32)), images)
    assert result.is_right is None
    assert "nothing tells" in result.summary()
    assert result.declared.dead_features == 1


def test_one_image_is_no_statistic() -> None:
    backbone = FrozenBackbone(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(InputError, match="Got 1 images but expected at least 2"):
        check_recipe(backbone, [torch.zeros(3, 40, 40, dtype=torch.uint8)])
