"""The rows that an output holds already: which images they are of, and what they say of them."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from featx._images.digest import DIGEST_BYTES
from featx._parquet.files import EmbeddingFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

# Fixed-size bytes that numpy can sort and search; trailing zeros never matter at equal lengths.
_HASH = np.dtype(f"S{DIGEST_BYTES}")


@dataclass(frozen=True)
class _Reserved:
    """What was found for the rows of a parcel before anything of it was computed."""

    start: int
    is_there: NDArray[np.bool_]
    images: NDArray[Any]
    contents: NDArray[Any]


class StoredRows:
    """The rows of an output, at 64 bytes a row and in no other memory.

    A row is of an image, by its path or else by its digest, and has a content: path, digest, label,
    further columns and error. Rows are asked for in their order, from two threads.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        images, contents = [np.empty(0, _HASH)], [np.empty(0, _HASH)]
        for path in paths:
            with EmbeddingFile(path) as file:
                for group in range(len(file.group_rows)):
                    of_image, of_content = hash_rows(file.read_columns(group))
                    images.append(of_image)
                    contents.append(of_content)
        self._images, self._image_of_row = np.unique(np.concatenate(images), return_inverse=True)
        self._contents, self._content_of_row, self._left = np.unique(
            np.concatenate(contents), return_inverse=True, return_counts=True
        )
        self._is_asked = np.zeros(len(self._images), np.bool_)
        self._is_requested = np.zeros(len(self._contents), np.bool_)
        self._written: list[NDArray[np.intp]] = []
        self._reserved: deque[_Reserved] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._image_of_row)

    def reserve(self, start: int, table: pa.Table) -> NDArray[np.bool_]:
        """Find out which rows are there, so that nothing is computed for them.

        Each stored row answers for one that is asked for. A stream may ask anew from some row on;
        what was reserved from there on is free again.
        """
        images, contents = hash_rows(table)
        with self._lock:
            while self._reserved and self._reserved[-1].start >= start:
                last = self._reserved.pop()
                np.add.at(self._left, _find(self._contents, last.contents[last.is_there]), 1)
            is_there = self._use(contents)
            self._reserved.append(_Reserved(start, is_there, images, contents))
        return is_there

    def settle(self, start: int, table: pa.Table) -> NDArray[np.bool_]:
        """Find out which rows are there, now that all is known; the others are written."""
        is_there = np.zeros(table.num_rows, np.bool_)
        if not len(self):
            return is_there
        with self._lock:
            if self._reserved and self._reserved[0].start == start:
                reserved = self._reserved.popleft()
                is_there |= reserved.is_there
                self._note(reserved.images[is_there], reserved.contents[is_there])
            rest = np.flatnonzero(~is_there)
            images, contents = hash_rows(table.take(pa.array(rest)))
            self._note(images, contents)
            is_there[rest] = self._use(contents)
            places = _find(self._images, images[~is_there[rest]])
            self._written.append(places[places >= 0])
        return is_there

    def outdated(self) -> NDArray[np.bool_]:
        """Return which stored rows are of requested images but have no requested content."""
        is_asked: NDArray[np.bool_] = self._is_asked[self._image_of_row]
        return is_asked & ~self._is_requested[self._content_of_row]

    def count_replacements(self) -> int:
        """Return how many written rows are of images with outdated rows."""
        is_outdated = np.zeros(len(self._images), np.bool_)
        is_outdated[self._image_of_row[self.outdated()]] = True
        return sum(int(is_outdated[places].sum()) for places in self._written)

    def _use(self, contents: NDArray[Any]) -> NDArray[np.bool_]:
        is_there = np.zeros(len(contents), np.bool_)
        places = _find(self._contents, contents)
        for row in np.flatnonzero(places >= 0):
            is_there[row] = self._left[places[row]] > 0
            self._left[places[row]] -= is_there[row]
        return is_there

    def _note(self, images: NDArray[Any], contents: NDArray[Any]) -> None:
        places = _find(self._images, images)
        self._is_asked[places[places >= 0]] = True
        places = _find(self._contents, contents)
        self._is_requested[places[places >= 0]] = True


def _find(known: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.intp]:
    """Return the place of each among sorted known ones, or -1."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def hash_rows(table: pa.Table) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return for each row a hash of what image it is of, and one of its content.

    However a path is spelt, from the working folder or from the root, it is of the same file.
    """
    values = {name: table.column(name).to_pylist() for name in sorted(table.column_names)}
    nothing = [None] * table.num_rows
    values["path"] = [
        None if path is None else os.path.abspath(path)  # noqa: PTH100 - Path keeps ".."
        for path in values.get("path", nothing)
    ]
    images = (
        repr(digest if path is None else path)
        for path, digest in zip(values["path"], values.get("digest", nothing), strict=True)
    )
    contents = map(repr, zip(*(values[name] for name in sorted(values)), strict=True))
    return _hash(images), _hash(contents)


def _hash(texts: Iterable[str]) -> NDArray[Any]:
    hashes = (xxhash.xxh3_128_digest(text.encode()) for text in texts)
    return np.frombuffer(b"".join(hashes), _HASH)
