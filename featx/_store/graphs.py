"""Graphs: exported networks, kept so that the export is paid once a machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from featx._files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".graph"

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class GraphStore:
    """A folder of serialised graphs, each with a checksum of its bytes.

    A folder that cannot be read or written is no error, and a damaged file counts as absent: the
    graph is exported anew. The folder is made when the first one is kept.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     graphs = GraphStore(pathlib.Path(name, "graphs"))
    ...     graphs.keep("0a" * 16, b"a graph")
    ...     graphs.find("0a" * 16), graphs.find("0b" * 16)
    (b'a graph', None)
    """

    folder: Path

    def holds(self, key: str) -> bool:
        """Return whether there is a graph of a key; it is not read."""
        return self._path(key).exists()

    def find(self, key: str) -> bytes | None:
        """Return the graph of a key, which names all that can change it, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, graph = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if xxhash.xxh3_128_digest(graph) != digest:
            return None
        with contextlib.suppress(OSError):  # a folder that is only read keeps its times
            os.utime(path)
        return graph

    def keep(self, key: str, graph: bytes) -> None:
        """Keep the graph of a key; the limit of the cache counts it, and may drop it."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with write_atomically(self._path(key)) as file:
                file.write(xxhash.xxh3_128_digest(graph))
                file.write(graph)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"
