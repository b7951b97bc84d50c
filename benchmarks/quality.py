"""Accuracy on held-out images of the selected head, and of an SVM on raw pixels beside it.

Chooses a head for the embeddings of the default backbone by 5-fold cross-validation on the training
folder, does the same for an SVM on the pixels with the same folds, and scores both once on the test
folder. Each folder holds one subfolder of images per class::

    python benchmarks/quality.py                             # the sample of CIFAR-10
    python benchmarks/quality.py TRAIN_FOLDER TEST_FOLDER    # your own photographs
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from scipy.stats import binomtest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from featx import FeatxError, ImageEmbedder, head_search, load_image_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample"
SIDE = 32


def raw_pixels(paths: Sequence[str]) -> np.ndarray:
    """Return images as rows of pixels: float32 in [0, 1], shape (n, 32 * 32 * 3)."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        pixels = np.asarray(upright.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        rows.append(pixels.astype(np.float32).ravel() / 255)
    return np.stack(rows)


def pixel_search(cv: Any) -> GridSearchCV:
    """Return an unfitted search over an SVM on raw pixels."""
    pipeline = make_pipeline(StandardScaler(), SVC())
    return GridSearchCV(pipeline, {"svc__C": [0.3, 1, 3, 10, 30]}, cv=cv)


def report(
    name: str, search: GridSearchCV, X_test: Any, y_test: np.ndarray, seconds: float
) -> None:
    """Print what a fitted search chose and how it does on the held-out images."""
    best = search.best_index_
    mean = search.cv_results_["mean_test_score"][best]
    deviation = search.cv_results_["std_test_score"][best]
    correct = int((search.predict(X_test) == y_test).sum())
    interval = binomtest(correct, len(y_test)).proportion_ci(0.95, method="wilson")
    print(name)
    print(f"  chosen             {search.best_estimator_[-1]}")
    print(f"  cross-validated    {mean:.3f} ± {deviation:.3f}")
    print(
        f"  held-out           {correct / len(y_test):.3f}, {correct} of {len(y_test)}, "
        f"95 % interval [{interval.low:.3f}, {interval.high:.3f}]"
    )
    print(f"  search took        {seconds:.0f} s")


def compare(train_folder: Path, test_folder: Path) -> None:
    """Search on the embeddings and on the pixels of the same images, and report both."""
    train, test = load_image_folder(train_folder), load_image_folder(test_folder)
    print(f"{len(train.paths)} images to learn from, {len(test.paths)} held out")

    embedding_search = head_search(heads="all", embedder=ImageEmbedder(), cv=5, random_state=0)
    start = time.perf_counter()
    with threadpool_limits(1, user_api="blas"):  # the matrices are small
        embedding_search.fit(train.paths, train.target)
    seconds = time.perf_counter() - start
    report("embeddings, selected head", embedding_search, test.paths, test.target, seconds)

    # The first search's own splitter, so that both are chosen on the same folds.
    baseline = pixel_search(embedding_search.cv)
    start = time.perf_counter()
    baseline.fit(raw_pixels(train.paths), train.target)
    seconds = time.perf_counter() - start
    report("raw pixels, RBF SVM", baseline, raw_pixels(test.paths), test.target, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="TRAIN_FOLDER TEST_FOLDER")
    folders = parser.parse_args().folders or [SAMPLE / "train", SAMPLE / "test"]
    if len(folders) != 2:
        parser.error(
            f"expected a training folder and a test folder, or neither; got {len(folders)}"
        )
    try:
        compare(*folders)
    except FeatxError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
