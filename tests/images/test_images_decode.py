"""An image becomes the same pixels however it is stored; what is not an image is refused."""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from featx._errors import ImageDecodeError
from featx._images.decode import decode_content
from featx._images.headers import read_jpeg_header
from featx._images.preprocess import Preprocessing
from featx._images.sources import read_content

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


def decoded(content: bytes | np.ndarray) -> np.ndarray:
    return decode_content(content).permute(1, 2, 0).numpy()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def noise(height: int = 12, width: int = 17, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2
    ).astype(np.uint8)


PHOTO = Image.fromarray(smooth())
JPEG = encode(PHOTO, "JPEG", quality=90)

images = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1)).map(
    lambda drawn: noise(drawn[0], drawn[1], seed=drawn[2])
)


# The laws ---------------------------------------------------------------------------------------


@given(array=images, file_format=st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]))
@settings(max_examples=60, deadline=None)
def test_path_bytes_pil_array_and_tensor_give_identical_pixels(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, file_format: str
) -> None:
    content = encode(Image.fromarray(array), file_format)
    path = tmp_path_factory.mktemp("law") / "image"
    path.write_bytes(content)
    forms = {
        "path": path,
        "str": str(path),
        "bytes": content,
        "opened": Image.open(path),
        "PIL": Image.fromarray(array),
        "array": array,
        "float32 array": array.astype(np.float32) / 255,
        "float64 array": array / 255,
        "tensor": as_tensor(array),
        "float tensor": as_tensor(array).float() / 255,
    }
    for name, form in forms.items():
        pixels = decode_content(read_content(form))
        assert torch.equal(pixels, as_tensor(array)), name
        assert pixels.dtype == torch.uint8
        assert pixels.stride() == decode_content(array).stride()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_8_bit_value_survives_division_by_255(dtype: type) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decoded((values / 255).astype(dtype))[:, :, 0], values)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_path_equals_the_jpeg_opened_by_pillow(mode: str, options: dict[str, Any]) -> None:
    content = encode(PHOTO.convert(mode), "JPEG", **options)
    opened = read_content(Image.open(io.BytesIO(content)))
    assert np.array_equal(decoded(content), decoded(opened))


def test_torchvision_and_pillow_agree_on_real_photographs(shared_folder: Path) -> None:
    photographs = sorted((shared_folder / "data" / "clothing").rglob("*.jpg"))[::4]
    assert len(photographs) > 100
    for path in photographs:
        with Image.open(path) as photograph:
            reference = np.asarray(ImageOps.exif_transpose(photograph).convert("RGB"))
        assert np.array_equal(decoded(path.read_bytes()), reference), path


def test_the_result_never_shares_memory_with_the_input() -> None:
    for array in (noise(), np.ascontiguousarray(noise().transpose(2, 0, 1)).transpose(1, 2, 0)):
        before = array.copy()
        decode_content(array).zero_()
        assert np.array_equal(array, before)


def test_read_only_arrays_are_taken_without_a_warning() -> None:
    array = noise()
    array.flags.writeable = False
    assert np.array_equal(decoded(array), array)


# Modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_an_opaque_pillow_image_of_any_mode_becomes_its_rgb(mode: str) -> None:
    source = PHOTO.convert("RGB") if mode != "RGBX" else PHOTO.convert("RGBA")
    image = source.convert(mode) if mode != "RGBX" else source.convert("RGB").convert("RGBX")
    assert np.array_equal(decoded(read_content(image)), np.asarray(image.convert("RGB")))


def test_files_in_palette_grey_and_bilevel_become_their_rgb() -> None:
    for mode in ("P", "L", "1"):
        image = PHOTO.convert(mode)
        assert np.array_equal(decoded(encode(image, "PNG")), np.asarray(image.convert("RGB"))), mode


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(file_format: str) -> None:
    rgba = noise(channels=4)
    rgba[:, :, 3] = 255
    rgba[:4, :, 3] = 0
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = decoded(encode(Image.fromarray(rgba), file_format, **options))
    assert (pixels[:4] == 255).all()
    assert np.array_equal(pixels[4:], rgba[4:, :, :3])


