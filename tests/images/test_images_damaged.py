"""A damaged, truncated or hostile file gives pixels or an `ImageDecodeError`, and nothing else."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from featx.errors import ImageDecodeError
from featx.images import pixels as pixels_module
from featx.images.decode import decode_content
from featx.images.pixels import MAX_PIXELS
from featx.images.sources import read_content

if TYPE_CHECKING:
    from pathlib import Path


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2
    ).astype(np.uint8)


PHOTO = Image.fromarray(smooth())
JPEG = encode(PHOTO, "JPEG", quality=90)
PNG = encode(PHOTO, "PNG")
FILES = {
    "jpeg": JPEG,
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "png": PNG,
    "gif": encode(PHOTO, "GIF"),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "tiff lzw": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "webp": encode(PHOTO, "WEBP"),
    "ppm": encode(PHOTO, "PPM"),
}


def outcome_of(content: bytes) -> torch.Tensor | ImageDecodeError:
    """Return pixels or the error; any other exception is a failure of the test."""
    try:
        return decode_content(content)
    except ImageDecodeError as error:
        return error


@given(kept=st.floats(0, 1, exclude_max=True), name=st.sampled_from(sorted(FILES)))
@settings(max_examples=200, deadline=None)
def test_a_truncated_file_is_refused_unless_all_its_pixels_are_there(
    name: str, kept: float
) -> None:
    content = FILES[name]
    outcome = outcome_of(content[: int(len(content) * kept)])
    if not isinstance(outcome, ImageDecodeError):
        assert torch.equal(outcome, decode_content(content))


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg"])
def test_a_jpeg_is_refused_wherever_it_is_cut(name: str) -> None:
    content = FILES[name]
    for kept in range(len(content)):
        with pytest.raises(ImageDecodeError):
            decode_content(content[:kept])


@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_gives_pixels_or_a_decode_error(
    name: str, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(FILES[name])
    for place, value in changes:
        content[int(place * len(content))] = value
    gives_pixels_or_decode_error(bytes(content))


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0"]),
    st.binary(max_size=200),
)
@settings(max_examples=200, deadline=None)
def test_random_bytes_give_pixels_or_a_decode_error(start: bytes, rest: bytes) -> None:
    gives_pixels_or_decode_error(start + rest)


def gives_pixels_or_decode_error(content: bytes) -> None:
    outcome = outcome_of(content)
    if isinstance(outcome, ImageDecodeError):
        assert outcome.reason
        assert "\n" not in outcome.reason
        assert " object at 0x" not in outcome.reason
    else:
        assert outcome.dtype == torch.uint8
        assert outcome.shape[0] == 3


def test_every_odd_file_gives_pixels_or_a_decode_error(shared_folder: Path) -> None:
    files = [path for path in (shared_folder / "data" / "odd").rglob("*") if path.is_file()]
    assert len(files) > 1000
    refused = sum(isinstance(outcome_of(read_content(path)), ImageDecodeError) for path in files)
    assert len(files) - refused > 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not an image in a known format"),
        (JPEG[:-2], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
    ],
)
def test_the_reason_is_short_and_says_what_is_wrong(content: bytes, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason) as failure:
        decode_content(content, "cat.jpg")
    assert str(failure.value).startswith("Cannot read image cat.jpg: ")
    assert ".cpp" not in failure.value.reason


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


def jpeg_with_size(width: int, height: int) -> bytes:
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + struct.pack(">HH", height, width) + JPEG[start + 4 :]


@pytest.mark.parametrize("make", [png_header, jpeg_with_size])
@pytest.mark.parametrize("pillows_own_limit", [True, False])
def test_a_decompression_bomb_is_refused_from_its_header(
    make: Any, pillows_own_limit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pillows_own_limit:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageDecodeError, match=r"limit of [\d,]+ pixels"):
        decode_content(make(60_000, 60_000))


def test_a_large_image_within_the_limit_is_decoded_without_pillows_warning() -> None:
    # Pillow warns above half the limit. The header passes; then the missing pixels are noticed.
    for content in (png_header(10_000, 10_000), jpeg_with_size(10_000, 10_000)[:-2]):
        with pytest.raises(ImageDecodeError, match=r"truncated|broken"):
            decode_content(content)


def test_the_limit_is_on_pillow_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 99)
    with pytest.raises(ImageDecodeError, match="10 x 10 pixels are more than the limit"):
        read_content(Image.new("L", (10, 10)))
    assert MAX_PIXELS == 178_956_970


def test_decoding_changes_no_setting_of_pillow() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID))
    for content in FILES.values():
        decode_content(content)
    with pytest.raises(ImageDecodeError):
        decode_content(PNG[:100])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID))


def test_a_fault_of_our_own_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise ValueError("our own fault")

    monkeypatch.setattr(pixels_module, "turn_upright", faulty)
    with pytest.raises(ValueError, match="our own fault") as failure:
        decode_content(PNG)
    assert not isinstance(failure.value, ImageDecodeError)


def jpeg_that_makes_pillow_warn() -> bytes:
    return encode(PHOTO, "JPEG", exif=with_orientation(6).tobytes()[:-3])


def tiff_that_makes_pillow_warn() -> bytes:
    one_value, nine_values = (struct.pack("<HHI", 0x0112, 3, count) for count in (1, 9))
    return encode(PHOTO, "TIFF", exif=with_orientation(6)).replace(one_value, nine_values)


@pytest.mark.parametrize("make", [jpeg_that_makes_pillow_warn, tiff_that_makes_pillow_warn])
@pytest.mark.parametrize("action", ["error", "always"])
def test_what_pillow_warns_neither_leaks_nor_turns_into_an_error(make: Any, action: Any) -> None:
    with pytest.warns(UserWarning, match=r"EXIF|Metadata"):
        Image.open(io.BytesIO(make())).load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        assert decode_content(make()).shape[0] == 3
    assert caught == []


def test_the_first_images_of_a_process_are_decoded_in_many_threads_at_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "image").write_bytes(FILES["tiff"])
    program = """
        import sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from featx.images.decode import decode_content
        from PIL import Image

        content = Path(sys.argv[1]).read_bytes()
        print("WEBP" in Image.ID)
        barrier = threading.Barrier(16)

        def decode(_):
            barrier.wait()
            return tuple(decode_content(content).shape)

        with ThreadPoolExecutor(16) as pool:
            print(set(pool.map(decode, range(16))))
    """
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), str(tmp_path / "image")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout == "True\n{(3, 40, 56)}\n", finished.stderr
