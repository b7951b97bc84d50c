"""The EXIF orientation of a photograph, and its pixels turned upright.

One reading of the tag serves every format and every decoder. (torchvision's own looks at the first
APP1 segment of a JPEG only, and misses the tag where XMP stands before EXIF; Pillow's costs a sixth
of the decoding.)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

UPRIGHT = 1

_ORIENTATION_TAG = 0x0112
_VALUE_FORMATS = {3: "H", 4: "I"}  # TIFF field types SHORT and LONG
_TRANSPOSED = frozenset({5, 6, 7, 8})
_FLIPPED_AXES: dict[int, tuple[int, ...]] = {
    2: (1,),
    3: (0, 1),
    4: (0,),
    6: (1,),
    7: (0, 1),
    8: (0,),
}


def exif_orientation(info: Mapping[Any, Any]) -> int:
    r"""Return the EXIF orientation, 1 to 8, out of the ``info`` of a Pillow image.

    Damaged EXIF data do not make a picture unreadable: they count as upright (1).

    Examples
    --------
    >>> exif_orientation({})
    1
    >>> tag_6 = bytes.fromhex("1201 0300 01000000 0600")
    >>> exif_orientation({"exif": b"Exif\0\0II*\0" + bytes.fromhex("08000000 0100") + tag_6})
    6
    """
    return orientation_in(_exif_data(info).removeprefix(b"Exif\0\0"))


def orientation_in(exif: bytes) -> int:
    """Return the orientation, 1 to 8, out of EXIF data without their name; 1 if they are damaged.

    Examples
    --------
    >>> orientation_in(b"damaged")
    1
    """
    try:
        orientation = _orientation_tag(exif)
    except struct.error:
        return UPRIGHT
    return orientation if 1 <= orientation <= 8 else UPRIGHT


def _exif_data(info: Mapping[Any, Any]) -> bytes:
    data = info.get("exif")
    if isinstance(data, bytes):
        return data
    # ImageMagick once wrote EXIF into PNG as text: a name and a length, then hexadecimal digits.
    profile = info.get("Raw profile type exif")
    if isinstance(profile, str):
        try:
            return bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return b""
    return b""


def _orientation_tag(tiff: bytes) -> int:
    endian = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if endian is None:
        return UPRIGHT
    (first_entry,) = struct.unpack_from(f"{endian}I", tiff, 4)
    (n_entries,) = struct.unpack_from(f"{endian}H", tiff, first_entry)
    for entry in range(n_entries):
        start = first_entry + 2 + 12 * entry
        tag, field_type = struct.unpack_from(f"{endian}HH", tiff, start)
        if tag == _ORIENTATION_TAG and field_type in _VALUE_FORMATS:
            (value,) = struct.unpack_from(f"{endian}{_VALUE_FORMATS[field_type]}", tiff, start + 8)
            return int(value)
    return UPRIGHT


def turn_upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return a view of pixels (height, width, channels) as EXIF says they are to be seen.

    Examples
    --------
    >>> stored = np.array([[[1], [2], [3]]], dtype=np.uint8)
    >>> turn_upright(stored, 6)[:, :, 0].tolist()
    [[1], [2], [3]]
    >>> turn_upright(stored, 3)[:, :, 0].tolist()
    [[3, 2, 1]]
    """
    if orientation in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    return np.flip(pixels, _FLIPPED_AXES.get(orientation, ()))
