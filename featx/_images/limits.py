"""How large an image may be, and which of its numbers are black and white."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, TypeAlias

from featx._checks import check_whole_number, refuse
from featx._errors import ImageDecodeError

PixelRange: TypeAlias = str | tuple[float, float]
"""``"type"``, ``"image"``, or the numbers of black and white."""


@dataclass(frozen=True)
class Limits:
    """The largest image that is read; a larger one raises `ImageDecodeError`.

    Both are checked before the memory is spent: the bytes before the file is read, the pixels on
    the header, before decoding. Of an animation or a document of many pages only the first frame is
    decoded, so only that counts. The default is that of Pillow, and 2 GiB, as no image within it
    needs more.

    Pillow has a limit of its own, ``PIL.Image.MAX_IMAGE_PIXELS``, which is the caller's to set and
    never changed here: it refuses what has more than twice as many pixels, in formats other than
    JPEG. To read larger images, raise both.

    `pixel_range` says which numbers are black and white where they are not of 8 bits: those that
    their type has room for, the smallest and largest of each image, or two numbers.

    Examples
    --------
    >>> Limits(max_pixels=50_000_000)
    Limits(max_pixels=50000000, max_file_bytes=2147483648, pixel_range='type')
    >>> Limits(max_pixels=0)
    Traceback (most recent call last):
    featx.InputError: Got max_pixels=0 but expected a whole number of at least 1
    """

    max_pixels: int = 178_956_970
    max_file_bytes: int = 2**31
    pixel_range: PixelRange = "type"

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_file_bytes"):
            check_whole_number(name, getattr(self, name), 1)
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "pixel_range", _checked_range(self.pixel_range))

    def check_pixels(self, size: tuple[int, int], source: str) -> None:
        """Raise `ImageDecodeError` for a (width, height) of more than `max_pixels` pixels."""
        width, height = size
        if width * height > self.max_pixels:
            raise ImageDecodeError(
                source,
                f"{width} x {height} pixels are more than the limit of {self.max_pixels:,} pixels",
            )

    def check_bytes(self, n_bytes: int, source: str) -> None:
        """Raise `ImageDecodeError` for an encoded image of more than `max_file_bytes` bytes."""
        if n_bytes > self.max_file_bytes:
            raise ImageDecodeError(
                source,
                f"{n_bytes:,} bytes are more than the limit of {self.max_file_bytes:,} bytes",
            )


def _checked_range(value: Any) -> PixelRange:
    if isinstance(value, str) and value in ("type", "image"):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        low, high = value
        are_numbers = isinstance(low, numbers.Real) and isinstance(high, numbers.Real)
        if are_numbers and -math.inf < low < high < math.inf:
            return float(low), float(high)
    raise refuse("pixel_range", value, "'type', 'image' or two numbers, those of black and white")


DEFAULT_LIMITS = Limits()
