"""Every format in every mode looks as another program shows it, or is refused by name."""

from __future__ import annotations

import importlib.util
import io
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pytest
from decoding_trials import REFERENCES
from PIL import Image, ImageOps, features

from featx._errors import ImageDecodeError
from featx._images.decode import decode_content
from featx._images.sources import read_content

if TYPE_CHECKING:
    from pathlib import Path

HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
needs_heic = pytest.mark.skipif(not HAS_HEIC, reason="HEIC needs pillow-heif (featx[heic])")

# How far a pixel may be from what ImageMagick or libvips make of the same file, in 8-bit levels.
# 1: rounding, of 16 bits to 8 or of a mixture with white. 2: of both, one after the other, or of a
# lossy decoder's own arithmetic.
LARGEST_DIFFERENCE = {
    ".png": 2,
    ".jpg": 1,
    ".tiff": 1,
    ".gif": 0,
    ".webp": 1,
    ".bmp": 1,
    ".pbm": 0,
    ".pgm": 1,
    ".ppm": 1,
    ".avif": 2,
    ".jp2": 1,
    ".heic": 2,
}
LARGEST_MEAN_DIFFERENCE = 1.0

# Two that differ by more, the largest and the mean.
DIFFERENT = {
    # 8 bits of LAB are coarse in dark, saturated colours.
    "lab.tiff": (33, 2.0),
    # Colours of half the resolution: one decoder interpolates, the other repeats, which shows at
    # the edges of this picture and hardly in a photograph.
    "rgb-420.avif": (112, 7.0),
}
DECODERS = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"}

FILES = sorted(
    path.name for path in REFERENCES.iterdir()
    if path.suffix in LARGEST_DIFFERENCE and not path.name.endswith(".rgb.png")
)  # fmt: skip


def decoded(content: Any) -> np.ndarray:
    return decode_content(read_content(content)).permute(1, 2, 0).numpy()


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def skip_without_decoder(path: Path) -> None:
    if path.suffix == ".heic" and not HAS_HEIC:
        pytest.skip("HEIC needs pillow-heif (featx[heic])")
    if path.suffix in DECODERS and not features.check(DECODERS[path.suffix]):
        pytest.skip(f"this Pillow was built without {DECODERS[path.suffix]}")
    if path.name == "ycbcr.tiff" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this layout is refused by Pillow before 13")


# The matrix -------------------------------------------------------------------------------------


def test_the_matrix_is_complete() -> None:
    assert len(FILES) == 68
    assert {name.rpartition(".")[0].partition("-")[0] for name in FILES} == {
        *("1", "l", "la", "la16", "p", "rgb", "rgb16", "rgb565", "rgba", "rgba16"),
        *("cmyk", "ycck", "ycbcr", "i", "i16", "f", "lab"),
    }


@pytest.mark.parametrize("name", FILES)
def test_a_file_looks_as_another_program_shows_it(name: str) -> None:
    path = REFERENCES / name
    skip_without_decoder(path)
    with Image.open(REFERENCES / f"{name}.rgb.png") as image:
        assert image.mode == "RGB"
        reference = np.asarray(image).astype(int)
    difference = np.abs(decoded(path) - reference)
    largest, mean = DIFFERENT.get(name, (LARGEST_DIFFERENCE[path.suffix], LARGEST_MEAN_DIFFERENCE))
    assert difference.max() <= largest
    assert difference.mean() <= mean


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".heic")])
def test_a_file_opened_by_pillow_gives_the_pixels_of_its_path(name: str) -> None:
    path = REFERENCES / name
    skip_without_decoder(path)
    with Image.open(path) as image:
        assert np.array_equal(decoded(image), decoded(path))
        assert np.array_equal(decoded(image), decoded(path)), "once it is loaded"


# Integers ---------------------------------------------------------------------------------------


def tiff(values: bytes, width: int, **tags: int) -> bytes:
    """Return an uncompressed TIFF of one row."""
    numbers = {
        "subfile_type": 254, "bits": 258, "photometric": 262, "sample_format": 339,
        "dng_version": 50706,
    }  # fmt: skip
    entries = {256: width, 257: 1, 259: 1, 273: 8, 277: 1, 278: 1, 279: len(values)}
    entries |= {numbers[name]: value for name, value in tags.items()}
    content = struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values
    content += struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        content += struct.pack("<HHII", tag, 4, 1, value)
    return content + bytes(4)


