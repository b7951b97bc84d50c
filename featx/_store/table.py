"""Tables: the stored embeddings of one fingerprint, in immutable shards."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import CacheWarning, InputError, SchemaError
from featx._files import write_atomically
from featx._store.claims import ClaimFolder
from featx._store.layout import RECIPE_NAME, RECIPE_TEMPORARY_NAME
from featx._store.shards import (
    SUFFIX,
    Shard,
    ShardIndex,
    check_digests,
    new_shard_name,
    shard_schema,
    write_shard,
)
from featx._store.upkeep import keep_up

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

# Listing a folder while its shards are merged may miss some: it is done until twice the same.
_LISTINGS = 5


class EmbeddingTable:
    """The stored embeddings of one fingerprint; of `EmbeddingCache.table`.

    An object sees what others store while it is in use. It may be used by several threads. A
    table that cannot be read or written is no error: it issues one `CacheWarning` for each kind
    of trouble, and what it does not serve is computed. ``recipe`` says what the fingerprint stands
    for, as JSON types; ``max_bytes`` is what the whole cache may take on the disk.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        dimension: int,
        recipe: Mapping[str, Any] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.dimension = dimension
        self.recipe = recipe
        self.max_bytes = max_bytes
        self.schema = shard_schema(fingerprint, dimension)
        self.claims = ClaimFolder(folder)
        self._index = ShardIndex()
        self.damaged_shards: set[str] = set()  # the names of those that cannot be read
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[Any, ...]]:
        return EmbeddingTable, (
            self.folder,
            self.fingerprint,
            self.dimension,
            self.recipe,
            self.max_bytes,
        )

    def lookup(self, digests: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which images are stored, and sound, and the vectors of those in the order asked.

        Examples
        --------
        >>> import tempfile
        >>> from featx._store.cache import EmbeddingCache
        >>> from featx._store.session import Session
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = EmbeddingCache(folder).table("a1b2", dimension=2)
        ...     with Session([table], [b"A" * 16]) as session:
        ...         claim = session.claim()
        ...         claim.store(0, claim.digests, np.array([[1, 2]], np.float32))
        ...     table.lookup([b"B" * 16, b"A" * 16])
        (array([False,  True]), array([[1., 2.]], dtype=float32))
        """
        unique = list(dict.fromkeys(digests))
        check_digests(unique)
        stored = np.empty((len(unique), self.dimension), np.float32)
        is_stored = np.zeros(len(unique), np.bool_)
        for positions, vectors in self.serve(unique):
            stored[positions] = vectors
            is_stored[positions] = True
        if len(unique) == len(digests):
            return is_stored, stored if is_stored.all() else stored[is_stored]
        position = {digest: row for row, digest in enumerate(unique)}
        rows_of_request = np.fromiter((position[d] for d in digests), np.intp, count=len(digests))
        found = is_stored[rows_of_request]
        return found, stored[rows_of_request[found]]

    def serve(
        self, digests: Sequence[bytes]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield the stored ones of some digests with their embeddings, piece by piece.

        There are positions in ``digests``, which has no repeats, and float32 (n_served, dimension).
        """
        self.refresh()
        yield from self._index.serve(digests, self._report_damage)

    def contains(self, digests: Collection[bytes]) -> NDArray[np.bool_]:
        """Return which digests were stored at the last `refresh`, as far as is known."""
        return self._index.contains(digests)

    def refresh(self) -> None:
        """Open the shards that have appeared, and let go of those that have vanished."""
        before = self._index.shards.keys() | self.damaged_shards
        for _ in range(_LISTINGS):
            listed = self._list()
            if listed is None or listed == before:
                return
            self._follow(listed)
            before = listed

    def make(self) -> None:
        """Make the folder, for its owner alone."""
        for folder in (*reversed(self.folder.parents[:2]), self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def has_recipe(self) -> bool:
        """Whether what the fingerprint stands for lies beside the shards."""
        return os.path.exists(self.folder / RECIPE_NAME)  # noqa: PTH110 - the fastest way

    def note_recipe(self) -> None:
        """Keep the recipe beside the shards, once; the lock of the claims must be held."""
        path = self.folder / RECIPE_NAME
        if self.recipe is None or path.exists():
            return
        with contextlib.suppress(OSError):  # only people read it: it is written when it can be
            temporary = self.folder / RECIPE_TEMPORARY_NAME
            temporary.unlink(missing_ok=True)  # of one who was killed, as the lock is held here
            with write_atomically(path, temporary) as file:
                file.write(json.dumps(dict(self.recipe), indent=1).encode())

    def write(
        self, digests: Sequence[bytes], vectors: NDArray[np.float32], temporary: Path
    ) -> None:
        """Write rows as one new shard, which is on the disk when this returns.

        Row i belongs to digest i; ``temporary`` is a name in the folder that nothing else uses.
        Where an OSError is raised nothing of the shard is left.
        """
        if not digests:
            return
        self.make()
        path = self.folder / new_shard_name()
        with write_atomically(path, temporary) as file:
            write_shard(file, self.schema, digests, np.ascontiguousarray(vectors))
        keep_up(self, path)

    def check(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Raise InputError for rows that do not fit the table."""
        check_digests(digests)
        expected = (len(digests), self.dimension)
        if vectors.dtype != np.float32 or vectors.shape != expected:
            raise InputError(
                f"Got vectors of {vectors.dtype} and shape {vectors.shape}, "
                f"expected float32 and {expected}"
            )

    def warn(self, kind: str, message: str) -> None:
        """Issue a `CacheWarning`, the first time that a kind of trouble is met."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{message}. The embeddings are right all the same.", CacheWarning, 2)

    def warn_together(self, other: EmbeddingTable) -> None:
        """Issue from now on one warning where this and another table meet the same trouble."""
        self._warned = other._warned

    def _list(self) -> set[str] | None:
        """Return the names of the shards, or None where the folder is absent or unreadable."""
        try:
            with os.scandir(self.folder) as entries:
                return {entry.name for entry in entries if entry.name.endswith(SUFFIX)}
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn("folder", f"The cache cannot be read and serves nothing: {error}")
            return None

    def _follow(self, listed: set[str]) -> None:
        index = self._index
        self.damaged_shards &= listed
        added = []
        for name in sorted(listed - index.shards.keys() - self.damaged_shards):
            try:
                added.append(Shard(self.folder / name, self.schema))
            except FileNotFoundError:
                continue  # dropped, or merged into another: the next listing shows it
            except SchemaError as error:
                self.damaged_shards.add(name)
                self.warn("damaged shard", f"{error}. It is passed over and may be deleted")
        self._index = index.changed(added, index.shards.keys() - listed)

    def _report_damage(self, shard: Shard) -> None:
        self.warn("damaged rows", f"Damaged rows in {shard.path} are passed over")
