"""Providers: from a name and a choice of weights to a loaded, frozen backbone."""

from __future__ import annotations

import functools
import math
import threading
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from featx.backbones.catalog import CATALOG, TIMM_PREFIX, BackboneEntry
from featx.backbones.frozen import EmbeddingNetwork, FrozenBackbone
from featx.backbones.weights import read_pinned_weights, tensors_sha256
from featx.errors import InputError, WeightsError, did_you_mean
from featx.images.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

RANDOM_WEIGHTS_SEED = 0


def load_backbone(
    name: str = "efficientnet_lite0",
    *,
    weights: str | None = "default",
    image_size: int | None = None,
) -> FrozenBackbone:
    """Load a network, frozen, with the recipe for images that its weights were trained with.

    Parameters
    ----------
    name : str
        A name of `list_backbones`, or ``"timm/<architecture>"``.
    weights : {"default"} or None
        The pretrained weights, or None for random ones, which are the same at every call.
    image_size : int, optional
        Side of the network's input in pixels; by default the one it was trained with. The image
        is resized in the same ratio to the crop as in the network's own recipe.

    Returns
    -------
    FrozenBackbone
        The same object for the same arguments: a process holds each network once.

    Raises
    ------
    InputError
        When there is no such network, no such choice of weights, or no such image size.
    WeightsError
        When the weights are not on this machine, or are not the ones that were pinned.

    Examples
    --------
    >>> from featx import load_backbone
    >>> backbone = load_backbone("efficientnet_lite0")
    >>> backbone.dimension, backbone.preprocessing.image_size
    (1280, 224)
    """
    if not isinstance(name, str):
        raise InputError(f"Got backbone={name!r} but expected the name of a network")
    if weights not in ("default", None):
        raise InputError(f"Got weights={weights!r} but expected 'default' or None")
    if image_size is not None:
        is_whole = isinstance(image_size, Integral) and not isinstance(image_size, bool)
        if not is_whole or image_size < 1:
            raise InputError(
                f"Got image_size={image_size!r} but expected a whole number of pixels or None"
            )
        image_size = int(image_size)
    with _loading:
        return _load_backbone(name, weights, image_size)


# Random weights are drawn under torch's one seed, and a network is loaded once for all threads.
_loading = threading.Lock()


@functools.lru_cache(maxsize=4)
def _load_backbone(name: str, weights: str | None, image_size: int | None) -> FrozenBackbone:
    if name in CATALOG:
        return _load_catalogued(CATALOG[name], weights, image_size)
    if name.startswith(TIMM_PREFIX):
        return _load_timm(name, weights, image_size)
    raise InputError(_unknown_backbone(name))


def _load_catalogued(
    entry: BackboneEntry, weights: str | None, image_size: int | None
) -> FrozenBackbone:
    if weights is None:
        return _random_backbone(entry.name, entry.architecture, image_size)
    path = entry.weights_path
    if path is None:
        raise WeightsError(
            f"The weights of {entry.name} are not on this machine; install them with: "
            f"{entry.install_command}"
        )
    tensors = read_pinned_weights(path, entry.sha256)
    module = _create_timm(entry.architecture)
    # The packaged files keep the names of another implementation of the same network: its tensors
    # stand in the same order with the same shapes, and the strict load proves both.
    state = dict(zip(module.state_dict(), tensors.values(), strict=True))
    module.load_state_dict(state, strict=True)
    return _freeze(
        entry.name, module, image_size, f"{entry.distribution} {path.name}", entry.sha256
    )


def _load_timm(name: str, weights: str | None, image_size: int | None) -> FrozenBackbone:
    if weights is not None:
        raise WeightsError(
            f"featx has no pretrained weights for {name!r}; expected one of "
            f"{', '.join(CATALOG)}, or weights=None for random weights"
        )
    return _random_backbone(name, name.removeprefix(TIMM_PREFIX), image_size)


def _random_backbone(name: str, architecture: str, image_size: int | None) -> FrozenBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        module = _create_timm(architecture)
    description = f"random, seed {RANDOM_WEIGHTS_SEED}"
    return _freeze(name, module, image_size, description, tensors_sha256(module.state_dict()))


def _create_timm(architecture: str) -> Any:
    import timm

    if not timm.is_model(architecture.partition(".")[0]):
        raise InputError(_unknown_backbone(TIMM_PREFIX + architecture))
    return timm.create_model(architecture, pretrained=False)


def _freeze(
    name: str, module: Any, image_size: int | None, weights: str, weights_sha256: str
) -> FrozenBackbone:
    preprocessing = _timm_preprocessing(module, image_size)
    dimension = int(module.head_hidden_size)
    module.reset_classifier(0)
    features: nn.Module = module
    return FrozenBackbone(
        name=name,
        network=EmbeddingNetwork(features, preprocessing),
        preprocessing=preprocessing,
        dimension=dimension,
        weights=weights,
        weights_sha256=weights_sha256,
    )


def _timm_preprocessing(module: Any, image_size: int | None) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    recipe: dict[str, Any] = resolve_model_data_config(module)  # type: ignore[no-untyped-call]  # timm has no types here
    side = recipe["input_size"][-1] if image_size is None else image_size
    return Preprocessing(
        image_size=side,
        resize=math.floor(side / recipe["crop_pct"]),
        interpolation=recipe["interpolation"],
        mean=tuple(recipe["mean"]),
        std=tuple(recipe["std"]),
    )


def _unknown_backbone(name: str) -> str:
    known = list(CATALOG)
    if name.startswith(TIMM_PREFIX):
        import timm

        known = [TIMM_PREFIX + architecture for architecture in timm.list_models()]
    expected = f"one of {', '.join(CATALOG)} or '{TIMM_PREFIX}<architecture>'"
    return f"Got backbone={name!r} but expected {expected}{did_you_mean(name, known)}"
