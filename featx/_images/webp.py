"""The size of a WebP, which Pillow tells only after it has taken memory for all its pixels."""

from __future__ import annotations


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
    kind = content[12:16]
    if kind == b"VP8X":
        return _uint(content[24:27]) + 1, _uint(content[27:30]) + 1
    if kind == b"VP8L":
        sizes = _uint(content[21:25])
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _uint(content[26:28]) & 0x3FFF, _uint(content[28:30]) & 0x3FFF
    return 0, 0


def _uint(data: bytes) -> int:
    return int.from_bytes(data, "little")
