"""The forms in which one image may be given, and the images of the checks."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt


def sample_images() -> list[npt.NDArray[np.uint8]]:
    """Return five 8-bit RGB images of shape (48, 64, 3), each of twelve random coloured squares.

    They are of one shape, for transformers that stack them, and not square, so that exchanged axes
    are seen. Large squares leave even an untrained network with different rows, as noise does not.
    """
    random = np.random.default_rng(0)
    squares = random.integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    return list(squares.repeat(16, axis=1).repeat(16, axis=2))


def pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """Return the 8-bit RGB pixels of an image of any form.

    Raises
    ------
    SkipTest
        When it is no 8-bit RGB image, so that it has not the same pixels in every form.
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            image = file.convert("RGB")
    elif isinstance(image, Image.Image):
        image = image.convert("RGB")
    elif hasattr(image, "permute"):
        image = image.permute(1, 2, 0)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise SkipTest(f"needs 8-bit RGB images, got {pixels.dtype} of shape {pixels.shape}")
    return pixels


def form_of(image: Any) -> str:
    """Return the name of the form of an image, a key of `FORMS`."""
    if isinstance(image, str):
        return "path_string"
    if isinstance(image, os.PathLike):
        return "path"
    if isinstance(image, bytes):
        return "bytes"
    if isinstance(image, Image.Image):
        return "pil"
    return "tensor" if hasattr(image, "permute") else "array"


def write_file(content: bytes, folder: Path) -> Path:
    """Write a new file into a folder, named after the number of its files."""
    path = folder / f"{len(list(folder.iterdir()))}.png"
    path.write_bytes(content)
    return path


def png_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the pixels as a PNG file, which keeps them as they are."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _tensor(pixels: npt.NDArray[np.uint8]) -> Any:
    import torch  # here, because no other check needs it

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


FORMS: dict[str, Callable[[npt.NDArray[np.uint8], Path], Any]] = {
    "path_string": lambda pixels, folder: str(write_file(png_of(pixels), folder)),
    "path": lambda pixels, folder: write_file(png_of(pixels), folder),
    "bytes": lambda pixels, _: png_of(pixels),
    "pil": lambda pixels, _: Image.open(io.BytesIO(png_of(pixels))),
    "array": lambda pixels, _: pixels.copy(),
    "tensor": lambda pixels, _: _tensor(pixels),
}
"""How pixels, and a folder for files, become an image of each form."""

UNREADABLE: dict[str, Callable[[Path], Any]] = {
    "path_string": lambda folder: str(write_file(b"this is not an image", folder)),
    "path": lambda folder: write_file(b"this is not an image", folder),
    "bytes": lambda _: b"this is not an image",
    "pil": lambda _: _cut_off_picture(),
    "array": lambda _: np.zeros((0, 0, 3), np.uint8),
}
"""What nobody can read, in the forms that can hold such a thing."""


def _cut_off_picture() -> Image.Image:
    content = png_of(sample_images()[0])
    return Image.open(io.BytesIO(content[: len(content) // 2]))
