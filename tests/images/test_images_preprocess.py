"""The recipe gives what timm's own transform gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from featx.errors import ImageDecodeError, InputError
from featx.images.decode import decode_content
from featx.images.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

HALF = (0.5, 0.5, 0.5)


def recipe(image_size: int = 224, resize: int = 256, interpolation: str = "bicubic") -> Any:
    return Preprocessing(image_size, resize, interpolation, HALF, HALF)


def by_timm(image: Image.Image, image_size: int, crop_pct: float, interpolation: str) -> Any:
    transform = create_transform(
        image_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    return transform(image)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(867, 400), (400, 867), (777, 300), (600, 400), (150, 100)])
def test_tall_and_wide_images_are_resized_in_the_order_of_pillow(shape: tuple[int, int]) -> None:
    array = noise(*shape)
    expected = by_timm(Image.fromarray(array), 224, 0.875, "bicubic")
    difference = (recipe().apply(decode_content(array)).int() - expected.int()).abs()
    # Rounding alone moves one pixel in a hundred by one; the other order moves every fourth.
    assert difference.float().mean() < 0.02
    assert difference.max() <= 2


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    image_size=st.integers(1, 64),
    crop_pct=st.sampled_from([0.5, 0.7, 0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(max_examples=300, deadline=None)
def test_sizes_and_offsets_are_timms_for_every_size(
    height: int, width: int, image_size: int, crop_pct: float, interpolation: str
) -> None:
    # torchvision and Pillow round differently, by less than a step in the mean; on noise, an offset
    # of a single pixel would differ by tens of steps.
    array = noise(height, width)
    ours = Preprocessing(image_size, int(image_size / crop_pct), interpolation, HALF, HALF)
    result = ours.apply(decode_content(array))
    expected = by_timm(Image.fromarray(array), image_size, crop_pct, interpolation)
    assert result.shape == (3, image_size, image_size)
    assert result.dtype == torch.uint8
    assert (result.int() - expected.int()).abs().float().mean() < 1


def test_a_crop_larger_than_the_resized_image_is_padded_as_timm_pads() -> None:
    array = noise(30, 47)
    result = recipe(image_size=40, resize=32).apply(decode_content(array))
    expected = by_timm(Image.fromarray(array), 40, 40 / 32, "bicubic")
    assert (result[:, 0] == 0).all()
    assert (result.int() - expected.int()).abs().float().mean() < 0.1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_real_photographs_come_out_as_timms(shared_folder: Path, interpolation: str) -> None:
    photographs = sorted((shared_folder / "data" / "clothing").rglob("*.jpg"))[::12]
    differences = []
    for path in photographs:
        with Image.open(path) as photograph:
            expected = by_timm(photograph.convert("RGB"), 224, 0.875, interpolation)
        ours = recipe(interpolation=interpolation).apply(decode_content(path.read_bytes()))
        differences.append((ours.int() - expected.int()).abs())
    stacked = torch.stack(differences)
    assert stacked.float().mean() < 0.02
    assert stacked.max() <= 4


def test_the_layout_in_memory_does_not_change_a_bit() -> None:
    pixels = decode_content(noise(300, 200))
    assert torch.equal(recipe().apply(pixels), recipe().apply(pixels.contiguous()))


def test_the_input_is_left_as_it_was() -> None:
    pixels = decode_content(noise(256, 256))
    before = pixels.clone()
    recipe().apply(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (1, 140), (1, 1), (2, 3)])
def test_elongated_images_are_resized_or_refused_but_never_fill_the_memory(
    shape: tuple[int, int],
) -> None:
    pixels = decode_content(np.zeros((*shape, 3), dtype=np.uint8))
    if max(shape) == 5000:
        with pytest.raises(ImageDecodeError, match=r"cat\.jpg: .* too elongated"):
            recipe().apply(pixels, "cat.jpg")
    else:
        assert recipe().apply(pixels).shape == (3, 224, 224)


def test_the_description_is_plain_json_and_tells_every_recipe_apart() -> None:
    variants = [
        recipe(),
        recipe(image_size=192),
        recipe(resize=248),
        recipe(interpolation="bilinear"),
        Preprocessing(224, 256, "bicubic", (0.4, 0.5, 0.5), HALF),
        Preprocessing(224, 256, "bicubic", HALF, (0.4, 0.5, 0.5)),
        Preprocessing(224, 256, "bicubic", HALF, HALF, channel_order="bgr"),
        Preprocessing(224, 256, "bicubic", HALF, HALF, pixel_scale=255),
    ]
    described = [json.dumps(variant.describe(), sort_keys=True) for variant in variants]
    assert len(set(described)) == len(variants)
    assert json.loads(described[0]) == recipe().describe()


def test_equal_recipes_are_equal_whatever_numbers_they_were_made_of() -> None:
    numpy_made = Preprocessing(
        np.int64(224),  # type: ignore[arg-type]  # a grid search passes numpy integers
        256,
        "bicubic",
        np.full(3, 0.5),  # type: ignore[arg-type]  # a configuration may hold an array or a list
        [0.5, 0.5, 0.5],  # type: ignore[arg-type]
    )
    assert numpy_made == recipe()
    assert hash(numpy_made) == hash(recipe())
    assert json.dumps(numpy_made.describe()) == json.dumps(recipe().describe())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 0}, "Got image_size=0, expected"),
        ({"image_size": "224"}, "Got image_size='224', expected"),
        ({"resize": 256.0}, r"Got resize=256\.0, expected"),
        ({"resize": True}, "Got resize=True, expected"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"interpolation": None}, "Got interpolation=None, expected"),
        ({"mean": (0.5, 0.5)}, "Got mean=.* three numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, "Got std=.* three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "Got std=.* above 0"),
        ({"channel_order": "gbr"}, "Got channel_order='gbr', expected 'rgb' or 'bgr'"),
        ({"pixel_scale": 256}, "Got pixel_scale=256, expected 1 or 255"),
        ({"pixel_scale": True}, "Got pixel_scale=True, expected 1 or 255"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    parameters = {
        "image_size": 224,
        "resize": 256,
        "interpolation": "bicubic",
        "mean": HALF,
        "std": HALF,
    }
    with pytest.raises(InputError, match=message):
        Preprocessing(**(parameters | changed))