def grey_levels(content: bytes) -> list[int]:
    pixels = decoded(content)
    assert np.array_equal(pixels, decoded(Image.open(io.BytesIO(content))))
    assert (pixels == pixels[:, :, :1]).all()
    return list(pixels[0, :, 0])


def test_12_bits_are_scaled_by_their_own_white() -> None:
    packed = bytes.fromhex("000 3e8 bb8 fff".replace(" ", ""))
    assert grey_levels(tiff(packed, 4, bits=12, photometric=1)) == [0, 62, 187, 255]


def test_zero_may_be_white_in_16_bits() -> None:
    values = np.array([0, 1000, 30000, 65535], "<u2").tobytes()
    assert grey_levels(tiff(values, 4, bits=16, photometric=0)) == [255, 251, 138, 0]
    assert grey_levels(tiff(values, 4, bits=16, photometric=1)) == [0, 4, 117, 255]


def test_unsigned_32_bits_are_scaled_by_their_own_white() -> None:
    values = np.array([0, 2**30, 2**31, 2**32 - 1], "<u4").tobytes()
    assert grey_levels(tiff(values, 4, bits=32, photometric=1)) == [0, 64, 128, 255]


# Refused by name --------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [{"subfile_type": 1}, {"dng_version": 0x00000401}])
def test_the_small_copy_in_a_camera_raw_file_is_not_the_picture(tags: dict[str, int]) -> None:
    with pytest.raises(ImageDecodeError, match="a small copy, as in a camera raw file"):
        decoded(tiff(b"\x00\xff", 2, bits=8, photometric=1, **tags))


def test_uncompressed_halved_colours_are_refused_and_not_misread() -> None:
    content = (REFERENCES / "ycbcr.tiff").read_bytes()
    full = struct.pack("<HHIHH", 530, 3, 2, 1, 1)
    assert content.count(full) == 1
    with pytest.raises(ImageDecodeError, match="its colours are halved without compression"):
        decoded(content.replace(full, struct.pack("<HHIHH", 530, 3, 2, 2, 2)))


