"""Assembly: from a choice of backbone to the network that is trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._backbones.frozen import FrozenBackbone
from featx._backbones.probe import probe_network
from featx._backbones.providers import load_backbone
from featx._errors import InputError
from featx._finetuning.heads import locate_classifier, replace_classifier
from featx._finetuning.network import FineTuningNetwork
from featx._finetuning.samples import INITIALIZATION, derive_seed, torch_seeded
from featx._finetuning.unfreezing import modules_to_train
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._finetuning.samples import ImageSamples

# Statistics of ImageNet, as for any bare module; the image as it is, without a margin to crop.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_backbone(
    backbone: Any,
    weights: Any,
    image_size: int | None,
    preprocessing: Preprocessing | None,
    seed: int,
) -> FrozenBackbone:
    """Return the network that training begins with, and its recipe for images.

    Parameters
    ----------
    backbone : str, FrozenBackbone, torch.nn.Module, or callable
        A callable, such as the module's class, is called without arguments, its random weights
        being drawn with the seed.
    weights : str or None
        Of a named network.
    image_size : int or None
        Of a named network or a bare module.
    preprocessing : Preprocessing or None
        Of a bare module.
    seed : int
        Of random weights.

    Raises
    ------
    InputError
        If the arguments do not go together, or there is no such network.
    """
    if isinstance(backbone, str):
        if preprocessing is not None:
            raise InputError(
                f"Got preprocessing beside backbone={backbone!r}, which has its own; leave it out"
            )
        return load_backbone(backbone, weights=weights, image_size=image_size)
    if weights != "default":
        raise InputError(
            f"Got weights={weights!r} beside a network that is not a name; expected its weights "
            "to be in it: leave weights out"
        )
    if isinstance(backbone, FrozenBackbone):
        if image_size is not None or preprocessing is not None:
            raise InputError(
                f"Got image_size or preprocessing beside {backbone!r}, which has its own; leave "
                "them out"
            )
        return backbone
    module = backbone if isinstance(backbone, nn.Module) else _build(backbone, seed)
    return FrozenBackbone(module, _recipe(image_size, preprocessing))


def is_drawn(backbone: Any) -> bool:
    """Whether a choice of backbone is a class or function, whose weights are drawn at each fit."""
    return callable(backbone) and not isinstance(backbone, nn.Module)


def _build(backbone: Any, seed: int) -> nn.Module:
    expected = (
        "expected the name of a network, a FrozenBackbone, a torch.nn.Module, or a class or "
        "function that returns one when it is called without arguments"
    )
    if not callable(backbone):
        raise InputError(f"Got backbone={backbone!r} but {expected}")
    with torch_seeded(derive_seed(seed, INITIALIZATION, 1)):
        try:
            module = backbone()
        except TypeError as error:
            raise InputError(f"Got backbone={backbone!r} ({error}) but {expected}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"Got a {type(module).__name__} from {backbone!r} but {expected}")
    return module


def _recipe(image_size: int | None, preprocessing: Preprocessing | None) -> Preprocessing | None:
    if image_size is None:
        return preprocessing
    if preprocessing is not None:
        raise InputError(
            f"Got image_size={image_size} beside a preprocessing, which has its own; leave one out"
        )
    return Preprocessing(image_size, image_size, "bilinear", _MEAN, _STD)


def assemble_network(
    backbone: FrozenBackbone,
    unfreeze: Any,
    n_classes: int,
    hidden_layer_sizes: Sequence[int],
    dropout: float,
    seed: int,
    batch_norm: str = "auto",
) -> FineTuningNetwork:
    """Return a copy of a backbone with a new classifier, some of its modules to be trained.

    Parameters
    ----------
    backbone : FrozenBackbone
        It is not changed.
    unfreeze : "head", "all", int, str or sequence of str
        As `featx._finetuning.unfreezing.modules_to_train` takes it.
    n_classes : int
        Logits of the new classifier.
    hidden_layer_sizes, dropout
        As `featx._finetuning.heads.build_head` takes them.
    seed : int
        Of the weights of the new classifier.
    batch_norm : str
        As `FineTuningNetwork` takes it.

    Returns
    -------
    FineTuningNetwork
        On the CPU.

    Raises
    ------
    InputError
        If there are no such layers, or the classifier cannot be told or replaced.
    """
    size = backbone.preprocessing.image_size
    classifier = locate_classifier(backbone)
    module = copy.deepcopy(backbone.module)
    probe = probe_network(module, size, classifier, backbone.name)
    taken = probe.penultimate
    with torch_seeded(derive_seed(seed, INITIALIZATION)):
        replace_classifier(
            module,
            classifier,
            n_classes,
            hidden_layer_sizes,
            dropout,
            n_features=taken[1] if taken is not None and len(taken) == 2 else None,
        )
    trained = modules_to_train(module, unfreeze, classifier, probe.outputs, backbone.name)
    network = FineTuningNetwork(module, backbone.preprocessing, classifier, trained, batch_norm)
    network.check_logits(size, n_classes, backbone.name)
    return network


def embed_samples(
    network: FineTuningNetwork, samples: ImageSamples, device: str, batch_size: int
) -> torch.Tensor:
    """Return what the classifier takes of each image, float32 (n, n_features), on the CPU."""
    network.eval().to(device)
    vectors: list[torch.Tensor] = []
    with torch.no_grad():
        for count, pixels in samples.fixed_batches(batch_size):
            vectors.append(network.features(pixels.to(device))[:count].float().cpu())
    network.to("cpu")
    return torch.cat(vectors)
