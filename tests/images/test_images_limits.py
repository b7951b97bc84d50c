"""Limits hold before the memory is spent, and what a small file unpacks to stays bounded."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from decoding_trials import run_trials
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx._errors import ImageDecodeError, InputError
from featx._images.decode import decode_content
from featx._images.headers import webp_size
from featx._images.limits import Limits
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANY = 10_000
BOUND_MB = 200  # above the process before


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


PHOTO = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
JPEG = encode(PHOTO, "JPEG")
PNG = encode(PHOTO, "PNG")


# The parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", None, True, float("nan")])
@pytest.mark.parametrize("name", ["max_pixels", "max_file_bytes"])
def test_a_limit_that_is_no_number_of_things_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"Got {name}="):
        Limits(**{name: value})


def test_the_defaults_are_pillows_limit_and_two_gigabytes() -> None:
    assert Limits() == Limits(max_pixels=178_956_970, max_file_bytes=2**31)
    assert Limits().max_pixels == 2 * (Image.MAX_IMAGE_PIXELS or 0)


def test_numpy_integers_are_taken_as_they_print() -> None:
    assert (
        repr(Limits(max_pixels=np.int64(5)))
        == "Limits(max_pixels=5, max_file_bytes=2147483648, pixel_range='type')"
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_an_image_passes_at_the_limit_of_pixels_and_not_above(file_format: str) -> None:
    content = encode(PHOTO, file_format)
    assert decode_content(content, limits=Limits(max_pixels=40 * 30)).shape == (3, 30, 40)
    with pytest.raises(ImageDecodeError, match="40 x 30 pixels are more than the limit of 1,199"):
        decode_content(content, limits=Limits(max_pixels=40 * 30 - 1))


def test_a_file_passes_at_the_limit_of_bytes_and_not_above(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    exact, below = Limits(max_file_bytes=len(PNG)), Limits(max_file_bytes=len(PNG) - 1)
    assert decode_content(read_content(path, limits=exact), limits=exact).shape == (3, 30, 40)
    for refused in (
        lambda: read_content(path, limits=below),
        lambda: read_content(str(path), limits=below),
        lambda: decode_content(PNG, limits=below),
    ):
        with pytest.raises(
            ImageDecodeError, match=r"bytes are more than the limit of [\d,]+ bytes"
        ):
            refused()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "hole.png"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(ImageDecodeError, match="2,147,483,649 bytes are more than"):
        read_content(path)


def test_a_pil_image_is_held_to_the_limit_before_it_is_loaded() -> None:
    opened = Image.open(io.BytesIO(PNG))
    with pytest.raises(ImageDecodeError, match="40 x 30 pixels are more than the limit"):
        read_content(opened, limits=Limits(max_pixels=99))
    assert opened.tile  # Pillow empties it when it loads
    assert read_content(opened, limits=Limits(max_pixels=1200)).shape == (30, 40, 3)


def test_an_icon_is_held_to_the_size_of_the_picture_in_it() -> None:
    content = bytearray(encode(PHOTO.resize((64, 64)), "ICO", sizes=[(64, 64)]))
    content[6:8] = b"\x08\x08"  # what its directory says
    with pytest.raises(ImageDecodeError, match="64 x 64 pixels are more than the limit"):
        decode_content(bytes(content), limits=Limits(max_pixels=100))


def test_the_limit_holds_where_the_caller_lifts_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for make in HEADERS.values():
        with pytest.raises(ImageDecodeError, match=r"more than the limit of 178,956,970 pixels"):
            decode_content(make(13_380, 13_380))
    assert Image.MAX_IMAGE_PIXELS is None


# Bombs ------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_with_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:8] + png_chunk(b"IHDR", header) + PNG[33:]


def jpeg_with_size(width: int, height: int) -> bytes:
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + struct.pack(">HH", height, width) + JPEG[start + 4 :]


def gif_with_size(width: int, height: int) -> bytes:
    content = encode(PHOTO, "GIF")
    return content[:6] + struct.pack("<HH", width, height) + content[10:]


def bmp_with_size(width: int, height: int) -> bytes:
    content = encode(PHOTO, "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def webp_with_size(width: int, height: int) -> bytes:
    content = encode(PHOTO, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert content[12:16] == b"VP8X"
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:24] + size + content[30:]


def jpeg_2000_with_size(width: int, height: int) -> bytes:
    content = encode(PHOTO, "JPEG2000")
    box = content.index(b"ihdr") + 4
    content = content[:box] + struct.pack(">II", height, width) + content[box + 8 :]
    stream = content.index(b"\xff\x4f\xff\x51") + 8
    return content[:stream] + struct.pack(">II", width, height) + content[stream + 8 :]


def tiff_pages(width: int, height: int, n_pages: int) -> bytes:
    page = 8 + 2 + 9 * 12 + 4
    content = bytearray(b"II*\0" + struct.pack("<I", 8))
    pixels = bytes(range(64))
    for number in range(n_pages):
        start = 8 + number * (page - 8 + len(pixels))
        tags = {
            256: width, 257: height, 258: 8, 259: 1, 262: 1,
            273: start + page - 8, 277: 1, 278: height, 279: len(pixels),
        }  # fmt: skip
        content += struct.pack("<H", len(tags))
        content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        follows = start + page - 8 + len(pixels) if number < n_pages - 1 else 0
        content += struct.pack("<I", follows) + pixels
    return bytes(content)


def tiff_with_size(width: int, height: int) -> bytes:
    return tiff_pages(width, height, 1)


HEADERS: dict[str, Callable[[int, int], bytes]] = {
    "png": png_with_size,
    "jpeg": jpeg_with_size,
    "gif": gif_with_size,
    "bmp": bmp_with_size,
    "webp": webp_with_size,
    "jp2": jpeg_2000_with_size,
    "tiff": tiff_with_size,
}


def png_with_text(kind: bytes, data: bytes, n_chunks: int) -> bytes:
    return PNG[:33] + png_chunk(kind, data) * n_chunks + PNG[33:]


def gif_of_many_frames() -> bytes:
    content = encode(Image.new("P", (8, 8), 1), "GIF")
    start, end = content.index(b"\x2c"), content.rindex(b"\x3b")
    return content[:end] + content[start:end] * (MANY - 1) + content[end:]


def jpeg_of_many_scans() -> bytes:
    content = encode(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * MANY + content[-2:]


def fits_of_zeros() -> bytes:
    cards = [
        "SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END",
    ]  # fmt: skip
    table = [
        "XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1",
        "ZIMAGE  = T", "ZCMPTYPE= 'GZIP_1  '", "ZBITPIX = 8", "ZNAXIS  = 2", "ZNAXIS1 = 13000",
        "ZNAXIS2 = 13000", "END",
    ]  # fmt: skip
    blocks = ("".join(card.ljust(80) for card in part).ljust(2880) for part in (cards, table))
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(bytes(13_000 * 13_000)) + packer.flush()
    return "".join(blocks).encode() + bytes(8) + data


megabyte = b" " * 2**20


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"exif": bytes(14)}, {"save_all": True}]
)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_the_size_of_a_webp_is_read_as_pillow_reads_it(
    options: dict[str, Any], width: int, height: int
) -> None:
    content = encode(PHOTO.resize((width, height)), "WEBP", **options)
    assert webp_size(content) == (width, height)


BOMBS: dict[str, tuple[Callable[[], bytes], tuple[int, ...] | str]] = {
    **{
        f"179 megapixels, {name}": (lambda make=make: make(13_380, 13_380), "limit of")
        for name, make in HEADERS.items()
    },
    **{
        f"1 x 10^9 pixels, {name}": (lambda name=name: HEADERS[name](1, 10**9), "limit of")
        for name in ("png", "bmp", "tiff")
    },
    "10^9 x 1 pixels, pgm": (lambda: b"P5 1000000000 1 255 ", "limit of"),
    "64 MB of plain text in a png": (
        lambda: png_with_text(b"tEXt", b"Comment\0" + megabyte, 64),
        (3, 30, 40),
    ),
    "64 MB of packed text in a png": (
        lambda: png_with_text(b"zTXt", b"Comment\0\0" + zlib.compress(megabyte), 64),
        (3, 30, 40),
    ),
    "65 MB of packed text in a png": (
        lambda: png_with_text(b"zTXt", b"Comment\0\0" + zlib.compress(megabyte), 65),
        "text chunks",
    ),
    "one packed text of 64 MB in a png": (
        lambda: png_with_text(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(64 * megabyte), 1),
        "too large",
    ),
    "an animation of 10,000 frames": (gif_of_many_frames, (3, 8, 8)),
    "a document of 10,000 pages": (lambda: tiff_pages(8, 8, MANY), (3, 8, 8)),
    "a jpeg of 10,000 scans": (jpeg_of_many_scans, "scans of 4000 x 4000 pixels"),
    "packed measurements": (fits_of_zeros, "FITS"),
}


def test_no_bomb_takes_long_or_much_memory(tmp_path: Path) -> None:
    paths = []
    for number, (make, _) in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(make())
    trials = run_trials([*map(str, paths)], seconds_each=5, each_in_a_process=True)
    for (name, (_, expected)), trial in zip(BOMBS.items(), trials, strict=True):
        assert trial.peak_mb < BOUND_MB, (name, trial)
        if isinstance(expected, str):
            assert trial.reason is not None, (name, trial)
            assert expected in trial.reason, (name, trial)
        else:
            assert trial.shape == expected, (name, trial)


def test_what_comes_first_in_a_document_is_what_is_decoded() -> None:
    pixels = decode_content(tiff_pages(8, 8, 3))[0]
    assert pixels.flatten().tolist() == list(range(64))


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "quality": 100}])
def test_the_scans_of_a_real_progressive_photograph_are_not_too_many(
    options: dict[str, Any],
) -> None:
    content = encode(PHOTO.resize((400, 300)), "JPEG", **options)
    just_enough = Limits(max_pixels=400 * 300)
    assert decode_content(content, limits=just_enough).shape == (3, 300, 400)
