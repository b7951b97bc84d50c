"""Freeze the first two layers of a network and fine-tune the rest.

    python examples/freeze_first_layers.py          # a small network of one's own, on digits
    python examples/freeze_first_layers.py --full   # a pretrained one too, on 1,000 pictures

A positive number of stages is how many of the last ones are trained, a negative one how many of the
first ones are not; layers can be named too. "Frozen" is meant to the bit, the statistics of
BatchNorm included, and is looked at here tensor by tensor.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from featx import FineTunedClassifier, load_backbone, load_image_folder

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"


class SmallCNN(nn.Sequential):
    """Three convolutional layers, each with BatchNorm, and a linear one."""

    def __init__(self) -> None:
        def layer(inputs: int, outputs: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

        super().__init__()
        self.first = layer(3, 16)
        self.second = layer(16, 32)
        self.third = layer(32, 64)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(64, 10)


def same_tensors(before: nn.Module, after: nn.Module) -> dict[str, bool]:
    """Return of each tensor that both have whether all its bits are the same.

    The classifier is new, and often of another shape.
    """
    new = after.state_dict()
    return {
        name: torch.equal(tensor, new[name])
        for name, tensor in before.state_dict().items()
        if not name.startswith("classifier.")
    }


def print_layers(before: nn.Module, after: nn.Module, layers: list[str]) -> None:
    """Print how many tensors of each layer are as they were."""
    same = same_tensors(before, after)
    for layer in layers:
        inside = [name for name in same if name.startswith(f"{layer}.")]
        kept = sum(same[name] for name in inside)
        print(f"  {layer:<10} {kept:>2} of {len(inside):>2} tensors are as they were")


def of_a_network_of_ones_own() -> None:
    """Train a network on the digits 0 to 4, then all but its first two layers on 5 to 9."""
    torch.set_num_threads(1)  # several threads make nothing faster in so small a network
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    low, high = np.flatnonzero(digits.target < 5), np.flatnonzero(digits.target >= 5)
    train, test = high[:450], high[450:]
    source = FineTunedClassifier(
        SmallCNN, image_size=16, unfreeze="all", epochs=5, learning_rate=1e-2
    ).fit(list(images[low]), digits.target[low])
    target = FineTunedClassifier(
        source.freeze(),
        unfreeze=-2,  # all but the first two stages, which are the layers at one resolution
        batch_norm="update",  # the statistics of the third layer become those of the new digits
        epochs=10,
        learning_rate=1e-2,
    ).fit(list(images[train]), digits.target[train])
    score = target.score(list(images[test]), digits.target[test])
    print(f"SmallCNN, from digits 0-4, all but its first two layers trained on 5-9: {score:.3f}")
    print_layers(source.network_.module, target.network_.module, ["first", "second", "third"])


def of_a_pretrained_network() -> None:
    """Train all but the first two of the default network's five stages."""
    train, test = load_image_folder(SAMPLE / "train"), load_image_folder(SAMPLE / "test")
    classifier = FineTunedClassifier(
        image_size=128, unfreeze=-2, epochs=5, learning_rate=5e-3, augment="light"
    ).fit(train.paths, train.target)
    score = classifier.score(test.paths, test.target)
    print(
        f"efficientnet_lite0, all but its first two stages trained on 1,000 pictures: {score:.3f}"
    )
    # The statistics of its BatchNorms are kept everywhere, as they come from far more pictures.
    blocks = [f"blocks.{number}" for number in range(7)]
    print_layers(load_backbone("efficientnet_lite0").module, classifier.network_.module, blocks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args(arguments)
    if options.full:
        of_a_pretrained_network()
    of_a_network_of_ones_own()


if __name__ == "__main__":
    main()
