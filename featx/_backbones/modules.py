"""Torch modules: a private copy that nothing of the caller's reaches, and what one consists of."""

from __future__ import annotations

import copy
import hashlib
import re
from collections import OrderedDict
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from featx._backbones.weights import tensors_sha256
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)

_LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue are of grey (ITU-R BT.601), as for Pillow."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Their code is named by their versions, which are no part of a fingerprint.
_LIBRARIES = ("torch", "torchvision", "timm")

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def copy_frozen(module: nn.Module) -> nn.Module:
    """Return a copy of a network that the original can no longer change, and that changes nothing.

    The copy has tensors of its own, contiguous, on the CPU, in float32 where they are of floating
    point; it is in eval mode and without gradients. Wrappers of ``torch.compile`` and data
    parallelism are taken off. Hooks are left behind, because they are the observers of somebody
    else; those by which torch itself computes weights (``weight_norm``, ``spectral_norm``, pruning)
    are part of the network and stay.

    Raises
    ------
    InputError
        If this is not a module, cannot be copied, or has no weights yet.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"Got a {type(module).__name__} but expected a torch.nn.Module, or the name of a "
            "network for load_backbone"
        )
    module = _unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "Got a TorchScript module, whose layers cannot be read; expected the nn.Module that "
            "it was made of"
        )
    memo: dict[int, Any] = {}
    for tensor in _tensors(module):
        if isinstance(tensor, _UNINITIALIZED) or tensor.is_meta:
            raise InputError(
                f"Got a {type(module).__name__} with tensors that have no numbers yet (lazy, or on "
                "the meta device); load its weights first"
            )
        memo[id(tensor)] = _detached(tensor)
    for part in module.modules():
        for hooks in (getattr(part, name) for name in _HOOKS):
            memo[id(hooks)] = OrderedDict(
                (key, hook)
                for key, hook in hooks.items()
                if type(hook).__module__.startswith("torch.nn.utils")
            )
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"The {type(module).__name__} cannot be copied by copy.deepcopy: {error}"
        ) from error
    _take_colours(copied)
    return copied.eval().requires_grad_(False)


def _take_colours(module: nn.Module) -> None:
    """Let a network of grey images take colours, of which it sees the luma."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            weight = part._parameters.get("weight")  # absent where torch computes it
            if part.in_channels == 1 and weight is not None:
                part.weight = nn.Parameter(weight * torch.tensor(_LUMA).view(1, 3, 1, 1))
                part.in_channels = 3
            return


def share_tensors(module: nn.Module) -> nn.Module:
    """Return a network of other module objects over the very same tensors.

    What is hung on its modules is not seen by others, and it costs no memory worth naming.
    """
    return copy.deepcopy(module, {id(tensor): tensor for tensor in _tensors(module)})


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, those that a state dict leaves out included."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def structure_sha256(module: nn.Module) -> str:
    """Return the digest of what a module prints and of what its parts are and hold.

    Of each part that is its class, its attributes (numbers, strings, tensors and arrays, also in
    containers) and, unless it comes from a library, the code of its ``forward``. It is the same in
    every process.
    """
    # Some modules print their functions, with an address that is of the process.
    total = hashlib.sha256(re.sub(r"0x[0-9a-fA-F]+", "", repr(module)).encode())
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


def _unwrapped(module: nn.Module) -> nn.Module:
    is_parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = getattr(module, "module" if is_parallel else "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for part in module.modules():
        yield from (value for value in part._parameters.values() if value is not None)
        yield from (value for value in part._buffers.values() if value is not None)
        yield from (value for value in vars(part).values() if isinstance(value, torch.Tensor))


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        copied = torch.empty(
            tensor.shape,
            dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype,
        ).copy_(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=False)
    return copied


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