@given(alpha=st.integers(0, 255), color=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_half_transparency_mixes_with_white_to_within_one_step(alpha: int, color: int) -> None:
    image = Image.new("RGBA", (2, 2), (color, color, color, alpha))
    expected = (color * alpha + 255 * (255 - alpha)) / 255
    assert abs(int(decoded(read_content(image))[0, 0, 0]) - expected) <= 1


@pytest.mark.parametrize("modes", [["LA"], ["PA"], ["LA", "La"], ["RGBa"]])
def test_every_alpha_mode_shows_white_where_it_is_transparent(modes: list[str]) -> None:
    image = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    for mode in modes:
        image = image.convert(mode)
    assert (decoded(read_content(image)) == 255).all()


def test_a_transparent_colour_of_a_palette_or_grey_png_is_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    assert decoded(encode(palette, "PNG", transparency=0)).tolist() == [
        [[255, 255, 255], [200, 100, 50]]
    ]
    assert decoded(encode(palette, "PNG", transparency=b"\x00\xff")).tolist() == [
        [[255, 255, 255], [200, 100, 50]]
    ]
    grey = Image.fromarray(np.array([[0, 7]], dtype=np.uint8))
    assert decoded(encode(grey, "PNG", transparency=7))[0, :, 0].tolist() == [0, 255]
    deep = Image.fromarray(np.array([[0, 7000]], dtype=np.uint16))
    assert decoded(encode(deep, "PNG", transparency=7000))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_to_8_not_clipped(file_format: str) -> None:
    values = np.linspace(0, 65535, 300).astype(np.uint16).reshape(15, 20)
    pixels = decoded(encode(Image.fromarray(values), file_format))
    assert np.array_equal(pixels[:, :, 0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_every_integer_mode_is_scaled_alike(mode: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]])
    raw = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2", "I;16L": "<u2"}[mode]
    image = Image.frombytes(mode, (6, 1), values.astype(raw).tobytes())
    assert decoded(read_content(image))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("values", [[[-1, 5]], [[-65536, 2**31 - 1]]])
def test_integers_without_a_known_scale_are_refused_with_their_range(values: list[Any]) -> None:
    content = encode(Image.fromarray(np.array(values, dtype=np.int32)), "TIFF")
    with pytest.raises(ImageDecodeError, match=rf"int32 pixels from {values[0][0]} to"):
        decode_content(content)


def test_a_float_tiff_in_0_1_is_scaled() -> None:
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    content = encode(Image.fromarray(values), "TIFF")
    assert decoded(content)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf])
def test_floats_outside_0_1_are_refused_with_their_range(value: float) -> None:
    array = np.array([[0.5, value]], dtype=np.float32)
    for content in (array, encode(Image.fromarray(array), "TIFF")):
        with pytest.raises(ImageDecodeError, match=r"float32 pixels from .*"):
            decode_content(content)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "U3", "M8[s]"])
def test_arrays_of_other_dtypes_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(ImageDecodeError, match="expected integers or floats") as failure:
        decode_content(np.zeros((2, 2, 3)).astype(dtype))
    assert str(np.dtype(dtype)) in failure.value.reason


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4), (4, 4, 2), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3)])
def test_arrays_of_other_shapes_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageDecodeError) as failure:
        decode_content(np.zeros(shape, dtype=np.uint8))
    assert str(shape) in failure.value.reason


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    for file_format in ("GIF", "PNG", "WEBP", "TIFF"):
        lossless = {"lossless": True} if file_format == "WEBP" else {}
        pixels = decoded(encode(frames[0], file_format, **options, **lossless))
        assert (pixels == (255, 0, 0)).all(), file_format


