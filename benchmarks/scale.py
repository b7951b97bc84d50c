"""Time per image and memory as the number of images grows: both should stay where they are.

    python benchmarks/scale.py PHOTOGRAPHS --images 1000 10000 100000

The images of a folder are embedded again and again, each time with other bytes behind the end of
the file: no decoder looks there, and the content is another one, so that nothing is computed for
two at once. They are made when they are taken and need no disk. There is no cache, and the
embeddings are streamed to Parquet, as a matrix of them grows by its nature.

Each number of images has a process of its own. Not timed: starting Python, importing, building the
graph, and a first batch. Memory is what is resident, sampled five times a second: when the first
1,000 images are done, and at the peak of all that follows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from featx import ImageEmbedder, export_embeddings
from featx._images.folders import find_images
from featx._progress import no_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from featx._extraction.parcels import Parcel

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "test"
FIRST_IMAGES = 1000
SECONDS_BETWEEN_SAMPLES = 0.2
WARM_UP = 32


class Copies:
    """As many encoded images as are wanted, no two with the same bytes, made when they are taken.

    Parameters
    ----------
    files : sequence of Path
        The images that are repeated.
    count : int
        How many there are.
    """

    def __init__(self, files: Sequence[Path], count: int) -> None:
        self._files = files
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> bytes:
        if row >= self._count:
            raise IndexError(row)
        return self._files[row % len(self._files)].read_bytes() + f" copy {row}".encode()


class MemoryWatch:
    """Samples the resident memory of this process: at a mark, and the most after it."""

    def __init__(self) -> None:
        self.at_mark: float | None = None
        self.peak_before = 0.0
        self.peak_after = 0.0
        self._images = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def count(self, images: int) -> None:
        """Note that so many more images are done."""
        self._images += images
        if self._images >= FIRST_IMAGES and self.at_mark is None:
            self.at_mark = resident_megabytes()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._done.wait(SECONDS_BETWEEN_SAMPLES)
            if self.at_mark is None:
                self.peak_before = max(self.peak_before, resident_megabytes())
            else:
                self.peak_after = max(self.peak_after, resident_megabytes())


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class WatchedEmbedder(ImageEmbedder):
    """An embedder that tells a watch what is done."""

    watch: MemoryWatch

    def stream(
        self, X: Any, *, advance: Callable[..., None] = no_progress, **parameters: Any
    ) -> Iterator[Parcel]:
        """Embed the images, parcel by parcel."""

        def count(images: int, found: int = 0) -> None:
            self.watch.count(images)
            advance(images, found)

        return super().stream(X, advance=count, **parameters)


def measure_here(files: list[Path], count: int, folder: Path) -> dict[str, Any]:
    """Export so many embeddings in this process."""
    embedder = ImageEmbedder(cache=None, progress=False)
    embedder.transform([files[row % len(files)].read_bytes() for row in range(WARM_UP)])
    embedder = WatchedEmbedder(cache=None, progress=False)
    with MemoryWatch() as embedder.watch:
        started = time.perf_counter()
        summary = export_embeddings(Copies(files, count), folder / "out.parquet", embedder=embedder)
        seconds = time.perf_counter() - started
    if summary.rows != count:
        raise RuntimeError(f"{summary.rows} rows of {count} images")
    watch = embedder.watch
    has_rest = count > FIRST_IMAGES
    return {
        "images": count,
        "seconds": seconds,
        "ms_per_image": seconds * 1000 / count,
        "rss_after_first_mb": watch.at_mark if watch.at_mark is not None else watch.peak_before,
        "rss_peak_of_rest_mb": watch.peak_after if has_rest else None,
    }


def measure(folder: Path, count: int, place: str | None) -> dict[str, Any]:
    """Measure in a fresh process; what it writes is removed."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        command = [sys.executable, __file__, str(folder), "--here", str(count), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def summarise(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row for each number of images, in medians over the rounds."""
    rows = []
    for place, figures in enumerate(rounds[0]):
        own = [of_round[place] for of_round in rounds]
        ratios = [
            of_round[place]["ms_per_image"] / of_round[0]["ms_per_image"] for of_round in rounds
        ]
        row = {
            "images": figures["images"],
            "ms_per_image": statistics.median(one["ms_per_image"] for one in own),
            "of_the_first": statistics.median(ratios),
            "rss_after_first_mb": statistics.median(one["rss_after_first_mb"] for one in own),
        }
        if figures["rss_peak_of_rest_mb"] is not None:
            peaks = [one["rss_peak_of_rest_mb"] for one in own]
            growth = [one["rss_peak_of_rest_mb"] / one["rss_after_first_mb"] for one in own]
            row |= {"rss_peak_of_rest_mb": max(peaks), "rss_ratio": max(growth)}
        rows.append(row)
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| images | ms per image | ratio to {rows[0]['images']:,} | MB after the first "
        f"{FIRST_IMAGES:,} | peak MB of the rest | ratio |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rest = "| | |"
        if "rss_ratio" in row:
            rest = f"| {row['rss_peak_of_rest_mb']:,.0f} | {row['rss_ratio']:.2f} |"
        lines.append(
            f"| {row['images']:,} | {row['ms_per_image']:.2f} | {row['of_the_first']:.2f} "
            f"| {row['rss_after_first_mb']:,.0f} {rest}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--place", help="where to write; 100,000 images need 0.5 GB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        count, place = options.here
        files = [Path(path) for path in find_images(options.folder)[0]]
        print(json.dumps(measure_here(files, int(count), Path(place))))
        return
    rounds = []
    for _ in range(options.rounds):
        rounds.append([])
        for count in options.images:
            figures = measure(options.folder, count, options.place)
            rounds[-1].append(figures)
            print(f"{count:,}: {figures['ms_per_image']:.2f} ms", file=sys.stderr, flush=True)
    rows = summarise(rounds)
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "table": rows}, indent=2) + "\n")
    print(
        f"efficientnet_lite0, {torch.get_num_threads()} threads, {options.rounds} rounds\n\n"
        f"{format_table(rows)}"
    )


if __name__ == "__main__":
    main()
