"""Parcels: the unit in which images are read, looked up, computed and handed on in order."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import DecodeFailure, ImageDecodeError
from featx._images.sources import describe_item

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence
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


class OpenParcel:
    """A parcel while its vectors come in, layer by layer; images of one content share theirs.

    Rows are those among all images; ``reasons`` say why images of some could not be read.

    Attributes
    ----------
    rows : dict of bytes to list of int
        The rows that show each image, by its digest.
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
        """Begin to fill vectors; in the columns of each layer, and not for images to be skipped."""
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


class _AbandonedError(Exception):
    """Nobody asks for parcels any longer."""


class Outlet:
    """Finished parcels, and whether there is room for more to be begun.

    Parameters
    ----------
    most_images, most_bytes : int
        Of the parcels that are begun and not handed on; one is always begun.
    """

    def __init__(self, most_images: int, most_bytes: int) -> None:
        self._most_images = most_images
        self._most_bytes = most_bytes
        self._sizes: deque[tuple[int, int]] = deque()
        self._images = 0
        self._bytes = 0
        self._finished: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_ended = False
        self.is_closed = False

    @property
    def has_room(self) -> bool:
        """Whether another parcel may be begun."""
        return self._images < self._most_images and self._bytes < self._most_bytes

    def admit(self, n_images: int, n_bytes: int) -> None:
        """Count a parcel that is begun."""
        with self._changed:
            self._sizes.append((n_images, n_bytes))
            self._images += n_images
            self._bytes += n_bytes

    def put(self, parcel: Parcel) -> None:
        """Add a finished parcel; this never waits."""
        with self._changed:
            if self.is_closed:
                raise _AbandonedError
            self._finished.append(parcel)
            self._changed.notify_all()

    def drain(self) -> Iterator[Parcel]:
        """Yield the finished parcels."""
        while self._finished:
            with self._changed:
                parcel = self._finished.popleft()
                n_images, n_bytes = self._sizes.popleft()
                self._images -= n_images
                self._bytes -= n_bytes
                self._changed.notify_all()
            yield parcel

    def wait_for_room(self) -> None:
        """Wait for whoever takes finished parcels, until there is room for another one."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_room or not self._finished or self.is_closed)
            if self.is_closed:
                raise _AbandonedError

    def hand_on_from_a_thread(self, steps: Callable[[], Generator[None]]) -> Generator[Parcel]:
        """Take steps in a thread of their own and yield the parcels that they finish.

        So whoever takes the parcels may take its time, while nothing that was begun waits for it;
        between two steps the work itself may wait.
        """

        def work() -> None:
            error: BaseException | None = None
            try:
                with closing(steps()) as taken:
                    for _ in taken:
                        self.wait_for_room()
            except _AbandonedError:
                pass
            except BaseException as raised:  # whatever it is, the caller's thread raises it
                error = raised
            finally:
                with self._changed:
                    self._error, self._is_ended = error, True
                    self._changed.notify_all()

        thread = threading.Thread(target=work, name="featx-stream", daemon=True)
        thread.start()
        try:
            is_last = False
            while not is_last:
                with self._changed:
                    self._changed.wait_for(lambda: self._finished or self._is_ended)
                    is_last = self._is_ended
                yield from self.drain()
            if self._error is not None:
                raise self._error
        finally:
            with self._changed:
                self.is_closed = True
                self._changed.notify_all()
            thread.join()


def refuse_all_failed(failures: Sequence[DecodeFailure], n_images: int) -> None:
    """Raise `ImageDecodeError` when not one of some images could be read."""
    if len(failures) == n_images:
        first = failures[0]
        raise ImageDecodeError(
            first.source, f"{first.reason}; none of the {n_images} images could be read", first.row
        )
