"""The source classifier: what a network told apart before it became a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from featx._backbones.network import find_classifier
from featx._backbones.taps import PENULTIMATE, Tap
from featx._errors import InputError

if TYPE_CHECKING:
    from featx._backbones.frozen import FrozenBackbone

_PENULTIMATE = Tap(PENULTIMATE, "avg")

# Two ways through the same float32 layers.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class SourceClassifier:
    """The linear layer from a network's penultimate vector to the logits of its own classes.

    Attributes
    ----------
    weight : ndarray of float32, shape (n_source_classes, dimension)
    bias : ndarray of float32, shape (n_source_classes,)
    """

    weight: np.ndarray
    bias: np.ndarray

    def probabilities(self, penultimate: np.ndarray) -> np.ndarray:
        """Return the probabilities of the source classes.

        Parameters
        ----------
        penultimate : ndarray of float32, shape (n_images, dimension)
            Embeddings with ``layers="penultimate"`` and ``pooling="avg"``.

        Returns
        -------
        ndarray of float32, shape (n_images, n_source_classes)
        """
        found: np.ndarray = softmax(penultimate @ self.weight.T + self.bias, axis=1)
        return found


def find_source_classifier(backbone: FrozenBackbone) -> SourceClassifier | None:
    """Return the classifier that a backbone was trained with, if it still has it.

    Parameters
    ----------
    backbone : FrozenBackbone
        The network.

    Returns
    -------
    SourceClassifier or None
        None when the network has no linear layer of several classes whose output, on the
        penultimate vector, is what the network itself puts out; and when that layer is random, as
        its weights are, or as the weights file had none for it.

    Examples
    --------
    >>> from featx import load_backbone
    >>> find_source_classifier(load_backbone("efficientnet_lite0")).weight.shape
    (1000, 1280)
    >>> find_source_classifier(load_backbone("efficientnet_lite0", weights=None)) is None
    True
    """
    if _has_random_classifier(backbone):
        return None
    layer = _last_layer(backbone.module)
    if not isinstance(layer, nn.Linear) or layer.out_features < 2:
        return None
    if not _is_output_of_network(layer, backbone):
        return None
    weight = layer.weight.detach().numpy()
    bias = (
        np.zeros(len(weight), weight.dtype) if layer.bias is None else layer.bias.detach().numpy()
    )
    return SourceClassifier(weight, bias)


def _has_random_classifier(backbone: FrozenBackbone) -> bool:
    reference = backbone.reference
    if reference is None:
        return False
    # A weights file whose classifier did not fit says so in the description of the weights.
    return reference.weights is None or backbone.weights.endswith(" of the classifier")


def _last_layer(module: Any) -> Any:
    # Networks of timm are asked; in others it is looked for.
    if hasattr(module, "get_classifier"):
        return module.get_classifier()
    name = find_classifier(module)
    return None if name is None else module.get_submodule(name)


def _is_output_of_network(layer: nn.Linear, backbone: FrozenBackbone) -> bool:
    """Whether the layer makes the network's output out of the penultimate vector, on noise."""
    try:
        network = backbone.network([_PENULTIMATE])
    except InputError:  # it has no such vector
        return False
    side = backbone.preprocessing.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    pixels = torch.from_numpy(noise)
    with torch.inference_mode():
        (penultimate,) = network(pixels)
        output = network.module(network.normalize(pixels))
        if not isinstance(output, torch.Tensor) or penultimate.shape[1] != layer.in_features:
            return False
        logits = layer(penultimate)
    return output.shape == logits.shape and torch.allclose(
        output, logits, rtol=_TOLERANCE, atol=_TOLERANCE
    )
