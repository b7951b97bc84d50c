"""The one place where the content of an image becomes pixels.

JPEG is decoded by torchvision, several times faster than Pillow and with the same pixels; HEIC by
pillow-heif, where that is installed (``pip install 'featx[heic]'``); all other formats by Pillow,
because torchvision's PNG decoder ends the process on some damaged files. The first bytes decide,
never the name.

What a file means
    - The EXIF orientation is applied, in every format. (XMP may say one too, and is not asked, as
      by browsers.)
    - Transparency is laid on white, whether it comes from an alpha channel, a palette or a single
      transparent colour.
    - Integers of more than 8 bits are scaled to 8 by the range of their type, not clipped: from 0
      to the largest. They are refused where they are below 0, and where the largest of a picture is
      below a sixteenth of that, as of a camera of 12 bits: it would be all but black.
      ``pixel_range`` says another range.
    - Floats (TIFF, PFM) count as 0 for black to 1 for white, and are refused where they are
      outside.
    - Of an animation, or a document of many pages, the first frame is taken; of an icon in several
      sizes the largest.
    - CMYK becomes RGB by subtracting the inks, without a profile. In JPEG the inks are stored
      inverted, as Adobe does and browsers assume. YCbCr and LAB are converted.
    - Colour profiles (ICC) and gamma are ignored, because the transforms that weights are trained
      with ignore them: a network is to be shown the numbers it was trained on. A photograph in
      another colour space than sRGB looks a little paler to it than on a screen, as it did in
      training.
    - Refused by name: what Pillow has no mode for, such as TIFF of 64-bit floats or of 16-bit LAB;
      what it reads wrongly, such as JPEG 2000 of several channels of more than 8 bits, or TIFF of
      16 bits in planes; camera raw files, which hold but a small copy of the picture; and every
      format that is not named here.

What is not promised
    - No decoder notices all damage. A truncated file is refused, but of JPEG files with a single
      flipped bit 97 % and more decode (measured), most with other pixels: JPEG has no checksum. Nor
      have GIF, BMP, TIFF and WebP; PNG has.
    - libjpeg and libtiff print complaints such as "Corrupt JPEG data" to the standard error stream.
      They do so from C, past Python's warnings, and featx leaves it at that: the stream could only
      be silenced by redirecting file descriptor 2 of the whole process, and what other threads
      have to say would be lost.

Nothing global is changed: not ``PIL.Image.MAX_IMAGE_PIXELS``, not
``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``, not the formats Pillow knows, not what becomes of the
caller's own warnings.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

# torchvision 0.29 announces that its decoders will go, in favour of torchcodec (0.16 and later).
# Then: `from torchcodec.decoders import decode_jpeg`, which takes the bytes as they are, in
# `_pixels_from_jpeg`. Nothing else knows who decodes JPEG.
from torchvision.io import ImageReadMode, decode_jpeg

from featx._errors import ImageDecodeError
from featx._images.faults import library_errors
from featx._images.headers import (
    JPEG_START,
    JpegHeader,
    is_heic,
    is_webp,
    orientation_in,
    read_jpeg_header,
    turn_upright,
    webp_size,
    why_unknown,
)
from featx._images.limits import DEFAULT_LIMITS, Limits
from featx._images.pixels import pixels_from_array, pixels_from_pillow

if TYPE_CHECKING:
    import numpy.typing as npt

    from featx._images.pixels import PixelArray

# What is asked of Pillow, which knows many formats more: some of them are programs, some it reads
# wrongly or for minutes, and of none does a test show that its black is black.
_FORMATS = (*("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"),)

# A few bytes are a whole scan of a JPEG, so a small file can keep a decoder busy for an hour. This
# many of the largest image allowed take some seconds; cameras and optimisers write about ten.
_SCANS_OF_THE_LARGEST_IMAGE = 24

# Pillow loads its plugins at the first image that needs them, without a lock: a thread that looks
# just before another has done so is told that its image is of no known format. So, here and once.
Image.preinit()
Image.init()


def decode_content(
    content: bytes | npt.NDArray[np.generic],
    source: str = "<bytes>",
    limits: Limits = DEFAULT_LIMITS,
) -> torch.Tensor:
    """Decode the content of one image to 8-bit RGB.

    The EXIF orientation is applied; transparency is laid on white; of an animation the first frame
    is taken; numbers of more than 8 bits are scaled. Colour profiles are not applied. The text at
    the head of this module says it all: ``help(featx._images.decode)``.

    Parameters
    ----------
    content : bytes or ndarray of shape (height, width), (height, width, 1) or (height, width, 3)
        An encoded image, or pixels: uint8, or floats in [0, 1], which are scaled by 255 and
        rounded. `featx._images.sources.read_content` makes it.
    source : str
        What to call the image in an error: its path.

    Returns
    -------
    torch.Tensor of uint8, shape (3, height, width)
        RGB, a view of memory (height, width, 3) of its own, as decoders write and resizing reads
        it fastest.

    Raises
    ------
    ImageDecodeError
        If the content is not an image, is damaged or truncated, is larger than the limits (refused
        from the header, before decoding), or holds numbers without a known scale.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (3, 2), (255, 0, 0)).save(file, format="PNG")
    >>> decode_content(file.getvalue()).shape
    torch.Size([3, 2, 3])
    >>> decode_content(b"not an image", "notes.txt")
    Traceback (most recent call last):
    featx.ImageDecodeError: Cannot read image notes.txt: not an image in a known format
    >>> decode_content(file.getvalue(), "a.png", limits=Limits(max_pixels=5))
    Traceback (most recent call last):
    featx.ImageDecodeError: Cannot read image a.png: 3 x 2 pixels are more than the limit ...
    """
    if isinstance(content, np.ndarray):
        pixels = pixels_from_array(content, source, limits)
    else:
        limits.check_bytes(len(content), source)
        pixels = _pixels_from_bytes(content, source, limits)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pixels_from_bytes(content: bytes, source: str, limits: Limits) -> PixelArray:
    if not content:
        raise ImageDecodeError(source, "it is empty (0 bytes)")
    if content.startswith(JPEG_START):
        return _pixels_from_jpeg(content, source, limits)
    if is_webp(content):
        limits.check_pixels(webp_size(content), source)
    image = _open_heic(content, source) if is_heic(content) else _open(content, source)
    return pixels_from_pillow(image, source, limits)


def _open(content: bytes, source: str, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Read the header; Pillow decodes nothing yet."""
    with library_errors(source):
        try:
            return Image.open(io.BytesIO(content), formats=formats)
        except UnidentifiedImageError:
            pass
    raise ImageDecodeError(source, why_unknown(content))


