"""Parcels: the unit in which images are read, looked up, computed and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import DecodeFailure, ImageDecodeError
from featx._images.sources import describe_item

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Parcel:
    """Some consecutive images and their embeddings.

    Attributes
    ----------
    start : int
        The row of its first image among all.
    items : sequence
        The images.
    digests : list of bytes or None
        The digest of each image's content; None where it could not be read.
    vectors : ndarray of float32, shape (n_images, dimension)
        Row i is image ``start + i``; NaN where it could not be read, or was skipped.
    failures : tuple of DecodeFailure
        The images that could not be read, by their rows among all.
    """

    start: int
    items: Sequence[Any]
    digests: list[bytes | None]
    vectors: NDArray[np.float32]
    failures: tuple[DecodeFailure, ...]


@dataclass(frozen=True)
class Extraction:
    """The embeddings of a sequence of images.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n_images, dimension)
        Row i is image i; NaN where it could not be read.
    digests : list of bytes or None
        The digest of each image's content; None where it could not be read.
    failures : tuple of DecodeFailure
        The images that could not be read, in the order of their rows.
    """

    vectors: np.ndarray
    digests: list[bytes | None]
    failures: tuple[DecodeFailure, ...]


class OpenParcel:
    """A parcel while its vectors come in, layer by layer; images of one content share theirs.

    Parameters
    ----------
    start : int
        The row of its first image among all.
    items : sequence
        The images.
    digests : list of bytes or None
        Of each image.
    reasons : dict of int to str
        Why images could not be read, by their rows among all.

    Attributes
    ----------
    rows : dict of bytes to list of int
        The rows among all that show each image.
    lacking : list of dict of bytes to None
        For each layer the images that have no vector yet, in the order of their rows.

    Examples
    --------
    >>> parcel = OpenParcel(10, ["a.jpg", "b.jpg", "c.jpg"], [b"A", None, b"A"], {11: "too short"})
    >>> parcel.begin(np.empty((3, 3), np.float32), [slice(0, 1), slice(1, 3)])
    >>> parcel.place(0, [b"A"], np.float32([[5]]))
    >>> parcel.place(1, [b"A"], np.float32([[6, 7]]))
    >>> parcel.is_complete
    True
    >>> parcel.close().vectors
    array([[ 5.,  6.,  7.],
           [nan, nan, nan],
           [ 5.,  6.,  7.]], dtype=float32)
    """

    def __init__(
        self,
        start: int,
        items: Sequence[Any],
        digests: list[bytes | None],
        reasons: dict[int, str],
    ) -> None:
        self.start = start
        self.items = items
        self.digests = digests
        self.rows: dict[bytes, list[int]] = {}
        self.lacking: list[dict[bytes, None]] = []
        self._reasons = reasons
        self._without: set[int] = set()
        for row, digest in enumerate(digests, start):
            if digest is None:
                self._without.add(row)
            else:
                self.rows.setdefault(digest, []).append(row)

    def begin(
        self,
        vectors: NDArray[np.float32],
        columns: Sequence[slice],
        is_skipped: NDArray[np.bool_] | None = None,
    ) -> None:
        """Begin to take vectors.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n_images, dimension)
            Is filled.
        columns : sequence of slice
            Where the vectors of each layer stand in a row.
        is_skipped : ndarray of bool, shape (n_images,), optional
            Images for which nothing is to be computed.
        """
        self.vectors = vectors
        self._columns = columns
        if is_skipped is not None:
            for row in (np.flatnonzero(is_skipped) + self.start).tolist():
                self._without.add(row)
                self._reasons.pop(row, None)
            self.rows = {
                digest: kept
                for digest, rows in self.rows.items()
                if (kept := [row for row in rows if row not in self._without])
            }
        self.lacking = [dict.fromkeys(self.rows) for _ in columns]

    @property
    def is_complete(self) -> bool:
        """Whether every image has its vectors, or is known to have none."""
        return not any(self.lacking)

    @property
    def first_failure(self) -> tuple[int, str] | None:
        """The lowest row that could not be read so far, and why."""
        return min(self._reasons.items(), default=None)

    def item(self, row: int) -> Any:
        """Return the image of a row among all."""
        return self.items[row - self.start]

    def place(self, layer: int, digests: Collection[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep one layer's vectors of some images."""
        lacking, rows = self.lacking[layer], self.rows
        places = [rows[digest][0] - self.start for digest in digests]
        self.vectors[places, self._columns[layer]] = vectors
        for digest in digests:
            lacking.pop(digest, None)

    def fail(self, digest: bytes, reason: str) -> None:
        """Note that an image cannot be decoded."""
        for row in self.rows[digest]:
            self._reasons[row] = reason
            self._without.add(row)
        for lacking in self.lacking:
            lacking.pop(digest, None)

    def close(self) -> Parcel:
        """Return what came in, once it is complete."""
        if len(self.rows) + len(self._without) < len(self.digests):
            for rows in self.rows.values():
                self.vectors[[row - self.start for row in rows[1:]]] = self.vectors[
                    rows[0] - self.start
                ]
        if self._without:
            self.vectors[[row - self.start for row in self._without]] = np.nan
        failures = tuple(
            DecodeFailure(row, describe_item(self.item(row)), reason)
            for row, reason in sorted(self._reasons.items())
        )
        return Parcel(self.start, self.items, self.digests, self.vectors, failures)


def refuse_all_failed(failures: Sequence[DecodeFailure], n_images: int) -> None:
    """Raise `ImageDecodeError` when not one of some images could be read."""
    if len(failures) == n_images:
        first = failures[0]
        raise ImageDecodeError(
            first.source, f"{first.reason}; none of the {n_images} images could be read", first.row
        )
