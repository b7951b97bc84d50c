"""Whatever an image library raises becomes one error of ours; what it warns of is dropped."""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from featx._errors import ImageDecodeError
from featx._images.headers import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

_MESSAGE_IS_ENOUGH = (OSError, ValueError, SyntaxError, RuntimeError)


class _NoWarnings(threading.local):
    """A block that drops every warning of its thread, whatever the filters of the process are.

    `warnings.catch_warnings` swaps a list that all threads share, so decoding threads that use it
    undo each other's filters. Here one filter is put into that list, and stays: its pattern, this
    object, matches each message of a thread that is inside the block, and nothing else. So a
    warning neither leaves the block nor turns into an error, even under ``python -W error``, and
    other threads and other code keep theirs.

    Examples
    --------
    >>> with no_warnings:
    ...     warnings.warn("nobody hears this")
    """

    depth = 0
    pattern = "(?!)"  # nothing: what scikit-learn takes over into filters of its workers

    def __enter__(self) -> None:
        # The list is changed in place, and not through `simplefilter`, which would also make Python
        # forget which warnings of the caller were shown already.
        filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typed as read-only
        if not filters or filters[0] is not _FILTER:  # others have been put before it
            if _FILTER in filters:
                filters.remove(_FILTER)
            filters.insert(0, _FILTER)
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1

    def match(self, _message: str) -> bool:
        """Take part in a filter as a compiled pattern does."""
        return self.depth > 0

    def __reduce__(self) -> str:  # for these workers, too
        return "no_warnings"


no_warnings = _NoWarnings()
_FILTER = ("ignore", no_warnings, Warning, None, 0)


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turn whatever an image library raises or warns in the block into an `ImageDecodeError`.

    Damaged images make Pillow raise almost anything (OSError, SyntaxError, struct.error, KeyError,
    MemoryError, ...), so the block must hold calls into the library and nothing else: a fault of
    our own is not a bad image. Warnings are dropped.
    """
    try:
        with no_warnings:
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
