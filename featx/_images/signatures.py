"""The reason why a file is not an image that can be read, from its first bytes."""

from __future__ import annotations

from featx._images.webp import is_webp

_READ = {
    b"\xff\xd8\xff": "a JPEG",
    b"\x89PNG\r\n\x1a\n": "a PNG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"8BPS": "a Photoshop file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
}
_NOT_READ = {
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
}
_READ_BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF"}
_BRANDS_NOT_READ = {
    b"crx ": "a camera raw file",
    b"qt  ": "a video",
    b"isom": "a video",
    b"mp4": "a video",
    b"M4V": "a video",
    b"3gp": "a video",
}
_LONGEST_PROLOGUE = 1024

UNKNOWN = "not an image in a known format"


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
    if content[4:8] == b"ftyp":  # the container of MPEG-4, for videos and images
        is_one_of, is_other = _name(content[8:], _READ_BRANDS), _name(content[8:], _BRANDS_NOT_READ)
    elif is_webp(content):
        is_one_of, is_other = "a WebP", None
    else:
        is_one_of, is_other = _name(content, _READ), _name(content, _NOT_READ) or _markup(content)
    if is_one_of:
        return f"it begins as {is_one_of}, but is damaged or of a kind that is not read"
    return f"it is {is_other}, which is not read" if is_other else UNKNOWN


def _name(content: bytes, names: dict[bytes, str]) -> str | None:
    return next((name for start, name in names.items() if content.startswith(start)), None)


def _markup(content: bytes) -> str | None:
    prologue = content[:_LONGEST_PROLOGUE].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if prologue.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if prologue.startswith(b"<") and b"<svg" in prologue:
        return "an SVG drawing"
    return None
