"""A new last layer on a frozen pretrained network, trained by SGD with cross-entropy.

    python examples/new_linear_layer.py                      # a small network on small pictures
    python examples/new_linear_layer.py --full               # all images at the network's own size

This is what is often done with a ResNet-50: `--backbone torchvision/resnet50`, whose weights
`featx backbones download torchvision/resnet50` fetches. `--train` and `--test` name folders of your
own with a folder for each class; `--random-weights` tries the wiring without any weights.

There are two ways. As two steps of a pipeline the vectors are cached, so that trying learning rates
costs no further pass through the network. As one estimator the images can be changed anew in each
epoch, which no cache can serve.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import FineTunedClassifier, ImageEmbedder, LinearHeadClassifier, load_image_folder

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"


def two_steps(network: dict) -> GridSearchCV:
    """Return a search over learning rates, in which each image is embedded once."""
    head = LinearHeadClassifier(optimizer="sgd", epochs=20)
    pipeline = make_pipeline(ImageEmbedder(**network), StandardScaler(), head)
    return GridSearchCV(pipeline, {"linearheadclassifier__learning_rate": [1e-4, 1e-3, 1e-2]}, cv=3)


def one_estimator(network: dict, epochs: int) -> FineTunedClassifier:
    """Return the same as a network of which the last layer alone is trained, on varied images."""
    return FineTunedClassifier(
        **network,
        unfreeze="head",
        augment="light",
        optimizer="sgd",
        learning_rate=1e-2,
        epochs=epochs,
    )


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the first images of each class."""
    return np.concatenate([np.flatnonzero(labels == name)[:count] for name in np.unique(labels)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--train", type=Path, default=SAMPLE / "train")
    parser.add_argument("--test", type=Path, default=SAMPLE / "test")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args(arguments)

    network = {"backbone": options.backbone, "image_size": None if options.full else 96}
    if options.random_weights:
        network["weights"] = None
    train, test = load_image_folder(options.train), load_image_folder(options.test)

    search = two_steps(network).fit(train.paths, train.target)
    print(f"a new linear layer on the vectors of {len(train.paths)} images:")
    for params, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        (rate,) = params.values()
        print(f"  learning rate {rate:g}: cross-validated accuracy {score:.3f}")
    print(f"  the best one on new images: {search.score(test.paths, test.target):.3f}")

    rows = np.arange(len(train.paths)) if options.full else first_of_each_class(train.target, 10)
    varied = one_estimator(network, epochs=10 if options.full else 3)
    varied.fit(train.paths[rows], train.target[rows])
    print(f"a new linear layer on {len(rows)} images, cropped and mirrored anew in each epoch:")
    print(f"  on new images: {varied.score(test.paths, test.target):.3f}")


if __name__ == "__main__":
    main()