def _open_heic(content: bytes, source: str) -> Image.Image:
    """Read the header of a HEIC file.

    The image class of pillow-heif is used by itself. Registering it with Pillow, as its
    documentation proposes, would change what ``PIL.Image.open`` reads for everyone in the process.
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


def _pixels_from_jpeg(content: bytes, source: str, limits: Limits) -> PixelArray:
    header = read_jpeg_header(content) or _header_read_by_pillow(content, source)
    limits.check_pixels(header.size, source)
    if header.bits != 8 or header.is_lossless:
        kind = "lossless JPEG" if header.is_lossless else "JPEG"
        raise ImageDecodeError(
            source,
            f"it is a {kind} of {header.bits} bits, expected a usual one of 8: save it as PNG",
        )
    width, height = header.size
    if width * height * header.n_scans > _SCANS_OF_THE_LARGEST_IMAGE * limits.max_pixels:
        raise ImageDecodeError(
            source, f"{header.n_scans:,} scans of {width} x {height} pixels would take too long"
        )
    with library_errors(source):
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    pixels = turn_upright(decoded.permute(1, 2, 0).numpy(), orientation_in(header.exif))
    return np.ascontiguousarray(pixels)


def _header_read_by_pillow(content: bytes, source: str) -> JpegHeader:
    """Read the header of a JPEG with something between its segments."""
    image: Any = _open(content, source, formats=("JPEG",))
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    return JpegHeader(image.size, image.bits, False, exif, n_scans=content.count(b"\xff\xda"))
