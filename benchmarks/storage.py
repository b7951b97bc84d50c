"""What the cache costs: beside LMDB and SQLite, beside np.load, and inside a search.

Four tables, each of interleaved rounds in fresh processes, with medians:

- ``engines``: writing 50,000 embeddings of 1280 and looking up 40,000 of them, in shuffled order.
- ``transform``: a warm `ImageEmbedder.transform` over arrays, against ``np.load`` of the same
  vectors with a gather of the rows, and digesting the same images.
- ``files``: the same over small files, against ``os.stat`` of each with ``np.load`` and a gather.
- ``search``: a `GridSearchCV` over image paths with a warm cache, against the same search over the
  precomputed matrix, for the grids that `head_search` has for logistic regression and for k nearest
  neighbours; 3,000 real images, made of the sample's.

But for ``search`` no network runs: the cache is filled with random vectors under the embedder's
fingerprint, as only the store is measured.

    pip install lmdb    # optional: left out where it is not installed
    python benchmarks/storage.py --rounds 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from sklearn.base import clone

from featx import EmbeddingCache, ImageEmbedder, load_image_folder
from featx._images.digest import digest_content
from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

DIMENSION = 1280
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "cifar10-sample" / "train"
BACKBONE = {"backbone": "efficientnet_lite0", "device": "cpu", "progress": False}


def vectors_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, DIMENSION), dtype=np.float32)


def digests_of(count: int) -> list[bytes]:
    return [digest_content(str(number).encode()) for number in range(count)]


def fill(cache: Path, fingerprint: str, digests: list[bytes], vectors: np.ndarray) -> None:
    """Store vectors in flushes of 256, as extraction does."""
    rows = {digest: row for row, digest in enumerate(digests)}
    with Session([EmbeddingCache(cache).table(fingerprint, DIMENSION)], digests) as session:
        while claim := session.claim():
            with claim:
                claim.store(0, claim.digests, vectors[[rows[digest] for digest in claim.digests]])


# --- engines -------------------------------------------------------------------------------------


def write_featx(folder: Path, digests: list[bytes], vectors: np.ndarray) -> None:
    fill(folder, "benchmark", digests, vectors)


def read_featx(folder: Path, digests: list[bytes]) -> np.ndarray:
    return EmbeddingCache(folder).table("benchmark", DIMENSION).lookup(digests)[1]


def write_lmdb(folder: Path, digests: list[bytes], vectors: np.ndarray) -> None:
    import lmdb

    with lmdb.open(str(folder), map_size=4 << 30) as environment:
        for start in range(0, len(digests), 256):
            with environment.begin(write=True) as transaction:
                for digest, vector in zip(
                    digests[start : start + 256], vectors[start : start + 256], strict=True
                ):
                    transaction.put(digest, vector.tobytes())


def read_lmdb(folder: Path, digests: list[bytes]) -> np.ndarray:
    import lmdb

    result = np.empty((len(digests), DIMENSION), np.float32)
    with (
        lmdb.open(str(folder), map_size=4 << 30, readonly=True) as environment,
        environment.begin(buffers=True) as transaction,
    ):
        for row, digest in enumerate(digests):
            result[row] = np.frombuffer(transaction.get(digest), np.float32)
    return result


def write_sqlite(folder: Path, digests: list[bytes], vectors: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    with sqlite3.connect(folder / "cache.sqlite") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE e (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        for start in range(0, len(digests), 256):
            rows = zip(digests[start : start + 256], vectors[start : start + 256], strict=True)
            connection.executemany(
                "INSERT INTO e VALUES (?, ?)", [(digest, v.tobytes()) for digest, v in rows]
            )
            connection.commit()


def read_sqlite(folder: Path, digests: list[bytes]) -> np.ndarray:
    result = np.empty((len(digests), DIMENSION), np.float32)
    with sqlite3.connect(folder / "cache.sqlite") as connection:
        for row, digest in enumerate(digests):
            query = connection.execute("SELECT vector FROM e WHERE digest = ?", (digest,))
            result[row] = np.frombuffer(query.fetchone()[0], np.float32)
    return result


def write_npy(folder: Path, digests: list[bytes], vectors: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / "vectors.npy", vectors[: len(digests)])


def read_npy(folder: Path, digests: list[bytes]) -> np.ndarray:
    # Which row is whose is given away here, so that this is the least that any look-up can cost.
    vectors = np.load(folder / "vectors.npy")
    order = np.random.default_rng(0).permutation(len(vectors))[: len(digests)]
    return vectors[order]


ENGINES: dict[str, tuple[Callable[..., None], Callable[..., np.ndarray]]] = {
    "featx": (write_featx, read_featx),
    "lmdb": (write_lmdb, read_lmdb),
    "sqlite": (write_sqlite, read_sqlite),
    "np.load": (write_npy, read_npy),
}


def engine_write(name: str, folder: Path, count: int) -> float:
    digests, vectors = digests_of(count), vectors_of(count)
    start = time.perf_counter()
    ENGINES[name][0](folder, digests, vectors)
    return time.perf_counter() - start


def engine_read(name: str, folder: Path, count: int) -> float:
    order = np.random.default_rng(0).permutation(count)[: count * 4 // 5]
    digests = digests_of(count)
    wanted = [digests[row] for row in order]
    start = time.perf_counter()
    found = ENGINES[name][1](folder, wanted)
    seconds = time.perf_counter() - start
    np.testing.assert_array_equal(found[:100], vectors_of(count)[order[:100]])
    return seconds


def compare_engines(work: Path, count: int, rounds: int) -> None:
    names = [n for n in ENGINES if n != "lmdb" or importlib.util.find_spec("lmdb")]
    figures: dict[str, list[tuple[float, float, int]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            folder = work / f"engine-{name}"
            written = in_fresh_process("engine_write", name, str(folder), count)
            size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))
            read = in_fresh_process("engine_read", name, str(folder), count)
            figures[name].append((written, read, size))
            shutil.rmtree(folder)
    print(f"\n{count:,} embeddings of {DIMENSION}, looking up {count * 4 // 5:,}, fresh processes")
    print(f"{'engine':10}{'write s':>10}{'look-up s':>12}{'MB on disk':>12}")
    for name, of_name in figures.items():
        write, read, size = (statistics.median(column) for column in zip(*of_name, strict=True))
        print(f"{name:10}{write:10.2f}{read:12.3f}{size / 1e6:12.0f}")


# --- transform -----------------------------------------------------------------------------------


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def prepare_transform(cache: Path, count: int, kind: str) -> None:
    images, vectors = images_of(count), vectors_of(count)
    contents: list[Any] = list(images)
    if kind == "files":
        contents = [image.tobytes() for image in images]
        (cache / "files").mkdir(parents=True)
        for number, content in enumerate(contents):
            (cache / "files" / f"{number:06}.jpg").write_bytes(content)
    embedder = ImageEmbedder(**BACKBONE, cache=cache).fit(images[:1])
    fill(
        cache,
        embedder.get_provenance()["fingerprint"],
        [digest_content(content) for content in contents],
        vectors,
    )
    np.save(cache / "vectors.npy", vectors)
    if kind == "files":
        time.sleep(3)  # younger files are not trusted to be unchanged
        embedder.transform(file_paths(cache))


def file_paths(cache: Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(cache / "files"))


def timed_transform(cache: Path, count: int, kind: str) -> float:
    images: Any = file_paths(cache) if kind == "files" else images_of(count)
    embedder = ImageEmbedder(**BACKBONE, cache=cache).fit(images[:1])
    start = time.perf_counter()
    embeddings = embedder.transform(images)
    seconds = time.perf_counter() - start
    np.testing.assert_array_equal(embeddings[:100], vectors_of(100))
    return seconds


def timed_load(cache: Path, count: int, kind: str) -> float:
    images: Any = file_paths(cache) if kind == "files" else images_of(count)
    order = np.random.default_rng(0).permutation(count)
    start = time.perf_counter()
    vectors = np.load(cache / "vectors.npy")[order]
    if kind == "files":
        statuses = [os.stat(path) for path in images]  # noqa: PTH116 - the bare call is the measure
        assert len(statuses) == len(vectors)
    else:
        digests = [digest_content(image) for image in images]
        assert len(digests) == len(vectors)
    return time.perf_counter() - start


def compare_transform(work: Path, count: int, rounds: int, kind: str) -> None:
    cache = work / kind
    in_fresh_process("prepare_transform", str(cache), count, kind)
    warm, bare = [], []
    for _ in range(rounds):
        warm.append(in_fresh_process("timed_transform", str(cache), count, kind))
        bare.append(in_fresh_process("timed_load", str(cache), count, kind))
    beside = "os.stat" if kind == "files" else "digesting"
    print(f"\nWarm transform of {count:,} {kind} x {DIMENSION}, fresh processes")
    print(f"featx {statistics.median(warm):.3f} s; np.load + gather + {beside} "
          f"{statistics.median(bare):.3f} s; "
          f"ratio {statistics.median(warm) / statistics.median(bare):.2f}")  # fmt: skip
    shutil.rmtree(cache)


# --- search --------------------------------------------------------------------------------------


def timed_search(cache: Path, head: str, over: str) -> dict[str, float]:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits

    from featx._selection.heads import choose_heads

    (chosen,) = choose_heads([head], 0)
    photos = load_image_folder(cache / "images")
    embedder = ImageEmbedder(**BACKBONE, cache=cache).fit(photos.paths[:1])
    steps = [clone(chosen.scaler), clone(chosen.classifier)]
    X: Any = embedder.transform(photos.paths)
    if over == "paths":
        X = photos.paths
        steps.insert(0, embedder)
    step = type(chosen.classifier).__name__.lower()
    grid = {f"{step}__{name}": values for name, values in chosen.grid.items()}
    search = GridSearchCV(make_pipeline(*steps), grid, cv=5, error_score="raise")
    with threadpool_limits(1, user_api="blas"):
        start = time.perf_counter()
        search.fit(X, photos.target)
        seconds = time.perf_counter() - start
    fits = 5 * len(search.cv_results_["params"]) + 1
    return {"seconds": seconds, "fits": fits, "score": float(search.best_score_)}


def prepare_search(cache: Path, count: int) -> None:
    """Make images of the sample's pictures: themselves, mirrored and brighter; and embed them."""
    sample = load_image_folder(SAMPLE)
    made = 0
    for change in (lambda image: image, ImageOps.mirror, lambda i: i.point(lambda v: v * 1.1)):
        for path, label in zip(sample.paths, sample.target, strict=True):
            if made < count:
                folder = cache / "images" / label
                folder.mkdir(parents=True, exist_ok=True)
                with Image.open(path) as image:
                    change(image.convert("RGB")).save(folder / f"{made:05}.png")
                made += 1
    embedder = ImageEmbedder(**BACKBONE, cache=cache)
    photos = load_image_folder(cache / "images")
    embedder.transform(photos.paths)
    time.sleep(3)  # younger files are not trusted to be unchanged
    embedder.transform(photos.paths)


