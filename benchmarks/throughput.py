"""Images per second, agreement with the reference and peak memory: featx beside what people use.

Each contender embeds the same files with the same weights in a process of its own, so that nothing
one of them leaves behind helps or hurts another. Rounds are interleaved and medians are reported,
because machines are noisy. Starting Python, importing, loading weights and building a graph are not
timed; reading, decoding, resizing and the network are.

    pip install embetter    # optional: left out where it is not installed
    python benchmarks/throughput.py PHOTOGRAPHS --images 256 --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from featx import ImageEmbedder, load_backbone
from featx.images.folders import find_images

if TYPE_CHECKING:
    from collections.abc import Callable

    Embed = Callable[[list[str]], np.ndarray]

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "test"


def timm_network() -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """Return timm's network with the packaged weights, and timm's own transform."""
    from timm.data import create_transform, resolve_model_data_config

    network = copy.deepcopy(load_backbone().module)
    network.reset_classifier(0)
    return network, create_transform(**resolve_model_data_config(network), is_training=False)


class Photographs(torch.utils.data.Dataset[torch.Tensor]):
    """What a person writes for a DataLoader."""

    def __init__(self, paths: list[str], transform: Callable[..., torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def embed_with_featx(runtime: str) -> Embed:
    embedder = ImageEmbedder(cache=None, runtime=runtime)
    embedder.transform([np.zeros((8, 8, 3), np.uint8)])  # builds what is built once
    return embedder.transform


def embed_with_a_loop() -> Embed:
    network, transform = timm_network()

    def embed(paths: list[str]) -> np.ndarray:
        images = Photographs(paths, transform)
        with torch.inference_mode():
            return np.stack([network(images[row][None])[0].numpy() for row in range(len(paths))])

    return embed


def embed_with_a_data_loader() -> Embed:
    network, transform = timm_network()

    def embed(paths: list[str]) -> np.ndarray:
        images = Photographs(paths, transform)
        loader = torch.utils.data.DataLoader(images, batch_size=32, num_workers=2)
        with torch.inference_mode():
            return np.concatenate([network(batch).numpy() for batch in loader])

    return embed


def embed_with_embetter() -> Embed:
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    network, _ = timm_network()
    # Its constructor would download weights and leave the network in training mode; it is given
    # the packaged weights, in evaluation mode, so that only its way of working is compared.
    timm.create_model = lambda *_, **__: network
    encoder = TimmEncoder("tf_efficientnet_lite0")
    return lambda paths: np.asarray(encoder.transform(ImageLoader().transform(paths)))


CONTENDERS: dict[str, Callable[[], Embed]] = {
    "embetter": embed_with_embetter,
    "timm, one by one": embed_with_a_loop,
    "timm + DataLoader": embed_with_a_data_loader,
    "featx, torch": lambda: embed_with_featx("torch"),
    "featx": lambda: embed_with_featx("auto"),
}


def measure_here(contender: str, paths: list[str], vectors: Path) -> None:
    """Time one contender in this process; its vectors go to a file, its figures to stdout."""
    embed = CONTENDERS[contender]()
    started = time.perf_counter()
    embeddings = embed(paths)
    seconds = time.perf_counter() - started
    np.save(vectors, embeddings)
    usage = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(json.dumps({"rate": len(paths) / seconds, "peak_mb": max(usage) / 1024}))


def measure(contender: str, paths: list[str]) -> tuple[dict[str, float], np.ndarray]:
    """Run one contender in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        listing, vectors = Path(folder) / "paths.json", Path(folder) / "vectors.npy"
        listing.write_text(json.dumps(paths))
        command = [sys.executable, __file__, "--here", contender, str(listing), str(vectors)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1]), np.load(vectors)


def least_cosine(first: np.ndarray, second: np.ndarray) -> float:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / norms).min())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        contender, listing, vectors = options.here
        measure_here(contender, json.loads(Path(listing).read_text()), Path(vectors))
        return
    paths = find_images(options.folder)[0]
    paths = [str(path) for path in paths[:: max(1, len(paths) // options.images)][: options.images]]
    contenders = [
        name for name in CONTENDERS
        if name != "embetter" or importlib.util.find_spec("embetter") is not None
    ]  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, float] = {}
    embeddings: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for name in contenders:
            figures, embeddings[name] = measure(name, paths)
            rates[name].append(figures["rate"])
            peaks[name] = figures["peak_mb"]
    print(
        f"{len(paths)} images, median of {options.rounds} rounds, {torch.get_num_threads()} threads"
    )
    for name in contenders:
        ratio = statistics.median(
            own / ours for own, ours in zip(rates["featx"], rates[name], strict=True)
        )
        agreement = least_cosine(embeddings[name], embeddings["timm, one by one"])
        print(
            f"{name:<18} {statistics.median(rates[name]):7.1f} images/s   featx is {ratio:4.1f} "
            f"times as fast   least cosine {agreement:.6f}   peak {peaks[name]:5.0f} MB"
        )


if __name__ == "__main__":
    main()
