"""The classification networks of torchvision, with every published tag of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torchvision import models

from featx._backbones.catalog import TORCHVISION_PREFIX, BackboneEntry, network_figures
from featx._backbones.downloads import TorchHubWeights
from featx._backbones.embedding_network import find_classifier
from featx._backbones.weights import load_tensors
from featx._errors import InputError
from featx._images.preprocess import Preprocessing, preprocessing_of

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum

    from featx._backbones.weights import StateDict

# What torchvision's own builders pass on when they build for published weights.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}

# Classifiers that serve the training alone; published files have them, features never need them.
_TRAINING_HEADS = ("AuxLogits", "aux1", "aux2")

# Weights without a classifier: of VGG's three linear layers none has values, so that what goes into
# the first of them is the penultimate vector.
_FEATURES_ONLY = "IMAGENET1K_FEATURES"
_FEATURES_ONLY_LAYER = "classifier.0"
_FEATURES_ONLY_DIMENSION = 512 * 7 * 7

# Networks that hold a position for each patch, so that their input has one size.
_FIXED_SIZE = ("vit_", "maxvit_")


@dataclass(frozen=True)
class TorchvisionNetwork:
    """One network of torchvision, with the recipe of one tag of weights.

    ``name`` is its name in the catalogue, with or without a tag, ``tag`` torchvision's description
    of the weights, ``image_size`` the side of the input that was asked for, in pixels.
    """

    name: str
    tag: WeightsEnum
    image_size: int | None

    @property
    def published(self) -> TorchHubWeights:
        """The address that torchvision names for the weights."""
        return TorchHubWeights(self.tag.url)

    @property
    def tagged_name(self) -> str:
        """The name with the tag of the weights, which may be torchvision's default one."""
        return f"{TORCHVISION_PREFIX}{self._architecture}.{self.tag.name}"

    @property
    def _architecture(self) -> str:
        return _split(self.name)[0]

    def build(self) -> nn.Module:
        """Return torchvision's network with random weights."""
        options = dict(_BUILD_OPTIONS.get(self._architecture, {}))
        own_size = self.tag.transforms().crop_size[0]
        if self._architecture.startswith(_FIXED_SIZE) and self.image_size not in (None, own_size):
            raise InputError(
                f"Got image_size={self.image_size} for {self.name}, expected {own_size} or None: "
                "the network has weights for each place of the image"
            )
        if self._architecture.startswith("vit_"):
            options["image_size"] = own_size
        if self._architecture == "googlenet":
            options["aux_logits"] = False
        module: nn.Module = models.get_model(self._architecture, weights=None, **options)
        return module

    def build_with(self, tensors: StateDict, source: str) -> nn.Module:
        """Return torchvision's network with its published weights."""
        module = self.build()
        load_tensors(module, tensors, _TRAINING_HEADS, source)
        return module

    def preprocessing(self, module: nn.Module) -> Preprocessing:
        """Return what the ``transforms()`` of the weights do to an image."""
        recipe = preprocessing_of(self.tag.transforms())
        if self.image_size is None:
            return recipe
        resize = round(self.image_size * recipe.resize / recipe.image_size)
        return replace(recipe, image_size=self.image_size, resize=resize)

    def classifier(self, module: nn.Module) -> tuple[str, ...]:
        """Return the last layer, and the classifiers that serve the training alone."""
        last = "classifier" if self.tag.name == _FEATURES_ONLY else find_classifier(module)
        return tuple(filter(None, (last, *_TRAINING_HEADS)))

    def penultimate(self, module: nn.Module) -> str | None:
        """Return the last layer: what goes into it is the penultimate vector, or map."""
        is_cut = self.tag.name == _FEATURES_ONLY
        return _FEATURES_ONLY_LAYER if is_cut else find_classifier(module)


def find_torchvision_network(name: str, image_size: int | None) -> TorchvisionNetwork | None:
    """Return a network by its name in the catalogue; None where torchvision has none of it.

    Without a tag, it has the recipe and the weights of torchvision's default one.
    """
    architecture, tag = _split(name)
    if architecture not in models.list_models(module=models):
        return None
    tags = models.get_model_weights(architecture)
    if not tag:
        return TorchvisionNetwork(name, tags.DEFAULT, image_size)
    return TorchvisionNetwork(name, tags[tag], image_size) if tag in tags.__members__ else None


def torchvision_names() -> list[str]:
    """Return the full name of every classification network, once for each tag of weights."""
    return [
        f"{TORCHVISION_PREFIX}{architecture}.{tag.name}"
        for architecture in models.list_models(module=models)
        for tag in models.get_model_weights(architecture)
    ]


def torchvision_architectures() -> list[str]:
    """Return the name of every classification network, without a tag."""
    return [TORCHVISION_PREFIX + name for name in models.list_models(module=models)]


def torchvision_entry(name: str) -> BackboneEntry:
    """Return the catalogue's row of a network of torchvision, which is not built.

    The figures are torchvision's own, but for the dimension. The licence is None where torchvision
    names none for the weights.
    """
    architecture, tag_name = _split(name)
    tag = models.get_model_weights(architecture)[tag_name]
    dimension, _, _ = network_figures(TORCHVISION_PREFIX + architecture)
    top1 = tag.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return BackboneEntry(
        name=name,
        source="torchvision",
        dimension=_FEATURES_ONLY_DIMENSION if tag_name == _FEATURES_ONLY else dimension,
        image_size=tag.transforms().crop_size[0],
        parameters=tag.meta["num_params"],
        gflops=tag.meta["_ops"],
        top1=None if top1 is None or math.isnan(top1) else top1,
        licence=tag.meta.get("license"),
        published=TorchHubWeights(tag.url),
    )


def _split(name: str) -> tuple[str, str]:
    architecture, _, tag = name.removeprefix(TORCHVISION_PREFIX).partition(".")
    return architecture, tag
