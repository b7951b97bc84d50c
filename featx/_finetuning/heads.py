"""Heads: the classifier of a network, found and replaced by a new one."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import nn

from featx._backbones.network import find_classifier, has_features_and_head
from featx._backbones.taps import PENULTIMATE, Tap
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._backbones.frozen import FrozenBackbone


def build_head(
    n_features: int,
    n_classes: int,
    hidden_layer_sizes: Sequence[int] = (),
    dropout: float = 0.0,
    *,
    on_maps: bool = False,
) -> nn.Module:
    """Return a new classifier with random weights.

    Without hidden layers and dropout it is a single linear layer. Hidden layers are followed by
    ReLU; dropout stands before every linear layer, as in the heads of VGG16 (Simonyan and
    Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015).

    Parameters
    ----------
    n_features, n_classes : int
        Length of the vectors that it takes, and of the logits.
    hidden_layer_sizes : sequence of int
        Units of each hidden layer.
    dropout : float
        Share of the inputs that are dropped in training.
    on_maps : bool
        Whether it takes maps (n, n_features, rows, columns): its layers are 1 x 1 convolutions.

    Returns
    -------
    torch.nn.Module

    Examples
    --------
    >>> build_head(1280, 10)
    Linear(in_features=1280, out_features=10, bias=True)
    >>> len(build_head(1280, 10, (256,), dropout=0.5))
    5
    """
    sizes = [n_features, *hidden_layer_sizes, n_classes]
    layers: list[nn.Module] = []
    for number, (taken, given) in enumerate(pairwise(sizes)):
        if number:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Conv2d(taken, given, 1) if on_maps else nn.Linear(taken, given))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def locate_classifier(backbone: FrozenBackbone) -> str:
    """Return the name of the module that classifies.

    It is the one that the backbone was given as ``penultimate``; what networks of timm call their
    classifier; in others the last linear layer, or the 1 x 1 convolution that classifies.

    Raises
    ------
    InputError
        If it cannot be told.
    """
    given = backbone.describe(Tap(PENULTIMATE, "avg")).get("penultimate")
    name = given or _own_classifier(backbone.module) or find_classifier(backbone.module)
    if name is None:
        raise InputError(
            f"The layer of {backbone.name} that classifies cannot be told, so that it cannot be "
            "replaced; name it: FrozenBackbone(module, penultimate=...)"
        )
    return str(name)


def _own_classifier(module: Any) -> str | None:
    if not has_features_and_head(module) or not hasattr(module, "get_classifier"):
        return None
    own = module.get_classifier()
    return next((name for name, part in module.named_modules() if name and part is own), None)


def replace_classifier(
    module: Any,
    classifier: str,
    n_classes: int,
    hidden_layer_sizes: Sequence[int] = (),
    dropout: float = 0.0,
    *,
    n_features: int | None = None,
) -> None:
    """Put a new head in the place of a network's classifier.

    Parameters
    ----------
    module : torch.nn.Module
        The network; changed.
    classifier : str
        The name of its classifier.
    n_classes : int
        Of the new one.
    hidden_layer_sizes, dropout
        As `build_head` takes them.
    n_features : int, optional
        Length of the vector that the classifier takes, where it does not say so itself.

    Raises
    ------
    InputError
        If what the classifier takes is no vector and no map.
    """
    old = module.get_submodule(classifier)
    if isinstance(old, nn.Conv2d):
        head = build_head(old.in_channels, n_classes, hidden_layer_sizes, dropout, on_maps=True)
    elif isinstance(old, nn.Linear):
        head = build_head(old.in_features, n_classes, hidden_layer_sizes, dropout)
    elif n_features is not None:
        head = build_head(n_features, n_classes, hidden_layer_sizes, dropout)
    else:
        raise InputError(
            f"Got the classifier {classifier!r}, a {type(old).__name__}, which takes no vector; "
            "expected a linear layer, a 1 x 1 convolution or a module that takes a vector"
        )
    module.set_submodule(classifier, head, strict=True)
    if isinstance(getattr(module, "num_classes", None), int):
        module.num_classes = n_classes
