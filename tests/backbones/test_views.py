"""Views are the crops of the published recipes, and the centre view is the plain recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from featx._errors import ImageDecodeError, InputError
from featx._images.decode import decode_content
from featx._images.preprocess import VIEWS, Preprocessing, count_views

HALF = (0.5, 0.5, 0.5)


def recipe(image_size: int = 32, resize: int = 40) -> Preprocessing:
    return Preprocessing(image_size, resize, "bicubic", HALF, HALF)


def noise(height: int, width: int) -> torch.Tensor:
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return decode_content(array)


@given(
    views=st.sampled_from(VIEWS),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    image_size=st.integers(1, 40),
    resize=st.integers(1, 48),
)
@settings(max_examples=150, deadline=None)
def test_every_choice_gives_its_number_of_squares(
    views: str, height: int, width: int, image_size: int, resize: int
) -> None:
    ours = recipe(image_size, resize)
    result = ours.views(noise(height, width), views)
    assert result.shape == (count_views(views), 3, image_size, image_size)
    assert result.dtype == torch.uint8


@given(height=st.integers(1, 90), width=st.integers(1, 90))
@settings(max_examples=50, deadline=None)
def test_the_centre_view_is_the_plain_recipe_byte_for_byte(height: int, width: int) -> None:
    pixels = noise(height, width)
    expected = recipe().apply(pixels)
    assert torch.equal(recipe().views(pixels, "center")[0], expected)
    # It is also among the others: first of the flips, last of the five, middle of the scales.
    assert torch.equal(recipe().views(pixels, "flip")[0], expected)
    assert torch.equal(recipe().views(pixels, "five_crops")[4], expected)
    assert torch.equal(recipe().views(pixels, "multiscale")[1], expected)


def test_a_flip_is_the_mirror_image() -> None:
    plain, mirrored = recipe().views(noise(50, 60), "flip")
    assert torch.equal(mirrored, functional.horizontal_flip(plain))


def test_five_crops_are_the_corners_and_the_centre_of_torchvision() -> None:
    pixels = noise(40, 61)  # the shorter side is what the recipe resizes to
    crops = recipe().views(pixels, "five_crops")
    assert torch.equal(crops, torch.stack(functional.five_crop(pixels, [32])))


def test_ten_crops_are_five_and_their_mirror_images() -> None:
    crops = recipe().views(noise(50, 60), "ten_crops")
    assert torch.equal(crops[:5], recipe().views(noise(50, 60), "five_crops"))
    assert torch.equal(crops[5:], crops[:5].flip(-1))


def test_the_scales_are_seven_eighths_one_and_nine_eighths() -> None:
    pixels = noise(50, 60)
    views = recipe(image_size=32, resize=40).views(pixels, "multiscale")
    for view, resize in zip(views, (35, 40, 45), strict=True):
        assert torch.equal(view, recipe(32, resize).apply(pixels))


def test_no_scale_is_below_the_crop() -> None:
    pixels = noise(50, 60)
    views = recipe(image_size=40, resize=40).views(pixels, "multiscale")
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[2], recipe(40, 45).apply(pixels))


def test_crops_of_an_image_smaller_than_the_crop_are_padded_with_black() -> None:
    crops = recipe(image_size=40, resize=32).views(noise(32, 32), "five_crops")
    assert torch.equal(crops[0], crops[4])
    assert (crops[:, :, 0] == 0).all()


@pytest.mark.parametrize("views", VIEWS)
def test_the_input_is_left_as_it_was(views: str) -> None:
    pixels = noise(40, 40)
    before = pixels.clone()
    recipe().views(pixels, views)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("views", VIEWS)
def test_elongated_images_are_refused_by_name(views: str) -> None:
    pixels = torch.zeros(3, 3, 50_000, dtype=torch.uint8)
    with pytest.raises(ImageDecodeError, match=r"cat\.jpg: .* too elongated"):
        recipe(224, 256).views(pixels, views, "cat.jpg")


@pytest.mark.parametrize("views", ["centre", "", None, 1, ["flip"]])
def test_unknown_views_are_refused(views: Any) -> None:
    expected = "expected 'center', 'flip', 'five_crops', 'ten_crops' or 'multiscale'"
    with pytest.raises(InputError, match=f"Got views=.* but {expected}"):
        recipe().views(noise(40, 40), views)
    with pytest.raises(InputError, match=expected):
        count_views(views)