def test_what_no_test_shows_to_be_read_rightly_is_not_asked_of_pillow() -> None:
    record = b"\x1c\x03\x3c\x00\x02\x01\x00\x1c\x03\x14\x00\x01\x02\x1c\x03\x1e\x00\x01\x02"
    record += b"\x1c\x03\x78\x00\x01\x01\x1c\x08\x0a\x00\x04%!PS"
    xbm = b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x0f };\n"
    for content in (record, xbm, encode(Image.new("RGB", (4, 4)), "SGI")):
        assert Image.open(io.BytesIO(content)).size
        with pytest.raises(ImageDecodeError, match="not an image in a known format"):
            decoded(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<HTML><body>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript, a program"),
        (encode(Image.new("L", (4, 4)), "PCX"), "PCX"),
        (encode(Image.new("L", (4, 4)), "DDS"), "a texture"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"PK\x03\x04 and so on", "a zip archive"),
        (b"\xff\x0a and so on", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"FUJIFILMCCD-RAW ", "a camera raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera raw file"),
        (b"\0\0\0\x20ftypmp42\0\0\0\0", "a video"),
        (b"v/1\x01\x02\0\0\0", "OpenEXR"),
        (b"\x89PNG\r\n\x1a\n\0\0", "begins as a PNG, but is damaged"),
        (b"\xff\xd8\xff\xe0\0", "begins as a JPEG, but is damaged"),
        (b"RIFF\x10\0\0\0WEBPVP9 ", "begins as a WebP, but is damaged"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "begins as an AVIF, but is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\n", "a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s31390--f50d7.jpg\n", "a git-annex pointer"),
        (bytes(128) + b"DICM\2\0\0\0UL", "DICOM"),
        (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
        (b"\x93NUMPY\1\0v\0{'descr': '<f8'", "a NumPy array"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><annotation/>', "XML"),
        (b'{\n  "images": []}', "JSON"),
        (b'[{"a": 1}]', "JSON"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (bytes(257) + b"ustar\0", "a tar archive"),
        (bytes(1), "nothing but zeros"),
        (bytes(10_000), "nothing but zeros"),
        (b"some notes", "not an image in a known format"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(content: bytes, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason):
        decoded(content)


def test_numbers_pillow_has_no_mode_for_are_refused() -> None:
    content = tiff(np.array([0, 1], "<f8").tobytes(), 2, bits=64, photometric=1, sample_format=3)
    with pytest.raises(ImageDecodeError, match="begins as a TIFF, but is damaged or of a kind"):
        decoded(content)


# Single formats ---------------------------------------------------------------------------------


def test_of_an_icon_the_largest_picture_is_taken() -> None:
    content = encode(Image.new("RGB", (64, 64), "red"), "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert decoded(content).shape == (64, 64, 3)


def test_what_a_transparent_first_frame_leaves_free_is_white() -> None:
    frame = Image.new("P", (4, 4), 1)
    frame.putpixel((0, 0), 0)
    frame.putpalette([10, 20, 30, 200, 100, 50])
    content = bytearray(encode(frame, "GIF", transparency=0))
    content[6:10] = struct.pack("<HH", 8, 4)  # the canvas, twice as wide
    pixels = decoded(bytes(content))
    assert (pixels[1:, :4] == (200, 100, 50)).all()
    assert (pixels[0, 0] == 255).all()
    assert (pixels[:, 4:] == 255).all()


def test_colour_profiles_change_no_pixel() -> None:
    profile = (REFERENCES / "rgb.png").read_bytes()  # any bytes will do: nobody reads them
    image = Image.open(REFERENCES / "rgb.png")
    for file_format in ("PNG", "TIFF", "JPEG", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
        plain = decoded(encode(image, file_format, **options))
        assert np.array_equal(
            decoded(encode(image, file_format, icc_profile=profile, **options)), plain
        ), file_format


# HEIC -------------------------------------------------------------------------------------------


@needs_heic
def test_a_heic_is_turned_once(tmp_path: Path) -> None:
    # In a process of its own, because writing them means telling Pillow of the format.
    program = """
        import sys
        from PIL import Image
        from pillow_heif import register_heif_opener

        register_heif_opener()
        image = Image.open(sys.argv[1]).resize((96, 64))
        for orientation in range(1, 9):
            image.getexif()[0x0112] = orientation
            exif = image.getexif().tobytes()
            image.save(f"{sys.argv[2]}/{orientation}.heic", exif=exif, quality=95)
    """
    picture = REFERENCES / "rgb.png"
    command = [sys.executable, "-c", textwrap.dedent(program), str(picture), str(tmp_path)]
    subprocess.run(command, check=True)
    for orientation in range(1, 9):
        stored = Image.open(picture).resize((96, 64))
        stored.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
        pixels = decoded(tmp_path / f"{orientation}.heic")
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).mean() < 4


@needs_heic
def test_a_damaged_heic_is_refused() -> None:
    content = (REFERENCES / "rgb.heic").read_bytes()
    for kept in range(0, len(content), 7):
        with pytest.raises(ImageDecodeError):
            decoded(content[:kept])


@needs_heic
def test_heic_is_read_without_telling_pillow() -> None:
    before = (dict(Image.OPEN), list(Image.ID), dict(Image.EXTENSION), dict(Image.MIME))
    decoded(REFERENCES / "rgb.heic")
    assert before == (dict(Image.OPEN), list(Image.ID), dict(Image.EXTENSION), dict(Image.MIME))
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(REFERENCES / "rgb.heic")


def test_without_its_package_heic_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageDecodeError, match=r"HEIC needs .*: pip install 'featx\[heic\]'"):
        decoded(REFERENCES / "rgb.heic")


@needs_heic
def test_the_heic_of_pillows_own_tests_is_read(shared_folder: Path) -> None:
    folder = shared_folder / "data" / "odd" / "pillow"
    pixels = decoded(folder / "avif" / "hopper.heif")
    twin = decoded(folder / "hopper.png")
    assert pixels.shape == twin.shape
    assert np.abs(pixels.astype(int) - twin).mean() < 4
