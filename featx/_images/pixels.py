"""8-bit RGB pixels out of arrays and Pillow images of any mode.

Colour profiles and gamma are not applied: the pixel values of the file are what networks are
trained on. Pillow hands over numbers of 12, 16 and 32 bits as they are stored: which of them stand
for black and white is in the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors
from featx._images.headers import exif_orientation, read_jpeg_2000_components, turn_upright
from featx._images.limits import DEFAULT_LIMITS, Limits, PixelRange

PixelArray: TypeAlias = npt.NDArray[np.uint8]
"""8-bit RGB pixels of shape (height, width, 3), contiguous."""

BACKGROUND = (255, 255, 255, 255)
"""Transparent images are seen on white paper."""

_MAX_UINT8 = 255
_MAX_UINT16 = 65_535

# Integers that end below this part of the range of their type are of another range: those of 8, 10
# and 12 bits in 16.
_NEARLY_UNUSED = 16

# Of a file, what is looked at in search of the numbers' meaning.
_LONGEST_HEADER = 2**20

# Tags of TIFF and what they say.
_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_PLANAR_CONFIGURATION = 284
_PLANES = 2
_SAMPLE_FORMAT = 339
_SUBSAMPLING = 530
_DNG_VERSION = 50_706
_REDUCED_IMAGE = 1
_WHITE_IS_ZERO = 0
_RGB = 2
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
            f"(height, width, 3){_advice_on_shape(array)}",
        )
    if array.size == 0:
        raise ImageDecodeError(source, f"the array of shape {array.shape} has no pixels")
    if array.dtype.kind not in "uif":
        raise ImageDecodeError(source, f"got a {array.dtype} array, expected integers or floats")
    return array


def _advice_on_shape(array: npt.NDArray[Any]) -> str:
    if array.ndim == 3 and array.shape[2] == 4:
        return ": with an alpha channel pass PIL.Image.fromarray(array)"
    if array.ndim == 3 and array.shape[0] in (1, 3):
        return ": its channels stand first, pass array.transpose(1, 2, 0)"
    return ""


def pixels_from_array(
    array: npt.NDArray[Any], source: str = "<array>", limits: Limits = DEFAULT_LIMITS
) -> PixelArray:
    """Return a copy of an array as 8-bit RGB pixels of shape (height, width, 3).

    What is not uint8 is scaled from the range of the limits to 0..255 and rounded.

    Examples
    --------
    >>> pixels_from_array(np.array([[0.0, 0.5, 1.0]]))[0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    array = checked_array(array, source)
    if array.dtype != np.uint8:
        array = scaled_to_8_bits(array, _white_of(array.dtype), source, limits.pixel_range)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C")


def pixels_from_pillow(
    image: Image.Image,
    source: str = "<PIL image>",
    limits: Limits = DEFAULT_LIMITS,
    stored: StoredNumbers | None = None,
) -> PixelArray:
    """Return a Pillow image of any mode as upright 8-bit RGB pixels.

    Palettes, greys, CMYK, YCbCr, LAB and HSV are converted by Pillow; transparency is laid on
    white; other numbers than of 8 bits are scaled to 8; the EXIF orientation is applied. The image
    is loaded, and its palette may change: pass a copy of one that belongs to someone else, and as
    ``stored`` what `stored_numbers` says of the image itself, for copies forget it.

    Examples
    --------
    >>> pixels_from_pillow(Image.new("LA", (2, 1), (0, 0))).tolist()
    [[[255, 255, 255], [255, 255, 255]]]
    """
    limits.check_pixels(image.size, source)
    stored = stored_numbers(image, source) if stored is None else stored
    with library_errors(source):
        image.load()
    # Once more, because an icon may hold a picture of another size than its header says.
    limits.check_pixels(image.size, source)
    if image.mode[0] in "IF" or stored.dtype is not None:
        with library_errors(source):
            values = np.asarray(image)
        if stored.dtype is not None:
            values = values.view(stored.dtype)
        white = stored.white if image.mode != "F" else 1
        gray = scaled_to_8_bits(values, white, source, limits.pixel_range)
        if stored.white_is_zero:
            gray = 255 - gray
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray[values == transparent] = BACKGROUND[0]
        pixels = np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    else:
        pixels = _converted_by_pillow(_with_channels_in_order(image, stored), source)
        if stored.is_reduced:
            _check_reduced(pixels, source, limits.pixel_range)
    return np.ascontiguousarray(turn_upright(pixels, exif_orientation(image.info)))


def _converted_by_pillow(image: Image.Image, source: str) -> PixelArray:
    with library_errors(source):
        if image.mode == "La":  # premultiplied, which Pillow converts in two steps only
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.array(image.convert("RGB"))


def _with_channels_in_order(image: Image.Image, stored: StoredNumbers) -> Image.Image:
    if stored.channels:
        bands = image.split()
        image = Image.merge(image.mode, [bands[channel] for channel in stored.channels])
    if stored.bits < 8:
        top = 2**stored.bits - 1
        image = image.point([round((value >> 8 - stored.bits) * 255 / top) for value in range(256)])
    return image


def _is_reduced_by_pillow(image: Image.Image) -> bool:
    """Tell whether Pillow makes 8 bits of 16 while it decodes, as it does of colours."""
    if image.mode[0] in "IF":
        return False
    for decoder, *_, arguments in getattr(image, "tile", ()):
        # The decoders "ppm" and "ppm_plain" are told the number of white.
        is_pnm = decoder.startswith("ppm") and isinstance(arguments, tuple)
        if arguments[-1] > _MAX_UINT8 if is_pnm else ";16" in str(arguments):
            return True
    return False


def _check_reduced(pixels: PixelArray, source: str, pixel_range: PixelRange) -> None:
    if pixel_range != "type":
        raise ImageDecodeError(
            source, "colours of 16 bits are read by the range of their type only: pass an array"
        )
    # What ends at 255 is all black by now.
    high = int(pixels.max())
    if high * _NEARLY_UNUSED <= _MAX_UINT8 + 1:
        raise ImageDecodeError(source, _unused(f"about {high * 257}", _MAX_UINT16))


def scaled_to_8_bits(
    values: npt.NDArray[Any], white: float, source: str, pixel_range: PixelRange = "type"
) -> PixelArray:
    """Return numbers scaled to 0..255 and rounded.

    ``white`` is the largest number of their type, 0 is black, and numbers outside are refused, as
    are integers that leave nearly all of that range unused. A range of two numbers clips, as a
    camera's noise may go beyond.

    Examples
    --------
    >>> scaled_to_8_bits(np.array([0, 257, 65535]), 65535, "<array>").tolist()
    [0, 1, 255]
    >>> scaled_to_8_bits(np.array([0, 257, 5000]), 65535, "<array>", (0, 4095)).tolist()
    [0, 16, 255]
    """
    low, high = values.min().item(), values.max().item()
    # Written so that NaN, for which every comparison is false, is refused too.
    if not (-np.inf < low and high < np.inf):
        raise ImageDecodeError(
            source, f"got {values.dtype} pixels from {low} to {high}, expected finite numbers"
        )
    if pixel_range == "type":
        _check_range(low, high, white, source, values.dtype)
        black = 0.0
    elif pixel_range == "image":
        black, white = float(low), float(high)
    else:
        black, white = map(float, pixel_range)
        values = values.clip(black, white)
    # Integers and ranges far from 0 need the precision; 0 to 1 does not.
    is_unit = values.dtype.kind == "f" and pixel_range == "type"
    scaled: npt.NDArray[Any] = values.astype("float32" if is_unit else "float64")
    scaled -= black
    scaled *= 255
    scaled /= (white - black) or 1
    pixels: PixelArray = np.rint(scaled, out=scaled).astype(np.uint8)
    return pixels


def _check_range(low: Any, high: Any, white: float, source: str, dtype: np.dtype[Any]) -> None:
    if low < 0 or high > white:
        raise ImageDecodeError(
            source,
            f"got {dtype} pixels from {_text(low)} to {_text(high)}, expected 0 to {white}: pass "
            "pixel_range=(black, white)",
        )
    if dtype.kind != "f" and 0 < high * _NEARLY_UNUSED <= white:
        raise ImageDecodeError(source, _unused(f"{high}", white))


def _text(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _unused(high: str, white: float) -> str:
    return (
        f"its numbers end at {high}, which is all but black in 0 to {white}: pass "
        'pixel_range="image", or (black, white)'
    )


def _white_of(dtype: np.dtype[Any]) -> float:
    return 1 if dtype.kind == "f" else np.iinfo(dtype).max


@dataclass(frozen=True)
class StoredNumbers:
    """What the numbers of a file mean, as far as Pillow does not see to it.

    Attributes
    ----------
    white : int
        The number opposite to 0. Where the file does not say it, that of 16 bits, as Pillow also
        scales the numbers of PGM and JPEG 2000.
    dtype : str or None
        The dtype of the numbers in the file, where Pillow has no such mode and hands over the same
        bits as another.
    white_is_zero : bool
        Whether 0 is white, and `white` is black.
    bits : int
        How many of 8 bits are in use: Pillow shifts those of JPEG 2000 to the left.
    channels : tuple of int
        Which channel is red, green, blue, where they stand in another order.
    is_reduced : bool
        Whether Pillow makes 8 bits of 16 while it decodes.
    """

    white: int = _MAX_UINT16
    dtype: str | None = None
    white_is_zero: bool = False
    bits: int = 8
    channels: tuple[int, ...] = ()
    is_reduced: bool = False


def stored_numbers(file: Any, source: str) -> StoredNumbers:
    """Return what the numbers of an opened file mean; ImageDecodeError where Pillow misreads it.

    An image that was loaded before has forgotten what is not said by the tags of TIFF.
    """
    stored = StoredNumbers()
    if file.format == "TIFF":
        stored = _numbers_of_tiff(file, source)
    elif file.format == "JPEG2000" and file.fp is not None:
        stored = _numbers_of_jpeg_2000(file, source)
    elif file.format == "JPEG" and getattr(file, "bits", 8) != 8:
        raise ImageDecodeError(source, f"it is a JPEG of {file.bits} bits, expected 8")
    return replace(stored, is_reduced=_is_reduced_by_pillow(file))


def _numbers_of_tiff(file: Any, source: str) -> StoredNumbers:
    with library_errors(source):
        tags = dict(file.tag_v2)

    def several(tag: int) -> tuple[Any, ...]:
        value = tags.get(tag, ())
        return value if isinstance(value, tuple) else (value,)

    bits, photometric = several(_BITS_PER_SAMPLE), tags.get(_PHOTOMETRIC_INTERPRETATION)
    subfile_type, is_signed = tags.get(_SUBFILE_TYPE), _SIGNED in several(_SAMPLE_FORMAT)
    if _DNG_VERSION in tags or (isinstance(subfile_type, int) and subfile_type & _REDUCED_IMAGE):
        raise ImageDecodeError(
            source, "its first picture is a small copy, as in a camera raw file: develop it first"
        )
    is_raw = file.info.get("compression") == "raw"
    if photometric == _YCBCR and is_raw and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1):
        raise ImageDecodeError(source, "its colours are halved without compression: save it as RGB")
    in_planes = tags.get(_PLANAR_CONFIGURATION) == _PLANES and len(bits) > 1
    read_rightly = ((8, 8, 8),) if is_raw else ((8, 8, 8), (16, 16, 16))
    if in_planes and (bits not in read_rightly or photometric != _RGB or is_signed):
        raise ImageDecodeError(
            source, f"its {len(bits)} channels stand one after the other: save it pixel by pixel"
        )
    n_bits = bits[0] if len(bits) == 1 else 16
    if is_signed or n_bits > 16:
        kind = "int" if is_signed else "uint"
        white = 2 ** (n_bits - is_signed) - 1
        dtype = f"{kind}{n_bits}" if n_bits in (8, 32) and file.mode != "F" else None
        return StoredNumbers(white, dtype, photometric == _WHITE_IS_ZERO)
    white = 2**12 - 1 if n_bits == 12 else _MAX_UINT16
    return StoredNumbers(white, white_is_zero=photometric == _WHITE_IS_ZERO)


def _numbers_of_jpeg_2000(file: Any, source: str) -> StoredNumbers:
    with library_errors(source):
        file.fp.seek(0)
        components, channels = read_jpeg_2000_components(file.fp.read(_LONGEST_HEADER))
    n_bits = max((component.bits for component in components), default=0)
    is_plain = len(set(components)) == 1 and components[0][1:] == (False, 1, 1)
    is_gray = len(components) == 1 and file.mode != "P"
    if (
        not is_plain
        or n_bits > 16
        or (n_bits != 8 and not is_gray)
        or (n_bits > 8 and file.mode == "L")
    ):
        raise ImageDecodeError(
            source,
            f"a JPEG 2000 of {len(components)} channels of up to {n_bits} bits, or of different "
            "ones, is read wrongly: save it as PNG",
        )
    return StoredNumbers(bits=min(n_bits, 8), channels=channels)