# Orientation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ],
)
def test_exif_orientation_is_applied_in_every_format(
    file_format: str, options: dict[str, Any], orientation: int
) -> None:
    content = encode(PHOTO, file_format, exif=with_orientation(orientation), **options)
    with Image.open(io.BytesIO(content)) as image:
        reference = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(decoded(content), np.asarray(reference))
    assert np.array_equal(decoded(read_content(Image.open(io.BytesIO(content)))), reference)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_a_photograph_in_any_orientation_looks_like_its_upright_twin(
    shape: str, orientation: int, shared_folder: Path
) -> None:
    folder = shared_folder / "data" / "odd" / "exif-orientation"
    recipe = Preprocessing(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    upright, turned = (
        recipe.apply(decode_content((folder / f"{shape}_{number}.jpg").read_bytes())).int()
        for number in (1, orientation)
    )
    assert (turned - upright).abs().float().mean() <= 2


def jpeg_segment(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def test_the_orientation_is_found_behind_an_xmp_segment() -> None:
    content = encode(PHOTO, "JPEG", exif=with_orientation(6))
    xmp = jpeg_segment(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    assert np.array_equal(decoded(content[:2] + xmp + content[2:]), decoded(content))


@given(exif=st.binary(max_size=60), prefix=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*"]))
@settings(max_examples=150, deadline=None)
def test_damaged_exif_never_makes_a_photograph_unreadable(exif: bytes, prefix: bytes) -> None:
    content = JPEG[:2] + jpeg_segment(b"Exif\0\0" + prefix + exif) + JPEG[2:]
    assert sorted(decode_content(content).shape[1:]) == [40, 56]


def test_an_orientation_kept_as_text_by_imagemagick_is_applied() -> None:
    from PIL import PngImagePlugin

    exif = with_orientation(6).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8d}\n{exif.hex()}\n", zip=True)
    assert decode_content(encode(PHOTO, "PNG", pnginfo=text)).shape == (3, 56, 40)


# The header of a JPEG ---------------------------------------------------------------------------


def test_the_header_is_read_as_pillow_reads_it(shared_folder: Path) -> None:
    photographs = [
        path for path in (shared_folder / "data").rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".mpo")
    ]  # fmt: skip
    assert len(photographs) > 700
    read = 0
    for path in photographs:
        header = read_jpeg_header(path.read_bytes())
        if header is None:
            continue
        read += 1
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            assert header.size == image.size, path
            assert header.exif == image.info.get("exif", b"").removeprefix(b"Exif\0\0"), path
    assert read > 700


@given(kept=st.integers(0, len(JPEG)), changes=st.binary(max_size=4), place=st.integers(0, 600))
@settings(max_examples=200, deadline=None)
def test_a_damaged_header_is_read_or_left_to_pillow(kept: int, changes: bytes, place: int) -> None:
    content = (JPEG[:place] + changes + JPEG[place + len(changes) :])[:kept]
    header = read_jpeg_header(content)
    assert header is None or (len(header.size) == 2 and header.n_scans >= 1)


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xff\xff", b"\x00"])
def test_bytes_between_the_segments_change_nothing(between: bytes) -> None:
    content = encode(PHOTO, "JPEG", exif=with_orientation(6))
    odd = content[:2] + between + content[2:]
    if not odd.startswith(b"\xff\xd8\xff"):
        odd = content[:20] + between + content[20:]
    assert read_jpeg_header(odd) is None
    assert np.array_equal(decoded(odd), decoded(content))


@pytest.mark.parametrize(
    ("mode", "options", "n_scans"),
    [
        ("RGB", {}, 1),
        ("L", {}, 1),
        ("RGB", {"progressive": True}, 10),
        ("L", {"progressive": True}, 6),
    ],
)
def test_the_scans_of_a_progressive_jpeg_are_counted(
    mode: str, options: dict[str, Any], n_scans: int
) -> None:
    header = read_jpeg_header(encode(PHOTO.convert(mode), "JPEG", **options))
    assert header is not None
    assert header.n_scans == n_scans


def test_what_follows_a_baseline_jpeg_is_not_taken_for_scans() -> None:
    header = read_jpeg_header(JPEG + b"\xff\xda" * 1000)  # a film, as telephones append it
    assert header is not None
    assert header.n_scans == 1
