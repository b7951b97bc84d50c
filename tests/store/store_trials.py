"""What several tests of the cache do: a stand-in for a network, processes that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx._store.cache import EmbeddingCache, EmbeddingTable
from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSION = 64


def digests_of(numbers: Sequence[int]) -> list[bytes]:
    return [number.to_bytes(16, "little") for number in numbers]


def vectors_of(digests: Sequence[bytes], dimension: int = DIMENSION) -> np.ndarray:
    numbers = np.array([int.from_bytes(digest, "little") for digest in digests])
    return (np.outer(numbers, np.arange(1, dimension + 1)) % 9973).astype(np.float32)


def open_table(folder: str | os.PathLike[str], dimension: int = DIMENSION) -> EmbeddingTable:
    return EmbeddingCache(folder).table("a1b2", dimension)


def run(
    table: EmbeddingTable, digests: list[bytes], limit: int = 16, seconds_per_image: float = 0.0
) -> list[bytes]:
    """Embed as an embedder does, check each vector, and return what was computed here."""
    embeddings: dict[bytes, np.ndarray] = {}
    computed: list[bytes] = []
    with Session([table], digests) as session:
        while True:
            for _, served, vectors in session.collect():
                embeddings.update(zip(served, vectors, strict=True))
            if not session.remaining:
                break
            while claim := session.claim(limit):
                with claim:
                    time.sleep(seconds_per_image * len(claim.digests))
                    vectors = vectors_of(claim.digests, table.dimension)
                    claim.store(0, claim.digests, vectors)
                embeddings.update(zip(claim.digests, vectors, strict=True))
                computed.extend(claim.digests)
            session.wait()
    right = vectors_of(digests, table.dimension)
    assert np.array_equal(np.array([embeddings[digest] for digest in digests]), right)
    return computed


class Scripts:
    """Starts processes that have this module's names, a table and digests; ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *lines: str) -> subprocess.Popen[str]:
        head = (
            "import os, sys, time, signal, threading, warnings",
            "warnings.simplefilter('error')",
            f"sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})",
            "from store_trials import *",
            f"table = open_table({os.fspath(self.folder)!r})",
            "digests = digests_of(range(40))",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join([*head, *lines])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.started.append(process)
        return process


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    return process.wait(timeout=60)


def assert_clean(table: EmbeddingTable, digests: list[bytes]) -> None:
    """All is stored, and when something is next claimed no void claim or temporary file is left."""
    assert len(run(table, digests_of([10**6]))) == 1
    found, vectors = table.lookup(digests)
    assert found.all()
    assert np.array_equal(vectors, vectors_of(digests, table.dimension))
    left = {path.suffix for path in table.folder.iterdir() if path.is_file()}
    assert left == {".arrow"}
    assert [path.name for path in (table.folder / "claims").iterdir()] == ["lock"]
