"""Contents: the bytes of images, read ahead parcel by parcel, and kept until they are decoded."""

from __future__ import annotations

import itertools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featx._errors import ImageDecodeError, InputError
from featx._extraction.batches import cut
from featx._extraction.parcels import OpenParcel
from featx._images.archives import open_archive, split_archive_path
from featx._images.digest import digest_content
from featx._images.sources import (
    as_image_list,
    describe_item,
    is_made_on_demand,
    read_content,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from featx._images.limits import Limits
    from featx._store.memo import Observation, StatMemo

# Images of a parcel at most, and their encoded bytes: a lost parcel is little, and so is what one
# costs beside its images.
PARCEL_IMAGES = 256
_PARCEL_BYTES = 64 * 2**20

# Bytes that are kept from reading to decoding, and parcels that are read ahead: enough to hide a
# slow disk.
_KEPT_BYTES = 256 * 2**20
_PARCELS_AHEAD = 4

# Images that a thread reads and digests at a time: handing over a task costs more than digesting a
# small image does.
_IMAGES_A_TASK = 16

_Digested = tuple[bytes, "Observation | None"]


class MemoMistakenError(Exception):
    """A file's content has another digest than the memo said; the memo is not to be asked."""


@dataclass(frozen=True)
class _Reading:
    """A parcel that is being read."""

    start: int
    items: Sequence[Any]
    known: dict[int, bytes]
    tasks: list[tuple[list[int], Callable[[], list[_Digested | ImageDecodeError]]]]


class Contents:
    """Reads the images of a sequence ahead of what decodes them; each file is read once.

    A sequence that makes its items when they are taken is asked once for each, in order. With
    ``num_workers=0`` the calling thread reads; ``start`` is the first row to read.
    """

    def __init__(
        self,
        items: Sequence[Any],
        memo: StatMemo | None,
        limits: Limits,
        *,
        num_workers: int = 0,
        parcel_images: int = PARCEL_IMAGES,
        start: int = 0,
    ) -> None:
        self._items = items
        self._memo = memo
        self._limits = limits
        self._pool = (
            ThreadPoolExecutor(num_workers, thread_name_prefix="featx-read")
            if num_workers
            else None
        )
        self._parcel_images = parcel_images
        self._next = start
        self._made: list[Any] = []
        self._kept: dict[int, bytes] = {}
        # What is read, or is to be, of the parcels under way: bytes by row.
        self._sizes: dict[int, int] = {}
        self._from_memo: set[int] = set()

    def parcels(self) -> Iterator[OpenParcel]:
        """Yield the images parcel by parcel, read and digested; the next ones are read meanwhile.

        Raises
        ------
        InputError
            Something that was made when it was taken is no image.
        """
        ahead: deque[_Reading] = deque()
        while self._next < len(self._items) or ahead:
            while self._next < len(self._items) and (
                not ahead or (len(ahead) <= _PARCELS_AHEAD and self._n_bytes_kept() < _KEPT_BYTES)
            ):
                ahead.append(self._begin())
                if self._pool is None:
                    break
            yield self._finish(ahead.popleft())

    def take(self, row: int, item: Any, digest: bytes) -> bytes | np.ndarray:
        """Return the content of an image, which must have the digest, and keep it no longer.

        Raises
        ------
        ImageDecodeError
            It cannot be read, or has changed since it was digested.
        MemoMistakenError
            It has changed since the memo learnt of it.
        """
        kept = self._kept.pop(row, None)
        self.drop([row])
        if kept is not None:
            return kept
        content = read_content(item, self._limits)
        if digest_content(content) != digest:
            if row in self._from_memo:
                raise MemoMistakenError
            raise ImageDecodeError(describe_item(item), "it changed while it was being read")
        return content

    def drop(self, rows: Sequence[int]) -> None:
        """Let go of contents that are not needed."""
        for row in rows if self._sizes else ():
            self._kept.pop(row, None)
            self._sizes.pop(row, None)

    def _n_bytes_kept(self) -> int:
        return sum(
            list(self._sizes.values())
        )  # a list at once, as threads that decode take from it

    def forget(self, start: int, n_images: int) -> None:
        """Keep nothing of images that are handed on."""
        rows = range(start, start + n_images)
        self.drop(rows)
        self._from_memo.difference_update(rows)

    def close(self) -> None:
        """Stop reading."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> _Reading:
        """Take the items of the next parcel and begin to read those that the memo does not know."""
        start = self._next
        items = self._take_items(min(self._parcel_images, len(self._items) - start))
        known = self._known(start, items)
        to_read = [row for row in range(start, start + len(items)) if row not in known]
        sizes = {row: _encoded_bytes(items[row - start]) for row in to_read}
        if sum(sizes.values()) > _PARCEL_BYTES:  # a parcel of large files ends early
            totals = itertools.accumulate(sizes.values())
            end = next(
                row for row, total in zip(to_read, totals, strict=True) if total > _PARCEL_BYTES
            )
            items = items[: max(end, start + 1) - start]
            to_read = [row for row in to_read if row < start + len(items)]
        self._next = start + len(items)
        del self._made[: len(items)]
        known = {row: digest for row, digest in known.items() if row < self._next}
        self._sizes |= {row: sizes[row] for row in to_read}
        self._from_memo.update(known)
        tasks = [(rows, self._read(rows, items, start)) for rows in cut(to_read, _IMAGES_A_TASK)]
        return _Reading(start, items, known, tasks)

    def _take_items(self, count: int) -> list[Any]:
        if isinstance(self._items, list):
            return self._items[self._next : self._next + count]
        n_bytes = 0
        while len(self._made) < count and n_bytes < _PARCEL_BYTES:
            self._made.append(self._items[self._next + len(self._made)])
            n_bytes += bytes_in_memory(self._made[-1])
        try:
            return list(as_image_list(self._made))
        except InputError as error:
            raise InputError(f"In the images from row {self._next} on: {error}") from None

    def _read(
        self, rows: list[int], items: Sequence[Any], start: int
    ) -> Callable[[], list[_Digested | ImageDecodeError]]:
        """Begin to read some images, and return what waits for them."""

        def digest() -> list[_Digested | ImageDecodeError]:
            return [self._digest(row, items[row - start]) for row in rows]

        return digest if self._pool is None else self._pool.submit(digest).result

    def _digest(self, row: int, item: Any) -> _Digested | ImageDecodeError:
        path = _path_of(item)
        observation = None if self._memo is None or path is None else self._memo.observe(path)
        try:
            content = read_content(item, self._limits)
        except ImageDecodeError as error:
            return error
        # Images that came as arrays or bytes are in memory already.
        if isinstance(content, bytes) and content is not item:
            self._kept[row] = content
            if observation is not None:
                observation = observation._replace(n_bytes=len(content))
        return digest_content(content), observation

    def _finish(self, reading: _Reading) -> OpenParcel:
        fresh: dict[int, bytes] = {}
        observed: list[tuple[Observation, bytes]] = []
        reasons: dict[int, str] = {}
        for rows, task in reading.tasks:
            for row, outcome in zip(rows, task(), strict=True):
                if isinstance(outcome, ImageDecodeError):
                    reasons[row] = outcome.reason
                    continue
                fresh[row], observation = outcome
                if observation is not None:
                    observed.append((observation, fresh[row]))
        if self._memo is not None and observed:
            # Where the folder cannot be written the cache itself has said so.
            self._memo.remember(observed)
        all_known = reading.known | fresh
        rows_of_parcel = range(reading.start, reading.start + len(reading.items))
        digests = [all_known.get(row) for row in rows_of_parcel]
        return OpenParcel(reading.start, reading.items, digests, reasons)

    def _known(self, start: int, items: Sequence[Any]) -> dict[int, bytes]:
        """Return the digests that the memo knows, by row."""
        if self._memo is None:
            return {}
        paths = {
            row: path
            for row, item in enumerate(items, start)
            if (path := _path_of(item)) is not None
        }
        if not paths:
            return {}
        digests = self._memo.lookup(list(paths.values()), self._limits.max_file_bytes)
        found = zip(paths, digests, strict=True)
        return {row: digest for row, digest in found if digest is not None}


def _path_of(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    return os.fspath(item) if isinstance(item, os.PathLike) else None


def _encoded_bytes(item: Any) -> int:
    """Return how many bytes reading an image will bring into memory; 0 where it has no file."""
    path = _path_of(item)
    if path is None:
        return 0
    try:
        return os.stat(path).st_size  # noqa: PTH116 - Path() would rewrite the path
    except NotADirectoryError:
        member = split_archive_path(path)
        try:
            return 0 if member is None else open_archive(member[0]).size(member[1])
        except (InputError, OSError, KeyError):  # named when it is read
            return 0
    except (OSError, ValueError):
        return 0


def bytes_in_memory(item: Any) -> int:
    """Return how many bytes an image takes that is no path."""
    if isinstance(item, bytes | bytearray):
        return len(item)
    if hasattr(item, "mode") and hasattr(item, "width"):  # a PIL image, which has no nbytes
        return int(item.width * item.height * 4)
    return int(getattr(item, "nbytes", 0))


def checked_images(X: Any) -> list[Any]:
    """Return the images of X, of which there must be one.

    Examples
    --------
    >>> checked_images([])
    Traceback (most recent call last):
    featx.InputError: Got 0 images but expected at least 1
    """
    items = list(as_image_list(X))
    if not items:
        raise InputError("Got 0 images but expected at least 1")
    return items


def chosen_images(X: Any) -> Sequence[Any]:
    """Return X where it makes its images when they are taken, and else a list of its images."""
    return X if is_made_on_demand(X) and len(X) else checked_images(X)
