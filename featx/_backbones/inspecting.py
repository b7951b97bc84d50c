"""The lock under which networks are built and looked into, by one thread at a time."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")

_inspecting = threading.RLock()


def _after_fork_in_child() -> None:
    """Forget a lock that another thread of the parent held: nobody here would release it."""
    global _inspecting
    _inspecting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def inspecting() -> threading.RLock:
    """Return the lock under which networks are built and looked into."""
    return _inspecting


class ComputedOnce(Generic[Value]):
    """A property that is computed at its first use, by one thread at a time.

    Until Python 3.12 `functools.cached_property` holds a lock of its own while it computes, and two
    threads that take this one and that of `inspecting` in turn would wait for each other for ever.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Value:
        # Where it is found in the instance, Python does not come here.
        with inspecting():
            if self._name not in instance.__dict__:
                instance.__dict__[self._name] = self._compute(instance)
            value: Value = instance.__dict__[self._name]
            return value
