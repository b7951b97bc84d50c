"""Contents: the bytes of images, read, digested, and kept until they are decoded."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

from featx._errors import ImageDecodeError
from featx._extraction.stream import load_in_order
from featx._images.digest import digest_content
from featx._images.sources import describe_item, read_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    import numpy as np

    from featx._images.limits import Limits
    from featx._store.memo import Observation, StatMemo

# Images that a thread reads and digests at a time, as handing over a task costs more than digesting
# a small image does, and how many such pieces may be under way.
_PIECE = 16
_PIECES_AHEAD = 16

# Bytes of files that are kept from digesting to decoding, so that most files are read once.
_KEPT_BYTES = 256 * 2**20


_Digested = tuple[bytes, "Observation | None"]


class MemoMistakenError(Exception):
    """A file's content has another digest than the memo said; the memo is not to be asked."""


class Contents:
    """The contents of some items: their digests, and what is decoded.

    Parameters
    ----------
    items : sequence
        Paths, bytes, PIL images, arrays or tensors.
    memo : StatMemo or None
        Knows the digests of files that have not changed since they were last read.
    limits : Limits
        The largest files that are read.
    num_workers : int
        Threads that read; 0 reads in the calling thread.
    """

    def __init__(
        self, items: Sequence[Any], memo: StatMemo | None, limits: Limits, num_workers: int
    ) -> None:
        self._items = items
        self._memo = memo
        self._limits = limits
        self._num_workers = num_workers
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0
        self._from_memo: set[int] = set()

    def digest(
        self, rows: range, *, keep: bool, stop_at_failure: bool
    ) -> tuple[list[bytes | None], dict[int, str]]:
        """Return the digest of each row's image, and why the others could not be read, by row.

        Parameters
        ----------
        rows : range
            Of the items.
        keep : bool
            Keep the contents for `read`, as far as there is room.
        stop_at_failure : bool
            Raise the first `ImageDecodeError` instead of collecting the reasons.
        """
        known = self._known(rows)
        to_read = [row for row in rows if row not in known]
        fresh: dict[int, _Digested] = {}
        unreadable: dict[int, str] = {}
        pieces = [to_read[start : start + _PIECE] for start in range(0, len(to_read), _PIECE)]

        def digest(piece: list[int]) -> list[_Digested | ImageDecodeError]:
            return [self._digest(row, keep=keep) for row in piece]

        with closing(
            load_in_order(pieces, digest, num_workers=self._num_workers, ahead=_PIECES_AHEAD)
        ) as outcomes:
            for piece, outcome in outcomes:
                for row, digested in zip(piece, outcome, strict=True):
                    if not isinstance(digested, ImageDecodeError):
                        fresh[row] = digested
                    elif stop_at_failure:
                        raise ImageDecodeError(digested.source, digested.reason, row) from digested
                    else:
                        unreadable[row] = digested.reason
        self._remember(fresh.values())
        digests = known | {row: digest for row, (digest, _) in fresh.items()}
        return [digests.get(row) for row in rows], unreadable

    def read(self, row: int, digest: bytes) -> bytes | np.ndarray:
        """Return the content of a row's image, which must have the digest.

        Raises
        ------
        ImageDecodeError
            It cannot be read, or has changed since it was digested.
        MemoMistakenError
            It has changed since the memo learnt of it.
        """
        kept = self._kept.pop(row, None)
        if kept is not None:
            return kept
        item = self._items[row]
        content = read_content(item, self._limits)
        if digest_content(content) != digest:
            if row in self._from_memo:
                raise MemoMistakenError
            raise ImageDecodeError(describe_item(item), "it changed while it was being read")
        return content

    def forget(self) -> None:
        """Let go of the contents that were kept and not needed."""
        self._kept.clear()
        self._kept_bytes = 0

    def _digest(self, row: int, *, keep: bool) -> _Digested | ImageDecodeError:
        observation = self._observe(row)
        try:
            content = read_content(self._items[row], self._limits)
        except ImageDecodeError as error:
            return error
        if keep:
            self._keep(row, content)
        return digest_content(content), observation

    def _keep(self, row: int, content: bytes | np.ndarray) -> None:
        # Images that came as arrays or bytes are in memory already.
        if not isinstance(content, bytes) or content is self._items[row]:
            return
        if self._kept_bytes < _KEPT_BYTES:
            self._kept_bytes += len(content)
            self._kept[row] = content

    def _path(self, row: int) -> str | None:
        item = self._items[row]
        if isinstance(item, str):
            return item
        return os.fspath(item) if isinstance(item, os.PathLike) else None

    def _known(self, rows: range) -> dict[int, bytes]:
        """Return the digests that the memo knows, by row."""
        if self._memo is None:
            return {}
        paths = {row: path for row in rows if (path := self._path(row)) is not None}
        digests = self._memo.lookup(list(paths.values()), self._limits.max_file_bytes)
        known = {
            row: digest for row, digest in zip(paths, digests, strict=True) if digest is not None
        }
        self._from_memo.update(known)
        return known

    def _observe(self, row: int) -> Observation | None:
        if self._memo is None or (path := self._path(row)) is None:
            return None
        return self._memo.observe(path)

    def _remember(self, fresh: Iterable[_Digested]) -> None:
        observed = [
            (observation, digest) for digest, observation in fresh if observation is not None
        ]
        if self._memo is not None and observed:
            # Where the folder cannot be written the cache itself has said so.
            self._memo.remember(observed)
