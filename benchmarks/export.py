"""Writing speed and memory of an export, beside the bare Parquet writer.

python benchmarks/export.py --rows 1000000

A stub stands in for the network and for decoding: what is measured is all that `export_embeddings`
does beside them. Each measurement runs in a process of its own; the rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import parquet as pq

from featx import ImageEmbedder, export_embeddings
from featx._extraction.contents import PARCEL_IMAGES
from featx._extraction.parcels import Parcel
from featx._parquet.columns import embedding_type
from featx._parquet.files import as_metadata, rows_of_a_group, writer_options

if TYPE_CHECKING:
    from collections.abc import Iterator

DIMENSION = 1280
WAYS = ("bare", "bare + fsync", "file", "dataset")
PROVENANCE = {"backbone": "stub", "recipe": "0" * 32}


class StubEmbedder(ImageEmbedder):
    """Returns the same random vectors for every parcel."""

    vectors = np.random.default_rng(0).standard_normal((2**12, DIMENSION), np.float32)

    def stream(
        self,
        X: Any,
        *,
        skip: Any = None,
        advance: Any = None,
        use_cache: bool = True,
    ) -> Iterator[Parcel]:
        """Yield parcels whose vectors and digests cost nearly nothing."""
        for start in range(0, len(X), PARCEL_IMAGES):
            paths = [X[row] for row in range(start, min(start + PARCEL_IMAGES, len(X)))]
            digests: list[bytes | None] = [
                xxhash.xxh3_128_digest(path) for path in map(str.encode, paths)
            ]
            yield Parcel(start, paths, digests, self.vectors[: len(paths)], ())

    def get_provenance(self) -> dict[str, Any]:
        """Return what an export needs to know."""
        return PROVENANCE

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return as many names as there are columns."""
        return np.empty(DIMENSION, object)


class Paths:
    """As many paths as are wanted, made when they are taken, as the memory of a list would grow."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> str:
        if row >= self.count:
            raise IndexError(row)
        return f"/data/photographs/{row // 1000:05}/{row:08}.jpg"


class Labels(Paths):
    """A label for each."""

    def __getitem__(self, row: int) -> str:
        return f"class {row % 100}"


def write_bare(file: Path, rows: int, *, is_synced: bool) -> None:
    """Write the same columns in the same row groups with the same options, and nothing else."""
    schema = pa.schema(
        {
            "path": pa.string(),
            "label": pa.string(),
            "embedding": embedding_type(DIMENSION),
            "digest": pa.binary(16),
            "error": pa.string(),
        },
        metadata=as_metadata(PROVENANCE),
    )
    group_rows = rows_of_a_group(schema)
    paths, labels = Paths(rows), Labels(rows)
    with (
        file.open("wb") as output,
        pq.ParquetWriter(output, schema, **writer_options(schema)) as writer,
    ):
        for start in range(0, rows, group_rows):
            numbers = range(start, min(start + group_rows, rows))
            texts = [paths[row] for row in numbers]
            vectors = StubEmbedder.vectors[: len(numbers)]
            columns = [
                pa.array(texts),
                pa.array([labels[row] for row in numbers]),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors.reshape(-1)), type=schema.field("embedding").type
                ),
                pa.array([xxhash.xxh3_128_digest(text.encode()) for text in texts], pa.binary(16)),
                pa.nulls(len(numbers), pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema), group_rows)
        writer.close()
        if is_synced:
            output.flush()
            os.fsync(output.fileno())


def measure(way: str, rows: int, folder: Path) -> dict[str, float]:
    """Write once, here, and return seconds and the peak of this process's memory."""
    begin = time.perf_counter()
    if way.startswith("bare"):
        write_bare(folder / "out.parquet", rows, is_synced="fsync" in way)
    else:
        out = folder / ("out.parquet" if way == "file" else "out")
        embedder = StubEmbedder(progress=False)
        export_embeddings(Paths(rows), out, embedder=embedder, labels=Labels(rows))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KB on Linux
    return {"seconds": seconds, "peak_mb": peak}


def measure_apart(way: str, rows: int, folder: str | None) -> dict[str, float]:
    """Measure in a fresh process, in a folder that is removed."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [sys.executable, __file__, "--rows", str(rows), "--way", way, "--folder", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write; 5.2 GB are needed for 1,000,000 rows")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.rows, Path(arguments.folder))))
        return
    rounds = [
        {way: measure_apart(way, arguments.rows, arguments.folder) for way in WAYS}
        for _ in range(arguments.rounds)
    ]
    seconds = {
        way: statistics.median(figures[way]["seconds"] for figures in rounds) for way in WAYS
    }
    print(f"{arguments.rows:,} rows of {DIMENSION}, median of {arguments.rounds} rounds")
    print(f"{'way':<14}{'seconds':>9}{'rows/s':>12}{'of bare':>9}{'of bare + fsync':>17}")
    for way in WAYS:
        speed = [seconds[other] / seconds[way] for other in ("bare", "bare + fsync")]
        print(
            f"{way:<14}{seconds[way]:>9.2f}{arguments.rows / seconds[way]:>12,.0f}"
            f"{speed[0]:>9.2f}{speed[1]:>17.2f}"
        )
    few = arguments.rows // 10
    for way in ("file", "dataset"):
        low = measure_apart(way, few, arguments.folder)["peak_mb"]
        high = statistics.median(figures[way]["peak_mb"] for figures in rounds)
        print(
            f"peak memory of a {way}: {low:.0f} MB at {few:,} rows, {high:.0f} MB at "
            f"{arguments.rows:,}: {high / low:.3f} times"
        )


if __name__ == "__main__":
    main()
