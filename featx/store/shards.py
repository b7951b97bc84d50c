"""Shards: immutable Arrow IPC files, each with the embeddings of some images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import ipc

from featx.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any, BinaryIO

    from numpy.typing import NDArray

FORMAT_VERSION = 1
DIGEST_BYTES = 16
SUFFIX = ".arrow"


def shard_schema(fingerprint: str, dimension: int) -> pa.Schema:
    """Return the schema of a shard: digest, embedding and checksum of each row.

    Parameters
    ----------
    fingerprint : str
        What computed the embeddings; a shard of another fingerprint is never read.
    dimension : int
        The length of an embedding.

    Returns
    -------
    pyarrow.Schema

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


def checksums(digests: Iterable[bytes], vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the xxh3-64 of each digest and its vector, so that neither serves for another.

    Parameters
    ----------
    digests : iterable of bytes
        One per row.
    vectors : ndarray of float32, shape (n, dimension)
        C-contiguous.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    return np.fromiter(map(_checksum, digests, vectors), np.uint64, count=len(vectors))


def _checksum(digest: bytes, vector: NDArray[np.float32]) -> int:
    state = xxhash.xxh3_64(digest)
    state.update(vector.data)
    return state.intdigest()


def write_shard(
    file: BinaryIO, schema: pa.Schema, digests: Sequence[bytes], vectors: NDArray[np.float32]
) -> None:
    """Write rows as one shard.

    Parameters
    ----------
    file : binary file
        Where to.
    schema : pyarrow.Schema
        Of `shard_schema`.
    digests : sequence of bytes
        16 bytes each.
    vectors : ndarray of float32, shape (n, dimension)
        C-contiguous; row i belongs to digest i.

    Raises
    ------
    OSError
        The file could not be written.
    """
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

    Parameters
    ----------
    path : Path
        The file.
    schema : pyarrow.Schema
        The schema it must have.

    Attributes
    ----------
    path : Path
        The file.
    rows : dict of bytes to int
        The row of each digest that is not known to be damaged. It is replaced, never changed,
        so that threads may read it at any time.

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
            self._vectors, self._checksums, digests = _columns(batch)
        except FileNotFoundError:
            raise
        except (OSError, MemoryError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise SchemaError(f"{path} is not a sound cache shard: {reason}") from error
        self.rows = {
            digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES]: row
            for row in range(batch.num_rows)
        }

    def read(self, digests: Sequence[bytes]) -> tuple[list[bytes], NDArray[np.float32]]:
        """Copy rows out and verify them; those that are damaged are left out and forgotten.

        Parameters
        ----------
        digests : sequence of bytes
            Each of them in `rows`.

        Returns
        -------
        digests : list of bytes
            Those whose row is sound, in the order of the request.
        vectors : ndarray of float32, shape (n_sound, dimension)
            Their embeddings.
        """
        rows = [self.rows[digest] for digest in digests]
        vectors = self._vectors[rows]
        sound = checksums(digests, vectors) == self._checksums[rows]
        if sound.all():
            return list(digests), vectors
        damaged = {digest for digest, good in zip(digests, sound, strict=True) if not good}
        self.rows = {digest: row for digest, row in self.rows.items() if digest not in damaged}
        return [digest for digest in digests if digest not in damaged], vectors[sound]


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


def _columns(batch: pa.RecordBatch) -> tuple[NDArray[np.float32], NDArray[np.uint64], bytes]:
    embedding = batch.column("embedding")
    dimension = embedding.type.list_size
    elements = np.frombuffer(_content(embedding.values), np.float32, batch.num_rows * dimension)
    checksum = np.frombuffer(_content(batch.column("checksum")), np.uint64, batch.num_rows)
    digests = _content(batch.column("digest")).to_pybytes()
    return elements.reshape(batch.num_rows, dimension), checksum, digests
