"""Whatever an image library raises becomes one error of ours, with a reason a person can read."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from featx._errors import ImageDecodeError
from featx._images.signatures import UNKNOWN
from featx._images.silence import warnings_silenced

if TYPE_CHECKING:
    from collections.abc import Iterator

_MESSAGE_IS_ENOUGH = (OSError, ValueError, SyntaxError, RuntimeError)


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turn whatever an image library raises or warns in the block into an `ImageDecodeError`.

    Damaged images make Pillow raise almost anything (OSError, SyntaxError, struct.error, KeyError,
    MemoryError, ...), so the block must hold calls into the library and nothing else: a fault of
    our own is not a bad image. Warnings are dropped.
    """
    try:
        with warnings_silenced():
            yield
    except Exception as error:
        raise ImageDecodeError(source, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return UNKNOWN
    if isinstance(error, Image.DecompressionBombError):
        return str(error).partition(", could be")[0].lower()
    first_line = str(error).strip().partition("\n")[0]
    text = re.sub(r"^.*\.cpp:\d+, ", "", first_line)[:200]
    if text and isinstance(error, _MESSAGE_IS_ENOUGH):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")
