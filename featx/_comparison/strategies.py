"""Strategies: the ways of using a pretrained network that are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featx._checks import refuse
from featx._embedder import ImageEmbedder
from featx._errors import InputError, did_you_mean
from featx._finetuning.classifier import FineTunedClassifier
from featx._finetuning.linear_head import LinearHeadClassifier
from featx._selection.heads import Head, make_heads

if TYPE_CHECKING:
    from collections.abc import Iterable

LINEAR_HEAD = "linear_head"
LAST_STAGE = "last_stage"
ALL_LAYERS = "all_layers"
FROM_SCRATCH = "from_scratch"

_HEADS = tuple(head.name for head in make_heads())

NAMES = (*_HEADS, LINEAR_HEAD, LAST_STAGE, ALL_LAYERS, FROM_SCRATCH)
"""The names that ``strategies=`` takes, in the order in which they are run."""

DEFAULT_NAMES = (
    "logistic_regression",
    "rbf_svm",
    "random_forest",
    LINEAR_HEAD,
    LAST_STAGE,
    ALL_LAYERS,
    FROM_SCRATCH,
)

# Folds of the search for a head's settings, inside the images that are trained on.
_INNER_FOLDS = 5

# Passes over the vectors in which a new head is trained before the layers below it are.
_HEAD_EPOCHS = 30

# Of gradient descent on vectors of unit length, whose products with weights are small.
_HEAD_LEARNING_RATES = [1.0, 3.0, 10.0]

# Random layers need more passes than pretrained ones.
_SCRATCH_FACTOR = 3


@dataclass(frozen=True)
class Strategy:
    """One way from labelled images to a classifier.

    Attributes
    ----------
    name : str
        What ``strategies=`` takes.
    description : str
        What is frozen and what is trained, for people.
    classifier : classifier
        Unfitted.
    takes_vectors : bool
        Whether it is fitted on embeddings of the frozen network, which are computed once for all,
        or on images.
    trains : bool or None
        Whether it trains layers of the network; None where that is not known.
    grid : dict of str to list
        Values to choose among by cross-validation inside the images that are trained on.
    """

    name: str
    description: str
    classifier: Any
    takes_vectors: bool
    trains: bool | None
    grid: dict[str, list[Any]]

    def make_classifier(self, codes: np.ndarray, random_state: int | None) -> Any:
        """Return the unfitted classifier for training images of some classes, given as numbers."""
        if not self.grid:
            return clone(self.classifier)
        counts = np.bincount(codes)
        folds = min(_INNER_FOLDS, int(counts[counts > 0].min()))
        fitted = len(codes) - -(-len(codes) // folds)
        grid = {name: _possible(name, values, fitted) for name, values in self.grid.items()}
        inner = StratifiedKFold(folds, shuffle=True, random_state=random_state)
        return GridSearchCV(clone(self.classifier), grid, cv=inner, error_score="raise")


def choose_strategies(
    names: str | Iterable[str],
    own_strategies: Mapping[str, Any] | None,
    *,
    embedder: ImageEmbedder,
    epochs: int,
    random_state: int | None,
) -> list[Strategy]:
    """Return the strategies of some names, and those that a person brings.

    Network, weights, image size and device are the embedder's; ``own_strategies`` are unfitted
    classifiers of images by their names.

    Raises
    ------
    InputError
        When a name is not known, is taken twice, or needs a network that is not named.
    """
    chosen = _chosen_names(names, embedder)
    heads = {head.name: head for head in make_heads(random_state)}
    makers = {
        **{name: partial(_head, heads[name]) for name in heads},
        LINEAR_HEAD: partial(_linear_head, embedder, random_state),
        LAST_STAGE: partial(_last_stage, embedder, epochs, random_state),
        ALL_LAYERS: partial(_all_layers, embedder, epochs, random_state),
        FROM_SCRATCH: partial(_from_scratch, embedder, epochs, random_state),
    }
    strategies = [makers[name]() for name in chosen]
    if own_strategies is not None and not isinstance(own_strategies, Mapping):
        expected = "a mapping of names to classifiers of images"
        raise refuse("own_strategies", own_strategies, expected)
    strategies += [_own_strategy(*named) for named in (own_strategies or {}).items()]
    if not strategies:
        raise InputError(f"Got no strategies but expected some of {', '.join(NAMES)}")
    return strategies


def _chosen_names(names: str | Iterable[str], embedder: ImageEmbedder) -> list[str]:
    known = {"default": DEFAULT_NAMES, "all": NAMES}
    is_group = isinstance(names, str) and names in known
    chosen = known[str(names)] if is_group else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in NAMES:
            hint = did_you_mean(str(name), NAMES)
            raise InputError(
                f"Got strategy {name!r} but expected 'default', 'all' or some of "
                f"{', '.join(NAMES)}{hint}"
            )
    if FROM_SCRATCH in chosen and not isinstance(embedder.backbone, str):
        if is_group:
            return [name for name in chosen if name != FROM_SCRATCH]
        raise InputError(
            f"Got strategy {FROM_SCRATCH!r} beside {embedder.backbone!r}, whose layers cannot be "
            "made anew; expected the name of a network, or bring a FineTunedClassifier over a "
            "class of modules as a strategy of your own"
        )
    return [name for name in NAMES if name in chosen]


def _head(head: Head) -> Strategy:
    steps = [("scaler", head.scaler), ("head", head.classifier)]
    grid = {f"head__{name}": values for name, values in head.grid.items()}
    return Strategy(head.name, f"frozen + {head.name}", Pipeline(steps), True, False, grid)


def _linear_head(embedder: ImageEmbedder, random_state: int | None) -> Strategy:
    layer = LinearHeadClassifier(
        optimizer="sgd", device=embedder.device, random_state=random_state, progress=False
    )
    classifier = make_pipeline(StandardScaler(), Normalizer(), layer)
    grid = {"linearheadclassifier__learning_rate": _HEAD_LEARNING_RATES}
    return Strategy(LINEAR_HEAD, "frozen + linear layer by SGD", classifier, True, False, grid)


def _last_stage(embedder: ImageEmbedder, epochs: int, random_state: int | None) -> Strategy:
    classifier = _pretrained(embedder, epochs, random_state).set_params(unfreeze=1)
    return Strategy(LAST_STAGE, "last stage fine-tuned", classifier, False, True, {})


def _all_layers(embedder: ImageEmbedder, epochs: int, random_state: int | None) -> Strategy:
    classifier = _pretrained(embedder, epochs, random_state).set_params(unfreeze="all")
    return Strategy(ALL_LAYERS, "all layers fine-tuned", classifier, False, True, {})


def _from_scratch(embedder: ImageEmbedder, epochs: int, random_state: int | None) -> Strategy:
    classifier = _pretrained(embedder, _SCRATCH_FACTOR * epochs, random_state)
    classifier.set_params(weights=None, unfreeze="all", head_epochs=0)
    return Strategy(FROM_SCRATCH, "all layers from scratch", classifier, False, True, {})


def _pretrained(embedder: ImageEmbedder, epochs: int, random_state: int | None) -> Any:
    """Return what trains the embedder's network from a linear head on."""
    classifier = FineTunedClassifier(
        embedder.backbone,
        weights=embedder.weights,
        image_size=embedder.image_size,
        epochs=epochs,
        head_epochs=_HEAD_EPOCHS,
        augment="light",
        device=embedder.device,
        num_workers=embedder.num_workers,
        max_pixels=embedder.max_pixels,
        max_file_bytes=embedder.max_file_bytes,
        random_state=random_state,
        progress=embedder.progress,
    )
    if not isinstance(embedder.backbone, str):
        # It has weights and an image size of its own.
        classifier.set_params(weights="default", image_size=None)
    return classifier


def _own_strategy(name: str, classifier: Any) -> Strategy:
    if name in NAMES:
        raise InputError(f"Got a strategy of your own named {name!r}, which is taken; rename it")
    if not isinstance(classifier, BaseEstimator) or not is_classifier(classifier):
        raise InputError(
            f"Got {classifier!r} as strategy {name!r} but expected a classifier of images, such "
            "as a FineTunedClassifier or a pipeline that begins with an ImageEmbedder"
        )
    return Strategy(name, name, classifier, False, _trains_layers(classifier), {})


def _trains_layers(classifier: Any) -> bool | None:
    """Whether a classifier of somebody's own trains a network, as far as can be told."""
    parts = [classifier, *classifier.get_params().values()]
    # By the name of its class: it needs a package that may not be here.
    if any(type(part).__name__ == "FineTunedClassifier" for part in parts):
        return True
    return False if any(isinstance(part, ImageEmbedder) for part in parts) else None


def _possible(name: str, values: list[Any], fitted: int) -> list[Any]:
    """Return the values that so many images allow: neighbours cannot outnumber them."""
    if not name.endswith("n_neighbors"):
        return values
    return [value for value in values if value <= fitted] or [fitted]
