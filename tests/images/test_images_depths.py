"""Black is black and white is white, of every depth, in every channel and layout, or it is refused.

The files are written by imagecodecs and tifffile, so by other libraries than the ones that read.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import imagecodecs
import numpy as np
import PIL
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featx._errors import ImageDecodeError, InputError
from featx._images.decode import decode_content
from featx._images.limits import Limits
from featx._images.sources import read_content

HEIGHT, WIDTH = 16, 24
ALPHA = {"unassalpha", "assocalpha"}


def numbers(n_channels: int, white: float, *, has_alpha: bool = False) -> np.ndarray:
    """Return black, white and what is between, in every channel; opaque."""
    values = np.random.default_rng(n_channels).random((HEIGHT, WIDTH, n_channels))
    values[0], values[-1] = 0, 1
    if has_alpha:
        values[..., -1] = 1
    if isinstance(white, float):
        return values * white
    return np.rint(values * white).astype(np.uint64)


def expected(values: np.ndarray, white: float, n_colours: int) -> np.ndarray:
    colours = values[..., :n_colours] / white
    return np.broadcast_to(colours, (HEIGHT, WIDTH, 3)) * 255


def is_read(content: Any, picture: np.ndarray, levels: int = 1) -> bool:
    """Return False where it is refused; whatever is read must be the picture within a level."""
    try:
        pixels = decode_content(read_content(content))
    except ImageDecodeError:
        return False
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(float) - picture)
    assert difference.max() <= levels + 0.01
    return True


# TIFF -------------------------------------------------------------------------------------------

DTYPES = [*("uint8", "uint16", "uint32", "int8", "int16", "int32"), *("float32", "float64")]
LAYOUTS: list[tuple[str, int, tuple[str, ...]]] = [
    ("minisblack", 1, ()),
    ("miniswhite", 1, ()),
    ("minisblack", 1, ("unassalpha",)),
    ("minisblack", 1, ("assocalpha",)),
    ("minisblack", 1, ("unspecified",)),
    ("rgb", 3, ()),
    ("rgb", 3, ("unassalpha",)),
    ("rgb", 3, ("assocalpha",)),
    ("rgb", 3, ("unspecified", "unspecified")),
    ("separated", 4, ()),
]
READ_TIFFS = {
    *(("uint8", layout) for layout in range(10)),
    *(("uint16", layout) for layout in (0, 1, 5, 6, 7, 9)),
    *((dtype, 0) for dtype in ("uint32", "int8", "int16", "int32", "float32")),
    ("float32", 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_a_tiff_is_read_rightly_or_refused(dtype: str, layout: int) -> None:
    photometric, n_colours, extra = LAYOUTS[layout]
    white = 1.0 if dtype.startswith("float") else int(np.iinfo(dtype).max)
    values = numbers(n_colours + len(extra), white, has_alpha=bool(ALPHA & {*extra}))
    picture = expected(values, white, n_colours if n_colours < 4 else 3)
    if photometric == "miniswhite":
        picture = 255 - picture
    if photometric == "separated":  # the inks are taken off white, and so is black
        inks = values / white
        picture = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    is_read_at_all = False
    for planes, compression, order in itertools.product(
        (False, True), (None, "deflate", "lzw"), "<>"
    ):
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            (np.moveaxis(values, -1, 0) if planes else values).squeeze().astype(dtype),
            photometric=photometric,
            planarconfig=("separate" if planes else "contig") if values.shape[-1] > 1 else None,
            extrasamples=extra or None,
            compression=compression,
            byteorder=order,
            metadata=None,
        )
        # The product of two inks is rounded twice.
        is_read_at_all |= is_read(file.getvalue(), picture, 2 if photometric == "separated" else 1)
    is_older = int(PIL.__version__.split(".")[0]) < 13  # which has no mode for some of them
    assert is_read_at_all == ((dtype, layout) in READ_TIFFS) or (is_older and not is_read_at_all)


# JPEG 2000, PNG, PNM, JPEG, AVIF, TGA -----------------------------------------------------------


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7, 8, 9, 10, 12, 15, 16])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_a_jpeg_2000_is_read_rightly_or_refused(container: str, bits: int, n_channels: int) -> None:
    white = 2**bits - 1
    values = numbers(n_channels, white, has_alpha=n_channels in (2, 4))
    content = imagecodecs.jpeg2k_encode(
        values.squeeze().astype(np.uint8 if bits <= 8 else np.uint16),
        level=0,
        codecformat=container,
        bitspersample=bits,
        reversible=True,
        mct=False,
        colorspace="GRAY" if n_channels < 3 else "SRGB",
    )
    picture = expected(values, white, 1 if n_channels < 3 else 3)
    # The box of jp2 that says 9 bits makes Pillow take 8 of them.
    is_misread = (n_channels > 1 and bits != 8) or (container, bits) == ("jp2", 9)
    assert is_read(content, picture) == (not is_misread)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_a_png_is_read_rightly(bits: int, n_channels: int) -> None:
    values = numbers(n_channels, 2**bits - 1, has_alpha=n_channels in (2, 4))
    content = imagecodecs.png_encode(values.squeeze().astype(f"uint{bits}"))
    assert is_read(content, expected(values, 2**bits - 1, 1 if n_channels < 3 else 3))


@given(white=st.integers(1, 65535), kind=st.sampled_from([b"P2", b"P3", b"P5", b"P6"]))
def test_a_pnm_is_read_by_its_own_white(white: int, kind: bytes) -> None:
    n_channels = 1 if kind in (b"P2", b"P5") else 3
    values = numbers(n_channels, white)
    if kind in (b"P2", b"P3"):
        body = " ".join(map(str, values.ravel())).encode()
    else:
        body = values.astype(">u2" if white > 255 else "u1").tobytes()
    header = kind + b"\n%d %d\n%d\n" % (WIDTH, HEIGHT, white)
    assert is_read(header + body, expected(values, white, n_channels))


@pytest.mark.parametrize("bits", [2, 4, 7, 8, 9, 12, 16])
def test_a_lossless_jpeg_is_refused(bits: int) -> None:
    values = numbers(1, 2**bits - 1).squeeze().astype(np.uint8 if bits <= 8 else np.uint16)
    content = imagecodecs.ljpeg_encode(values, bitspersample=bits)
    with pytest.raises(ImageDecodeError, match="it is a lossless JPEG of"):
        decode_content(content)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_an_avif_is_read_rightly(bits: int) -> None:
    if not Image.registered_extensions().get(".avif"):
        pytest.skip("this Pillow was built without AVIF")
    white = 2**bits - 1
    levels = np.linspace(0, white, 6).astype(np.uint16).repeat(8)
    values = np.ascontiguousarray(np.broadcast_to(levels[np.newaxis, :, np.newaxis], (8, 48, 3)))
    content = imagecodecs.avif_encode(
        values.astype(np.uint8 if bits == 8 else np.uint16), level=100, bitspersample=bits
    )
    pixels = decode_content(content).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(pixels - values / white * 255).max() <= 2


# The range of numbers ---------------------------------------------------------------------------


def written(values: np.ndarray) -> dict[str, Any]:
    """Return the same numbers in every way that holds them."""
    file, png = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(file, values, metadata=None)
    Image.fromarray(values).save(png, "PNG")
    return {
        "array": values,
        "TIFF": file.getvalue(),
        "PNG": png.getvalue(),
        "PIL": Image.fromarray(values),
        "PGM": b"P5\n%d %d\n65535\n" % values.shape[::-1] + values.astype(">u2").tobytes(),
    }


@pytest.mark.parametrize("bits", [1, 8, 10, 12])
def test_numbers_that_leave_nearly_all_of_their_range_unused_are_refused(bits: int) -> None:
    values = numbers(1, 2**bits - 1).squeeze().astype(np.uint16)
    contents = written(values)
    colours = np.stack([values] * 3, axis=-1)
    contents["colours"] = imagecodecs.png_encode(colours)
    contents["opened colours"] = Image.open(io.BytesIO(contents["colours"]))
    contents["text"] = b"P3\n%d %d\n65535\n" % (WIDTH, HEIGHT)
    contents["text"] += " ".join(map(str, colours.ravel())).encode()
    for compression in (None, "deflate"):
        file = io.BytesIO()
        tifffile.imwrite(file, colours, photometric="rgb", compression=compression)
        contents[f"TIFF {compression}"] = file.getvalue()
    contents["int32"] = values.astype(np.int32)
    for content in contents.values():
        with pytest.raises(ImageDecodeError, match=r"all but black .* pass pixel_range="):
            decode_content(read_content(content))
    assert is_read(np.zeros((HEIGHT, WIDTH), np.uint16), np.zeros((HEIGHT, WIDTH, 3)))


@given(
    black=st.integers(0, 60_000),
    extent=st.integers(1, 5_000),
    name=st.sampled_from(["array", "TIFF", "PNG", "PIL", "PGM"]),
)
def test_a_range_says_what_is_black_and_white(black: int, extent: int, name: str) -> None:
    values = np.random.default_rng(extent).integers(0, extent, (HEIGHT, WIDTH), endpoint=True)
    values[0], values[-1] = 0, extent
    picture = np.repeat(values[..., np.newaxis] / extent * 255, 3, axis=2)
    content = written((values + black).astype(np.uint16))[name]
    for pixel_range in ("image", (black, black + extent)):
        limits = Limits(pixel_range=pixel_range)
        pixels = decode_content(read_content(content, limits), limits=limits)
        assert np.abs(pixels.permute(1, 2, 0).numpy() - picture).max() <= 0.51


def test_numbers_beyond_a_range_of_two_are_clipped_and_8_bits_are_left_as_they_are() -> None:
    limits = Limits(pixel_range=(100, 200))
    values = np.array([[0, 100, 150, 200, 60_000]])
    for array in (values.astype(np.uint16), values.astype(np.float32), values):
        assert decode_content(array, limits=limits)[0, 0].tolist() == [0, 0, 128, 255, 255]
    bytes_of_8_bits = np.array([[0, 100, 150, 200]], np.uint8)
    assert decode_content(bytes_of_8_bits, limits=limits)[0, 0].tolist() == [0, 100, 150, 200]


def test_a_range_far_from_0_keeps_every_level() -> None:
    values = 1e8 + np.arange(256.0).reshape(16, 16)
    for pixel_range in ("image", (1e8, 1e8 + 255)):
        pixels = decode_content(values, limits=Limits(pixel_range=pixel_range))
        assert pixels[0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("n_channels", [2, 3, 4])
def test_what_is_refused_as_a_file_is_refused_as_pillow_opened_it(
    bits: int, n_channels: int
) -> None:
    values = numbers(n_channels, 2**bits - 1).astype(np.uint16)
    content = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True)
    for item in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(ImageDecodeError, match="a JPEG 2000 of"):
            decode_content(read_content(item))


def test_colours_that_pillow_reduces_have_no_other_range() -> None:
    content = imagecodecs.png_encode(numbers(3, 65_535).astype(np.uint16))
    with pytest.raises(ImageDecodeError, match="by the range of their type only: pass an array"):
        decode_content(content, limits=Limits(pixel_range="image"))


@pytest.mark.parametrize("wrong", ["auto", (1,), (2, 1), (0, 0), (0, float("inf")), None, 255])
def test_what_is_no_range_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"pixel_range=.* expected 'type', 'image' or two numbers"):
        Limits(pixel_range=wrong)