def compare_search(work: Path, count: int, rounds: int) -> None:
    cache = work / "search"
    in_fresh_process("prepare_search", str(cache), count)
    print(f"\nGridSearchCV over {count:,} images, 5 folds, warm cache")
    for head in ("logistic_regression", "k_nearest_neighbors"):
        seconds: dict[str, list[float]] = {"paths": [], "matrix": []}
        scores: dict[str, float] = {}
        for _ in range(rounds):
            for over, of_kind in seconds.items():
                figures = in_fresh_process("timed_search", str(cache), head, over)
                of_kind.append(figures["seconds"])
                scores[over] = figures["score"]
        assert scores["paths"] == scores["matrix"], scores
        paths, matrix = (statistics.median(seconds[over]) for over in ("paths", "matrix"))
        fits = int(figures["fits"])
        print(f"{head:20} {fits} fits, paths {paths:.2f} s, matrix {matrix:.2f} s, "
              f"ratio {paths / matrix:.3f}, "
              f"{1000 * (paths - matrix) / fits:.1f} ms a fold more")  # fmt: skip
    shutil.rmtree(cache)


# -------------------------------------------------------------------------------------------------


def in_fresh_process(function: str, *arguments: Any) -> Any:
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import storage;"
        "given = json.loads(sys.argv[3]);"
        "given = [Path(a) if isinstance(a, str) and a.startswith('/') else a for a in given];"
        "print(json.dumps(getattr(storage, sys.argv[2])(*given)))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), function]
    done = subprocess.run(
        [*command, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=["engines", "transform", "files", "search"])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=3_000, help="of the search")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if "engines" in options.tables:
            compare_engines(work, options.rows, options.rounds)
        if "transform" in options.tables:
            compare_transform(work, options.rows, options.rounds, "arrays")
        if "files" in options.tables:
            compare_transform(work, options.rows, options.rounds, "files")
        if "search" in options.tables:
            compare_search(work, options.images, options.rounds)


if __name__ == "__main__":
    main()
