"""The cache: embeddings by the content of their image, computed once and kept on the disk.

A cache is a folder, and in it each fingerprint (all that can change a vector) has a folder, its
table, of immutable shards. Readers map shards without locks; writers add shards and never touch
those of others. Who computes what is settled by claims.
"""

from __future__ import annotations

import os
import re
import time
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from featx.errors import CacheWarning, InputError, SchemaError
from featx.files import write_atomically
from featx.store.claims import ClaimFolder
from featx.store.session import Session
from featx.store.shards import (
    DIGEST_BYTES,
    FORMAT_VERSION,
    SUFFIX,
    Shard,
    shard_schema,
    write_shard,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

# Rows are served in pieces of at most this many, so that a large shard needs little memory.
_ROWS_AT_ONCE = 4096


class EmbeddingCache:
    """A folder in which embeddings are kept, by the content of their image.

    Making the object does nothing to the disk, and it holds nothing but a string, so it can be
    cloned, pickled and sent to workers.

    Parameters
    ----------
    directory : str or path-like, optional
        The folder; ``~`` is the home folder. By default it is what the environment variable
        ``FEATX_CACHE`` names when the cache is used, else the user's cache folder for featx.

    Examples
    --------
    >>> EmbeddingCache("~/embeddings")
    EmbeddingCache('~/embeddings')
    >>> EmbeddingCache("~/embeddings") == EmbeddingCache("~/embeddings")
    True
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = None if directory is None else os.fspath(directory)

    def __repr__(self) -> str:
        return f"EmbeddingCache({'' if self.directory is None else repr(self.directory)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingCache):
            return NotImplemented
        return self.directory == other.directory

    def __hash__(self) -> int:
        return hash((EmbeddingCache, self.directory))

    @property
    def folder(self) -> Path:
        """The folder that is used now, which need not exist yet.

        Raises
        ------
        InputError
            The folder begins with ``~`` and there is no such home folder.
        """
        named = self.directory or os.environ.get("FEATX_CACHE")
        folder = Path(named) if named else platformdirs.user_cache_path("featx", appauthor=False)
        try:
            return folder.expanduser()
        except RuntimeError as error:
            raise InputError(f"The cache folder {named!r} cannot be found: {error}") from None

    def is_writable(self) -> bool:
        """Return whether embeddings can be kept here; the folder is made if it is absent."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.folder, os.W_OK | os.X_OK)

    def table(self, fingerprint: str, dimension: int) -> EmbeddingTable:
        """Return the embeddings that one fingerprint stands for.

        Parameters
        ----------
        fingerprint : str
            Everything that can change a vector, as letters, digits, ``-`` and ``_``.
        dimension : int
            The length of an embedding.

        Returns
        -------
        EmbeddingTable
            Which need not exist on the disk yet.

        Raises
        ------
        InputError
            The fingerprint cannot name a folder, or the dimension is not positive.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", fingerprint):
            raise InputError(
                f"Got the fingerprint {fingerprint!r}, expected 1 to 200 letters, digits, '-', '_'"
            )
        if dimension < 1:
            raise InputError(f"Got the dimension {dimension}, expected at least 1")
        # Tables of another format lie beside each other, so that versions can share a cache.
        folder = self.folder / f"v{FORMAT_VERSION}" / fingerprint
        return EmbeddingTable(folder, fingerprint, dimension)


class EmbeddingTable:
    """The stored embeddings of one fingerprint; of `EmbeddingCache.table`.

    An object sees what others store while it is in use. It may be used by several threads. A
    table that cannot be read or written is no error: it issues one `CacheWarning` for each kind
    of trouble, and what it does not serve is computed.

    Parameters
    ----------
    folder : Path
        Where its shards lie.
    fingerprint : str
        What computed the embeddings.
    dimension : int
        The length of an embedding.
    """

    def __init__(self, folder: Path, fingerprint: str, dimension: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.dimension = dimension
        self.claims = ClaimFolder(folder)
        self._schema = shard_schema(fingerprint, dimension)
        self._shards: dict[str, Shard] = {}
        self._damaged: set[str] = set()
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[Path, str, int]]:
        return EmbeddingTable, (self.folder, self.fingerprint, self.dimension)

    def lookup(self, digests: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return the stored embeddings of images.

        Parameters
        ----------
        digests : sequence of bytes
            16 bytes each; repeats are allowed.

        Returns
        -------
        found : ndarray of bool, shape (n,)
            Which of them are stored, and sound.
        vectors : ndarray of float32, shape (n_found, dimension)
            Their embeddings, in the order of the request.

        Warns
        -----
        CacheWarning
            Rows or shards are damaged and were passed over, or the folder cannot be read.

        Raises
        ------
        InputError
            A digest has not 16 bytes.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = EmbeddingCache(folder).table("a1b2", dimension=2)
        ...     with table.session([b"A" * 16]) as session:
        ...         claim = session.claim()
        ...         claim.store(claim.digests, np.array([[1, 2]], np.float32))
        ...     table.lookup([b"B" * 16, b"A" * 16])
        (array([False,  True]), array([[1., 2.]], dtype=float32))
        """
        check_digests(digests)
        position = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        stored = np.empty((len(position), self.dimension), np.float32)
        is_stored = np.zeros(len(position), np.bool_)
        for served, vectors in self.serve(set(position)):
            rows = [position[digest] for digest in served]
            stored[rows] = vectors
            is_stored[rows] = True
        if len(position) == len(digests) and is_stored.all():
            return is_stored, stored
        rows_of_request = np.fromiter((position[d] for d in digests), np.intp, count=len(digests))
        found = is_stored[rows_of_request]
        return found, stored[rows_of_request[found]]

    def session(self, digests: Iterable[bytes]) -> Session:
        """Return the work on a set of images: what is stored, and what is to be computed here.

        Parameters
        ----------
        digests : iterable of bytes
            16 bytes each; repeats are dropped.

        Returns
        -------
        Session

        Raises
        ------
        InputError
            A digest has not 16 bytes.
        """
        unique = dict.fromkeys(digests)
        check_digests(unique)
        return Session(self, unique)

    def serve(self, digests: set[bytes]) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
        """Yield the stored ones of some digests with their embeddings, shard by shard.

        Parameters
        ----------
        digests : set of bytes
            What is wanted; what has been yielded is removed from it.

        Yields
        ------
        served : list of bytes
            Digests of sound rows.
        vectors : ndarray of float32, shape (n_served, dimension)
            Their embeddings.
        """
        # The newest shard first: it holds the repaired copy of a damaged row.
        for shard in reversed(self.shards()):
            rows = shard.rows
            stored = sorted(rows.keys() & digests, key=rows.__getitem__)
            for start in range(0, len(stored), _ROWS_AT_ONCE):
                wanted = stored[start : start + _ROWS_AT_ONCE]
                served, vectors = shard.read(wanted)
                if len(served) < len(wanted):
                    self.warn("damaged rows", f"Damaged rows in {shard.path} are passed over")
                digests.difference_update(served)
                yield served, vectors

    def shards(self) -> list[Shard]:
        """Open the shards that have appeared, and return all of them, the oldest first."""
        try:
            with os.scandir(self.folder) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(SUFFIX)}
        except FileNotFoundError:
            names = set()
        except OSError as error:
            self.warn("folder", f"The cache cannot be read and serves nothing: {error}")
            names = set()
        for name in sorted(names.difference(self._shards, self._damaged)):
            try:
                self._shards[name] = Shard(self.folder / name, self._schema)
            except FileNotFoundError:
                continue
            except SchemaError as error:
                self._damaged.add(name)
                self.warn("damaged shard", f"{error}. It is passed over and may be deleted")
        return list(self._shards.values())

    def make(self) -> None:
        """Make the folder, for its owner alone.

        Raises
        ------
        OSError
            It cannot be made.
        """
        for folder in (*reversed(self.folder.parents[:2]), self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(
        self, digests: Sequence[bytes], vectors: NDArray[np.float32], temporary: Path
    ) -> None:
        """Write rows as one new shard, which is on the disk when this returns.

        Parameters
        ----------
        digests : sequence of bytes
            16 bytes each.
        vectors : ndarray of float32, shape (n, dimension)
            Row i belongs to digest i.
        temporary : Path
            A name in the folder that nothing else uses.

        Raises
        ------
        InputError
            The vectors are of another shape or type.
        OSError
            The shard could not be written; nothing of it is left.
        """
        check_digests(digests)
        expected = (len(digests), self.dimension)
        if vectors.dtype != np.float32 or vectors.shape != expected:
            raise InputError(
                f"Got vectors of {vectors.dtype} and shape {vectors.shape}, "
                f"expected float32 and {expected}"
            )
        if not digests:
            return
        self.make()
        # The time comes first in the name, so that names sort from the oldest to the newest.
        path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex}{SUFFIX}"
        with write_atomically(path, temporary) as file:
            write_shard(file, self._schema, digests, np.ascontiguousarray(vectors))

    def warn(self, kind: str, message: str) -> None:
        """Issue a `CacheWarning`, the first time that a kind of trouble is met."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{message}. The embeddings are right all the same.", CacheWarning, 2)


def check_digests(digests: Collection[bytes]) -> None:
    """Refuse digests that have not 16 bytes.

    Raises
    ------
    InputError
        One has another length.
    """
    wrong = {len(digest) for digest in digests} - {DIGEST_BYTES}
    if wrong:
        raise InputError(f"Got a digest of {min(wrong)} bytes, expected {DIGEST_BYTES}")
