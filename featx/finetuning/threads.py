"""Threads: how many of them torch takes for a training."""

from __future__ import annotations

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
        What is trained. The number of threads is put back as it was after the block.

    Examples
    --------
    >>> import torch
    >>> with fitting_threads(torch.nn.Linear(1280, 10)):
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    is_small = sum(parameter.numel() for parameter in head.parameters()) < _SMALL
    torch.set_num_threads(1 if is_small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
