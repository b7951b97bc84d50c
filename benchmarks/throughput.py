"""Images per second, agreement with the reference and peak memory: featx beside what people use.

    pip install embetter img2vec_pytorch transformers sentence-transformers    # optional
    python benchmarks/throughput.py PHOTOGRAPHS --images 1000 --rounds 3
    python benchmarks/throughput.py PHOTOGRAPHS --backbone resnet50 --caffe-resnet50 FILE \
        --precision bfloat16 --json resnet50.json
    python benchmarks/throughput.py PHOTOGRAPHS --device cuda --precision bfloat16

Each contender embeds the same files with the same weights in a process of its own, so that nothing
one of them leaves behind helps or hurts another. Rounds are interleaved, every second one in the
opposite order, and medians are reported, because machines are noisy; a ratio is the median of those
within a round. Not timed, for all alike: starting Python, importing, loading weights, building a
graph, and a first batch. Timed: reading, decoding, resizing and the network.

The bare network and the bare decoding are what no program of these parts can exceed. Peak memory is
that of a process with its children, from its start to its end, in proportional shares; a bare
network's holds the images that were made ready for it. It is read from /proc: this runs on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ceilings import (
    batch_size_of,
    build_bare_decoding,
    build_bare_network,
    build_bare_network_in_threads,
    decode,
)
from peers import PEERS, LeftOut, Setting, count_loader_workers

from featx import ImageEmbedder
from featx._errors import InputError
from featx._images.folders import find_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Embed

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "test"
LIBRARIES = ("featx", "torch", "torchvision", "timm", "onnxruntime", "pillow", "numpy")
OPTIONAL = ("embetter", "img2vec_pytorch", "transformers", "sentence-transformers")
REFERENCE = "loop"
SECONDS_BETWEEN_SAMPLES = 0.5


# What is measured: featx.


def build_embedder(setting: Setting, runtime: str, precision: str | None) -> ImageEmbedder:
    """Return an embedder, unless this is refused or another runtime would take its place."""
    chosen: dict[str, Any] = {"runtime": runtime, "device": setting.device}
    if (precision or setting.precision) != "float32":
        chosen["precision"] = precision or setting.precision
    try:
        embedder = ImageEmbedder(setting.backbone, cache=None, progress=False, **chosen)
        embedder.fit([np.zeros((8, 8, 3), np.uint8)])
    except (TypeError, InputError) as error:
        raise LeftOut(str(error)) from error
    if runtime != "auto" and not embedder.execution_.startswith(runtime):
        raise LeftOut(f"it would be computed by {embedder.execution_}")
    return embedder


def build_featx(
    setting: Setting, _paths: list[str], *, runtime: str = "auto", precision: str | None = None
) -> Embed:
    return build_embedder(setting, runtime, precision).transform


def build_featx_on_arrays(setting: Setting, paths: list[str]) -> Embed:
    """Run featx on arrays that wait decoded and resized, so that only the crop is left to do."""
    recipe = setting.backbone.preprocessing
    resized = replace(recipe, image_size=recipe.resize)
    ready = {
        path: pixels[0].permute(1, 2, 0).contiguous().numpy()
        for path, pixels in zip(paths, decode(paths, resized), strict=True)
    }
    embedder = build_embedder(setting, "auto", None)
    return lambda paths: embedder.transform([ready[path] for path in paths])


def without_paths(build: Callable[[Setting], Embed]) -> Callable[[Setting, list[str]], Embed]:
    return lambda setting, _paths: build(setting)


CONTENDERS: dict[str, tuple[str, Callable[[Setting, list[str]], Embed]]] = {
    "featx": ("**featx**", build_featx),
    "featx-torch": ('featx, runtime="torch"', partial(build_featx, runtime="torch")),
    "featx-compile": ('featx, runtime="compile"', partial(build_featx, runtime="compile")),
    "featx-float32": ("featx in float32", partial(build_featx, precision="float32")),
    **{key: (label, without_paths(build)) for key, (label, build) in PEERS.items()},
    "featx-arrays": ("featx, from ready arrays", build_featx_on_arrays),
    "network": ("bare network", build_bare_network),
    "network-threads": ("bare network, one image a thread", build_bare_network_in_threads),
    "decoding": ("bare decoding", build_bare_decoding),
}


def choose_contenders(only: str | None, setting: Setting) -> list[str]:
    """Return what is run: what is named, or what says something in this setting."""
    if only:
        chosen = [key.strip() for key in only.split(",")]
        unknown = [key for key in chosen if key not in CONTENDERS]
        if unknown:
            sys.exit(f"Got --only {', '.join(unknown)}, expected some of {', '.join(CONTENDERS)}")
        return chosen
    is_cuda, is_half = setting.device == "cuda", setting.precision == "bfloat16"
    is_wanted = {
        "featx-compile": is_cuda or is_half,
        "featx-float32": is_half,
        "featx-arrays": is_cuda,
        "embetter": not is_cuda,
        "embetter-eval": not is_cuda,
        "network-threads": not is_cuda and not is_half,
    }
    return [key for key in CONTENDERS if is_wanted.get(key, True)]


# How it is measured.


def measure_here(key: str, setting: Setting, paths: list[str], vectors: Path) -> dict[str, Any]:
    """Time one contender in this process; its vectors go to a file."""
    try:
        embed = CONTENDERS[key][1](setting, paths)
        embed(paths[: batch_size_of(setting)])
    except LeftOut as reason:
        return {"left_out": str(reason)}
    started = time.perf_counter()
    embeddings = embed(paths)
    seconds = time.perf_counter() - started
    if embeddings is not None:
        np.save(vectors, embeddings)
    figures: dict[str, Any] = {
        "images_per_s": len(paths) / seconds,
        "seconds": seconds,
        "peak_mb": own_peak(),
    }
    # A method of an embedder, which has chosen.
    if isinstance(getattr(embed, "__self__", None), ImageEmbedder):
        figures["execution"] = embed.__self__.execution_
    if setting.device == "cuda":
        figures["gpu_peak_mb"] = torch.cuda.max_memory_reserved() / 2**20
    return figures


def own_peak() -> float:
    """Return the peak of this process in MB; that of getrusage may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(
    key: str, arguments: list[str], paths: list[str]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Run one contender in a fresh process and watch its memory."""
    with tempfile.TemporaryDirectory() as folder:
        listing, vectors = Path(folder) / "paths.json", Path(folder) / "vectors.npy"
        output, errors = Path(folder) / "output.txt", Path(folder) / "errors.txt"
        listing.write_text(json.dumps(paths))
        command = [sys.executable, __file__, *arguments, "--here", key, str(listing), str(vectors)]
        with output.open("w") as stdout, errors.open("w") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
            peak = watch_memory(process)
        if process.returncode:
            tail = errors.read_text().strip().splitlines()[-1:] or ["nothing said"]
            return {"left_out": f"it failed: {tail[0]}"}, None
        figures: dict[str, Any] = json.loads(output.read_text().splitlines()[-1])
        if "peak_mb" in figures:
            figures["peak_mb"] = max(figures["peak_mb"], peak)
        return figures, np.load(vectors) if vectors.exists() else None


def watch_memory(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process and return the most that it and its children held together, in MB."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_share, family(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_BETWEEN_SAMPLES)
    return peak


def family(process: int) -> list[int]:
    """Return a process and all that it has started, as far as they live."""
    members = [process]
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            for child in file.read_text().split():
                members += family(int(child))
    return members


def proportional_share(process: int) -> float:
    """Return the memory of a process in MB, of shared pages its share; 0 where it has ended."""
    with contextlib.suppress(OSError, IndexError):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        return int(rollup.split("\nPss:")[1].split()[0]) / 1024
    return 0.0


def least_cosine(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    if first is None or second is None:
        return None
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / norms).min())


def run_round(
    keys: list[str], arguments: list[str], paths: list[str], left_out: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Measure each contender once; who cannot run is added to those left out."""
    figures: dict[str, dict[str, Any]] = {}
    embeddings: dict[str, np.ndarray | None] = {}
    for key in keys:
        if key in left_out:
            continue
        one, embeddings[key] = measure(key, arguments, paths)
        if "left_out" in one:
            left_out[key] = one["left_out"]
            print(f"Left out {key}: {left_out[key]}", file=sys.stderr, flush=True)
            continue
        figures[key] = one
        print(f"{key} {one['images_per_s']:.1f} images/s", file=sys.stderr, flush=True)
    for key, one in figures.items():
        one["least_cosine"] = least_cosine(embeddings[key], embeddings.get(REFERENCE))
    return figures


# How it is reported.


def describe_machine(setting: Setting) -> dict[str, Any]:
    cpus = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    machine = {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "loader_workers": count_loader_workers(setting),
        "python": platform.python_version(),
    }
    if setting.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def find_versions() -> dict[str, str]:
    versions = {}
    for package in (*LIBRARIES, *OPTIONAL):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def summarise(rounds: list[dict[str, dict[str, Any]]], setting: Setting) -> list[dict[str, Any]]:
    """Return a row of the table for each contender, in medians over the rounds."""
    library = "torchvision" if setting.is_caffe else "timm"
    table = []
    for key, (label, _) in CONTENDERS.items():
        own = [figures[key] for figures in rounds if key in figures]
        if not own:
            continue
        ratios = [
            figures["featx"]["images_per_s"] / figures[key]["images_per_s"]
            for figures in rounds
            if key in figures and "featx" in figures
        ]
        cosines = [one["least_cosine"] for one in own if one["least_cosine"] is not None]
        row = {
            "key": key,
            "name": label.format(library=library),
            "images_per_s": statistics.median(one["images_per_s"] for one in own),
            "featx_is_times_as_fast": statistics.median(ratios) if ratios else None,
            "least_cosine": min(cosines) if cosines else None,
            "peak_mb": max(one["peak_mb"] for one in own),
        }
        if "gpu_peak_mb" in own[0]:
            row["gpu_peak_mb"] = max(one["gpu_peak_mb"] for one in own)
        table.append(row)
    return table


def format_table(table: list[dict[str, Any]]) -> str:
    columns = [
        ("way", "---", "name", "{}"),
        ("images/s", "---:", "images_per_s", "{:,.1f}"),
        ("featx is … times as fast", "---:", "featx_is_times_as_fast", "{:.2f}"),
        ("least cosine", "---:", "least_cosine", "{:.6f}"),
        ("peak MB", "---:", "peak_mb", "{:,.0f}"),
        ("peak MB of the GPU", "---:", "gpu_peak_mb", "{:,.0f}"),
    ]
    columns = [column for column in columns if any(column[2] in row for row in table)]
    lines = [[column[0] for column in columns], [column[1] for column in columns]]
    for row in table:
        values = [(row.get(field), form) for _, _, field, form in columns]
        lines.append(["" if value is None else form.format(value) for value, form in values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--backbone", choices=("efficientnet_lite0", "resnet50"), default="efficientnet_lite0"
    )
    parser.add_argument(
        "--caffe-resnet50", type=Path, metavar="FILE", help="its .safetensors; else random weights"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join(CONTENDERS)}")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    setting = Setting(options.backbone, options.caffe_resnet50, options.precision, options.device)
    if options.here:
        key, listing, vectors = options.here
        paths = json.loads(Path(listing).read_text())
        print(json.dumps(measure_here(key, setting, paths, Path(vectors))))
        return
    found = find_images(options.folder)[0]
    step = max(1, len(found) // options.images)
    paths = [str(path) for path in itertools.islice(found[::step], options.images)]
    for path in paths:
        Path(path).read_bytes()  # so that the first contender does not wait for the disk
    keys = choose_contenders(options.only, setting)
    arguments = [
        *("--backbone", setting.name),
        *("--precision", setting.precision),
        *("--device", setting.device),
    ]
    if setting.caffe_weights is not None:
        arguments += ["--caffe-resnet50", str(setting.caffe_weights)]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(setting),
        "versions": find_versions(),
        "backbone": setting.backbone.name,
        "weights": setting.backbone.weights,
        "precision": setting.precision,
        "device": setting.device,
        "images": len(paths),
        "left_out": {},
        "rounds": [],
        "table": [],
    }
    for number in range(options.rounds):
        order = keys if number % 2 == 0 else keys[::-1]
        report["rounds"].append(run_round(order, arguments, paths, report["left_out"]))
        report["table"] = summarise(report["rounds"], setting)
        if options.json:  # after each round, in case a later one is cut short
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    machine = report["machine"]
    where = machine["gpu"] if setting.device == "cuda" else machine["cpu"]
    print(
        f"{report['backbone']} in {setting.precision}, {len(paths)} images, median of "
        f"{options.rounds} rounds, {machine['threads']} threads, {where}, {report['date']}\n\n"
        f"{format_table(report['table'])}"
    )
    for key, reason in report["left_out"].items():
        print(f"\nLeft out: {key}: {reason}")


if __name__ == "__main__":
    main()
