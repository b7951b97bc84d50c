"""How large an image may be: limits of our own, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from featx._checks import check_whole_number
from featx._errors import ImageDecodeError


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

    Examples
    --------
    >>> Limits(max_pixels=50_000_000)
    Limits(max_pixels=50000000, max_file_bytes=2147483648)
    >>> Limits(max_pixels=0)
    Traceback (most recent call last):
    featx.InputError: Got max_pixels=0 but expected a whole number of at least 1
    """

    max_pixels: int = 178_956_970
    max_file_bytes: int = 2**31

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_file_bytes"):
            check_whole_number(name, getattr(self, name), 1)
            object.__setattr__(self, name, int(getattr(self, name)))

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


DEFAULT_LIMITS = Limits()
