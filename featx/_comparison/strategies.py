"""Strategies: the ways of using a pretrained network that are compared with each other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

from featx._checks import check_choice, refuse
from featx._comparison.comparison import TrainingRun
from featx._embedder import ImageEmbedder
from featx._errors import InputError
from featx._finetuning.classifier import FineTunedClassifier
from featx._finetuning.linear_head import LinearHeadClassifier
from featx._selection.heads import Head, make_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featx._comparison.splits import Split

LINEAR_HEAD = "linear_head"
LAST_STAGE = "last_stage"
ALL_LAYERS = "all_layers"
FROM_SCRATCH = "from_scratch"

_FROZEN = (*(head.name for head in make_heads()), LINEAR_HEAD)

NAMES = (*_FROZEN, LAST_STAGE, ALL_LAYERS, FROM_SCRATCH)
"""The names that ``strategies=`` takes, in the order in which they are run."""

DEFAULT_NAMES = tuple(name for name in NAMES if name not in ("linear_svm", "k_nearest_neighbors"))

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
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def make_classifier(self, labels: np.ndarray, random_state: int | None) -> Any:
        """Return the unfitted classifier for training images of some labels."""
        if not self.grid:
            return clone(self.classifier)
        folds = min(_INNER_FOLDS, int(pd.Series(labels).value_counts().min()))
        fitted = len(labels) - -(-len(labels) // folds)
        # Neighbours cannot outnumber the images.
        grid = {
            name: [value for value in values if "n_neighbors" not in name or value <= fitted]
            or [fitted]
            for name, values in self.grid.items()
        }
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
    chosen = _choose_names(names, embedder)
    known = [*_frozen(embedder, random_state), *_trained(embedder, epochs, random_state)]
    strategies = [strategy for strategy in known if strategy.name in chosen]
    own = {} if own_strategies is None else own_strategies
    if not isinstance(own, Mapping):
        raise refuse("own_strategies", own, "a mapping of names to classifiers of images")
    strategies += [_own_strategy(name, classifier) for name, classifier in own.items()]
    if not strategies:
        raise InputError(f"Got no strategies but expected some of {', '.join(NAMES)}")
    return strategies


def _choose_names(names: str | Iterable[str], embedder: ImageEmbedder) -> list[str]:
    groups = {"default": DEFAULT_NAMES, "all": NAMES}
    is_group = isinstance(names, str) and names in groups
    chosen = groups[str(names)] if is_group else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        check_choice("strategies", name, [*groups, *NAMES] if name == names else NAMES)
    if FROM_SCRATCH in chosen and not isinstance(embedder.backbone, str):
        if is_group:
            return [name for name in chosen if name != FROM_SCRATCH]
        expected = f"others beside {embedder.backbone!r}, whose layers cannot be made anew"
        raise refuse("strategies", FROM_SCRATCH, expected)
    return list(chosen)


def _frozen(embedder: ImageEmbedder, random_state: int | None) -> list[Strategy]:
    """Return the strategies that train a head on embeddings."""
    layer = LinearHeadClassifier(
        optimizer="sgd", device=embedder.device, random_state=random_state, progress=False
    )
    unit = make_pipeline(StandardScaler(), Normalizer())
    by_descent = Head(LINEAR_HEAD, unit, layer, {"learning_rate": _HEAD_LEARNING_RATES})
    return [
        Strategy(
            head.name,
            f"frozen + {'linear layer by SGD' if head is by_descent else head.name}",
            Pipeline([("scaler", head.scaler), ("head", head.classifier)]),
            takes_vectors=True,
            trains=False,
            grid={f"head__{name}": values for name, values in head.grid.items()},
        )
        for head in (*make_heads(random_state), by_descent)
    ]


def _trained(embedder: ImageEmbedder, epochs: int, random_state: int | None) -> list[Strategy]:
    """Return the strategies that train the embedder's network from a linear head on."""
    shared: dict[str, Any] = {
        "epochs": epochs,
        "head_epochs": _HEAD_EPOCHS,
        "augment": "light",
        "random_state": random_state,
    }
    if embedder.pixel_range != "type":
        raise refuse("pixel_range", embedder.pixel_range, "'type', as networks are trained by it")
    taken = ["device", "num_workers", "max_pixels", "max_file_bytes", "progress"]
    if isinstance(embedder.backbone, str):  # others have weights and an image size of their own
        taken += ["weights", "image_size"]
    shared |= {name: getattr(embedder, name) for name in taken}
    scratch: dict[str, Any] = {
        "weights": None,
        "head_epochs": 0,
        "epochs": _SCRATCH_FACTOR * epochs,
    }
    return [
        Strategy(
            name,
            description,
            FineTunedClassifier(embedder.backbone, unfreeze=unfreeze, **(shared | more)),
            takes_vectors=False,
            trains=True,
        )
        for name, description, unfreeze, more in (
            (LAST_STAGE, "last stage fine-tuned", 1, {}),
            (ALL_LAYERS, "all layers fine-tuned", "all", {}),
            (FROM_SCRATCH, "all layers from scratch", "all", scratch),
        )
    ]


def _own_strategy(name: str, classifier: Any) -> Strategy:
    if name in NAMES:
        raise InputError(f"Got a strategy of your own named {name!r}, which is taken; rename it")
    if not isinstance(classifier, BaseEstimator) or not is_classifier(classifier):
        expected = "a classifier of images, such as a FineTunedClassifier or a pipeline"
        raise refuse(f"own_strategies[{name!r}]", classifier, expected)
    # Whether it trains a network, as far as can be told.
    parts = [classifier, *classifier.get_params().values()]
    trains = True if any(isinstance(part, FineTunedClassifier) for part in parts) else None
    if trains is None and any(isinstance(part, ImageEmbedder) for part in parts):
        trains = False
    return Strategy(name, name, classifier, takes_vectors=False, trains=trains)


@dataclass(frozen=True)
class TrainingData:
    """Labelled images as every strategy needs them.

    Attributes
    ----------
    images : sequence
        Images, for strategies that train the network.
    vectors : ndarray of float32, shape (n_images, dimension), or None
        Their embeddings, for those that do not.
    labels : ndarray of shape (n_images,)
    seconds_per_image : float
        What an embedding costs that is in no cache.
    """

    images: Sequence[Any]
    vectors: Any
    labels: np.ndarray
    seconds_per_image: float


def run_strategy(
    strategy: Strategy, split: Split, data: TrainingData, random_state: int | None
) -> TrainingRun:
    """Train a strategy on the images of a split and test it on the others."""
    classifier = strategy.make_classifier(data.labels[split.train], random_state)
    train, test = (
        data.vectors[rows] if strategy.takes_vectors else [data.images[row] for row in rows]
        for rows in (split.train, split.test)
    )
    # The heads' matrices are small: several threads for each product cost more than they save.
    with threadpool_limits(1 if strategy.takes_vectors else None, user_api="blas"):
        begun = time.perf_counter()
        classifier.fit(train, data.labels[split.train])
        fitted = time.perf_counter()
        predicted = np.ravel(classifier.predict(test))  # some of others give a column
        done = time.perf_counter()
    # The embeddings were there; whoever trains this alone pays for them too.
    embedding = data.seconds_per_image if strategy.takes_vectors else 0.0
    return TrainingRun(
        strategy=strategy.name,
        description=strategy.description,
        trains=strategy.trains,
        split=split,
        labels=data.labels[split.test],
        predicted=predicted,
        fit_seconds=fitted - begun + len(train) * embedding,
        predict_seconds=(done - fitted) / len(test) + embedding,
    )
