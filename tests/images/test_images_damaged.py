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
from decoding_trials import REFERENCES, run_trials
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from featx._errors import ImageDecodeError
from featx._images.decode import decode_content
from featx._images.faults import no_warnings
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def test_every_odd_file_gives_pixels_or_a_decode_error_in_5_seconds_and_a_gigabyte(
    shared_folder: Path,
) -> None:
    odd = shared_folder / "data" / "odd"
    files = sorted(str(path) for path in odd.rglob("*") if path.is_file())
    assert len(files) > 1000
    trials = run_trials(files, seconds_each=5)
    # All in the formats that are read, but for damaged, misread and all but black ones.
    assert sum(trial.shape is not None for trial in trials) > 930
    assert max(trial.peak_mb for trial in trials) <= 1024


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


def test_a_large_image_within_the_limit_is_decoded_without_pillows_warning() -> None:
    # Pillow warns above half the limit. The header passes; then the missing pixels are noticed.
    for content in (png_header(10_000, 10_000), jpeg_with_size(10_000, 10_000)[:-2]):
        with pytest.raises(ImageDecodeError, match=r"truncated|broken"):
            decode_content(content)


def settings_of_the_process() -> dict[str, Any]:
    return {
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
        "formats": (list(Image.ID), dict(Image.OPEN), dict(Image.EXTENSION), dict(Image.MIME)),
        # One filter of featx stays, which matches nothing outside.
        "filters of warnings": [entry for entry in warnings.filters if entry[1] is not no_warnings],
    }


@pytest.mark.parametrize("truncated_images", [False, True])
@pytest.mark.parametrize("max_pixels", [None, 10**6])
@pytest.mark.parametrize("action", ["error", "always"])
def test_decoding_changes_no_setting_of_the_process(
    truncated_images: bool, max_pixels: int | None, action: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", max_pixels)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_images)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        before = settings_of_the_process()
        for content in (*FILES.values(), jpeg_that_makes_pillow_warn()):
            decode_content(content)
            outcome_of(content[:100])
        read_content(Image.open(io.BytesIO(PNG)))
        assert settings_of_the_process() == before


# Whose fault it is ------------------------------------------------------------------------------

HEIC = (REFERENCES / "rgb.heic").read_bytes()
DEEP = encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG")
ODD_JPEG = JPEG[:2] + b"\xff" + JPEG[2:]  # a byte between its segments, so that Pillow reads it

# A call into a library, and an image that needs it.
CALLS = {
    "PIL.Image.open": PNG,
    "PIL.PngImagePlugin.PngImageFile.load": PNG,
    "PIL.Image.Image.convert": PNG,
    "PIL.Image.alpha_composite": encode(PHOTO.convert("RGBA"), "PNG"),
    "PIL.Image.Image.tobytes": DEEP,
    "PIL.JpegImagePlugin.JpegImageFile._open": ODD_JPEG,
    "featx._images.decode.decode_jpeg": JPEG,
}
ERRORS = (
    OSError("cannot read"),
    OSError(),
    EOFError(),
    SyntaxError("broken header"),
    ValueError("bad value"),
    TypeError("not a number"),
    MemoryError(),
    NotImplementedError("no such mode"),
    OverflowError("too large"),
    struct.error("unpack requires 4 bytes"),
    zlib.error("invalid stored block lengths"),
    Image.DecompressionBombError("Image size exceeds limit"),
    RuntimeError("decode_jpeg.cpp:12, line one\nline two"),
    KeyError("tag"),
    IndexError("out of range"),
    AttributeError("no attribute"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
    RecursionError("too deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that makes a call raise, by its dotted name."""

    def make_raise(name: str, error: BaseException) -> None:
        def raise_it(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(name, raise_it)

    with monkeypatch.context() as monkeypatch:  # undone before pytest asks for anything
        yield make_raise


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (call, error) for call in CALLS for error in ERRORS
        # numpy takes this one to mean that the image has no such method
        if not (call.endswith("tobytes") and isinstance(error, AttributeError))
    ],
)  # fmt: skip
def test_whatever_a_library_raises_is_a_decode_error(
    call: str, error: Exception, broken: Any
) -> None:
    broken(call, error)
    with pytest.raises(ImageDecodeError) as failure:
        decode_content(CALLS[call], "photos/cat.png")
    assert failure.value.source == "photos/cat.png"
    assert failure.value.reason
    assert "\n" not in failure.value.reason
    assert ".cpp" not in failure.value.reason


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_the_reader_of_heic_raises_is_a_decode_error(
    error: Exception, broken: Any
) -> None:
    pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif (featx[heic])")
    broken("pillow_heif.HeifImageFile", error)
    with pytest.raises(ImageDecodeError):
        decode_content(HEIC)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_interrupt_is_no_bad_image(call: str, error: BaseException, broken: Any) -> None:
    broken(call, error)
    with pytest.raises(type(error)):
        decode_content(CALLS[call])


@pytest.mark.parametrize(
    ("function", "content"),
    [
        ("featx._images.pixels.turn_upright", PNG),
        ("featx._images.pixels.exif_orientation", PNG),
        ("featx._images.pixels.stored_numbers", PNG),
        ("featx._images.pixels.scaled_to_8_bits", DEEP),
        ("featx._images.pixels._check_range", DEEP),
        ("featx._images.decode.turn_upright", JPEG),
        ("featx._images.decode.orientation_in", JPEG),
        ("featx._images.decode.read_jpeg_header", JPEG),
        ("featx._images.decode.pixels_from_pillow", PNG),
        ("featx._images.decode.pixels_from_array", smooth()),
        ("featx._images.decode.why_unknown", b"no image"),
        ("featx._images.decode.is_heic", PNG),
        ("featx._images.limits.Limits.check_pixels", JPEG),
    ],
)
@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours"), KeyError("ours")], ids=repr)
def test_a_fault_of_our_own_is_not_a_bad_image(
    function: str, content: Any, error: Exception, broken: Any
) -> None:
    broken(function, error)
    with pytest.raises(type(error), match="ours") as failure:
        decode_content(content)
    assert failure.value is error


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
        from featx._images.decode import decode_content
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
