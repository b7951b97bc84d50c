"""What the first bytes of an encoded image say: its format, its size, how it is to be turned.

Pillow reads the same of a JPEG, but takes three times as long, which shows beside a decoder that
needs a third of a millisecond for a small photograph; and it tells the size of a WebP only after it
has taken memory for all its pixels. One reading of the EXIF orientation serves every format and
every decoder. (torchvision's own looks at the first APP1 segment of a JPEG only, and misses the tag
where XMP stands before EXIF; Pillow's costs a sixth of the decoding.)
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

JPEG_START = b"\xff\xd8\xff"
UPRIGHT = 1
_TRANSPOSED = frozenset({5, 6, 7, 8})
_FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}

UNKNOWN = "not an image in a known format"

_READ = {
    JPEG_START: "a JPEG",
    b"\x89PNG\r\n\x1a\n": "a PNG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
}
_NOT_READ = {
    b"8BPS": "a Photoshop file",
    b"%!PS": "PostScript, a program",
    b"\xc5\xd0\xd3\xc6": "PostScript, a program",
    b"SIMPLE  =": "FITS",
    b"DDS ": "a texture (DDS)",
    b"/* XPM": "an XPM drawing",
    b"\x0a\x05\x01": "PCX",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"gimp xcf": "a GIMP project",
    b"FUJIFILM": "a camera raw file",
    b"IIRO": "a camera raw file",
    b"IIU\0": "a camera raw file",
    b"FOVb": "a camera raw file",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"MATLAB ": "a MATLAB file",
    b"PAR1": "a Parquet table",
    b"SQLite format 3\0": "an SQLite database",
    b"\x1aE\xdf\xa3": "a video",
    b"RIFF": "a video or sound",
    b"\0\x05\x16\x07": "what macOS keeps beside a file",
    b"version https://git-lfs.github.com/": "a Git LFS pointer (git lfs pull fetches the file)",
    b"/annex/objects/": "a git-annex pointer (git annex get fetches the file)",
}
_NAMED_LATER = {128: (b"DICM", "DICOM"), 257: (b"ustar", "a tar archive")}
_READ_BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF"}
_BRANDS_NOT_READ = {
    b"crx ": "a camera raw file",
    b"qt  ": "a video",
    b"isom": "a video",
    b"mp4": "a video",
    b"M4V": "a video",
    b"3gp": "a video",
}
_HEIC_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs".split())
_LONGEST_LIST_OF_BRANDS = 256
_LONGEST_PROLOGUE = 1024
_JSON = re.compile(rb'[\[{]\s*(?:["{}\[\]]|-?\d)')

# Markers of JPEG.
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_WITH_LENGTH = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))

_EXIF_START = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_VALUE_FORMATS = {3: "H", 4: "I"}  # TIFF field types SHORT and LONG


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the pixels of a JPEG: width and height before the orientation is applied.

    ``bits`` is how many a channel has; ``is_lossless`` tells the kind that predicts pixels from
    their neighbours; ``exif`` are the EXIF data without their name; ``n_scans`` is how many times a
    decoder passes over all pixels, at most: what stands behind the image is counted too.
    """

    size: tuple[int, int]
    bits: int
    is_lossless: bool
    exif: bytes
    n_scans: int


def read_jpeg_header(content: bytes) -> JpegHeader | None:
    r"""Return the header of a JPEG, or None if its segments do not follow one another as usual.

    Examples
    --------
    >>> frame = bytes.fromhex("ffc0 000b 08 0002 0003 01 011100")
    >>> scan = bytes.fromhex("ffda 0008 01 0100 003f00")
    >>> read_jpeg_header(b"\xff\xd8" + frame + scan)
    JpegHeader(size=(3, 2), bits=8, is_lossless=False, exif=b'', n_scans=1)
    >>> read_jpeg_header(b"\xff\xd8 damaged") is None
    True
    """
    exif = b""
    frame = 0  # where the segment with the size starts
    start = 2
    try:
        while content[start] == 0xFF and (marker := content[start + 1]) in _WITH_LENGTH:
            if marker == _START_OF_SCAN:
                break
            end = start + 2 + (content[start + 2] << 8 | content[start + 3])
            if marker in _START_OF_FRAME:
                frame = start
            elif marker == _APP1 and content.startswith(_EXIF_START, start + 4):
                exif += content[start + 4 + len(_EXIF_START) : end]
            start = end
        else:
            return None
        if not frame:
            return None
        height = content[frame + 5] << 8 | content[frame + 6]
        width = content[frame + 7] << 8 | content[frame + 8]
        is_whole = content[start + 4] == content[frame + 9]  # all channels stand in this scan
    except IndexError:  # it ends before its pixels
        return None
    in_one_scan = is_whole and content[frame + 1] not in _PROGRESSIVE
    n_scans = 1 if in_one_scan else content.count(b"\xff\xda", start)
    is_lossless = content[frame + 1] in _LOSSLESS
    return JpegHeader((width, height), content[frame + 4], is_lossless, exif, n_scans)


class Jpeg2000Component(NamedTuple):
    """A channel of a JPEG 2000; the steps are 2 where it has half of the picture's pixels."""

    bits: int
    is_signed: bool
    step_across: int
    step_down: int


