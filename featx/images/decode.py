"""The one place where the content of an image becomes pixels.

JPEG is decoded by torchvision, several times faster than Pillow and with the same pixels; all
other formats by Pillow, because torchvision's PNG decoder ends the process on some damaged files.
The first bytes decide, never the name.

torchvision 0.29 announces that its decoders will move to torchcodec, where `decode_jpeg` gives the
same pixels; `_pixels_from_jpeg` is all that has to follow.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from featx.errors import ImageDecodeError
from featx.images.orientation import exif_orientation, turn_upright
from featx.images.pixels import (
    library_errors,
    pixels_from_array,
    pixels_from_pillow,
    refuse_too_many_pixels,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from featx.images.pixels import PixelArray

_JPEG_START = b"\xff\xd8\xff"

# Pillow hands PostScript to Ghostscript: it is a program to run, not pixels to read.
_PROGRAM_FORMATS = frozenset({"EPS"})

# Pillow loads its plugins at the first image that needs them, without a lock: a thread that looks
# just before another has done so is told that its image is of no known format. So, here and once.
Image.preinit()
Image.init()


def decode_content(
    content: bytes | npt.NDArray[np.generic], source: str = "<bytes>"
) -> torch.Tensor:
    """Decode the content of one image to 8-bit RGB.

    The EXIF orientation is applied; transparency is laid on white; of an animation the first frame
    is taken; 16-bit integers are scaled to 8 bits. Colour profiles are not applied.

    Parameters
    ----------
    content : bytes or ndarray of shape (height, width), (height, width, 1) or (height, width, 3)
        An encoded image, or pixels: uint8, or floats in [0, 1], which are scaled by 255 and
        rounded. `featx.images.sources.read_content` makes it.
    source : str
        What to call the image in an error: its path.

    Returns
    -------
    torch.Tensor of uint8, shape (3, height, width)
        RGB, 0 to 255. The memory is laid out pixel by pixel (height, width, 3), as decoders write
        and resizing reads it fastest: the shape is a view of that. It is never shared with
        `content`.

    Raises
    ------
    ImageDecodeError
        If the content is not an image, is damaged or truncated, has more than
        `featx.images.pixels.MAX_PIXELS` pixels (refused from the header, before decoding), or
        holds numbers without a known scale.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (3, 2), (255, 0, 0)).save(file, format="PNG")
    >>> decode_content(file.getvalue()).shape
    torch.Size([3, 2, 3])
    >>> decode_content(b"not an image", "notes.txt")
    Traceback (most recent call last):
    featx.errors.ImageDecodeError: Cannot read image notes.txt: not an image in a known format
    """
    if isinstance(content, np.ndarray):
        pixels = pixels_from_array(content, source)
    elif not content:
        raise ImageDecodeError(source, "it is empty (0 bytes)")
    elif content.startswith(_JPEG_START):
        pixels = _pixels_from_jpeg(content, source)
    else:
        image = _open(content, source)
        if image.format in _PROGRAM_FORMATS:
            raise ImageDecodeError(source, "PostScript is a program and is not run: convert it")
        pixels = pixels_from_pillow(image, source)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _open(content: bytes, source: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Read the header; Pillow decodes nothing yet."""
    with library_errors(source):
        return Image.open(io.BytesIO(content), formats=formats)


def _pixels_from_jpeg(content: bytes, source: str) -> PixelArray:
    header = _open(content, source, formats=("JPEG",))
    refuse_too_many_pixels(header.size, source)
    with library_errors(source):
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    pixels = turn_upright(decoded.permute(1, 2, 0).numpy(), exif_orientation(header.info))
    return np.ascontiguousarray(pixels)
