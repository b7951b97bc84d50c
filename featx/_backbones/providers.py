"""Providers: from a name and a choice of weights to a loaded, frozen backbone."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from featx._backbones.catalog import PACKAGED, TIMM_PREFIX, TORCHVISION_PREFIX
from featx._backbones.downloads import how_to_get, obtain_weights
from featx._backbones.frozen import FrozenBackbone, UnbuiltNetwork
from featx._backbones.weights import (
    WEIGHTS_SUFFIXES,
    WeightsFile,
    check_finite,
    load_tensors,
    read_checked,
    read_weights,
    tensors_sha256,
    trained_image_size,
)
from featx._checks import check_whole_number, refuse
from featx._errors import WeightsError
from featx._files import lock_of_process
from featx._images.preprocess import Preprocessing
from featx._public import public

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from featx._backbones.downloads import PublishedWeights
    from featx._backbones.timm_networks import TimmNetwork
    from featx._backbones.torchvision_networks import TorchvisionNetwork

    NamedNetwork: TypeAlias = TimmNetwork | TorchvisionNetwork
    FileVersion: TypeAlias = tuple[Path, int, int, int]

RANDOM_WEIGHTS_SEED = 0

DEFAULT_WEIGHTS = "default"


@public
def load_backbone(
    name: str = "efficientnet_lite0",
    *,
    weights: str | os.PathLike[str] | None = DEFAULT_WEIGHTS,
    image_size: int | None = None,
    download: bool = False,
) -> FrozenBackbone:
    """Load a network, frozen, with the recipe for images that its weights were trained with.

    Parameters
    ----------
    name : str
        A name of `list_backbones`: ``"efficientnet_lite0"``, ``"torchvision/resnet50"`` or
        ``"timm/convnext_tiny"``, the latter two with the tag of their weights behind a dot, or
        without for the default ones of torchvision or timm.
    weights : str, path or None
        - ``"default"``: the published weights of that name.
        - a tag, such as ``"IMAGENET1K_V1"``: as if it stood in the name.
        - a file of one's own, ``.safetensors`` or ``.pth`` (``.pt``, ``.bin``), which must have
          the tensors of the architecture; those of its classifier may be absent or of other
          classes. ``"net.safetensors#sha256=<64 digits>"`` is refused if it is another file. The
          recipe stays that of the name, at the image size that `FineTunedClassifier` trained at
          where it wrote the file.
        - None: random ones, which are the same at every call.
    image_size : int, optional
        Side of the network's input in pixels; by default the one it was trained with. The image
        is resized in the same ratio to the crop as in the network's own recipe.
    download : bool
        Whether published weights that are not on this machine may be downloaded, into the cache
        of the library that publishes them. The environment variable ``FEATX_DOWNLOAD=1`` allows
        it too.

    Returns
    -------
    FrozenBackbone
        The same object for the same arguments: a process holds each network once.

    Raises
    ------
    InputError
        When there is no such network, no such choice of weights, or no such image size.
    WeightsError
        When the weights are not on this machine, are not the ones that were pinned, or do not fit
        the network.

    Examples
    --------
    >>> from featx import load_backbone
    >>> backbone = load_backbone("efficientnet_lite0")
    >>> backbone.preprocessing.image_size, backbone.dimension(*backbone.taps())
    (224, 1280)
    """
    if not isinstance(name, str):
        raise refuse("backbone", name, "the name of a network, or FrozenBackbone(module)")
    check_whole_number("image_size", image_size, 1, also=[None])
    size = None if image_size is None else int(image_size)
    name, choice = _choose_weights(name, weights)
    if size is None and isinstance(choice, WeightsFile):
        size = trained_image_size(choice.path)
    with lock_of_process("network"):
        if name in PACKAGED and choice == DEFAULT_WEIGHTS:
            file = obtain_weights(name, PACKAGED[name].published)
            return _load_packaged(name, size, _version_of(file))
        network = _find_network(name, size)
        if choice is None:
            return _load(name, size, None, None)
        if isinstance(choice, WeightsFile):
            return _load(name, size, choice, _version_of(choice.path))
        file = obtain_weights(network.tagged_name, _published(network), download=download)
        return _load(network.tagged_name, size, choice, _version_of(file))


@dataclass(frozen=True)
class BackboneReference:
    """How a backbone can be loaded again, in another process or at another time.

    Attributes
    ----------
    name : str
        The name of the network, its tag included.
    weights : str or None
        ``"default"`` for the published weights of that name, the absolute path of a weights file,
        or None for random ones.
    image_size : int or None
        Side of the input in pixels; None for the network's own.
    sha256 : str
        Digest of the weights: of their file, or of the tensors where they come from none.

    Examples
    --------
    >>> backbone = load_backbone("timm/test_resnet", weights=None)
    >>> backbone.reference.load() is backbone
    True
    """

    name: str
    weights: str | None
    image_size: int | None
    sha256: str

    def load(self) -> FrozenBackbone:
        """Load the backbone; WeightsError when the weights are others than they were."""
        backbone = load_backbone(self.name, weights=self.weights, image_size=self.image_size)
        if backbone.weights_sha256 != self.sha256:
            raise WeightsError(
                f"The weights of {self.name} have sha256 {backbone.weights_sha256}, expected "
                f"{self.sha256}; they are others than when the backbone was stored: bring the "
                "former ones back, or load the backbone anew and fit again"
            )
        return backbone


def _version_of(path: Path) -> FileVersion:
    """Return a file and what changes when its content does, so that a changed one is read again."""
    try:
        status = path.stat()
    except OSError:  # reading it will say what is wrong
        return path, 0, 0, 0
    return path, status.st_mtime_ns, status.st_size, status.st_ino


@functools.lru_cache(maxsize=4)
def _load(
    name: str, image_size: int | None, choice: WeightsFile | str | None, file: FileVersion | None
) -> FrozenBackbone:
    network = _find_network(name, image_size)
    if file is None:
        module = _build_random(network)
        description = f"random, seed {RANDOM_WEIGHTS_SEED}"
        return _freeze(network, module, None, description, tensors_sha256(module.state_dict()))
    if isinstance(choice, WeightsFile):
        return _load_own(network, choice)
    module, sha256 = _build_published(network, file[0])
    description = f"{_published(network).origin} {file[0].name}"
    return _freeze(network, module, DEFAULT_WEIGHTS, description, sha256)


@functools.lru_cache(maxsize=4)
def _load_packaged(name: str, image_size: int | None, file: FileVersion) -> FrozenBackbone:
    """Check the file; the network is built when something has to be computed with it."""
    packaged = PACKAGED[name]
    published, side = packaged.published, image_size or packaged.image_size
    path = file[0]
    read_checked(path, published.sha256, advice=_advice(published, name))

    def build() -> nn.Module:
        return _build_published(_find_network(name, image_size), path)[0]

    return FrozenBackbone(
        UnbuiltNetwork(build, packaged.dimension),
        Preprocessing(
            image_size=side,
            resize=math.floor(side / packaged.crop_ratio),
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        name=name,
        weights=f"{published.origin} {path.name}",
        weights_sha256=published.sha256,
        reference=BackboneReference(name, DEFAULT_WEIGHTS, image_size, published.sha256),
    )


def _load_own(network: NamedNetwork, choice: WeightsFile) -> FrozenBackbone:
    read = read_weights(choice.path, choice.sha256, advice="give the file that was meant")
    # What the file lacks of the classifier is random, but the same every time.
    module = _build_random(network)
    classifier = network.classifier(module)
    ignored = load_tensors(module, read.tensors, classifier, f"{choice.path} in {network.name}")
    check_finite(module, classifier, str(choice.path))
    note = f", without {', '.join(ignored)} of the classifier" if ignored else ""
    return _freeze(network, module, str(choice.path), f"{choice.path.name}{note}", read.sha256)


def _build_published(network: NamedNetwork, file: Path) -> tuple[nn.Module, str]:
    published = _published(network)
    advice = _advice(published, network.name)
    read = read_weights(file, published.expected_sha256(file), advice=advice)
    with torch.random.fork_rng(devices=[]):
        module = network.build_with(read.tensors, str(file))
    check_finite(module, network.classifier(module), str(file))
    return module, read.sha256


def _advice(published: PublishedWeights, name: str) -> str:
    return f"delete it, then type '{how_to_get(published, name)}'"


def _published(network: NamedNetwork) -> PublishedWeights:
    if network.published is None:
        raise WeightsError(
            f"Nobody publishes weights of {network.name}; give a file of your own, or weights=None "
            "for random ones"
        )
    return network.published


def _build_random(network: NamedNetwork) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return network.build()


def _freeze(
    network: NamedNetwork,
    module: nn.Module,
    weights: str | None,
    description: str,
    sha256: str,
) -> FrozenBackbone:
    return FrozenBackbone(
        module,
        network.preprocessing(module),
        name=network.name,
        penultimate=network.penultimate(module),
        weights=description,
        weights_sha256=sha256,
        reference=BackboneReference(network.name, weights, network.image_size, sha256),
    )


def _choose_weights(
    name: str, weights: str | os.PathLike[str] | None
) -> tuple[str, WeightsFile | str | None]:
    """Return the name, with the tag if that was given as weights, and the choice of weights."""
    if weights is None or weights == DEFAULT_WEIGHTS:
        return name, weights
    expected = (
        f"'default' or None, a tag of the published weights of {name}, or a file ending in "
        f"{', '.join(WEIGHTS_SUFFIXES)}"
    )
    if not isinstance(weights, str | os.PathLike):
        raise refuse("weights", weights, expected)
    text = os.fspath(weights)
    file = WeightsFile.parse(text)
    if file is not None:
        return name, file
    is_untagged = name.startswith((TIMM_PREFIX, TORCHVISION_PREFIX)) and "." not in name
    tags = [tag.removeprefix(f"{name}.") for tag in _tags(name)] if is_untagged else []
    if text not in tags:
        raise refuse("weights", text, expected, tags or [DEFAULT_WEIGHTS])
    return f"{name}.{text}", DEFAULT_WEIGHTS


def _find_network(name: str, image_size: int | None) -> NamedNetwork:
    network: NamedNetwork | None = None
    if name in PACKAGED:
        from featx._backbones.timm_networks import PackagedNetwork

        packaged = PACKAGED[name]
        network = PackagedNetwork(name, packaged.architecture, image_size, packaged)
    elif name.startswith(TIMM_PREFIX):
        from featx._backbones.timm_networks import find_timm_network

        network = find_timm_network(name, image_size)
    elif name.startswith(TORCHVISION_PREFIX):
        from featx._backbones.torchvision_networks import find_torchvision_network

        network = find_torchvision_network(name, image_size)
    if network is not None:
        return network
    from featx._backbones.timm_networks import timm_architectures
    from featx._backbones.torchvision_networks import torchvision_architectures

    architectures = torchvision_architectures() + timm_architectures()
    tags = _tags(name.partition(".")[0])
    expected = (
        f"one of {', '.join(PACKAGED)}, '{TORCHVISION_PREFIX}<architecture>' or "
        f"'{TIMM_PREFIX}<architecture>', as 'featx backbones PATTERN' lists them"
    )
    raise refuse("backbone", name, expected, tags or [*PACKAGED, *architectures])


def _tags(name: str) -> list[str]:
    from featx._backbones.timm_networks import timm_names
    from featx._backbones.torchvision_networks import torchvision_names

    tagged_names = torchvision_names() + timm_names()
    return [tagged for tagged in tagged_names if tagged.startswith(f"{name}.")]
