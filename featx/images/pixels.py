"""8-bit RGB pixels out of arrays and Pillow images of any mode.

Colour profiles and gamma are not applied: the pixel values of the file are what networks are
trained on.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from featx.errors import ImageDecodeError
from featx.images.orientation import exif_orientation, turn_upright
from featx.images.silence import warnings_silenced

if TYPE_CHECKING:
    from collections.abc import Iterator

PixelArray: TypeAlias = npt.NDArray[np.uint8]
"""8-bit RGB pixels of shape (height, width, 3), contiguous."""

MAX_PIXELS = 178_956_970
"""The largest width x height that is decoded, as Pillow's own default: a decompression bomb is
refused from its header, before its pixels fill the memory."""

BACKGROUND = (255, 255, 255, 255)
"""Transparent images are seen on white paper."""

_MAX_UINT16 = 65_535
_MESSAGE_IS_ENOUGH = (OSError, ValueError, SyntaxError, RuntimeError)


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turn whatever an image library raises or warns in the block into an `ImageDecodeError`.

    Damaged images make Pillow raise almost anything (OSError, SyntaxError, struct.error, KeyError,
    MemoryError, ...), so the block must hold calls into the library and nothing else: a fault of
    our own is not a bad image. Warnings are dropped.
    """
    try:
        with warnings_silenced():
            yield
    except Exception as error:
        raise ImageDecodeError(source, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    first_line = str(error).strip().partition("\n")[0]
    text = re.sub(r"^.*\.cpp:\d+, ", "", first_line)[:200]
    if text and isinstance(error, _MESSAGE_IS_ENOUGH):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def refuse_too_many_pixels(size: tuple[int, int], source: str) -> None:
    """Raise `ImageDecodeError` for a (width, height) of more than `MAX_PIXELS` pixels."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(
            source, f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,} pixels"
        )


def checked_array(array: npt.NDArray[Any], source: str = "<array>") -> npt.NDArray[Any]:
    """Return a view of shape (height, width, channels) of an array that can hold an image.

    Parameters
    ----------
    array : ndarray of shape (height, width), (height, width, 1) or (height, width, 3)
        uint8, or floating point.
    source : str
        What to call the image in an error.

    Raises
    ------
    ImageDecodeError
        If the shape or the dtype is another, or there are no pixels.

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
    """Return a copy of an array as 8-bit RGB pixels.

    Parameters
    ----------
    array : ndarray of shape (height, width), (height, width, 1) or (height, width, 3)
        uint8, or floats in [0, 1], which are scaled by 255 and rounded.
    source : str
        What to call the image in an error.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    ImageDecodeError
        If the shape, the dtype or the range is another.

    Examples
    --------
    >>> pixels_from_array(np.array([[0.0, 0.5, 1.0]]))[0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    array = checked_array(array, source)
    if array.dtype != np.uint8:
        array = _scaled_floats(array, source)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C")


def pixels_from_pillow(image: Image.Image, source: str = "<PIL image>") -> PixelArray:
    """Return a Pillow image of any mode as upright 8-bit RGB pixels.

    Palettes, greys, CMYK, YCbCr, LAB and HSV are converted by Pillow; transparency is laid on
    white; integers of 16 bits are scaled to 8, not clipped; the EXIF orientation is applied. The
    image is loaded, and its palette may change: pass a copy of one that belongs to someone else.

    Parameters
    ----------
    image : PIL.Image.Image
        Its current frame is taken.
    source : str
        What to call the image in an error.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    ImageDecodeError
        If it cannot be decoded, has more than `MAX_PIXELS` pixels, or holds numbers without a known
        scale: floats outside [0, 1], or integers outside 0 to 65535.

    Examples
    --------
    >>> pixels_from_pillow(Image.new("LA", (2, 1), (0, 0))).tolist()
    [[[255, 255, 255], [255, 255, 255]]]
    """
    refuse_too_many_pixels(image.size, source)
    with library_errors(source):
        image.load()
    if image.mode == "F":
        pixels = _gray_to_rgb(_scaled_floats(np.asarray(image), source))
    elif image.mode.startswith("I"):
        pixels = _gray_to_rgb(_scaled_integers(image, source))
    else:
        pixels = _converted_by_pillow(image, source)
    return np.ascontiguousarray(turn_upright(pixels, exif_orientation(image.info)))


def _converted_by_pillow(image: Image.Image, source: str) -> PixelArray:
    with library_errors(source):
        if image.mode == "La":  # premultiplied, which Pillow converts in two steps only
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.array(image.convert("RGB"))


def _scaled_integers(image: Image.Image, source: str) -> PixelArray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > _MAX_UINT16:
        raise ImageDecodeError(
            source,
            f"got integer pixels{_range_text(values)}, expected 8 bits, or 16 bits (0 to 65535): "
            "larger numbers have no known scale",
        )
    gray = (values.astype(np.uint32) * 255 + _MAX_UINT16 // 2) // _MAX_UINT16
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = BACKGROUND[0]
    return gray.astype(np.uint8)


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
