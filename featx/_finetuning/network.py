"""The network that is trained: from uint8 pixels to logits, some of its layers frozen."""

from __future__ import annotations

import copy
from dataclasses import replace
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
from featx._backbones.frozen import IMAGENET_PREPROCESSING, FrozenBackbone
from featx._backbones.probe import probe_network
from featx._backbones.providers import load_backbone
from featx._backbones.taps import PENULTIMATE, Tap
from featx._checks import brief
from featx._errors import InputError
from featx._finetuning.samples import INITIALIZATION, derive_seed, torch_seeded
from featx._finetuning.unfreezing import modules_to_train

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        self._learning: set[str] = set()
        for name, part in module.named_modules():
            if name in self.trained and not _keeps_statistics(part, batch_norm):
                self._learning.add(name)
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(name in self.trained and parameter.is_floating_point())
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
                part.training = name in self._learning
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


def _keeps_statistics(part: nn.Module, batch_norm: str) -> bool:
    """Whether a module is a BatchNorm that goes on normalising with the statistics it has."""
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_mean is None:
        return False
    return batch_norm == "keep" or (batch_norm == "auto" and bool(part.running_mean.any()))


def changing_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network that training changes: parameters and buffers, by name.

    Those of frozen modules are not among them. The network is left in training mode.
    """
    module.train()
    changing = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    for prefix, part in module.named_modules():
        if part.training:
            changing |= dict(part.named_buffers(prefix, recurse=False))
    return changing


def copy_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the changing tensors of a network, on the CPU."""
    changing = changing_tensors(module)
    return {name: tensor.to("cpu", copy=True) for name, tensor in changing.items()}


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


def assemble_network(
    backbone: FrozenBackbone,
    unfreeze: Any,
    n_classes: int,
    hidden_layer_sizes: Sequence[int],
    dropout: float,
    seed: int,
    batch_norm: str = "auto",
) -> FineTuningNetwork:
    """Return a copy of a backbone with a new classifier, some of its modules to be trained.

    Raises
    ------
    InputError
        If there are no such layers, or the classifier cannot be told or replaced.
    """
    size = backbone.preprocessing.image_size
    classifier = locate_classifier(backbone)
    module: Any = copy.deepcopy(backbone.module)
    probe = probe_network(module, size, classifier, backbone.name)
    old, taken = module.get_submodule(classifier), probe.penultimate
    if isinstance(old, nn.Conv2d | nn.Linear):
        n_features = old.in_channels if isinstance(old, nn.Conv2d) else old.in_features
    elif taken is not None and len(taken) == 2:
        n_features = taken[1]
    else:
        raise InputError(
            f"Got the classifier {classifier!r}, a {type(old).__name__}, which takes no vector; "
            "expected a linear layer, a 1 x 1 convolution or a module that takes a vector"
        )
    with torch_seeded(derive_seed(seed, INITIALIZATION)):
        on_maps = isinstance(old, nn.Conv2d)
        head = build_head(n_features, n_classes, hidden_layer_sizes, dropout, on_maps=on_maps)
    module.set_submodule(classifier, head, strict=True)
    if isinstance(getattr(module, "num_classes", None), int):
        module.num_classes = n_classes
    trained = modules_to_train(module, unfreeze, classifier, probe.outputs, backbone.name)
    network = FineTuningNetwork(module, backbone.preprocessing, classifier, trained, batch_norm)
    with torch.inference_mode():
        shape = tuple(network(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape)
    if shape != (1, n_classes):
        raise InputError(
            f"{backbone.name} with its layer {classifier!r} replaced puts out the shape {shape} "
            f"for one image but expected (1, {n_classes}); name the module that classifies: "
            "FrozenBackbone(module, penultimate=...)"
        )
    return network


def open_backbone(
    backbone: Any,
    weights: Any,
    image_size: int | None,
    preprocessing: Preprocessing | None,
    seed: int,
) -> FrozenBackbone:
    """Return the network that training begins with, and its recipe for images.

    Of a class or function, which is called without arguments, random weights are drawn with the
    seed.

    Raises
    ------
    InputError
        If the arguments do not go together, or there is no such network.
    """
    is_name, is_frozen = isinstance(backbone, str), isinstance(backbone, FrozenBackbone)
    misplaced = {
        "weights": weights != "default" and not is_name,
        "preprocessing": preprocessing is not None and (is_name or is_frozen),
        "image_size": image_size is not None and (is_frozen or preprocessing is not None),
    }
    for name, is_misplaced in misplaced.items():
        if is_misplaced:
            by_recipe = name == "image_size" and not is_frozen
            owner = "preprocessing" if by_recipe else f"backbone={brief(backbone)}"
            raise InputError(f"Got {name} beside {owner}, which has its own; leave it out")
    if isinstance(backbone, str):
        return load_backbone(backbone, weights=weights, image_size=image_size)
    if isinstance(backbone, FrozenBackbone):
        return backbone
    if image_size is not None:  # the image as it is, without a margin to crop
        preprocessing = replace(IMAGENET_PREPROCESSING, image_size=image_size, resize=image_size)
    if not isinstance(backbone, nn.Module):
        backbone = _build(backbone, seed)
    return FrozenBackbone(backbone, preprocessing)


def is_drawn(backbone: Any) -> bool:
    """Whether a choice of backbone is a class or function, whose weights are drawn at each fit."""
    return callable(backbone) and not isinstance(backbone, nn.Module)


def _build(backbone: Any, seed: int) -> nn.Module:
    expected = (
        "expected the name of a network, a FrozenBackbone, a torch.nn.Module, or a class or "
        "function that returns one when it is called without arguments"
    )
    with torch_seeded(derive_seed(seed, INITIALIZATION, 1)):
        try:
            module = backbone()
        except TypeError as error:
            raise InputError(f"Got backbone={backbone!r} ({error}) but {expected}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"Got a {type(module).__name__} from {backbone!r} but {expected}")
    return module
