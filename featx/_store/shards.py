"""Shards: immutable Arrow IPC files, each with the embeddings of some images."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import ipc

from featx._errors import InputError, SchemaError
from featx._images.digest import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path
    from typing import Any, BinaryIO

    from numpy.typing import NDArray

FORMAT_VERSION = 1
SUFFIX = ".arrow"

# Rows are read in pieces of at most this many, so that a large shard needs little memory.
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


def _content(array: pa.Array) -> pa.Buffer:
    if array.null_count:
        raise SchemaError("it has nulls")
    return array.buffers()[1]


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
            batch = _read_batch(path, schema)
            self._vectors, self._checksums, self.keys = _columns(batch)
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
        content = self.keys.tobytes()
        starts = range(0, len(content), DIGEST_BYTES)
        return [content[start : start + DIGEST_BYTES] for start in starts]

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
        digests, n_damaged = self.digests(), 0
        for start in range(0, len(self), ROWS_AT_ONCE):
            piece = slice(start, start + ROWS_AT_ONCE)
            sound, _ = self.read(piece, digests[piece])
            n_damaged += len(sound) - int(sound.sum())
        return n_damaged

    def note_use(self) -> None:
        """Tell by the time of the file that it is in use, at most once an hour."""
        now = time.time()
        if now - self.last_used > _SECONDS_BETWEEN_NOTES:
            self.last_used = now
            with contextlib.suppress(OSError):  # a folder that is only read keeps its times
                os.utime(self.path)


def _read_batch(path: Path, schema: pa.Schema) -> pa.RecordBatch:
    # Closing the source closes the file; the mapping lives as long as the arrays that use it.
    with pa.memory_map(os.fspath(path)) as source:
        reader = ipc.open_file(source)
        if not reader.schema.equals(schema, check_metadata=True):
            raise SchemaError("its schema is another one")
        if reader.num_record_batches != 1:
            raise SchemaError(f"it has {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    return batch


def _columns(
    batch: pa.RecordBatch,
) -> tuple[NDArray[np.float32], NDArray[np.uint64], NDArray[np.uint64]]:
    embedding = batch.column("embedding")
    dimension = embedding.type.list_size
    elements = np.frombuffer(_content(embedding.values), np.float32, batch.num_rows * dimension)
    checksum = np.frombuffer(_content(batch.column("checksum")), np.uint64, batch.num_rows)
    digest = np.frombuffer(_content(batch.column("digest")), np.uint64, 2 * batch.num_rows)
    return elements.reshape(batch.num_rows, dimension), checksum, digest.reshape(-1, 2)
