"""Keep the warnings of an image library from the caller, in one thread only.

`warnings.catch_warnings` swaps a list that all threads share, so decoding threads that use it undo
each other's filters. Here one filter is put into that list, and it matches nothing but what is
warned inside `warnings_silenced` on the same thread.

In a process of one thread the list is afterwards what it was. Where there are several, the filter
stays: taking it away just while another thread walks through the list would make that thread miss
the next one, and it matches nothing outside the block.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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


_FILTER: Any = ("ignore", None, _SilencedWarning, None, 0)


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
    # The list is changed in place, and not through `simplefilter`, which would also make Python
    # forget which warnings of the caller were shown already.
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typed as read-only
    if not filters or filters[0] is not _FILTER:
        # Another catch_warnings may have put its filters in front, or taken this one away.
        _remove(filters)
        filters.insert(0, _FILTER)
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1
        if _depth.value == 0 and threading.active_count() == 1:
            _remove(filters)


def _remove(filters: list[Any]) -> None:
    if _FILTER in filters:
        filters.remove(_FILTER)
