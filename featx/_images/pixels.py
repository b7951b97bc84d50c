"""8-bit RGB pixels out of arrays and Pillow images of any mode.

Colour profiles and gamma are not applied: the pixel values of the file are what networks are
trained on. Pillow hands over numbers of 12, 16 and 32 bits as they are stored: which of them stand
for black and white is in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors
from featx._images.headers import exif_orientation, turn_upright
from featx._images.limits import DEFAULT_LIMITS, Limits

PixelArray: TypeAlias = npt.NDArray[np.uint8]
"""8-bit RGB pixels of shape (height, width, 3), contiguous."""

BACKGROUND = (255, 255, 255, 255)
"""Transparent images are seen on white paper."""

_MAX_UINT16 = 65_535

# Tags of TIFF and what they say.
_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_SAMPLE_FORMAT = 339
_SUBSAMPLING = 530
_DNG_VERSION = 50_706
_REDUCED_IMAGE = 1
_WHITE_IS_ZERO = 0
_YCBCR = 6
_SIGNED = 2


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
        values = _values(image, source)
        gray = gray_of_integers(values, scale, source)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = BACKGROUND[0]
        pixels = _gray_to_rgb(gray)
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


@dataclass(frozen=True)
class IntegerScale:
    """What the integers of a one-channel image mean.

    Attributes
    ----------
    white : int
        The number opposite to 0. Where the file does not say it, that of 16 bits, as Pillow also
        scales the numbers of PGM and JPEG 2000.
    stored_as : str or None
        The dtype of the numbers in the file, where Pillow has no such mode and hands over the same
        bits as another.
    white_is_zero : bool
        Whether 0 is white, and `white` is black.
    """

    white: int = _MAX_UINT16
    stored_as: str | None = None
    white_is_zero: bool = False


def integer_scale(file: Image.Image, source: str) -> IntegerScale:
    """Return what the integers of an opened file mean, as far as Pillow does not see to it."""
    if file.format == "FITS" and (file.mode != "L" or _is_compressed_fits(file)):
        raise ImageDecodeError(
            source, "FITS holds measurements without a black and a white: export it as PNG or TIFF"
        )
    if file.format == "TIFF":
        return _scale_of_tiff(file, source)
    return IntegerScale()


def _is_compressed_fits(file: Any) -> bool:
    return any(tile[0] == "fits_gzip" for tile in file.tile)


def _scale_of_tiff(file: Any, source: str) -> IntegerScale:
    with library_errors(source):
        subfile_type = file.tag_v2.get(_SUBFILE_TYPE)
        bits = file.tag_v2.get(_BITS_PER_SAMPLE)
        sample_format = file.tag_v2.get(_SAMPLE_FORMAT)
        photometric = file.tag_v2.get(_PHOTOMETRIC_INTERPRETATION)
        subsampling = file.tag_v2.get(_SUBSAMPLING, (1, 1))
        is_raw = _DNG_VERSION in file.tag_v2
    if is_raw or (isinstance(subfile_type, int) and subfile_type & _REDUCED_IMAGE):
        raise ImageDecodeError(
            source, "its first picture is a small copy, as in a camera raw file: develop it first"
        )
    if photometric == _YCBCR and file.info.get("compression") == "raw" and subsampling != (1, 1):
        raise ImageDecodeError(source, "its colours are halved without compression: save it as RGB")
    is_signed = sample_format == (_SIGNED,)
    if bits == (8,) and is_signed:
        return IntegerScale(white=255, stored_as="int8")
    if bits == (32,) and not is_signed:
        return IntegerScale(white=2**32 - 1, stored_as="uint32")
    white = 2**12 - 1 if bits == (12,) else _MAX_UINT16
    return IntegerScale(white, white_is_zero=photometric == _WHITE_IS_ZERO)


def gray_of_integers(
    values: npt.NDArray[Any], scale: IntegerScale, source: str
) -> npt.NDArray[np.uint8]:
    """Return integers as 8-bit grey levels, scaled and not clipped.

    ImageDecodeError for numbers below 0 or beyond white, or 32-bit numbers that are all too small
    to be told from black.

    Examples
    --------
    >>> gray_of_integers(np.array([0, 257, 65535]), IntegerScale(), "<array>").tolist()
    [0, 1, 255]
    >>> gray_of_integers(np.array([0, 4095]), IntegerScale(4095, white_is_zero=True), "").tolist()
    [255, 0]
    """
    if scale.stored_as is not None:
        values = values.view(scale.stored_as)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > scale.white:
        raise ImageDecodeError(
            source,
            f"got integer pixels from {low} to {high}, expected 0 to {scale.white}: numbers beyond "
            "have no known scale",
        )
    if scale.white > _MAX_UINT16 and 0 < high <= _MAX_UINT16:
        raise ImageDecodeError(
            source,
            f"got {values.dtype} pixels from {low} to {high}, which are black on their scale of 0 "
            f"to {scale.white}: save them with 16 bits",
        )
    wide = values.astype(np.uint64 if scale.white > _MAX_UINT16 else np.uint32)
    gray: npt.NDArray[np.uint8] = ((wide * 255 + scale.white // 2) // scale.white).astype(np.uint8)
    return 255 - gray if scale.white_is_zero else gray
