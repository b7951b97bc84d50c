"""The lock under which networks are loaded, built, looked into and exported."""

from __future__ import annotations

import os
import threading

_locks: dict[int, threading.RLock] = {}


def network_lock() -> threading.RLock:
    """Return the lock, which one thread of this process holds at a time, as often as it likes.

    A forked child has one of its own: nobody there would release that of the parent, which another
    thread may have held.
    """
    return _locks.setdefault(os.getpid(), threading.RLock())
