"""The recipe that brings an image to the one shape a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from featx._checks import check_choice, check_whole_number, refuse
from featx._errors import ImageDecodeError
from featx._public import public

MAX_RESIZED_PIXELS = 2**25
"""The largest width x height an image may be resized to: 100 MB of pixels."""

PIXELS_VERSION = 1
"""Rises whenever decoding or resizing comes to give other pixels for the same file: it is part of
every fingerprint, so that no cache can mix the two."""

INTERPOLATIONS = ("bicubic", "bilinear")

CHANNEL_ORDERS = ("rgb", "bgr")

PIXEL_SCALES = (1, 255)

VIEWS = ("center", "flip", "five_crops", "ten_crops", "multiscale")

# How far each filter reaches, in pixels of the smaller of the two images (Keys, "Cubic convolution
# interpolation for digital image processing", 1981, for the bicubic one).
_FILTER_REACHES = {"bicubic": 2, "bilinear": 1}

# How many pixels of an image have to be left out, so that this takes less time than the second call
# for the second pass.
_WORTH_SKIPPING = 50_000

# Simonyan and Zisserman ("Very deep convolutional networks for large-scale image recognition",
# ICLR 2015, section 4.2) test networks of the scale S at S - 32, S and S + 32 with S = 256.
_MULTISCALE_RATIOS = (7 / 8, 1, 9 / 8)

_VIEW_COUNTS = {"center": 1, "flip": 2, "five_crops": 5, "ten_crops": 10, "multiscale": 3}


@public
@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, normalise: the recipe weights are trained with.

    `apply` resizes and crops. Normalising is left to the network, which does it on its device; its
    numbers are here so that there is one recipe.

    Parameters
    ----------
    image_size : int
        Side of the square crop, in pixels.
    resize : int
        Length the shorter side is resized to before the crop, in pixels.
    interpolation : {"bicubic", "bilinear"}
        How to resize; always with antialiasing.
    mean, std : tuple of three floats
        Mean and standard deviation of each channel, in the channel order and on the pixel scale
        below. With a mean and a standard deviation of 0.5 the network gets values in [-1, 1].
    channel_order : {"rgb", "bgr"}
        The order in which the network takes the channels.
    pixel_scale : {1, 255}
        What white is before the mean is taken off: 1, or 255 as networks from Caffe want it.
    squash : bool
        Resize both sides to `resize`, whatever the ratio of the image, as some networks of timm
        want it.

    Raises
    ------
    InputError
        If a parameter is not one of these.

    Examples
    --------
    >>> import torch
    >>> recipe = Preprocessing(224, 256, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> recipe.apply(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape
    torch.Size([3, 224, 224])

    BGR from 0 to 255 minus a mean, as Caffe fed its networks:

    >>> mean = (103.939, 116.779, 123.68)
    >>> caffe = Preprocessing(224, 256, "bilinear", mean, (1, 1, 1), "bgr", pixel_scale=255)
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str = "rgb"
    pixel_scale: int = 1
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):
            check_whole_number(name, getattr(self, name), 1)
            object.__setattr__(self, name, int(getattr(self, name)))
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("channel_order", self.channel_order, CHANNEL_ORDERS)
        if isinstance(self.pixel_scale, bool) or self.pixel_scale not in PIXEL_SCALES:
            raise refuse("pixel_scale", self.pixel_scale, "1 or 255")
        object.__setattr__(self, "pixel_scale", int(self.pixel_scale))
        for name in ("mean", "std"):
            value = tuple(float(channel) for channel in getattr(self, name))
            if len(value) != 3 or not all(map(math.isfinite, value)):
                raise refuse(name, value, "three numbers, one a channel")
            object.__setattr__(self, name, value)
        if min(self.std) <= 0:
            raise refuse("std", self.std, "three numbers above 0")

    def apply(self, pixels: torch.Tensor, source: str = "<pixels>") -> torch.Tensor:
        """Resize the shorter side to `resize` and crop the centre.

        Sizes and offsets are rounded as torchvision and timm round them. Where the resized image is
        smaller than the crop, it is padded with black, as theirs.

        Parameters
        ----------
        pixels : torch.Tensor of uint8, shape (3, height, width)
            As `featx._images.decode.decode_content` returns it.
        source : str
            What to call the image in an error.

        Returns
        -------
        torch.Tensor of uint8, shape (3, image_size, image_size)
            Part of the resized image, so not contiguous in general.

        Raises
        ------
        ImageDecodeError
            If the image is so elongated that resizing it would take more than
            `MAX_RESIZED_PIXELS` pixels.
        """
        return self.views(pixels, source=source)[0]

    def views(
        self, pixels: torch.Tensor, views: str = "center", source: str = "<pixels>"
    ) -> torch.Tensor:
        """Return the views of one image whose vectors are averaged.

        - ``"center"``: the centre crop, as `apply` gives it.
        - ``"flip"``: the centre crop and its mirror image.
        - ``"five_crops"``: the four corners of the resized image and its centre.
        - ``"ten_crops"``: these and their mirror images (Krizhevsky, Sutskever and Hinton, 2012).
        - ``"multiscale"``: the centre crops of the image resized to 7/8, 1 and 9/8 of `resize` (the
          scales of Simonyan and Zisserman, 2015: 224, 256 and 288 pixels), but not below the crop.

        Parameters
        ----------
        pixels : torch.Tensor of uint8, shape (3, height, width)
            As `featx._images.decode.decode_content` returns it.
        views : str
            One of `VIEWS`.
        source : str
            What to call the image in an error.

        Returns
        -------
        torch.Tensor of uint8, shape (count_views(views), 3, image_size, image_size)

        Raises
        ------
        InputError
            If there are no such views.
        ImageDecodeError
            As `apply`.
        """
        if views not in VIEWS:
            check_choice("views", views, VIEWS)
        # The first stride of `pixels[None]` makes torch believe that it has to return planes, and a
        # quarter of the time goes into turning the pixels around.
        batch = pixels.as_strided((1, *pixels.shape), (pixels.numel(), *pixels.stride()))
        if views == "multiscale":
            lengths = [
                max(self.image_size, round(ratio * self.resize)) for ratio in _MULTISCALE_RATIOS
            ]
            # At its own scale a recipe may have a crop larger than the image: that view is apply's.
            lengths[1] = self.resize
            return torch.cat([self._center(batch, length, source) for length in lengths])
        if views in ("center", "flip"):
            crops = self._center(batch, self.resize, source)
        else:
            size = self._resized_size(batch, self.resize, source)
            crops = self._five_crops(_resize(batch, size, self.interpolation)[0])
        return torch.cat([crops, crops.flip(-1)]) if views in ("flip", "ten_crops") else crops

    def _five_crops(self, resized: torch.Tensor) -> torch.Tensor:
        missing = [max(0, self.image_size - length) for length in resized.shape[-2:]]
        if any(missing):
            # As the centre crop does: black around an image that is smaller than the crop.
            bottom, right = missing
            margins = [right // 2, bottom // 2, right - right // 2, bottom - bottom // 2]
            resized = functional.pad(resized, margins)
        crops: tuple[torch.Tensor, ...] = functional.five_crop(resized, [self.image_size])
        return torch.stack(crops)

    def _center(self, batch: torch.Tensor, length: int, source: str) -> torch.Tensor:
        """Return the centre of the resized image."""
        size = self._resized_size(batch, length, source)
        return _resize_and_crop(batch, size, self.image_size, self.interpolation)

    def _resized_size(self, batch: torch.Tensor, length: int, source: str) -> tuple[int, int]:
        """Return height and width with the shorter side at a length, or both where squashed."""
        if self.squash:
            return length, length
        height, width = batch.shape[-2:]
        long_side = length * max(height, width) // min(height, width)
        if length * long_side > MAX_RESIZED_PIXELS:
            raise ImageDecodeError(
                source,
                f"{width} x {height} pixels are too elongated: with the shorter side at "
                f"{length} pixels the longer would be {long_side:,}",
            )
        return (long_side, length) if height > width else (length, long_side)

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a pixel, in plain JSON types, for a fingerprint.

        Examples
        --------
        >>> recipe = Preprocessing(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> recipe.describe()["mean"]
        [0.5, 0.5, 0.5]
        """
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        return {"pixels": PIXELS_VERSION} | fields


