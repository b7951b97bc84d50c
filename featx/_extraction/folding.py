"""Folding: a BatchNorm in eval mode becomes part of the convolution before it.

Both are linear, so their composition is one convolution (Jacob et al., "Quantization and training
of neural networks for efficient integer-arithmetic-only inference", CVPR 2018, section 3.2). That
saves a pass over every activation. ONNX Runtime does the same to its graphs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
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


def fold_batch_norms(network: EmbeddingNetwork, example: torch.Tensor) -> EmbeddingNetwork:
    """Return a copy with each BatchNorm in the convolution before it, where that changes nothing.

    The pairs are found by watching one forward, so that it does not matter how a network is
    written. What is between the two must be seen by nobody else. Where the outputs are then not
    the same up to rounding, the copy is as the network was.

    Parameters
    ----------
    network : EmbeddingNetwork
        Left as it is.
    example : Tensor
        uint8 (n, 3, side, side).

    Examples
    --------
    >>> from featx import load_backbone
    >>> backbone = load_backbone()
    >>> network = backbone.network(backbone.taps())
    >>> folded = fold_batch_norms(network, torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    >>> any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    False
    """
    with torch.inference_mode(False), torch.no_grad():
        folded = copy.deepcopy(network)
        pairs = _watch(folded, example).pairs()
        before = folded(example)
        for convolution_name, norm_name in pairs:
            _fold(folded, convolution_name, norm_name)
        return folded if _agree(before, folded(example)) else copy.deepcopy(network)


def _fold(network: nn.Module, convolution_name: str, norm_name: str) -> None:
    convolution: Any = network.get_submodule(convolution_name)
    norm: Any = network.get_submodule(norm_name)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    network.set_submodule(norm_name, _WhatIsLeft(norm))


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
