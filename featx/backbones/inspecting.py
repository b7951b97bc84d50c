"""The lock under which networks are built and looked into, by one thread at a time."""

from __future__ import annotations

import os
import threading

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
