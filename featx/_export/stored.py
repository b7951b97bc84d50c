"""What an output holds already: which rows are there, and the vectors of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from featx._images.digest import DIGEST_BYTES
from featx._parquet.files import EmbeddingFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

# Fixed-size bytes that numpy can sort and search; trailing zeros never matter at equal lengths.
_HASH = np.dtype(f"S{DIGEST_BYTES}")
# Row groups of an old file that are kept at hand while a new one takes vectors from it.
_GROUPS_AT_HAND = 16


class StoredRows:
    """The rows of an output, at 64 bytes a row and in no other memory.

    A row is of an image, by its path or else by its digest, and has a content: path, digest,
    label, further columns and error.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        All columns but the embeddings, piece by piece.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        pairs = [hash_rows(table) for table in tables]
        empty = np.empty(0, _HASH)
        images = np.concatenate([empty, *(images for images, _ in pairs)])
        contents = np.concatenate([empty, *(contents for _, contents in pairs)])
        self._images, self._image_of_row = np.unique(images, return_inverse=True)
        self._contents, self._content_of_row, self._left = np.unique(
            contents, return_inverse=True, return_counts=True
        )
        self._is_asked = np.zeros(len(self._images), np.bool_)
        self._is_requested = np.zeros(len(self._contents), np.bool_)
        self._written: list[NDArray[np.intp]] = []

    def __len__(self) -> int:
        return len(self._image_of_row)

    def match(self, table: pa.Table) -> NDArray[np.bool_]:
        """Find out which requested rows are there; each stored row answers for one of them.

        Parameters
        ----------
        table : pyarrow.Table
            All columns but the embeddings.

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        is_there = np.zeros(table.num_rows, np.bool_)
        if not len(self):
            return is_there
        images, contents = hash_rows(table)
        places = _find(self._images, images)
        self._is_asked[places[places >= 0]] = True
        places = _find(self._contents, contents)
        for row in np.flatnonzero(places >= 0):
            place = places[row]
            self._is_requested[place] = True
            is_there[row] = self._left[place] > 0
            self._left[place] -= is_there[row]
        return is_there

    def match_and_note(self, table: pa.Table) -> NDArray[np.bool_]:
        """Match rows, and take note that those which are not there are written now."""
        is_there = self.match(table)
        if len(self) and not is_there.all():
            images, _ = hash_rows(table)
            places = _find(self._images, images[~is_there])
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


def _find(known: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.intp]:
    """Return the place of each among sorted known ones, or -1."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def hash_rows(table: pa.Table) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return for each row a hash of what image it is of, and one of its content.

    Parameters
    ----------
    table : pyarrow.Table
        All columns but the embeddings, in any order.

    Returns
    -------
    images, contents : ndarray of 16-byte strings, shape (n,)
    """
    names = sorted(table.column_names)
    values = {name: table.column(name).to_pylist() for name in names}
    nothing = [None] * table.num_rows
    images = (
        xxhash.xxh3_128_digest(repr(digest if path is None else path).encode())
        for path, digest in zip(
            values.get("path", nothing), values.get("digest", nothing), strict=True
        )
    )
    contents = (
        xxhash.xxh3_128_digest(repr(row).encode())
        for row in zip(*(values[n] for n in names), strict=True)
    )
    return _as_hashes(images), _as_hashes(contents)


def _as_hashes(digests: Iterable[bytes]) -> NDArray[Any]:
    return np.frombuffer(b"".join(digests), _HASH)


def tables_beside(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Yield all columns but the embeddings of some files, row group by row group."""
    for path in paths:
        with EmbeddingFile(path) as file:
            for group in range(len(file.group_rows)):
                yield file.columns_beside(group)


class StoredVectors:
    """The vectors of a file, by the digest of their image.

    They are fast to have in about the order of the file; in any other, row groups are read again
    and again.

    Parameters
    ----------
    file : EmbeddingFile
        Open for as long as this is used.
    """

    def __init__(self, file: EmbeddingFile) -> None:
        self._file = file
        self._starts = np.concatenate([[0], np.cumsum(file.group_rows)]).astype(np.intp)
        self._at_hand: dict[int, NDArray[np.float32]] = {}
        digests, rows = self._read_digests()
        order = np.argsort(digests, kind="stable")
        self._digests, self._rows = digests[order], rows[order]

    def _read_digests(self) -> tuple[NDArray[Any], NDArray[np.intp]]:
        pieces, rows = [np.empty(0, _HASH)], [np.empty(0, np.intp)]
        for group, start in enumerate(self._starts[:-1]):
            table = self._file.columns_beside(group)
            if "digest" not in table.column_names:
                break
            digests = table.column("digest").to_pylist()
            nothing = [None] * len(digests)
            errors = table.column("error").to_pylist() if "error" in table.column_names else nothing
            is_sound = [d is not None and e is None for d, e in zip(digests, errors, strict=True)]
            pieces.append(
                _as_hashes(d for d, sound in zip(digests, is_sound, strict=True) if sound)
            )
            rows.append(start + np.flatnonzero(is_sound))
        return np.concatenate(pieces), np.concatenate(rows)

    def take(self, digests: Sequence[bytes | None], out: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill in the vectors that the file has.

        Parameters
        ----------
        digests : sequence of bytes or None
            Of the images.
        out : ndarray of float32, shape (n, dimension)
            Its rows are filled as far as the file has them.

        Returns
        -------
        ndarray of bool, shape (n,)
            Which of them are filled.
        """
        is_filled = np.zeros(len(digests), np.bool_)
        wanted = np.flatnonzero([digest is not None for digest in digests])
        if not len(wanted) or not len(self._digests):
            return is_filled
        places = _find(self._digests, _as_hashes(d for d in digests if d is not None))
        wanted, rows = wanted[places >= 0], self._rows[places[places >= 0]]
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups):
            chosen = groups == group
            out[wanted[chosen]] = self._group(int(group))[rows[chosen] - self._starts[group]]
        is_filled[wanted] = True
        return is_filled

    def _group(self, group: int) -> NDArray[np.float32]:
        vectors = self._at_hand.pop(group, None)
        if vectors is None:
            vectors = self._file.vectors_of(group)
        self._at_hand[group] = vectors  # the last one is the one used last
        if len(self._at_hand) > _GROUPS_AT_HAND:
            del self._at_hand[next(iter(self._at_hand))]
        return vectors
