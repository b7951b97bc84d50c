"""The network of a backbone: from uint8 pixels to the vectors of some taps, in one forward."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._backbones.modules import share_tensors
from featx._backbones.pooling import Layout, pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._images.preprocess import Preprocessing


@dataclass(frozen=True)
class TapPlan:
    """Where a tap is read and how its numbers lie there.

    Attributes
    ----------
    source : {"output", "input", "features", "head"}
        The output of a module; the first input of a module; what the network's own
        ``forward_features`` returns; what its ``forward_head(pre_logits=True)`` returns.
    module : str
        Name of the module, for the first two.
    pooling : str
        How it is pooled.
    layout : Layout
        How the numbers lie.
    """

    source: str
    module: str
    pooling: str
    layout: Layout


class Normalization(nn.Module):
    """What a network's recipe does to pixels after the crop, on the network's device.

    It belongs to the network rather than to the images: a batch of uint8 is a quarter of the bytes
    to keep, to queue and to move to a device.

    Examples
    --------
    >>> from featx import Preprocessing
    >>> recipe = Preprocessing(2, 2, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> Normalization(recipe)(white).unique()
    tensor([1.])
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        self._scales_to_one = preprocessing.pixel_scale == 1
        self._swaps_channels = preprocessing.channel_order == "bgr"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, side, side) in RGB to what the network itself takes, in float32."""
        values = pixels.to(self.pixel_mean.dtype)
        if self._swaps_channels:
            values = values.flip(1)
        # The order of the operations is that of the reference recipes: scale, centre, divide.
        if self._scales_to_one:
            values = values / 255
        return (values - self.pixel_mean) / self.pixel_std


class EmbeddingNetwork(nn.Module):
    """From a batch of uint8 pixels to one batch of vectors per tap.

    It stays in eval mode, whatever is asked.
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, plans: Sequence[TapPlan]
    ) -> None:
        super().__init__()
        self.module = share_tensors(module)
        self.normalization = Normalization(preprocessing)
        self.plans = tuple(plans)
        self._arithmetic = torch.float32
        self._captured = _Captured()
        self._by_source: dict[str, list[tuple[int, TapPlan]]] = {}
        modules = dict(self.module.named_modules())
        for position, plan in enumerate(plans):
            if plan.source == "output":
                hook = _OutputHook(self._captured, position, plan)
                modules[plan.module].register_forward_hook(hook)
            elif plan.source == "input":
                before = _InputHook(self._captured, position, plan)
                modules[plan.module].register_forward_pre_hook(before)
            else:
                self._by_source.setdefault(plan.source, []).append((position, plan))
        self.eval()

    def train(self, mode: bool = True) -> EmbeddingNetwork:
        """Stay in eval mode: the network is frozen."""
        super().train(False)
        return self

    def compute_in(self, arithmetic: torch.dtype) -> None:
        """Let the module compute in another arithmetic; pixels and vectors stay in float32.

        BatchNorms keep their float32 statistics, which every device takes beside bfloat16.
        """
        self._arithmetic = arithmetic
        self.module.to(arithmetic)
        for part in self.module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.float()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map uint8 (n, 3, side, side) in RGB to one float32 (n, dimension) per tap."""
        values = self.normalization(pixels).to(self._arithmetic)
        module: Any = self.module
        if has_features_and_head(module):
            features = module.forward_features(values)
            self._keep("features", features)
            if "head" in self._by_source:
                self._keep("head", module.forward_head(features, pre_logits=True))
            if len(self._captured.vectors) < len(self.plans):  # one is in the classifier itself
                module.forward_head(features)
        else:
            module(values)
        return tuple(self._captured.vectors.pop(position) for position in range(len(self.plans)))

    def _keep(self, source: str, output: torch.Tensor) -> None:
        # Before anything else runs: what follows may change the map in place.
        for position, plan in self._by_source.get(source, ()):
            self._captured.vectors[position] = pool(output.float(), plan.pooling, plan.layout)


_FUSED_WITH_WHAT_FOLLOWS = (nn.Conv1d, nn.Conv2d)


class _Captured(threading.local):
    """The vectors of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.vectors: dict[int, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Captured:
        return type(self)()


@dataclass
class _Hook:
    # An object rather than a closure, so that a deep copy of the network is wired to its own.
    captured: _Captured
    position: int
    plan: TapPlan

    def keep(self, output: torch.Tensor) -> None:
        # Pooled at once: later modules may work in place on the map.
        self.captured.vectors[self.position] = pool(
            output.float(), self.plan.pooling, self.plan.layout
        )


class _OutputHook(_Hook):
    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() and isinstance(module, _FUSED_WITH_WHAT_FOLLOWS):
            # An optimiser of graphs folds the BatchNorm or the activation that follows into such a
            # layer, unless somebody else reads its output: then this tap would move the last bits
            # of the others, which must not depend on the company. So it reads a twin of the layer,
            # told from the first by the order of the images, which no optimiser may merge with it.
            output = module.forward(inputs[0].flip(0)).flip(0)
        tensor = first_tensor(output)
        if tensor is not None:
            self.keep(tensor)


class _InputHook(_Hook):
    def __call__(self, _module: nn.Module, inputs: Any) -> None:
        self.keep(inputs[0])


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return a module's output, or the first of several; None where that is no tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def has_features_and_head(module: nn.Module) -> bool:
    """Whether a network says itself what comes before its classifier, as those of timm do."""
    head = getattr(module, "forward_head", None)
    if head is None or not hasattr(module, "forward_features"):
        return False
    return "pre_logits" in inspect.signature(head).parameters


def find_classifier(module: nn.Module) -> str | None:
    """Return the name of the module whose input is the penultimate vector; None if not found.

    It is the last linear layer in the order of definition. Where there is none: the identity that
    somebody put in its place, if the network ends with it, or the last convolution if that is a
    classifier (1 x 1 with a bias, as in SqueezeNet).
    """
    parts: list[tuple[str, nn.Module]] = [
        (name, part) for name, part in module.named_modules() if name
    ]
    linear = [name for name, part in parts if isinstance(part, nn.Linear)]
    if linear:
        return linear[-1]
    if parts and isinstance(parts[-1][1], nn.Identity):
        return parts[-1][0]
    convolutions = [(name, part) for name, part in parts if isinstance(part, nn.Conv2d)]
    if convolutions:
        name, last = convolutions[-1]
        if last.kernel_size == (1, 1) and last.bias is not None:
            return name
    return None
