"""The recipe gives what timm's own transform gives."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from featx._errors import ImageDecodeError, InputError
from featx._images import preprocess
from featx._images.decode import decode_content
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

HALF = (0.5, 0.5, 0.5)

# Without AVX2, torchvision resizes in floats for bilinear.
EIGHT_BIT_INTERPOLATIONS = ["bicubic"]
if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
    EIGHT_BIT_INTERPOLATIONS.append("bilinear")


def recipe(image_size: int = 224, resize: int = 256, interpolation: str = "bicubic") -> Any:
    return Preprocessing(image_size, resize, interpolation, HALF, HALF)


def by_timm(image: Image.Image, image_size: int, crop_pct: float, interpolation: str) -> Any:
    transform = create_transform(
        image_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    return transform(image)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized_whole(pixels: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize by torchvision, axis by axis in the order of Pillow."""
    mode = InterpolationMode(interpolation)
    height, width = pixels.shape[-2:]
    if height - size[0] > max(0, 2 * (width - size[1])):
        pixels = functional.resize(pixels, [size[0], width], mode, antialias=True)
    resized: torch.Tensor = functional.resize(pixels, list(size), mode, antialias=True)
    return resized


def views_of_the_whole(
    recipe: Preprocessing, pixels: torch.Tensor, views: str = "center"
) -> torch.Tensor:
    """Resize all of the image and only then crop: slow, and plainly right."""
    height, width = pixels.shape[-2:]
    side = [recipe.image_size]

    def resized(length: int) -> torch.Tensor:
        longer = length * max(height, width) // min(height, width)
        size = (longer, length) if height > width else (length, longer)
        size = (length, length) if recipe.squash else size
        return resized_whole(pixels, size, recipe.interpolation)

    if views == "multiscale":
        smaller, larger = (round(ratio * recipe.resize) for ratio in (7 / 8, 9 / 8))
        lengths = max(smaller, *side), recipe.resize, max(larger, *side)
        return torch.stack([functional.center_crop(resized(length), side) for length in lengths])
    center = functional.center_crop(resized(recipe.resize), side)[None]
    return torch.cat([center, center.flip(-1)]) if views == "flip" else center


def pixels_laid_out(height: int, width: int, layout: str) -> torch.Tensor:
    if layout == "part":
        return torch.from_numpy(noise(height + 3, width + 2)).permute(2, 0, 1)[:, 1:-2, 2:]
    if layout == "turned":
        return torch.from_numpy(noise(width, height)).permute(2, 1, 0)
    pixels = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    return pixels.contiguous() if layout == "planes" else pixels


@st.composite
def recipes(draw: st.DrawFn, height: int, width: int) -> Preprocessing:
    """Recipes whose resized image is small, however elongated the image is."""
    longest = math.isqrt(200_000 * min(height, width) // max(height, width))
    resize = draw(st.integers(2, min(300, longest)))
    image_size = draw(st.integers(1, 300) | st.integers(1, resize))
    interpolation = draw(st.sampled_from(EIGHT_BIT_INTERPOLATIONS))
    return Preprocessing(image_size, resize, interpolation, HALF, HALF, squash=draw(st.booleans()))


@given(
    data=st.data(),
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    layout=st.sampled_from(["pixels", "planes", "part", "turned"]),
    views=st.sampled_from(["center", "center", "flip", "multiscale"]),
    worth_skipping=st.sampled_from([0, preprocess._WORTH_SKIPPING]),
)
@settings(max_examples=300, deadline=None)
def test_leaving_out_what_is_cut_off_does_not_change_a_bit(
    data: st.DataObject, height: int, width: int, layout: str, views: str, worth_skipping: int
) -> None:
    pixels = pixels_laid_out(height, width, layout)
    ours = data.draw(recipes(height, width))
    with mock.patch.object(preprocess, "_WORTH_SKIPPING", worth_skipping):
        result = ours.views(pixels, views)
    assert torch.equal(result, views_of_the_whole(ours, pixels, views))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((533, 400), (341, 256)), ((867, 400), (554, 256)), ((900, 1600), (256, 455))],
)
def test_the_five_crops_are_those_of_the_whole_image(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    pixels = decode_content(noise(*shape))
    whole = resized_whole(pixels, size, "bicubic")
    expected = torch.stack(functional.five_crop(whole, [224]))
    assert torch.equal(recipe().views(pixels, "five_crops"), expected)
    mirrored = torch.cat([expected, expected.flip(-1)])
    assert torch.equal(recipe().views(pixels, "ten_crops"), mirrored)


@pytest.mark.parametrize("shape", [(533, 400), (867, 400), (900, 1600)])
@pytest.mark.parametrize("image_size", [100, 224])
@pytest.mark.parametrize("found_in_memory", [0, 255])
def test_memory_that_is_never_written_never_shows(
    shape: tuple[int, int], image_size: int, found_in_memory: int
) -> None:
    pixels = decode_content(noise(*shape))
    ours = recipe(image_size)
    expected = views_of_the_whole(ours, pixels)
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(found_in_memory)

    with mock.patch.object(torch, "empty", filled):
        result = ours.views(pixels)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("shape", "image_size", "passes"),
    [
        ((533, 400), 224, [(358, 256), (341, 224)]),  # two thirds of the rows are needed
        ((867, 400), 224, [(554, 400), (224, 256)]),  # rows first, and only then columns
        ((400, 533), 224, [(256, 341)]),  # both in one call: there is little to leave out
        ((900, 1600), 100, [(366, 455), (256, 100)]),
    ],
)
def test_only_lines_that_the_crop_needs_are_resized(
    shape: tuple[int, int], image_size: int, passes: list[tuple[int, int]]
) -> None:
    pixels = decode_content(noise(*shape))
    with mock.patch.object(preprocess, "interpolate", wraps=preprocess.interpolate) as spy:
        recipe(image_size).views(pixels)
    assert [tuple(call.args[1]) for call in spy.call_args_list] == passes


# Before 13 Pillow resized tall images in the other order.
@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="resizes in the order of Pillow 13"
)
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
        ({"image_size": 0}, "Got image_size=0 but expected"),
        ({"image_size": "224"}, "Got image_size='224' but expected"),
        ({"resize": 256.0}, r"Got resize=256\.0 but expected"),
        ({"resize": True}, "Got resize=True but expected"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"interpolation": None}, "Got interpolation=None but expected"),
        ({"mean": (0.5, 0.5)}, "Got mean=.* three numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, "Got std=.* three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "Got std=.* above 0"),
        ({"channel_order": "gbr"}, "Got channel_order='gbr' but expected 'rgb' or 'bgr'"),
        ({"pixel_scale": 256}, "Got pixel_scale=256 but expected 1 or 255"),
        ({"pixel_scale": True}, "Got pixel_scale=True but expected 1 or 255"),
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
