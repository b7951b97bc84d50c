"""Networks for tests in which the vectors' values are not the matter."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from sklearn.utils import Bunch
from torch import nn

from featx import FrozenBackbone, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A network of timm's own tests: two orders of magnitude smaller, the same machinery.
TINY: dict[str, Any] = {
    "backbone": "timm/test_efficientnet",
    "weights": None,
    "batch_size": 4,
    "device": "cpu",
}

_SIDE = 16
_MARK = 77  # the blue of every numbered image


class NotingNetwork(nn.Module):
    """Notes in a file which images pass through it, whatever process it runs in.

    It knows the images of `write_numbered_images` by their colour. Padding and the pictures on
    which featx tries a network out have other colours and are not noted.
    """

    def __init__(self, notes: str) -> None:
        super().__init__()
        self.notes = notes
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 3)
        self.classifier = nn.Linear(6, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        colours = (pixels * 255).round().to(torch.int64)
        corner = colours[:, :, 0, 0]
        is_numbered = (colours == corner[:, :, None, None]).all(3).all(2).all(1)
        is_numbered &= corner[:, 2] == _MARK
        numbers = (corner[:, 0] * 256 + corner[:, 1])[is_numbered].tolist()
        # One write to a file that is only appended to: processes never mix their lines.
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, "".join(f"{os.getpid()} {one}\n" for one in numbers).encode())
        finally:
            os.close(descriptor)
        maps = self.second(self.first(pixels).relu())
        result: torch.Tensor = self.classifier(maps.mean((2, 3)))
        return result


class Notes:
    """What a `NotingNetwork` has noted, and the parameters of embedders that use it.

    Examples
    --------
    >>> embedder = ImageEmbedder(**notes.network)  # doctest: +SKIP
    """

    def __init__(self, file: Path, seed: int = 0) -> None:
        self.file = file
        torch.manual_seed(seed)
        recipe = Preprocessing(_SIDE, _SIDE, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
        backbone = FrozenBackbone(NotingNetwork(os.fspath(file)), recipe, name=f"noting{seed}")
        self.network: dict[str, Any] = {
            "backbone": backbone,
            "runtime": "torch",
            "batch_size": 4,
            "device": "cpu",
        }

    def forwards(self) -> Counter[int]:
        """Return how often each image went through the network, in all processes together."""
        return Counter(int(line.split()[1]) for line in self._lines())

    def processes(self) -> set[int]:
        """Return the ids of the processes in which an image went through the network."""
        return {int(line.split()[0]) for line in self._lines()}

    def clear(self) -> None:
        """Forget what was noted."""
        self.file.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []


def numbered_image(number: int) -> np.ndarray:
    """Return an image that a `NotingNetwork` knows again."""
    return np.full((_SIDE, _SIDE, 3), (*divmod(number, 256), _MARK), np.uint8)


def write_numbered_images(folder: Path, numbers: Sequence[int]) -> Bunch:
    """Write images that a `NotingNetwork` knows again; their labels alternate."""
    folder.mkdir(exist_ok=True)
    paths = [os.fspath(folder / f"{number:05}.png") for number in numbers]
    for path, number in zip(paths, numbers, strict=True):
        Image.fromarray(numbered_image(number)).save(path)
    labels = np.array([("green", "red")[number % 2] for number in numbers])
    files = np.array(paths)
    return Bunch(data=files, paths=files, target=labels, target_names=["green", "red"])
