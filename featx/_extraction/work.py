"""The work: the distinct images among some items, what is missing, and where each vector goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


class Work:
    """The embeddings of a sequence of items while they come in, tap by tap.

    Items are added in the order of their rows. Items of one content share one embedding.

    Parameters
    ----------
    n_items : int
        How many items there will be.
    dimensions : sequence of int
        The length of each tap's vectors; an embedding is their concatenation.

    Attributes
    ----------
    digests : list of bytes or None
        The digest of each row added so far; None where it could not be read.
    missing : list of dict of bytes to None
        For each tap, the images that have no vector yet, in the order of their rows.

    Examples
    --------
    >>> work = Work(3, dimensions=[1, 2])
    >>> work.add([b"A", None, b"A"], {1: "no such file"})
    >>> work.place(0, [b"A"], np.float32([[5]]))
    >>> work.place(1, [b"A"], np.float32([[6, 7]]))
    >>> work.vectors()
    array([[ 5.,  6.,  7.],
           [nan, nan, nan],
           [ 5.,  6.,  7.]], dtype=float32)
    """

    def __init__(self, n_items: int, dimensions: Sequence[int]) -> None:
        ends = np.cumsum(dimensions).tolist()
        self._columns = [
            slice(end - width, end) for end, width in zip(ends, dimensions, strict=True)
        ]
        self.digests: list[bytes | None] = []
        self.missing: list[dict[bytes, None]] = [{} for _ in dimensions]
        self._rows: dict[bytes, int] = {}
        self._places: dict[bytes, int] = {}
        self._vectors = np.empty((n_items, ends[-1]), np.float32)
        self._is_placed = np.zeros((n_items, len(dimensions)), np.bool_)
        self._unreadable: dict[int, str] = {}
        self._undecodable: dict[bytes, str] = {}

    def add(self, digests: Sequence[bytes | None], unreadable: dict[int, str]) -> None:
        """Add the next rows: their digests, and why the others could not be read, by row."""
        for row, digest in enumerate(digests, len(self.digests)):
            if digest is not None and digest not in self._rows:
                self._rows[digest] = row
                self._places[digest] = len(self._places)
                for missing in self.missing:
                    missing[digest] = None
        self.digests += digests
        self._unreadable |= unreadable

    @property
    def is_complete(self) -> bool:
        """Whether every image that was added has its vectors, or is known to have none."""
        return not any(self.missing)

    def row(self, digest: bytes) -> int:
        """Return the first row that shows the image."""
        return self._rows[digest]

    def rows(self, digest: bytes) -> list[int]:
        """Return all rows so far that show the image."""
        return [row for row, own in enumerate(self.digests) if own == digest]

    def place(self, tap: int, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep one tap's vectors of some images."""
        places = [self._places[digest] for digest in digests]
        self._vectors[places, self._columns[tap]] = vectors
        self._is_placed[places, tap] = True
        for digest in digests:
            self.missing[tap].pop(digest, None)

    def fail(self, digest: bytes, reason: str) -> None:
        """Note that an image cannot be decoded."""
        self._undecodable[digest] = reason
        for missing in self.missing:
            missing.pop(digest, None)

    def reasons(self) -> dict[int, str]:
        """Return why rows have no embedding, by row in ascending order."""
        undecodable = {
            row: self._undecodable[digest]
            for row, digest in enumerate(self.digests)
            if digest in self._undecodable
        }
        return dict(sorted((self._unreadable | undecodable).items()))

    def vectors(self) -> np.ndarray:
        """Return one row per item, float32; NaN where there is no embedding."""
        self._vectors[~self._is_placed.all(axis=1)] = np.nan
        if len(self._places) == len(self._vectors):  # each row is another image, in order
            return self._vectors
        known = [(row, self._places[d]) for row, d in enumerate(self.digests) if d is not None]
        result = np.full_like(self._vectors, np.nan)
        if known:
            rows, places = map(list, zip(*known, strict=True))
            result[rows] = self._vectors[places]
        return result
