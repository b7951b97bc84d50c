"""The recipe that brings an image to the one shape a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from featx.errors import ImageDecodeError, InputError, did_you_mean

if TYPE_CHECKING:
    import torch

MAX_RESIZED_PIXELS = 2**25
"""The largest width x height an image may be resized to: 100 MB of pixels."""

PIXELS_VERSION = 1
"""Rises whenever decoding or resizing comes to give other pixels for the same file: it is part of
every fingerprint, so that no cache can mix the two."""

INTERPOLATIONS = ("bicubic", "bilinear")


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
        Mean and standard deviation of each channel (red, green, blue) on a scale of [0, 1].

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
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):
            object.__setattr__(self, name, _checked_length(name, getattr(self, name)))
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"Got interpolation={self.interpolation!r}, expected 'bicubic' or 'bilinear'"
                f"{did_you_mean(str(self.interpolation), INTERPOLATIONS) or '.'}"
            )
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
        torch.Tensor of uint8, shape (3, image_size, image_size), contiguous

        Raises
        ------
        ImageDecodeError
            If the image is so elongated that resizing it would take more than
            `MAX_RESIZED_PIXELS` pixels.
        """
        height, width = pixels.shape[-2:]
        long_side = self.resize * max(height, width) // min(height, width)
        if self.resize * long_side > MAX_RESIZED_PIXELS:
            raise ImageDecodeError(
                source,
                f"{width} x {height} pixels are too elongated: with the shorter side at "
                f"{self.resize} pixels the longer would be {long_side:,}",
            )
        size = (long_side, self.resize) if height > width else (self.resize, long_side)
        resized = _resize(pixels, size, InterpolationMode(self.interpolation))
        cropped: torch.Tensor = functional.center_crop(resized, [self.image_size])
        return cropped.contiguous()

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
        }


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
