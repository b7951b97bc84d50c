"""Shards: immutable Arrow IPC files with the embeddings of images, and the index over them."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

# np.isin imports it when first called: a child that is forked meanwhile would wait for it for ever.
import numpy.ma
import pyarrow as pa
import xxhash
from pyarrow import ipc

from featx._errors import InputError, SchemaError
from featx._images.digest import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any, BinaryIO

    from numpy.typing import NDArray

FORMAT_VERSION = 1
SUFFIX = ".arrow"

# Rows are served in pieces of at most this many, so that a large shard needs little memory.
ROWS_AT_ONCE = 4096

# Reading stays cheap, and the order of last uses is known to an hour.
_SECONDS_BETWEEN_NOTES = 3600


def new_shard_name() -> str:
    """Return a name for a shard; names sort from the oldest to the newest."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex}{SUFFIX}"


def shard_schema(fingerprint: str, dimension: int) -> pa.Schema:
    """Return the schema of a shard; one of another fingerprint is never read.

    Examples
    --------
    >>> shard_schema("a1b2", 1280).names
    ['digest', 'embedding', 'checksum']
    """
    element = pa.field("item", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field("embedding", pa.list_(element, dimension), nullable=False),
            pa.field("checksum", pa.uint64(), nullable=False),
        ],
        metadata={
            "featx.format_version": str(FORMAT_VERSION),
            "featx.fingerprint": fingerprint,
            "featx.dimension": str(dimension),
        },
    )


def check_digests(digests: Collection[bytes]) -> None:
    """Raise InputError for digests that have not 16 bytes."""
    wrong = {len(digest) for digest in digests} - {DIGEST_BYTES}
    if wrong:
        raise InputError(f"Got a digest of {min(wrong)} bytes, expected {DIGEST_BYTES}")


def digest_keys(digests: Iterable[bytes]) -> NDArray[np.uint64]:
    """Return digests as uint64 (n, 2), for what is done to many of them at once."""
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def split_digests(content: bytes) -> list[bytes]:
    """Return digests that stand one after the other."""
    starts = range(0, len(content), DIGEST_BYTES)
    return [content[start : start + DIGEST_BYTES] for start in starts]


def checksums(digests: Iterable[bytes], vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the xxh3-64 of each digest and its vector, so that neither serves for another."""
    return np.fromiter(map(_checksum, digests, vectors), np.uint64, count=len(vectors))


def _checksum(digest: bytes, vector: NDArray[np.float32]) -> int:
    state = xxhash.xxh3_64(digest)
    state.update(vector.data)
    return state.intdigest()


def write_shard(
    file: BinaryIO, schema: pa.Schema, digests: Sequence[bytes], vectors: NDArray[np.float32]
) -> None:
    """Write rows, C-contiguous float32 (n, dimension), as one shard; row i belongs to digest i."""
    elements = _array(pa.float32(), vectors.size, vectors)
    columns = [
        _array(schema.field("digest").type, len(digests), b"".join(digests)),
        pa.FixedSizeListArray.from_arrays(elements, type=schema.field("embedding").type),
        _array(pa.uint64(), len(digests), checksums(digests, vectors)),
    ]
    with ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


# Arrays are made of buffers and buffers of arrays, as pyarrow's own conversions import pandas.
def _array(kind: pa.DataType, length: int, content: bytes | NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(content)])


class Shard:
    """One shard, mapped into memory: its pages are shared by all processes that read it.

    The file itself is closed again, so that thousands of shards cost no descriptors.

    Attributes
    ----------
    last_used : float
        When a row was last stored or read, as its file tells, in seconds since 1970; at most an
        hour too early.
    keys : ndarray of uint64, shape (n, 2)
        The digest of each row, as `digest_keys` gives it.

    Raises
    ------
    FileNotFoundError
        There is no such file (any more).
    SchemaError
        The file is damaged, or not a shard with this schema.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        try:
            self._vectors, self._checksums, self.keys = _map_columns(path, schema)
            status = path.stat()
        except FileNotFoundError:
            raise
        except (OSError, MemoryError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise SchemaError(f"{path} is not a sound cache shard: {reason}") from error
        self.size = status.st_size
        self.last_used = status.st_mtime

    def __len__(self) -> int:
        return len(self.keys)

    def digests(self) -> list[bytes]:
        """Return the digest of each row, as far as the file is sound."""
        return split_digests(self.keys.tobytes())

    def read(
        self, rows: NDArray[np.integer[Any]] | slice, digests: Sequence[bytes]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Copy rows out; return which are as they were stored for these digests, and their vectors.

        Of rows that are not sound the vectors are anything.
        """
        vectors = self._vectors[rows].copy() if isinstance(rows, slice) else self._vectors[rows]
        return checksums(digests, vectors) == self._checksums[rows], vectors

    def count_damaged(self) -> int:
        """Read every row, and return how many are not as they were stored."""
        sound, _ = self.read(slice(None), self.digests())
        return len(self) - int(sound.sum())

    def note_use(self) -> None:
        """Tell by the time of the file that it is in use, at most once an hour."""
        now = time.time()
        if now - self.last_used > _SECONDS_BETWEEN_NOTES:
            self.last_used = now
            with contextlib.suppress(OSError):  # a folder that is only read keeps its times
                os.utime(self.path)


def _map_columns(
    path: Path, schema: pa.Schema
) -> tuple[NDArray[np.float32], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the vectors, checksums and keys of a shard, which are pages of the file."""
    # Closing the source closes the file; the mapping lives as long as the arrays that use it.
    with pa.memory_map(os.fspath(path)) as source:
        reader = ipc.open_file(source)
        if not reader.schema.equals(schema, check_metadata=True):
            raise SchemaError("its schema is another one")
        if reader.num_record_batches != 1:
            raise SchemaError(f"it has {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
    batch.validate(full=True)

    def content(array: pa.Array, kind: type[np.generic], width: int) -> NDArray[Any]:
        if array.null_count:
            raise SchemaError("it has nulls")
        numbers = np.frombuffer(array.buffers()[1], kind, batch.num_rows * width)
        return numbers.reshape(batch.num_rows, width)

    embedding = batch.column("embedding")
    return (
        content(embedding.values, np.float32, embedding.type.list_size),
        content(batch.column("checksum"), np.uint64, 1)[:, 0],
        content(batch.column("digest"), np.uint64, 2),
    )


# The index: where each stored digest lies, over all shards of a table, in sorted arrays.

_DAMAGED = -1


class _Segment(NamedTuple):
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
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return cls._make(column[order] for column in columns)

    def kept(self, numbers: Collection[int]) -> _Segment:
        """Return the part of it that lies in some shards."""
        keep = np.isin(self.shards, np.fromiter(numbers, np.int32))
        return _Segment._make(column[keep] for column in self)


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
