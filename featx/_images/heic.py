"""HEIC, what many telephones write: read by pillow-heif where that is installed.

Its image class is used by itself. Registering it with Pillow, as its documentation proposes, would
change what ``PIL.Image.open`` reads for everyone in the process.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors

if TYPE_CHECKING:
    from PIL import Image

_HEIC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
)
_LONGEST_LIST_OF_BRANDS = 256


def is_heic(content: bytes) -> bool:
    r"""Tell whether an encoded image says that it holds HEIC (AVIF files say otherwise).

    Examples
    --------
    >>> is_heic(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf...")
    True
    >>> is_heic(b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf...")
    False
    """
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4]), _LONGEST_LIST_OF_BRANDS)
    return any(content[start : start + 4] in _HEIC_BRANDS for start in range(8, end, 4))


def open_heic(content: bytes, source: str) -> Image.Image:
    """Read the header of a HEIC file; nothing is decoded yet.

    Raises
    ------
    ImageDecodeError
        If it is damaged, or pillow-heif is not installed.
    """
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        raise ImageDecodeError(
            source, "HEIC needs the package pillow-heif: pip install 'featx[heic]'"
        ) from None
    with library_errors(source):
        image: Image.Image = plugin.HeifImageFile(io.BytesIO(content))
    return image
