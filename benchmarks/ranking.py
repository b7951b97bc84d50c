"""How well the scores of `rank_backbones` order networks, beside a cross-validated search.

Each network embeds a folder of one subfolder per class; the truth is its accuracy in a 5-fold
search over two heads and their grids, with other folds than the linear probe's. Kendall's tau
compares the order of each score with that of the accuracy, over all networks and over the
pretrained ones alone: that a pretrained network beats a random one is the easy half. The probe has
an advantage: its head is one of the two that the search tries.

    python benchmarks/ranking.py                  # the training images of the sample of CIFAR-10
    python benchmarks/ranking.py PHOTOGRAPHS --repeats 3 --caffe-resnet50 FILE
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.stats import kendalltau
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from featx import ImageEmbedder, load_backbone, load_image_folder
from featx._selection.heads import choose_heads
from featx._selection.ranking import SCORES, rank_backbones
from featx._selection.transferability import (
    linear_probe_score,
    log_me,
    nearest_neighbour_score,
)

if TYPE_CHECKING:
    import numpy as np

    from featx import FrozenBackbone

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "train"

# Networks whose weights come with the install, at their own image size and at others.
PRETRAINED = [
    *[("efficientnet_lite0", size) for size in (64, 96, 128, 160, 224, 288)],
    *[("efficientnet_lite1", size) for size in (128, 240)],
    *[("efficientnet_lite2", size) for size in (128, 260)],
]
RANDOM = [("efficientnet_lite0", 224), ("efficientnet_lite1", 128), ("timm/resnet18", 128)]


def choose_networks(caffe_resnet50: Path | None) -> list[FrozenBackbone]:
    networks = [load_backbone(name, image_size=size) for name, size in PRETRAINED]
    networks += [load_backbone(name, weights=None, image_size=size) for name, size in RANDOM]
    if caffe_resnet50 is not None:
        # How it is built stands beside the test that proves it right.
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "backbones"))
        from caffe_resnet import caffe_resnet50 as build

        networks.append(build(caffe_resnet50))
    return networks


def search_accuracy(vectors: np.ndarray, labels: Any, repeats: int) -> tuple[float, float]:
    """Return the best mean accuracy of a search over heads, and its standard error."""
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=1)
    found = []
    for head in choose_heads(["logistic_regression", "rbf_svm"]):
        pipeline = Pipeline([("scaler", head.scaler), ("head", head.classifier)])
        grid = {f"head__{name}": values for name, values in head.grid.items()}
        with threadpool_limits(1, user_api="blas"):  # the matrices are small
            search = GridSearchCV(pipeline, grid, cv=folds).fit(vectors, labels)
        found.append(float(search.best_score_))
    accuracy = max(found)
    return accuracy, (accuracy * (1 - accuracy) / len(labels)) ** 0.5


def markdown(table: pd.DataFrame) -> str:
    """Return a table whose first column is text and whose others are figures."""
    header = "| " + " | ".join(table.columns) + " |"
    line = "|---|" + "---:|" * (table.shape[1] - 1)
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join([header, line, *rows])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "network": [
            f"{row.backbone}{', random' if row.weights.startswith('random') else ''}"
            for row in table.itertuples()
        ],
        "pixels": table["image_size"],
        "accuracy": [f"{row.accuracy:.3f} ± {row.error:.3f}" for row in table.itertuples()],
        "rank": table["rank"],
    }
    columns |= {score: table[score].map("{:.3f}".format) for score in SCORES}
    columns["ms per image"] = (table["seconds_per_image"] * 1000).map("{:.1f}".format)
    columns["M parameters"] = table["parameters"].map("{:.1f}".format)
    return pd.DataFrame(columns)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's tau of each score with the accuracy."""
    pretrained = table[~table["weights"].str.startswith("random")]
    rows = []
    for score in SCORES:
        of_all = tau(table[score], table["accuracy"])
        of_pretrained = tau(pretrained[score], pretrained["accuracy"])
        rows.append((score, of_all, of_pretrained))
    columns = ["score", f"all {len(table)}", f"the {len(pretrained)} pretrained"]
    return pd.DataFrame(rows, columns=columns)


def tau(score: Any, accuracy: Any) -> str:
    return f"{kendalltau(score, accuracy).statistic:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE, metavar="PHOTOGRAPHS")
    parser.add_argument("--repeats", type=int, default=1, help="of the 5 folds, shuffled anew")
    parser.add_argument("--caffe-resnet50", type=Path, metavar="FILE", help="its .safetensors")
    options = parser.parse_args()
    photos = load_image_folder(options.folder)
    networks = choose_networks(options.caffe_resnet50)
    with tempfile.TemporaryDirectory() as cache:
        embedder = ImageEmbedder(cache=cache, progress=False)
        table = rank_backbones(
            photos.paths, photos.target, networks, scores=SCORES, embedder=embedder
        )
        by_row = {
            (row.backbone, row.weights, row.image_size): row.Index for row in table.itertuples()
        }
        truth = {}
        for network in networks:
            key = (network.name, network.weights, network.preprocessing.image_size)
            vectors = embedder.set_params(backbone=network).transform(photos.paths)
            truth[by_row[key]] = search_accuracy(vectors, photos.target, options.repeats)
    table["accuracy"] = [truth[row][0] for row in table.index]
    table["error"] = [truth[row][1] for row in table.index]
    table = table.sort_values("accuracy", ascending=False)
    print(f"{len(photos.paths)} images of {len(set(photos.target))} classes\n")
    print(markdown(shown(table)), "\n")
    print("Kendall's tau with the cross-validated accuracy:\n")
    print(markdown(agreement(table)), "\n")
    print("Seconds of each score, on the embeddings of the last network:\n")
    print(markdown(seconds(vectors, photos.target)))


def seconds(vectors: np.ndarray, labels: Any) -> pd.DataFrame:
    rows = []
    for score in (linear_probe_score, log_me, nearest_neighbour_score):
        start = time.perf_counter()
        score(vectors, labels)
        rows.append((score.__name__, f"{time.perf_counter() - start:.2f}"))
    return pd.DataFrame(rows, columns=["score", "seconds"])


if __name__ == "__main__":
    main()