def read_jpeg_2000_components(content: bytes) -> tuple[list[Jpeg2000Component], tuple[int, ...]]:
    r"""Return the channels of a JPEG 2000, and which of them are red, green, blue if it says so.

    The source of the numbers is ISO/IEC 15444-1: the marker SIZ (A.5.1) and the box of channel
    definitions (I.5.3.6).

    Examples
    --------
    >>> siz = bytes.fromhex("ff4f ff51 0029 0000") + bytes(32) + bytes.fromhex("0001 0b0101")
    >>> read_jpeg_2000_components(siz)[0]
    [Jpeg2000Component(bits=12, is_signed=False, step_across=1, step_down=1)]
    """
    start = max(0, content.find(b"\xff\x4f\xff\x51"))
    (n_components,) = struct.unpack_from(">H", content, start + 40)
    components = []
    for depth, across, down in struct.iter_unpack("3B", content[start + 42 :][: 3 * n_components]):
        components.append(Jpeg2000Component((depth & 0x7F) + 1, depth >= 0x80, across, down))
    box = content.find(b"cdef", 0, start)
    if box < 0:
        return components, ()
    (n_definitions,) = struct.unpack_from(">H", content, box + 4)
    definitions = struct.iter_unpack(">3H", content[box + 6 :][: 6 * n_definitions])
    colours = {place: channel for channel, kind, place in definitions if kind == 0 and place}
    others = set(range(n_components)) - set(colours.values())
    channels = (*(colours[place] for place in sorted(colours)), *sorted(others))
    return components, () if channels == tuple(range(n_components)) else channels


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
    data = info.get("exif")
    if isinstance(data, bytes):
        return orientation_in(data.removeprefix(_EXIF_START))
    # ImageMagick once wrote EXIF into PNG as text: a name and a length, then hexadecimal digits.
    profile = info.get("Raw profile type exif")
    if isinstance(profile, str):
        try:
            data = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return UPRIGHT
        return orientation_in(data.removeprefix(_EXIF_START))
    return UPRIGHT


def orientation_in(exif: bytes) -> int:
    """Return the orientation, 1 to 8, out of EXIF data without their name; 1 if they are damaged.

    Examples
    --------
    >>> orientation_in(b"damaged")
    1
    """
    endian = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if endian is None:
        return UPRIGHT
    try:
        (first_entry,) = struct.unpack_from(f"{endian}I", exif, 4)
        (n_entries,) = struct.unpack_from(f"{endian}H", exif, first_entry)
        for start in range(first_entry + 2, first_entry + 2 + 12 * n_entries, 12):
            tag, field_type = struct.unpack_from(f"{endian}HH", exif, start)
            if tag == _ORIENTATION_TAG and field_type in _VALUE_FORMATS:
                value_format = f"{endian}{_VALUE_FORMATS[field_type]}"
                (value,) = struct.unpack_from(value_format, exif, start + 8)
                return int(value) if 1 <= value <= 8 else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT


def is_webp(content: bytes) -> bool:
    r"""Tell whether an encoded image says that it is a WebP.

    Examples
    --------
    >>> is_webp(b"RIFF\x10\0\0\0WEBPVP8L")
    True
    """
    return content.startswith(b"RIFF") and content[8:12] == b"WEBP"


def webp_size(content: bytes) -> tuple[int, int]:
    r"""Return the width and height that the header of a WebP states; (0, 0) if it states none.

    Examples
    --------
    >>> webp_size(b"RIFF\x10\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\x02\0\0\x01\0\0")
    (3, 2)
    """

    def number(start: int, stop: int) -> int:
        return int.from_bytes(content[start:stop], "little")

    kind = content[12:16]
    if kind == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if kind == b"VP8L":
        sizes = number(21, 25)
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    return 0, 0


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


def why_unknown(content: bytes) -> str:
    r"""Return why no decoder recognises an encoded image.

    Examples
    --------
    >>> why_unknown(b"<!DOCTYPE html><title>404</title>")
    'it is a web page (HTML), which is not read'
    >>> why_unknown(b"\x89PNG\r\n\x1a\n damaged")
    'it begins as a PNG, but is damaged or of a kind that is not read'
    >>> why_unknown(b"notes")
    'not an image in a known format'
    """
    if not content.strip(b"\0"):
        return "it holds nothing but zeros, as a file that was never written to its end"
    if content[4:8] == b"ftyp":  # the container of MPEG-4, for videos and images
        is_one_of, is_other = _name(content[8:], _READ_BRANDS), _name(content[8:], _BRANDS_NOT_READ)
    elif is_webp(content):
        is_one_of, is_other = "a WebP", None
    else:
        is_one_of = _name(content, _READ)
        is_other = _name(content, _NOT_READ) or _name_further_on(content) or _text_format(content)
    if is_one_of:
        return f"it begins as {is_one_of}, but is damaged or of a kind that is not read"
    return f"it is {is_other}, which is not read" if is_other else UNKNOWN


def _name(content: bytes, names: dict[bytes, str]) -> str | None:
    return next((name for start, name in names.items() if content.startswith(start)), None)


def _name_further_on(content: bytes) -> str | None:
    places = _NAMED_LATER.items()
    return next((name for at, (mark, name) in places if content.startswith(mark, at)), None)


def _text_format(content: bytes) -> str | None:
    prologue = content[:_LONGEST_PROLOGUE].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if prologue.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if prologue.startswith(b"<") and b"<svg" in prologue:
        return "an SVG drawing"
    if prologue.startswith(b"<?xml"):
        return "XML"
    return "JSON" if _JSON.match(prologue) else None


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
