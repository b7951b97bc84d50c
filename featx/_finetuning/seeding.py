"""Seeds: what is random in a training, as a function of one number and of where in it one is.

Nothing is drawn from a generator that runs on from epoch to epoch, so that a training that is
resumed draws what an undisturbed one draws, and the number of threads changes nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils import check_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator

INITIALIZATION, ORDER, AUGMENTATION, REGULARIZATION, SPLIT = range(5)
"""What the numbers are drawn for."""


def choose_seed(random_state: Any) -> int:
    """Return the seed of a training from what scikit-learn calls a ``random_state``.

    Examples
    --------
    >>> choose_seed(7)
    7
    """
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    drawn: int = check_random_state(random_state).randint(2**31)
    return drawn


def derive_seed(seed: int, purpose: int, *place: int) -> int:
    """Return the seed for one purpose at one place, such as an epoch and a row.

    Examples
    --------
    >>> derive_seed(0, ORDER, 3) == derive_seed(0, ORDER, 3)
    True
    >>> derive_seed(0, ORDER, 3) == derive_seed(0, ORDER, 4)
    False
    """
    state = np.random.SeedSequence([seed, purpose, *place]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a block, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Put torch's generators, the one of a GPU included, back as they were after a block."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
