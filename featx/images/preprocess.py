"""The recipe that brings an image to the one shape a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from featx.errors import ImageDecodeError, InputError, did_you_mean

MAX_RESIZED_PIXELS = 2**25
"""The largest width x height an image may be resized to: 100 MB of pixels."""

PIXELS_VERSION = 1
"""Rises whenever decoding or resizing comes to give other pixels for the same file: it is part of
every fingerprint, so that no cache can mix the two."""

INTERPOLATIONS = ("bicubic", "bilinear")

CHANNEL_ORDERS = ("rgb", "bgr")

PIXEL_SCALES = (1, 255)

VIEWS = ("center", "flip", "five_crops", "ten_crops", "multiscale")

# Simonyan and Zisserman ("Very deep convolutional networks for large-scale image recognition",
# ICLR 2015, section 4.2) test networks of the scale S at S - 32, S and S + 32 with S = 256.
_MULTISCALE_RATIOS = (7 / 8, 1, 9 / 8)

_VIEW_COUNTS = {"center": 1, "flip": 2, "five_crops": 5, "ten_crops": 10, "multiscale": 3}


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
            object.__setattr__(self, name, _checked_length(name, getattr(self, name)))
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _check_choice("channel_order", self.channel_order, CHANNEL_ORDERS)
        if isinstance(self.pixel_scale, bool) or self.pixel_scale not in PIXEL_SCALES:
            raise InputError(f"Got pixel_scale={self.pixel_scale!r}, expected 1 or 255.")
        object.__setattr__(self, "pixel_scale", int(self.pixel_scale))
        for name in ("mean", "std"):
            value = tuple(float(channel) for channel in getattr(self, name))
            if len(value) != 3 or not all(map(math.isfinite, value)):
                raise InputError(f"Got {name}={value!r}, expected three numbers, one a channel.")
            object.__setattr__(self, name, value)
        if min(self.std) <= 0:
            raise InputError(f"Got std={self.std!r}, expected three numbers above 0.")

    def apply(self, pixels: torch.Tensor, source: str = "<pixels>") -> torch.Tensor:
        """Resize the shorter side to `resize` and crop the centre.

        Sizes and offsets are rounded as torchvision and timm round them. Where the resized image is
        smaller than the crop, it is padded with black, as theirs.

        Parameters
        ----------
        pixels : torch.Tensor of uint8, shape (3, height, width)
            As `featx.images.decode.decode_content` returns it.
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
        resized = self._resize(pixels, self.resize, source)
        cropped: torch.Tensor = functional.center_crop(resized, [self.image_size])
        return cropped

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
            As `featx.images.decode.decode_content` returns it.
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
        count_views(views)
        if views == "multiscale":
            lengths = [
                max(self.image_size, round(ratio * self.resize)) for ratio in _MULTISCALE_RATIOS
            ]
            # At its own scale a recipe may have a crop larger than the image: that view is apply's.
            lengths[1] = self.resize
            resized = [self._resize(pixels, length, source) for length in lengths]
            return torch.stack([functional.center_crop(one, [self.image_size]) for one in resized])
        if views in ("center", "flip"):
            crops = self.apply(pixels, source)[None]
        else:
            crops = self._five_crops(self._resize(pixels, self.resize, source))
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

    def _resize(self, pixels: torch.Tensor, length: int, source: str) -> torch.Tensor:
        """Resize the shorter side to a length, or both sides where the recipe squashes."""
        if self.squash:
            return _resize(pixels, (length, length), InterpolationMode(self.interpolation))
        height, width = pixels.shape[-2:]
        long_side = length * max(height, width) // min(height, width)
        if length * long_side > MAX_RESIZED_PIXELS:
            raise ImageDecodeError(
                source,
                f"{width} x {height} pixels are too elongated: with the shorter side at "
                f"{length} pixels the longer would be {long_side:,}",
            )
        size = (long_side, length) if height > width else (length, long_side)
        return _resize(pixels, size, InterpolationMode(self.interpolation))

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a pixel, in plain JSON types, for a fingerprint.

        Examples
        --------
        >>> recipe = Preprocessing(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> recipe.describe()["mean"]
        [0.5, 0.5, 0.5]
        """
        return {
            "pixels": PIXELS_VERSION,
            "image_size": self.image_size,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.channel_order,
            "pixel_scale": self.pixel_scale,
            "squash": self.squash,
        }


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
    _check_choice("views", views, VIEWS)
    return _VIEW_COUNTS[views]


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        expected = " or ".join(map(repr, choices)) if len(choices) == 2 else f"one of {choices}"
        hint = did_you_mean(str(value), choices)
        raise InputError(f"Got {name}={value!r}, expected {expected}{hint or '.'}")


def _resize(
    pixels: torch.Tensor, size: tuple[int, int], interpolation: InterpolationMode
) -> torch.Tensor:
    """Resize as Pillow does, whose recipe the weights were trained with.

    Columns and rows are resized one after the other, with rounding in between, so their order
    shows: by 0.25 grey levels in the mean on noise. torchvision takes the width first; Pillow takes
    the height first where it shrinks by more than twice as many pixels (since Pillow 13, to be
    faster on tall images; see its Resample.c).
    """
    height, width = pixels.shape[-2:]
    shrinks_by = height - size[0]
    if shrinks_by > 0 and shrinks_by > 2 * (width - size[1]):
        pixels = functional.resize(pixels, [size[0], width], interpolation, antialias=True)
    resized: torch.Tensor = functional.resize(pixels, list(size), interpolation, antialias=True)
    return resized


def _checked_length(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"Got {name}={value!r}, expected a number of pixels, at least 1.")
    return int(value)