_CONVERSIONS = frozenset(
    {"ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ToDtype", "ConvertImageDtype"}
)


def preprocessing_of(transform: Any) -> Preprocessing:
    """Return the recipe that a transform of torchvision or timm is; InputError if it is none.

    Examples
    --------
    >>> from torchvision.models import ResNet50_Weights
    >>> recipe = preprocessing_of(ResNet50_Weights.IMAGENET1K_V1.transforms())
    >>> recipe.image_size, recipe.resize, recipe.interpolation
    (224, 256, 'bilinear')
    """
    if isinstance(transform, Preprocessing):
        return transform
    steps = {type(step).__name__: step for step in getattr(transform, "transforms", ())}
    others = steps.keys() - _CONVERSIONS - {"Resize", "CenterCrop", "Normalize"}
    if {"Resize", "Normalize"} <= steps.keys() and not others:
        resize, normalize = steps["Resize"], steps["Normalize"]
        sizes, crop = np.ravel(resize.size), np.ravel(steps.get("CenterCrop", resize).size)
    elif hasattr(transform, "resize_size") and hasattr(transform, "crop_size"):
        resize = normalize = transform
        sizes, crop = np.ravel(transform.resize_size), np.ravel(transform.crop_size)
    else:
        sizes = crop = np.array([])
    if len({*sizes}) != 1 or len({*crop}) != 1:
        expected = "a Preprocessing, or Resize, CenterCrop and Normalize of torchvision or timm"
        raise refuse("preprocessing", transform, expected)
    return Preprocessing(
        int(crop[0]),
        int(sizes[0]),
        str(getattr(resize.interpolation, "value", resize.interpolation)),
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        squash=len(sizes) == 2,
    )


