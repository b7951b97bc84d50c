"""Decoding and resizing by featx beside bare torchvision, on the same files in one process.

    python benchmarks/decoding.py [FOLDER] [--images 200] [--rounds 7]

Both read every file from the page cache, decode it, resize the shorter side to 256 pixels and crop
224, in one thread. The bare side does nothing else: it looks at no header, turns no photograph
upright, refuses nothing. Rounds are interleaved and the median of their ratios is printed, because
machines are noisy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from featx._images.decode import decode_content
from featx._images.faults import no_warnings
from featx._images.folders import find_images
from featx._images.preprocess import Preprocessing
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "test"
RECIPE = Preprocessing(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def bare(path: str) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
    pixels = decode_image(encoded, ImageReadMode.RGB)
    resized = functional.resize(pixels, [256], InterpolationMode.BICUBIC, antialias=True)
    return functional.center_crop(resized, [224]).contiguous()


def featx(path: str) -> torch.Tensor:
    return RECIPE.apply(decode_content(read_content(path), path), path)


def rate(prepare: Callable[[str], torch.Tensor], paths: list[str]) -> float:
    """Return images per second."""
    started = time.perf_counter()
    for path in paths:
        prepare(path)
    return len(paths) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = find_images(options.folder)[0][: options.images]
    rounds = []
    with no_warnings:  # torchvision announces the end of its decoders at every call
        for _ in range(options.rounds + 1):
            rounds.append((rate(featx, paths), rate(bare, paths)))
    rounds = rounds[1:]  # the first one warms up
    print(f"{len(paths)} images, median of {options.rounds} rounds, one thread")
    print(f"featx             {statistics.median(own for own, _ in rounds):7.0f} images/s")
    print(f"bare torchvision  {statistics.median(other for _, other in rounds):7.0f} images/s")
    print(f"time of featx / bare, per round: {statistics.median(b / a for a, b in rounds):.3f}")


if __name__ == "__main__":
    main()
