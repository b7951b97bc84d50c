"""Is a network fed as it was trained to be? Statistics of real images under several recipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._backbones.network import EmbeddingNetwork
from featx._backbones.taps import PENULTIMATE, Tap
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._backbones.frozen import FrozenBackbone
    from featx._images.preprocess import Preprocessing

DECLARED = "as declared"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_CAFFE_MEAN = (103.939, 116.779, 123.68)

# How families of published weights are fed: value, channel order, scale.
_FAMILIES: dict[str, dict[str, Any]] = {
    "RGB in [0, 1], mean and std of ImageNet": {
        "mean": _IMAGENET_MEAN,
        "std": (0.229, 0.224, 0.225),
    },
    "RGB in [-1, 1]": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "RGB in [0, 1]": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "BGR in [0, 255] minus the mean (Caffe)": {
        "mean": _CAFFE_MEAN,
        "std": (1.0,) * 3,
        "channel_order": "bgr",
        "pixel_scale": 255,
    },
    "RGB in [0, 255] minus the mean": {
        "mean": _CAFFE_MEAN[::-1],
        "std": (1.0,) * 3,
        "pixel_scale": 255,
    },
}

# What another recipe must do better by, before the declared one is called wrong: a good recipe on
# photographs of another kind than ImageNet's is still far closer than a wrong one.
_CLEARLY_SMALLER = 0.8

_BATCH_SIZE = 16


@dataclass(frozen=True)
class RecipeFit:
    """How a network behaves on some images under one recipe.

    Attributes
    ----------
    recipe : str
        The recipe, in words.
    preprocessing : Preprocessing
        The recipe, in numbers.
    batchnorm_distance : float or None
        How far what reaches the BatchNorm layers lies from the statistics they kept of the
        training: the mean over layers and channels of the symmetric Kullback-Leibler divergence of
        the two normal distributions, in nats and on a logarithmic scale. None without BatchNorm.
    confidence, entropy : float or None
        Mean probability of the class that the network finds likeliest, and mean entropy of its
        classes in nats. None without a classifier.
    agreement : float or None
        Share of the images whose likeliest class is that of the declared recipe.
    feature_mean, feature_std, dead_features : float
        Mean and standard deviation of the penultimate features, and the share of those that are
        the same on every image.
    """

    recipe: str
    preprocessing: Preprocessing
    batchnorm_distance: float | None
    confidence: float | None
    entropy: float | None
    agreement: float | None
    feature_mean: float
    feature_std: float
    dead_features: float

    @property
    def misfit(self) -> float | None:
        """What the recipes are compared by; smaller is better."""
        return self.entropy if self.batchnorm_distance is None else self.batchnorm_distance


@dataclass(frozen=True)
class RecipeCheck:
    """What a check of a recipe found.

    Attributes
    ----------
    backbone : str
        The backbone's name.
    images : int
        How many images were used.
    fits : tuple of RecipeFit
        The declared recipe first, then those of known families.
    """

    backbone: str
    images: int
    fits: tuple[RecipeFit, ...]

    @property
    def declared(self) -> RecipeFit:
        """The recipe that the backbone has."""
        return self.fits[0]

    @property
    def best(self) -> RecipeFit:
        """The recipe that fits best: the declared one, unless another is clearly better."""
        better = [fit for fit in self.fits[1:] if _is_clearly_better(fit, self.declared)]
        return min(better, key=lambda fit: fit.misfit or 0.0, default=self.declared)

    @property
    def is_right(self) -> bool | None:
        """Whether the declared recipe fits; None when the network has nothing to tell it by."""
        return None if self.declared.misfit is None else self.best is self.declared

    def summary(self) -> str:
        """Return the finding in one sentence."""
        if self.is_right is None:
            return (
                f"{self.backbone} has neither BatchNorm nor a classifier, so that nothing tells "
                "whether its recipe is right"
            )
        if self.is_right:
            return f"{self.backbone}: its recipe fits the weights on {self.images} images"
        return (
            f"{self.backbone}: the recipe does not fit the weights; on {self.images} images "
            f"{self.best.recipe!r} fits better (misfit {self.best.misfit:.2f} instead of "
            f"{self.declared.misfit:.2f})"
        )


def check_recipe(backbone: FrozenBackbone, images: Sequence[torch.Tensor]) -> RecipeCheck:
    """Compare a backbone's recipe with those of known families, on images.

    Compared are channel order, scale, mean and standard deviation; size and interpolation, which
    cost far less when they are wrong, stay as declared. The verdict is by the BatchNorm layers,
    which remember what they were trained on, where the classifier does not object, and in networks
    without them by the entropy of the classifier. Sharp photographs tell most: on images enlarged
    from a few pixels, scales that differ by two cannot be told apart. Red and blue are told apart
    by neither where the images have little colour.

    Parameters
    ----------
    backbone : FrozenBackbone
        The network and its recipe.
    images : sequence of torch.Tensor of uint8, shape (3, height, width)
        Decoded photographs, as `featx._images.decode.decode_content` returns them; some dozens of
        many kinds are enough.

    Returns
    -------
    RecipeCheck
        The figures of each recipe, and which fits best.

    Raises
    ------
    InputError
        If there are fewer than two images.
    """
    if len(images) < 2:
        raise InputError(f"Got {len(images)} images but expected at least 2, better some dozens")
    declared = backbone.preprocessing
    crops = torch.stack([declared.apply(pixels) for pixels in images])
    plain: dict[str, Any] = {"channel_order": "rgb", "pixel_scale": 1}
    recipes = {DECLARED: declared}
    for name, family in _FAMILIES.items():
        recipe = replace(declared, **(plain | family))
        if recipe != declared:
            recipes[name] = recipe
    observed = {name: _observe(backbone, recipe, crops) for name, recipe in recipes.items()}
    classes = observed[DECLARED].classes
    fits = [
        _fit(name, recipes[name], observation, classes) for name, observation in observed.items()
    ]
    return RecipeCheck(backbone.name, len(images), tuple(fits))


def _is_clearly_better(fit: RecipeFit, declared: RecipeFit) -> bool:
    if fit.misfit is None or declared.misfit is None:
        return False
    # Blurred or pale images reach BatchNorm as if they were badly scaled, whatever the recipe; the
    # classifier, where there is one, must be surer too.
    is_surer = fit.entropy is None or declared.entropy is None or fit.entropy < declared.entropy
    return is_surer and fit.misfit < _CLEARLY_SMALLER * declared.misfit


@dataclass
class _Observation:
    features: torch.Tensor
    probabilities: torch.Tensor | None
    batchnorm_distance: float | None

    @property
    def classes(self) -> torch.Tensor | None:
        return None if self.probabilities is None else self.probabilities.argmax(dim=1)


def _fit(
    name: str, recipe: Preprocessing, observation: _Observation, declared: torch.Tensor | None
) -> RecipeFit:
    confidence = entropy = agreement = None
    probabilities, classes = observation.probabilities, observation.classes
    if probabilities is not None and classes is not None and declared is not None:
        confidence = float(probabilities.amax(dim=1).mean())
        entropy = float(torch.special.entr(probabilities).sum(dim=1).mean())
        agreement = float((classes == declared).double().mean())
    features = observation.features
    return RecipeFit(
        recipe=name,
        preprocessing=recipe,
        batchnorm_distance=observation.batchnorm_distance,
        confidence=confidence,
        entropy=entropy,
        agreement=agreement,
        feature_mean=float(features.mean()),
        feature_std=float(features.std()),
        dead_features=float((features == features[0]).all(dim=0).double().mean()),
    )


def _observe(backbone: FrozenBackbone, recipe: Preprocessing, crops: torch.Tensor) -> _Observation:
    network = EmbeddingNetwork(
        backbone.module, recipe, backbone.network([Tap(PENULTIMATE, "avg")]).plans
    )
    moments = {
        part: _Moments(part.num_features)
        for part in network.module.modules()
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
    }
    handles = [part.register_forward_pre_hook(moment) for part, moment in moments.items()]
    features, logits = [], []
    batches = torch.split(crops, _BATCH_SIZE)
    with torch.inference_mode():
        for batch in batches:
            features.append(network(batch)[0])
        for handle in handles:
            handle.remove()
        if _has_classifier(network.module):
            logits = [network.module(network.normalize(batch)) for batch in batches]
    distances = [moment.distance_to(part) for part, moment in moments.items() if moment.count]
    return _Observation(
        features=torch.cat(features),
        probabilities=torch.cat(logits).double().softmax(dim=1) if logits else None,
        batchnorm_distance=sum(distances) / len(distances) if distances else None,
    )


class _Moments:
    """Mean and variance per channel of what reaches a layer, summed up over batches."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def __call__(self, _module: nn.Module, inputs: Any) -> None:
        values = inputs[0].double()
        self.count += values.numel() // values.shape[1]
        self._sum += values.sum(dim=(0, 2, 3))
        self._squares += values.square().sum(dim=(0, 2, 3))

    def distance_to(self, layer: Any) -> float:
        mean = self._sum / self.count
        variance = (self._squares / self.count - mean.square()).clamp(min=0) + layer.eps
        kept_mean, kept = layer.running_mean.double(), layer.running_var.double() + layer.eps
        gap = (mean - kept_mean).square()
        divergence = ((variance + gap) / kept + (kept + gap) / variance) / 2 - 1
        return float(divergence.log1p().mean())


def _has_classifier(module: nn.Module) -> bool:
    """Whether the network still has a layer of many classes at its end."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linear:
        return False
    classes = getattr(module, "num_classes", None)
    last = linear[-1].out_features
    return last > 1 and (classes is None or classes == last)
