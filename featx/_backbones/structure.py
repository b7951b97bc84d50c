"""The structure of a module: what it computes beside its weights, as a digest."""

from __future__ import annotations

import hashlib
import re
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featx._backbones.weights import tensors_sha256

if TYPE_CHECKING:
    from torch import nn

# Their code is named by their versions, which are no part of a fingerprint.
_LIBRARIES = ("torch", "torchvision", "timm")

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def structure_sha256(module: nn.Module) -> str:
    """Return the digest of what a module prints and of what its parts are and hold.

    Of each part that is its class, its attributes (numbers, strings, tensors and arrays, also in
    containers) and, unless it comes from a library, the code of its ``forward``.

    Parameters
    ----------
    module : torch.nn.Module
        Any module.

    Returns
    -------
    str
        64 hexadecimal digits, the same in every process.
    """
    total = hashlib.sha256(_without_addresses(repr(module)).encode())
    for name, part in module.named_modules():
        kind = type(part)
        held = {
            key: _describe(value)
            for key, value in sorted(vars(part).items())
            if not key.startswith("_") and key != "training"
        }
        is_own = kind.__module__.partition(".")[0] not in _LIBRARIES
        code = getattr(kind.forward, "__code__", None) if is_own else None
        total.update(repr((name, kind.__qualname__, held, _describe(code))).encode())
    return total.hexdigest()


def _describe(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return tensors_sha256({"": value})
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, CodeType):
        return (value.co_code, value.co_names, [_describe(const) for const in value.co_consts])
    if isinstance(value, dict):
        return [(_describe(key), _describe(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    return type(value).__qualname__


def _without_addresses(text: str) -> str:
    # Some modules print their functions, with an address that is of the process.
    return re.sub(r"0x[0-9a-fA-F]+", "", text)
