"""Checkpoints: where a training was at the end of an epoch, so that it goes on after a kill.

A training has a folder of its own, named by the digest of everything that decides its result. The
file in it is whole or absent, and holds tensors and plain values: it is read without running code.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featx._checks import refuse
from featx._errors import SchemaError
from featx._files import write_atomically

if TYPE_CHECKING:
    import os

CHECKPOINT_VERSION = 2


@dataclass
class TrainingState:
    """What there is to know of a training between two epochs."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    history: list[dict[str, Any]]
    seed: int
    best_epoch: int
    best: dict[str, torch.Tensor]


class Checkpoint:
    """The checkpoint of one training, which is described by plain JSON types.

    Raises
    ------
    InputError
        If the folder cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoint(folder, {"epochs": 3}).load() is None
    True
    """

    def __init__(self, folder: str | os.PathLike[str], description: dict[str, Any]) -> None:
        description = {"version": CHECKPOINT_VERSION} | description
        canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        self._file = Path(folder) / digest[:16] / "training.pt"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            expected = f"a folder that can be written ({error.strerror})"
            raise refuse("checkpoint", str(folder), expected) from error

    def save(self, state: TrainingState) -> None:
        """Write a state; the one before it is there until this one is whole."""
        with write_atomically(self._file) as file:
            torch.save(vars(state), file)

    def load(self) -> TrainingState | None:
        """Return the state of the last epoch that was done; None where there is none.

        Raises
        ------
        SchemaError
            If the file is damaged or is no such checkpoint.
        """
        if not self._file.exists():
            return None
        try:
            # Tensors and plain values only: what would run code is refused.
            stored = torch.load(self._file, map_location="cpu", weights_only=True)
            return TrainingState(**stored)
        except Exception as error:  # a damaged or hostile file fails in any way its bytes choose
            raise SchemaError(
                f"{self._file} is not a whole checkpoint of this version of featx; delete its "
                "folder to train from the beginning"
            ) from error


def identify(value: Any, name: str) -> Any:
    """Return what a parameter is, as plain JSON types: the same in every process, or an error.

    Numbers and texts stand for themselves, anything else is known by the digest of its pickle:
    functions and classes by where they can be imported from, objects by their class and state. Sets
    of texts are in another order in each process: with one the training is done again, no worse.

    Raises
    ------
    InputError
        If two that are not the same could not be told apart: lambdas, functions within functions,
        generators of random numbers, iterators, whatever cannot be pickled.

    Examples
    --------
    >>> from functools import partial
    >>> flip, again = (identify(partial(torch.flip, dims=(2,)), "augment") for _ in range(2))
    >>> flip == again
    True
    >>> identify(lambda pixels: pixels, "augment")
    Traceback (most recent call last):
    featx.InputError: Got augment=<function <lambda>...
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    content = io.BytesIO()
    pickler = _IdentityPickler(content, protocol=4)
    pickler.fast = True  # what is equal is written alike, whether or not it is one object
    try:
        pickler.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
        expected = (
            "beside checkpoint what can be told from others in every process: a number, a text, or "
            "functions and classes of a module, and objects made of such"
        )
        raise refuse(name, value, expected) from error
    return hashlib.sha256(content.getvalue()).hexdigest()


_RANDOM_GENERATORS = (np.random.RandomState, np.random.Generator, torch.Generator, random.Random)


class _IdentityPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):  # torch writes the address of its memory, too
            numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return tuple, ((str(value.dtype), tuple(value.shape), numbers.tobytes()),)
        is_named = isinstance(value, type | FunctionType) and "<" not in value.__qualname__
        if is_named and value.__module__ == "__main__":
            # What a script or a notebook defines cannot be imported in the processes of a search.
            return str, (f"__main__.{value.__qualname__}",)
        # What runs on is another thing at each look.
        if isinstance(value, _RANDOM_GENERATORS) or hasattr(type(value), "__next__"):
            raise pickle.PicklingError
        return NotImplemented
