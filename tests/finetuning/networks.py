"""Networks and images that are learnt in a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

SIDE = 16


class TinyCNN(nn.Sequential):
    """Three convolutions, each with its BatchNorm, at three resolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 5),
        )  # fmt: skip


# The parameters of a network that starts from random weights, on the CPU, without a bar.
OWN: dict[str, Any] = {
    "backbone": TinyCNN,
    "image_size": SIDE,
    "unfreeze": "all",
    "learning_rate": 0.01,
    "batch_size": 8,
    "device": "cpu",
    "num_workers": 0,
    "progress": False,
}

# A network of the catalogue.
NAMED: dict[str, Any] = {
    "backbone": "timm/test_efficientnet",
    "weights": None,
    "image_size": 32,
    "batch_size": 4,
    "device": "cpu",
    "num_workers": 0,
    "progress": False,
}


def make_images(count: int, labels: Any = ("blue", "green", "red"), seed: int = 0) -> Any:
    """Return noisy images, each class with a colour of its own, and their labels."""
    random = np.random.default_rng(seed)
    codes = np.arange(count) % len(labels)
    images = random.integers(0, 100, (count, SIDE, SIDE, 3))
    images[np.arange(count), :, :, codes % 3] += 120
    return list(images.astype(np.uint8)), np.asarray(labels)[codes]


def tensors_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return the numbers of a network, by name."""
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
