"""Locks that one thread of a process holds at a time, each process its own."""

from __future__ import annotations

import os
import threading

_locks: dict[tuple[object, ...], threading.RLock] = {}


def lock_of_process(*name: object) -> threading.RLock:
    """Return the lock of a name, which one thread holds at a time, as often as it likes.

    A forked child has others than its parent: nobody there would release one that another thread
    of the parent held at the fork.

    Examples
    --------
    >>> lock_of_process("network") is lock_of_process("network")
    True
    """
    return _locks.setdefault((os.getpid(), *name), threading.RLock())
