"""Exports that are killed at random moments; `test_export_kills.py` runs this as a process.

Every export is a forked child, so that hundreds of them need not import torch again, and the parent
does nothing but fork, kill and wait. A child computes with a real network on real images.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import parquet as pq
from small_networks import TINY

from featx import ImageEmbedder, export_embeddings, read_embeddings
from featx._parquet import files as parquet_files

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = 48


def start(action: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(action: Callable[[], None]) -> None:
    _, status = os.waitpid(start(action), 0)
    if status:
        sys.exit("a child failed")


class Trial:
    """One way to export, in a folder of its own."""

    def __init__(self, folder: Path, name: str, *, is_cached: bool) -> None:
        self.folder = folder
        self.out = folder / "out" / name
        self.whole = folder / f"whole-{name}"
        self.cache = folder / "cache" if is_cached else None
        self.images = sorted(str(path) for path in (folder / "photos").iterdir())

    def export(self, out: Path, count: int = IMAGES) -> None:
        embedder = ImageEmbedder(
            **TINY,
            image_size=32,
            runtime="torch",
            num_workers=1,
            cache=self.cache,
            on_error="nan",
            progress=False,
        )
        labels = [f"label {row}" for row in range(count)]
        export_embeddings(self.images[:count], out, embedder=embedder, labels=labels)

    def reset(self, *, has_old: bool) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)
        if has_old:
            finish(lambda: self.export(self.out, IMAGES // 3))

    def check_after_kill(self, *, has_old: bool) -> None:
        if self.out.suffix or not list(self.out.glob("*.parquet")):
            counts = {IMAGES, IMAGES // 3} if has_old else {IMAGES}
            if not self.out.is_file():
                assert not has_old, "the old file is gone"
                return
        else:  # every part that has a name is whole, and they come in their order
            counts = set(range(1, IMAGES + 1))
        found, whole = read_embeddings(self.out), read_embeddings(self.whole)
        rows = len(found.data)
        assert rows in counts, rows
        assert found.data.tobytes() == whole.data[:rows].tobytes()
        assert found.paths.tolist() == whole.paths[:rows].tolist()
        assert found.target.tolist() == whole.target[:rows].tolist()

    def check_at_the_end(self) -> None:
        assert pq.read_table(self.out).equals(pq.read_table(self.whole))
        left = [path for path in self.folder.rglob("*") if path.name.startswith(".")]
        left = [path for path in left if self.cache not in path.parents]
        assert not left, left

    def run(self, rounds: int, chance: random.Random) -> int:
        self.reset(has_old=False)
        begin = time.monotonic()
        finish(lambda: self.export(self.whole))
        seconds = time.monotonic() - begin
        killed = 0
        for number in range(rounds):
            has_old = number % 2 == 1
            self.reset(has_old=has_old)
            child = start(lambda: self.export(self.out))
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                killed += 1
            else:
                seconds *= 0.8  # the machine has become faster than when it was measured
            finish(lambda has_old=has_old: self.check_after_kill(has_old=has_old))
            finish(lambda: self.export(self.out))
            finish(self.check_at_the_end)
        return killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", choices=["out", "out.parquet"], required=True)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Many row groups and parts out of a few images.
    parquet_files._ROW_GROUP_BYTES = 1
    (arguments.folder / "photos").mkdir()
    pixels = np.random.default_rng(arguments.seed).integers(0, 256, (IMAGES, 24, 24, 3), np.uint8)
    for row, image in enumerate(pixels):
        # A format without compression, so that no library has to be imported for it.
        header = f"P6 {image.shape[1]} {image.shape[0]} 255\n".encode()
        (arguments.folder / "photos" / f"{row:03}.ppm").write_bytes(header + image.tobytes())
    trial = Trial(arguments.folder, arguments.out, is_cached=arguments.cached)
    killed = trial.run(arguments.rounds, random.Random(arguments.seed))
    print(f"{killed} of {arguments.rounds} killed")


if __name__ == "__main__":
    main()
