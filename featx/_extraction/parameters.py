"""Parameters of an embedding: from what a person gives to what is computed with."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from featx._backbones.frozen import FrozenBackbone
from featx._backbones.providers import load_backbone
from featx._backbones.taps import choices_of_layers
from featx._errors import InputError
from featx._images.sources import as_image_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._backbones.taps import Tap


def checked_images(X: Any) -> Sequence[Any]:
    """Return the images of X, of which there must be one.

    Examples
    --------
    >>> checked_images([])
    Traceback (most recent call last):
    featx.InputError: Got 0 images but expected at least 1
    """
    items = as_image_list(X)
    if len(items) == 0:
        raise InputError("Got 0 images but expected at least 1")
    return items


def choose_backbone(backbone: Any, weights: Any, image_size: int | None) -> FrozenBackbone:
    """Return the network of a name, or the one that is given.

    Raises
    ------
    InputError
        If there is no such network, or weights or image size are given beside one that has its own.
    WeightsError
        If its weights are not on this machine.
    """
    if not isinstance(backbone, FrozenBackbone):
        return load_backbone(backbone, weights=weights, image_size=image_size)
    if weights != "default" or image_size is not None:
        raise InputError(
            f"Got weights={weights!r} and image_size={image_size!r} beside {backbone!r}, which "
            "has its own; leave both at their defaults"
        )
    return backbone


def choose_further_taps(
    backbone: FrozenBackbone, also_cache: Any, taps: Sequence[Tap]
) -> tuple[Tap, ...]:
    """Return the taps that are stored beside those that are asked for.

    Parameters
    ----------
    backbone : FrozenBackbone
        The network.
    also_cache : sequence
        As `ImageEmbedder` takes it.
    taps : sequence of Tap
        What is asked for.

    Returns
    -------
    tuple of Tap
        Each once.
    """
    further: dict[Tap, None] = {}
    for layers, pooling in choices_of_layers("also_cache", also_cache):
        further |= dict.fromkeys(backbone.taps(layers, pooling))
    return tuple(tap for tap in further if tap not in taps)


def choose_num_workers(num_workers: Any) -> int:
    """Return how many threads read and decode; None takes as many as torch computes with.

    Examples
    --------
    >>> choose_num_workers(3)
    3
    >>> choose_num_workers(-1)
    Traceback (most recent call last):
    featx.InputError: Got num_workers=-1 but expected None or a whole number of at least 0
    """
    if num_workers is None:
        # joblib lowers this number in its workers, so that they do not crowd each other.
        return torch.get_num_threads()
    if isinstance(num_workers, bool) or not isinstance(num_workers, Integral) or num_workers < 0:
        raise InputError(
            f"Got num_workers={num_workers!r} but expected None or a whole number of at least 0"
        )
    return int(num_workers)
