"""The identity of a training: everything that decides its result, to find its checkpoint again."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from contextlib import closing
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featx._backbones.taps import PENULTIMATE, Tap
from featx._checks import refuse
from featx._errors import ImageDecodeError, InputError
from featx._extraction.batches import load_in_order
from featx._images.digest import digest_content
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featx._backbones.frozen import FrozenBackbone
    from featx._images.limits import Limits

# They decide where and how fast, or are described by the backbone itself.
_WITHOUT_INFLUENCE = frozenset(
    {
        "backbone",
        "checkpoint",
        "device",
        "image_size",
        "max_file_bytes",
        "max_pixels",
        "num_workers",
        "pixel_memory",
        "preprocessing",
        "progress",
        "weights",
    }
)

_PIECE = 64


def describe_training(
    parameters: Mapping[str, Any],
    backbone: FrozenBackbone,
    images_digest: str,
    classes: np.ndarray,
    codes: np.ndarray,
    *,
    drawn: bool,
) -> dict[str, Any]:
    """Return everything that decides what comes of a training, as plain JSON types.

    The weights of a backbone that is `drawn` with a seed that only the checkpoint knows are others
    at each fit: what draws them stands for them.
    """
    described = backbone.describe(Tap(PENULTIMATE, "avg"))
    if drawn:
        described["weights_sha256"] = identify(parameters["backbone"], "backbone")
    return {
        "backbone": described,
        "parameters": {
            name: identify(value, name)
            for name, value in sorted(parameters.items())
            if name not in _WITHOUT_INFLUENCE
        },
        "images": images_digest,
        "classes": repr(classes.tolist()),
        "labels": hashlib.sha256(codes.tobytes()).hexdigest(),
    }


def identify(value: Any, name: str, _around: tuple[int, ...] = ()) -> Any:
    """Return what a parameter is, as plain JSON types: the same in every process, or an error.

    Plain values and what consists of them are written out, functions and classes named by their
    address, other objects by their class and their state, as pickle takes it.

    Raises
    ------
    InputError
        If two that are not the same could not be told apart: lambdas, functions within functions,
        generators of random numbers, iterators, whatever hides its state.

    Examples
    --------
    >>> from functools import partial
    >>> identify(partial(torch.flip, dims=(2,)), "augment")
    ['partial', ['name', 'torch.flip'], [], [['dims', [2]]]]
    >>> identify(lambda pixels: pixels, "augment")
    Traceback (most recent call last):
    featx.InputError: Got augment=<function <lambda>...
    """
    if value is None or (
        isinstance(value, bool | int | float | str) and not isinstance(value, Enum)
    ):
        return value
    if id(value) in _around:
        raise _no_identity(name, value)

    def inside(part: Any) -> Any:
        return identify(part, name, (*_around, id(value)))

    if isinstance(value, np.generic):
        return inside(value.item())
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return ["tensor", str(value.dtype), list(value.shape), _sha256(values)]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return ["array", str(value.dtype), list(value.shape), _sha256(value)]
    if isinstance(value, np.ndarray):
        return inside(value.tolist())
    if isinstance(value, list | tuple):
        return [inside(part) for part in value]
    if isinstance(value, set | frozenset):
        return ["set", sorted((inside(part) for part in value), key=json.dumps)]
    if isinstance(value, dict):
        pairs = [[inside(key), inside(part)] for key, part in value.items()]
        return sorted(pairs, key=lambda pair: json.dumps(pair[0]))
    if isinstance(value, bytes | complex | PurePath):
        return [type(value).__name__, repr(value)]
    if isinstance(value, partial):
        return ["partial", inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, MethodType):
        return ["method", value.__name__, inside(value.__self__)]
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return ["name", _address(value, name)]
    if isinstance(value, Enum):
        return ["enum", _address(type(value), name), value.name]
    if isinstance(value, _RUNNING_ON) or not hasattr(value, "__dict__"):
        raise _no_identity(name, value)
    return ["object", _address(type(value), name), inside(_state_of(value))]


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


_RUNNING_ON = (np.random.RandomState, np.random.Generator, torch.Generator, random.Random)


def _state_of(value: Any) -> Any:
    state = value.__getstate__()
    if isinstance(state, dict):  # a version of scikit-learn changes no training
        return {key: part for key, part in state.items() if key != "_sklearn_version"}
    return state


def _address(thing: Any, name: str) -> str:
    """Return where a class or function can be imported from."""
    module, path = getattr(thing, "__module__", None), thing.__qualname__
    own: str = thing.__name__
    if vars(torch).get(own) is thing:  # those in C do not say where they stand
        return f"torch.{own}"
    found: Any = sys.modules.get(module or "")
    for part in path.split("."):
        found = getattr(found, part, None)
    # What a script or a notebook defines cannot be imported in the processes of a search.
    if found is not thing and (module != "__main__" or "<" in path):
        raise _no_identity(name, thing)
    return f"{module}.{path}"


def _no_identity(name: str, value: Any) -> InputError:
    return refuse(
        name,
        value,
        "beside checkpoint what can be told from others in every process: a number, a text, or "
        "functions and classes of a module, and objects made of such",
    )


def digest_images(items: Sequence[Any], limits: Limits, num_workers: int) -> str:
    """Return the digest of the contents of some images, in their order.

    Raises
    ------
    ImageDecodeError
        If one cannot be read; its row is named.
    """

    def digest(row: int) -> bytes:
        try:
            return digest_content(read_content(items[row], limits))
        except ImageDecodeError as error:
            raise ImageDecodeError(error.source, error.reason, row) from error

    total = hashlib.sha256()
    rows = range(len(items))
    with closing(load_in_order(rows, digest, num_workers=num_workers, ahead=_PIECE)) as outcomes:
        for _, digested in outcomes:
            total.update(digested)
    return total.hexdigest()
