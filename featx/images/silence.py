"""Keep the warnings of an image library from the caller, in one thread only.

`warnings.catch_warnings` swaps a list that all threads share, so decoding threads that use it undo
each other's filters. Here one filter stays in that list, and it matches nothing but what is
warned inside `warnings_silenced` on the same thread.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Depth(threading.local):
    value = 0


_depth = _Depth()


class _EveryWarningInsideTheBlock(type):
    """Makes each warning a subclass of its classes, but only inside the block."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return _depth.value > 0


class _SilencedWarning(Warning, metaclass=_EveryWarningInsideTheBlock):
    """The category of the filter; nothing is ever an instance of it."""


@contextmanager
def warnings_silenced() -> Iterator[None]:
    """Drop every warning of the block, whatever the filters of the process are.

    Even under ``python -W error`` a warning neither leaves the block nor turns into an error.
    Other threads keep their warnings.

    Examples
    --------
    >>> with warnings_silenced():
    ...     warnings.warn("nobody hears this")
    """
    # Another catch_warnings may have put its filters in front, or taken this one away.
    if not warnings.filters or warnings.filters[0][2] is not _SilencedWarning:
        warnings.simplefilter("ignore", _SilencedWarning)
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1
