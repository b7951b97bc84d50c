"""Which numbers of an image stand for black and white, where Pillow leaves that open.

Pillow hands over numbers of 12, 16 and 32 bits as they are stored. What they mean is in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

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