def count_views(views: str) -> int:
    """Return how many views of each image a choice of views takes.

    Raises
    ------
    InputError
        If there is no such choice.

    Examples
    --------
    >>> count_views("center"), count_views("ten_crops")
    (1, 10)
    """
    check_choice("views", views, VIEWS)
    return _VIEW_COUNTS[views]


def _resize_and_crop(
    batch: torch.Tensor, size: tuple[int, int], side: int, interpolation: str
) -> torch.Tensor:
    """Return the centre of the resized image, without resizing all of what is cut off.

    The first pass takes each line by itself, so it is run on those lines alone that the second pass
    needs for the crop, and the second on those alone that are in the crop. Not a bit changes.
    """
    if side > min(size):
        padded: torch.Tensor = functional.center_crop(_resize(batch, size, interpolation), [side])
        return padded
    corner = round((size[0] - side) / 2), round((size[1] - side) / 2)
    first, second = _order_of_passes(batch, size)
    whole = batch.shape[second]
    start, count = _lines_needed(whole, size[second], corner[second], side, interpolation)
    if (whole - count) * batch.shape[first] > _WORTH_SKIPPING:
        batch = batch.narrow(second, start, count)
    elif first == -1:
        resized = _interpolate(batch, size, interpolation)
        return resized.narrow(first, corner[first], side).narrow(second, corner[second], side)
    lines = _resize_axis(batch, first, size[first], interpolation)
    lines = lines.narrow(first, corner[first], side)
    if lines.shape[second] < whole:
        # Put where they were in the image, from whose length torch derives its filter. What is
        # around them is never looked at, and so is whatever the memory holds.
        shape = list(lines.shape)
        shape[second] = whole
        image = torch.empty(shape, dtype=lines.dtype, memory_format=torch.channels_last)
        image.narrow(second, start, count).copy_(lines)
        lines = image
    resized = _resize_axis(lines, second, size[second], interpolation)
    return resized.narrow(second, corner[second], side)


def _lines_needed(
    length: int, resized_length: int, corner: int, side: int, interpolation: str
) -> tuple[int, int]:
    """Return the first line, and how many, that the filter weighs for the lines of the crop."""
    scale = length / resized_length
    reach = _FILTER_REACHES[interpolation] * max(scale, 1) + 1  # and one line for rounding
    start = max(0, math.floor(scale * (corner + 0.5) - reach))
    stop = min(length, math.ceil(scale * (corner + side - 0.5) + reach))
    return start, stop - start


def _order_of_passes(batch: torch.Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Return the axes in the order in which Pillow resizes them, with rounding in between.

    Their order shows: by 0.25 grey levels in the mean on noise. torch takes the width first; Pillow
    takes the height first where it shrinks by more than twice as many pixels (since Pillow 13, to
    be faster on tall images; see its Resample.c).
    """
    height, width = batch.shape[-2:]
    shrinks_by = height - size[0]
    height_first = shrinks_by > 0 and shrinks_by > 2 * (width - size[1])
    return (-2, -1) if height_first else (-1, -2)


def _resize(batch: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize as Pillow does, whose recipe the weights were trained with."""
    if _order_of_passes(batch, size) == (-2, -1):
        batch = _resize_axis(batch, -2, size[-2], interpolation)
    return _interpolate(batch, size, interpolation)


def _resize_axis(batch: torch.Tensor, axis: int, length: int, interpolation: str) -> torch.Tensor:
    height, width = batch.shape[-2:]
    size = (length, width) if axis == -2 else (height, length)
    return _interpolate(batch, size, interpolation)


def _interpolate(batch: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize in 8 bits, the width first.

    torchvision's own `resize` does the same at twice the cost of calling it, and in floats,
    which round differently, for bilinear on processors without AVX2.
    """
    if batch.shape[-2:] == size:
        return batch
    return interpolate(batch, size, mode=interpolation, antialias=True)
