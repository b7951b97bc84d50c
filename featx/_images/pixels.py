"""8-bit RGB pixels out of arrays and Pillow images of any mode.

Colour profiles and gamma are not applied: the pixel values of the file are what networks are
trained on.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors
from featx._images.headers import exif_orientation, turn_upright
from featx._images.limits import DEFAULT_LIMITS, Limits
from featx._images.scale import IntegerScale, gray_of_integers, integer_scale

PixelArray: TypeAlias = npt.NDArray[np.uint8]
"""8-bit RGB pixels of shape (height, width, 3), contiguous."""

BACKGROUND = (255, 255, 255, 255)
"""Transparent images are seen on white paper."""


def checked_array(array: npt.NDArray[Any], source: str = "<array>") -> npt.NDArray[Any]:
    """Return a view (height, width, channels) of an array that can hold an image.

    Examples
    --------
    >>> checked_array(np.zeros((4, 6), dtype=np.uint8)).shape
    (4, 6, 1)
    """
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ImageDecodeError(
            source,
            f"got an array of shape {array.shape}, expected (height, width), (height, width, 1) or "
            "(height, width, 3)",
        )
    if array.size == 0:
        raise ImageDecodeError(source, f"the array of shape {array.shape} has no pixels")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ImageDecodeError(
            source,
            f"got a {array.dtype} array{_range_text(array)}, expected uint8, or floats in [0, 1]",
        )
    return array


def pixels_from_array(array: npt.NDArray[Any], source: str = "<array>") -> PixelArray:
    """Return a copy of an array as 8-bit RGB pixels of shape (height, width, 3).

    Floats in [0, 1] are scaled by 255 and rounded.

    Examples
    --------
    >>> pixels_from_array(np.array([[0.0, 0.5, 1.0]]))[0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    array = checked_array(array, source)
    if array.dtype != np.uint8:
        array = _scaled_floats(array, source)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C")


def pixels_from_pillow(
    image: Image.Image,
    source: str = "<PIL image>",
    limits: Limits = DEFAULT_LIMITS,
    file: Image.Image | None = None,
) -> PixelArray:
    """Return a Pillow image of any mode as upright 8-bit RGB pixels.

    Palettes, greys, CMYK, YCbCr, LAB and HSV are converted by Pillow; transparency is laid on
    white; integers of 12, 16 and 32 bits are scaled to 8, not clipped; the EXIF orientation is
    applied. The image is loaded, and its palette may change: pass a copy of one that belongs to
    someone else, and as ``file`` the image as it was opened, for copies forget what the file says
    of its numbers.

    Examples
    --------
    >>> pixels_from_pillow(Image.new("LA", (2, 1), (0, 0))).tolist()
    [[[255, 255, 255], [255, 255, 255]]]
    """
    file = image if file is None else file
    limits.check_pixels(image.size, source)
    scale = integer_scale(file, source)
    with library_errors(source):
        image.load()
    # Once more, because an icon may hold a picture of another size than its header says.
    limits.check_pixels(image.size, source)
    if image.mode == "F":
        pixels = _gray_to_rgb(_scaled_floats(_values(image, source), source))
    elif image.mode.startswith("I") or scale.stored_as == "int8":
        pixels = _gray_to_rgb(_scaled_integers(image, scale, source))
    else:
        pixels = _converted_by_pillow(image, source)
    if file.format == "XBM":  # its ones are ink, but Pillow makes them white
        pixels = 255 - pixels
    return np.ascontiguousarray(turn_upright(pixels, exif_orientation(image.info)))


def _converted_by_pillow(image: Image.Image, source: str) -> PixelArray:
    with library_errors(source):
        if image.mode == "La":  # premultiplied, which Pillow converts in two steps only
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.array(image.convert("RGB"))


def _scaled_integers(image: Image.Image, scale: IntegerScale, source: str) -> PixelArray:
    values = _values(image, source)
    gray = gray_of_integers(values, scale, source)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = BACKGROUND[0]
    return gray


def _values(image: Image.Image, source: str) -> npt.NDArray[Any]:
    with library_errors(source):
        return np.asarray(image)


def _scaled_floats(values: npt.NDArray[Any], source: str) -> PixelArray:
    # Written so that NaN, for which every comparison is false, is refused too.
    if not (values.min() >= 0 and values.max() <= 1):
        raise ImageDecodeError(
            source,
            f"got {values.dtype} pixels{_range_text(values)}, expected floats in [0, 1]: "
            "rescale or clip them",
        )
    scaled: PixelArray = np.rint(values.astype(np.float32) * np.float32(255)).astype(np.uint8)
    return scaled


def _gray_to_rgb(gray: PixelArray) -> PixelArray:
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def _range_text(values: npt.NDArray[Any]) -> str:
    if values.dtype.kind not in "iuf":
        return ""
    return f" from {values.min():g} to {values.max():g}"
