"""A frozen backbone: a network in eval mode, its recipe for images, and the proof of both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from featx.images.preprocess import Preprocessing

# Enters every fingerprint. It rises when featx itself comes to compute other vectors from the same
# image, weights and settings, so that no cache can mix the two.
RECIPE_VERSION = 1


class EmbeddingNetwork(nn.Module):
    """From a batch of uint8 pixels to a batch of embeddings.

    Normalising belongs to the network rather than to the images: a batch of uint8 is a quarter of
    the bytes to keep, to queue and to move to a device.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, features: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, side, side) in RGB to float32 (n, dimension)."""
        # The order of the operations is that of the reference recipes: scale, centre, divide.
        scaled = pixels.to(self.pixel_mean.dtype) / 255
        return cast("torch.Tensor", self.features((scaled - self.pixel_mean) / self.pixel_std))


@dataclass(frozen=True, eq=False)
class FrozenBackbone:
    """A pretrained network whose weights no longer change, with its own recipe for images.

    Attributes
    ----------
    name : str
        The name it was loaded by.
    network : EmbeddingNetwork
        Maps uint8 (n, 3, side, side) to float32 (n, dimension); in eval mode, on the CPU, without
        gradients.
    preprocessing : Preprocessing
        From decoded pixels to the square that the network takes.
    dimension : int
        Length of an embedding.
    weights : str
        What the weights are, in words.
    weights_sha256 : str
        Digest of the weights' file, or of the tensors where they come from no file.
    """

    name: str
    network: EmbeddingNetwork
    preprocessing: Preprocessing
    dimension: int
    weights: str
    weights_sha256: str

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        """Return all that decides a vector but the machinery, as plain JSON types."""
        return {
            "recipe": RECIPE_VERSION,
            "backbone": self.name,
            "weights_sha256": self.weights_sha256,
            "layers": ["penultimate"],
            "pooling": ["avg"],
            "views": "center",
            "preprocessing": self.preprocessing.describe(),
        }

    def fingerprint(self, *, runtime: str, device_type: str, precision: str = "float32") -> str:
        """Return the 32 hexadecimal digits that name everything that can change a vector.

        Parameters
        ----------
        runtime : str
            What executes the network: ``"torch"`` or ``"onnx"``.
        device_type : str
            ``"cpu"``, ``"cuda"``, …
        precision : str
            The arithmetic of the network.

        Returns
        -------
        str
            Two fingerprints are equal exactly when all of these, the weights, the layer, the
            pooling, the views and the preprocessing are. Versions of packages, which can move a
            vector by a rounding step, stand in the provenance of an export instead.
        """
        recipe = self.describe() | {
            "runtime": runtime,
            "device_type": device_type,
            "precision": precision,
        }
        canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]
