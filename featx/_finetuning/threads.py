"""Threads: how many of them torch takes for a training."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

# A step of so many weights takes about as long as handing it to another thread.
_SMALL = 10**6


@contextmanager
def fitting_threads(head: nn.Module) -> Iterator[None]:
    """Compute in one thread while a small head is trained on vectors.

    Its products are too small to share: several threads make nothing faster, and where other
    processes want the cores they wait for each other at every step.

    Parameters
    ----------
    head : torch.nn.Module
        What is trained. The number of threads is put back after the block, to what it was before
        the first one where several train at the same time.

    Examples
    --------
    >>> import torch
    >>> with fitting_threads(torch.nn.Linear(1280, 10)):
    ...     torch.get_num_threads()
    1
    """
    if sum(parameter.numel() for parameter in head.parameters()) >= _SMALL:
        yield
        return
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()


class _Limit:
    """One thread for torch, as long as somebody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            # Of this thread and of new ones; those that still train keep the one that they set.
            torch.set_num_threads(self._before)


_limit = _Limit()


def _after_fork_in_child() -> None:
    """Forget what threads of the parent were doing: none of them is here."""
    global _limit
    _limit = _Limit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
