"""The network that is trained: from uint8 pixels to logits, some of its layers frozen."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._backbones.embedding_network import (
    Normalization,
    find_classifier,
    first_tensor,
    has_features_and_head,
)
from featx._backbones.taps import PENULTIMATE, Tap
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featx._backbones.frozen import FrozenBackbone
    from featx._images.preprocess import Preprocessing


BATCH_NORMS = ("auto", "keep", "update")


class FineTuningNetwork(nn.Module):
    """A network with a new classifier, of which some modules are trained and others frozen.

    A frozen module stays in eval mode, so that the statistics of its BatchNorm do not move and its
    dropout lets everything through; its parameters have no gradients.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        classifier: str,
        trained: Iterable[str],
        batch_norm: str = "auto",
    ) -> None:
        super().__init__()
        self.normalization = Normalization(preprocessing)
        self.module = module
        self.classifier = classifier
        self.trained = frozenset(trained)
        parts = dict(module.named_modules())
        self.learning = frozenset(
            name
            for name, part in parts.items()
            if name in self.trained and not _keeps_statistics(part, batch_norm)
        )
        for name, part in parts.items():
            for parameter in part.parameters(recurse=False):
                trains = name in self.trained and parameter.is_floating_point()
                parameter.requires_grad_(trains)
        # Measured on a CPU: 1.1 to 1.6 times as many images a second.
        self.to(memory_format=torch.channels_last)
        self.eval()

    @property
    def head(self) -> nn.Module:
        """The classifier."""
        return self.module.get_submodule(self.classifier)

    @property
    def trains_head_only(self) -> bool:
        """Whether nothing beside the classifier is trained."""
        return all(self.is_of_head(f"module.{name}") for name in self.trained)

    def is_of_head(self, name: str) -> bool:
        """Whether a module or parameter, by its name in this network, is of the classifier."""
        head = f"module.{self.classifier}"
        return name == head or name.startswith(f"{head}.")

    def train(self, mode: bool = True) -> FineTuningNetwork:
        """Set the modules that are trained to training mode; the frozen ones stay in eval mode."""
        super().train(False)
        if mode:
            for name, part in self.module.named_modules():
                part.training = name in self.learning
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, side, side) to logits (n, n_classes)."""
        values = self.normalization(pixels).contiguous(memory_format=torch.channels_last)
        logits = first_tensor(self.module(values))
        if logits is None:
            raise InputError("Got a network that puts out no tensor but expected logits")
        return logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the classifier takes, from a forward of the whole network."""
        taken: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(
            lambda _module, inputs: taken.append(inputs[0])
        )
        try:
            self(pixels)
        finally:
            handle.remove()
        return taken[-1]

    @torch.inference_mode()
    def ends_with_its_head(self, image_size: int) -> bool:
        """Whether the classifier takes a vector and what it puts out are the logits.

        Then it can be trained on stored vectors. In SqueezeNet, for one, it works on a map that is
        pooled only afterwards.
        """
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        features = self.eval().features(image)
        return features.ndim == 2 and torch.equal(self.head(features), self(image))

    @torch.inference_mode()
    def check_logits(self, image_size: int, n_classes: int, name: str) -> None:
        """Raise InputError unless the network puts out one number per class."""
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        shape = tuple(self.eval()(image).shape)
        if shape != (1, n_classes):
            raise InputError(
                f"{name} with its layer {self.classifier!r} replaced puts out the shape {shape} "
                f"for one image but expected (1, {n_classes}); name the module that classifies: "
                "FrozenBackbone(module, penultimate=...)"
            )


def _keeps_statistics(part: nn.Module, batch_norm: str) -> bool:
    """Whether a module is a BatchNorm that goes on normalising with the statistics it has."""
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_mean is None:
        return False
    has_measured = bool(part.running_mean.any())
    return batch_norm == "keep" or (batch_norm == "auto" and has_measured)


def changing_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network that training changes: parameters and buffers, by name.

    Those of frozen modules are not among them. The network is left in training mode.
    """
    module.train()
    changing: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules():
        at = f"{prefix}." if prefix else ""
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                changing[at + name] = parameter.detach()
        if part.training:
            buffers = part.named_buffers(recurse=False)
            changing |= {at + name: buffer for name, buffer in buffers}
    return changing


def copy_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU, contiguous."""
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def restore_tensors(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give the changing tensors of a network the numbers that `copy_tensors` kept of them."""
    with torch.no_grad():
        for name, tensor in changing_tensors(module).items():
            tensor.copy_(tensors[name])


def build_head(
    n_features: int,
    n_classes: int,
    hidden_layer_sizes: Sequence[int] = (),
    dropout: float = 0.0,
    *,
    on_maps: bool = False,
) -> nn.Module:
    """Return a new classifier with random weights.

    Without hidden layers and dropout it is a single linear layer. Hidden layers are followed by
    ReLU; dropout stands before every linear layer, as in the heads of VGG16 (Simonyan and
    Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015).

    Examples
    --------
    >>> build_head(1280, 10)
    Linear(in_features=1280, out_features=10, bias=True)
    >>> len(build_head(1280, 10, (256,), dropout=0.5))
    5
    """
    sizes = [n_features, *hidden_layer_sizes, n_classes]
    layers: list[nn.Module] = []
    for number, (taken, given) in enumerate(pairwise(sizes)):
        if number:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Conv2d(taken, given, 1) if on_maps else nn.Linear(taken, given))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def locate_classifier(backbone: FrozenBackbone) -> str:
    """Return the name of the module that classifies.

    It is the one that the backbone was given as ``penultimate``; what networks of timm call their
    classifier; in others the last linear layer, or the 1 x 1 convolution that classifies.

    Raises
    ------
    InputError
        If it cannot be told.
    """
    given = backbone.describe(Tap(PENULTIMATE, "avg")).get("penultimate")
    name = given or _own_classifier(backbone.module) or find_classifier(backbone.module)
    if name is None:
        raise InputError(
            f"The layer of {backbone.name} that classifies cannot be told, so that it cannot be "
            "replaced; name it: FrozenBackbone(module, penultimate=...)"
        )
    return str(name)


def _own_classifier(module: Any) -> str | None:
    if not has_features_and_head(module) or not hasattr(module, "get_classifier"):
        return None
    own = module.get_classifier()
    return next((name for name, part in module.named_modules() if name and part is own), None)


def replace_classifier(
    module: Any,
    classifier: str,
    n_classes: int,
    hidden_layer_sizes: Sequence[int] = (),
    dropout: float = 0.0,
    *,
    n_features: int | None = None,
) -> None:
    """Put a new head in the place of a network's classifier.

    Raises
    ------
    InputError
        If what the classifier takes is no vector and no map.
    """
    old = module.get_submodule(classifier)
    if isinstance(old, nn.Conv2d):
        head = build_head(old.in_channels, n_classes, hidden_layer_sizes, dropout, on_maps=True)
    elif isinstance(old, nn.Linear):
        head = build_head(old.in_features, n_classes, hidden_layer_sizes, dropout)
    elif n_features is not None:
        head = build_head(n_features, n_classes, hidden_layer_sizes, dropout)
    else:
        raise InputError(
            f"Got the classifier {classifier!r}, a {type(old).__name__}, which takes no vector; "
            "expected a linear layer, a 1 x 1 convolution or a module that takes a vector"
        )
    module.set_submodule(classifier, head, strict=True)
    if isinstance(getattr(module, "num_classes", None), int):
        module.num_classes = n_classes
