"""The index: where each stored digest lies, over all shards of a table, in sorted arrays."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

# np.isin imports it when first called: a child that is forked meanwhile would wait for it for ever.
import numpy.ma

from featx._store.shards import ROWS_AT_ONCE, digest_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from featx._store.shards import Shard

_DAMAGED = -1


@dataclass(frozen=True)
class _Segment:
    """The rows of some shards, sorted by their keys; of equal keys the newest row comes last."""

    keys: NDArray[np.uint64]
    second_halves: NDArray[np.uint64]
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]

    @classmethod
    def of_shards(cls, shards: Iterable[tuple[int, Shard]]) -> _Segment:
        parts = [
            cls(
                _sort_keys(shard.keys),
                shard.keys[:, 1],
                np.full(len(shard), number, np.int32),
                np.arange(len(shard), dtype=np.int32),
            )
            for number, shard in shards
        ]
        return cls.merged(parts)

    @classmethod
    def merged(cls, parts: Sequence[_Segment]) -> _Segment:
        keys = np.concatenate([part.keys for part in parts])
        order = np.argsort(keys, kind="stable")
        return cls(
            keys[order],
            np.concatenate([part.second_halves for part in parts])[order],
            np.concatenate([part.shards for part in parts])[order],
            np.concatenate([part.rows for part in parts])[order],
        )

    def kept(self, numbers: Collection[int]) -> _Segment:
        """Return the part of it that lies in some shards."""
        keep = np.isin(self.shards, np.fromiter(numbers, np.int32))
        return _Segment(
            self.keys[keep], self.second_halves[keep], self.shards[keep], self.rows[keep]
        )


class ShardIndex:
    """Where the rows of some shards lie. It never changes but by forgetting damaged rows.

    New shards make a new index, which shares what it can with the old one, so that threads need
    no lock: each works on the index that it has got. Rows lie in a few sorted segments, of which
    equally large ones are merged, so that a row is sorted a logarithmic number of times although
    shards appear one after the other. ``shards`` has them by their names, the oldest first.

    Examples
    --------
    >>> ShardIndex().contains([b"A" * 16])
    array([False])
    """

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}
        self._numbered: dict[int, Shard] = {}
        self._segments: tuple[_Segment, ...] = ()
        self._numbers = itertools.count()

    def changed(self, added: Iterable[Shard], removed: Collection[str]) -> ShardIndex:
        """Return an index with further shards, and without those of some names."""
        new = ShardIndex()
        new._numbers = self._numbers
        new._numbered = {
            number: shard
            for number, shard in self._numbered.items()
            if shard.path.name not in removed
        }
        segments = list(self._segments)
        if len(new._numbered) < len(self._numbered):
            segments = [segment.kept(new._numbered) for segment in segments]
        numbered = {next(new._numbers): shard for shard in added}
        if numbered:
            segments.append(_Segment.of_shards(numbered.items()))
            new._numbered |= numbered
        while len(segments) > 1 and len(segments[-2].keys) <= 2 * len(segments[-1].keys):
            segments[-2:] = [_Segment.merged(segments[-2:])]
        new._segments = tuple(segments)
        new.shards = {shard.path.name: shard for shard in new._numbered.values()}
        return new

    def contains(self, digests: Collection[bytes]) -> NDArray[np.bool_]:
        """Return which digests have a row that is not known to be damaged."""
        contained = np.zeros(len(digests), np.bool_)
        for _, wanted, _ in self._places(digest_keys(digests)):
            contained[wanted] = True
        return contained

    def serve(
        self, digests: Sequence[bytes], report_damage: Callable[[Shard], None]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield positions in ``digests`` of what is stored, and the verified embeddings, in pieces.

        Digests have no repeats; damage is reported with the shard, and its damaged rows are
        forgotten.
        """
        pending = np.ones(len(digests), np.bool_)
        for segment, wanted, places in self._places(digest_keys(digests)):
            still = pending[wanted]
            for shard, piece in self._pieces(segment, places[still]):
                positions, rows = wanted[still][piece], places[still][piece]
                sound, vectors = shard.read(
                    segment.rows[rows], [digests[position] for position in positions.tolist()]
                )
                if not sound.all():
                    segment.shards[rows[~sound]] = _DAMAGED
                    report_damage(shard)
                    positions, vectors = positions[sound], vectors[sound]
                shard.note_use()
                pending[positions] = False
                yield positions, vectors

    def _places(
        self, keys: NDArray[np.uint64]
    ) -> Iterator[tuple[_Segment, NDArray[np.intp], NDArray[np.intp]]]:
        """Yield which keys lie at which places of a segment, the newest place of a key first."""
        sort_keys = _sort_keys(keys)
        for segment in reversed(self._segments):
            first = np.searchsorted(segment.keys, sort_keys, side="left")
            end = np.searchsorted(segment.keys, sort_keys, side="right")
            for back in range(1, int((end - first).max(initial=0)) + 1):
                wanted = np.flatnonzero(end - back >= first)
                places = (end - back)[wanted]
                matches = segment.second_halves[places] == keys[wanted, 1]
                matches &= segment.shards[places] != _DAMAGED
                yield segment, wanted[matches], places[matches]

    def _pieces(
        self, segment: _Segment, places: NDArray[np.intp]
    ) -> Iterator[tuple[Shard, NDArray[np.intp]]]:
        """Yield the places of each shard, in the order of its rows and not too many at once."""
        shards = segment.shards[places]
        order = np.lexsort((segment.rows[places], shards))
        starts = np.flatnonzero(np.diff(shards[order], prepend=_DAMAGED))
        for start, end in itertools.pairwise([*starts.tolist(), len(order)]):
            shard = self._numbered[int(shards[order[start]])]
            for first in range(start, end, ROWS_AT_ONCE):
                yield shard, order[first : min(first + ROWS_AT_ONCE, end)]


def _sort_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Two digests may share this number; the second half tells them apart, and so all of both.
    return keys[:, 0] ^ keys[:, 1]
