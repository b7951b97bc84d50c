"""Folding: a BatchNorm in eval mode becomes part of the convolution before it.

Both are linear, so their composition is one convolution (Jacob et al., "Quantization and training
of neural networks for efficient integer-arithmetic-only inference", CVPR 2018, section 3.2). That
saves a pass over every activation. ONNX Runtime does the same to its graphs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from featx._backbones.embedding_network import first_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._backbones.embedding_network import EmbeddingNetwork

# How far folding may move an output, as a share of its largest number. Rounding moves it by about
# 1e-6; whatever moves it further is no pair of a convolution and its BatchNorm.
_TOLERANCE = 1e-4


def fold_batch_norms(network: EmbeddingNetwork, example: torch.Tensor) -> int:
    """Fold each BatchNorm into the convolution before it, where nobody else sees what is between.

    The pairs are found by watching one forward, so that it does not matter how a network is
    written. Where the outputs are then not the same up to rounding, all is left as it was.

    Parameters
    ----------
    network : EmbeddingNetwork
        Changed in place: pass a copy of a shared one.
    example : Tensor
        uint8 (n, 3, side, side).

    Returns
    -------
    int
        How many were folded.

    Examples
    --------
    >>> import copy
    >>> from featx import load_backbone
    >>> backbone = load_backbone()
    >>> network = copy.deepcopy(backbone.network(backbone.taps()))
    >>> fold_batch_norms(network, torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    49
    """
    with torch.inference_mode(False), torch.no_grad():
        pairs = _watch(network, example).pairs()
        before = network(example)
        folded = [_Fold(network, *pair) for pair in pairs]
        for fold in folded:
            fold.apply()
        if _agree(before, network(example)):
            return len(folded)
        for fold in folded:
            fold.undo()
        return 0


def _agree(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> bool:
    return all(
        # Written so that NaN, for which every comparison is false, does not agree.
        bool((after - before).abs().max() <= _TOLERANCE * before.abs().max())
        for before, after in zip(expected, actual, strict=True)
    )


def _watch(network: EmbeddingNetwork, example: torch.Tensor) -> _Flow:
    flow = _Flow(network)
    handles = [
        module.register_forward_hook(flow.observer(name)) for name, module in flow.modules.items()
    ]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return flow


class _Flow:
    """Which module wrote each tensor of a forward, and which ones read it."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = {name: module for name, module in network.named_modules() if name}
        # Somebody reads the output or the input of these by a hook.
        self._is_tapped = {
            name: bool(module._forward_hooks or module._forward_pre_hooks)
            for name, module in self.modules.items()
        }
        self._writers: dict[int, list[str]] = defaultdict(list)
        self._readers: dict[int, list[str]] = defaultdict(list)
        self._calls: dict[str, int] = defaultdict(int)
        self._tensors: list[torch.Tensor] = []  # kept, so that no two have one id

    def observer(self, name: str) -> Any:
        """Return the hook that notes what a module reads and writes."""

        def observe(_module: nn.Module, inputs: Any, output: Any) -> None:
            self._calls[name] += 1
            for tensor in inputs:
                if isinstance(tensor, torch.Tensor):
                    self._readers[id(tensor)].append(name)
                    self._tensors.append(tensor)
            written = first_tensor(output)
            if written is not None:
                self._writers[id(written)].append(name)
                self._tensors.append(written)

        return observe

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and of the BatchNorm that alone reads it."""
        return [
            (writers[0], norm)
            for tensor, writers in self._writers.items()
            if (norm := self._only_reader(tensor)) is not None and self._can_fold(writers, norm)
        ]

    def _only_reader(self, tensor: int) -> str | None:
        # A container that hands its input on to its first module reads it too.
        readers = self._readers[tensor]
        inner = [
            name for name in readers if not any(other.startswith(f"{name}.") for other in readers)
        ]
        return inner[0] if len(inner) == 1 else None

    def _can_fold(self, writers: list[str], norm_name: str) -> bool:
        convolution, norm = self.modules[writers[0]], self.modules[norm_name]
        return (
            isinstance(convolution, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.running_mean is not None
            and not norm.training
            and self._calls[writers[0]] == self._calls[norm_name] == 1
            and not any(self._is_tapped[name] for name in writers)
            and not norm._forward_pre_hooks
        )


@dataclass
class _Fold:
    """One BatchNorm in its convolution."""

    network: nn.Module
    convolution_name: str
    norm_name: str

    def __post_init__(self) -> None:
        self._convolution: Any = self.network.get_submodule(self.convolution_name)
        self._norm = self.network.get_submodule(self.norm_name)
        self._weight: Any = self._convolution.weight
        self._bias: Any = self._convolution.bias

    def apply(self) -> None:
        norm: Any = self._norm
        weight, bias = fuse_conv_bn_weights(
            self._weight,
            self._bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        self._set(weight.requires_grad_(False), bias.requires_grad_(False), _WhatIsLeft(norm))

    def undo(self) -> None:
        self._set(self._weight, self._bias, self._norm)

    def _set(self, weight: Any, bias: Any, norm: nn.Module) -> None:
        self._convolution.weight, self._convolution.bias = weight, bias
        parent, _, name = self.norm_name.rpartition(".")
        setattr(self.network.get_submodule(parent), name, norm)


class _WhatIsLeft(nn.Module):
    """A BatchNorm without its arithmetic: the activation that timm builds into some, and hooks."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        parts = [getattr(norm, name, None) for name in ("drop", "act")]
        self.rest = nn.Sequential(*[part for part in parts if isinstance(part, nn.Module)])
        self._forward_hooks = norm._forward_hooks
        self.eval()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.rest(values)
        return result
