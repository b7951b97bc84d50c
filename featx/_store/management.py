"""What can be asked of a cache as a whole, and done to it: info, verify, prune and clear."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import ipc

from featx._errors import SchemaError
from featx._files import LockedFile
from featx._store.claims import ClaimFolder
from featx._store.layout import (
    CLAIMS_NAME,
    GRAPH_TEMPORARY_FILES,
    GRAPHS_NAME,
    RECIPE_NAME,
    RECIPE_TEMPORARY_NAME,
    SHARDS,
    TEMPORARY_FILES,
    evictable_files,
    files_beside,
    files_of,
    foreign_files,
    table_folders,
    upkeep_lock,
)
from featx._store.shards import FORMAT_VERSION, Shard
from featx._store.table import EmbeddingTable
from featx._store.upkeep import drop_oldest, merge_shards, total_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECONDS_OF_A_DAY = 86_400

# A temporary file that no claim tells of is left over when it is older than this: a process that
# could not lock writes such files too.
_ABANDONED_AFTER_SECONDS = 3600


@dataclass(frozen=True)
class TableInfo:
    """The stored embeddings of one fingerprint.

    Attributes
    ----------
    fingerprint : str
        Its name.
    format_version : int
        Of its shards; only one is read by this version of featx.
    recipe : dict or None
        What computed the embeddings, as JSON types, where that was noted.
    dimension : int or None
        The length of an embedding; None where no shard can be read.
    n_rows, n_shards, n_bytes : int
        How much is stored; the same image may have more than one row.
    last_used : float or None
        When a row was last stored or read, in seconds since 1970, to an hour.
    """

    fingerprint: str
    format_version: int
    recipe: dict[str, Any] | None
    dimension: int | None
    n_rows: int
    n_shards: int
    n_bytes: int
    last_used: float | None


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Attributes
    ----------
    folder : str
        Where it is.
    n_bytes : int
        What it takes on the disk.
    max_bytes : int or None
        What it may take.
    tables : tuple of TableInfo
        One for each fingerprint, the one used last first.
    n_temporary_files, n_void_claims : int
        What killed processes have left behind; `prune` removes it, as does whoever next writes.
    n_foreign_files : int
        What lies among the shards and is not the cache's own.
    """

    folder: str
    n_bytes: int
    max_bytes: int | None
    tables: tuple[TableInfo, ...]
    n_temporary_files: int
    n_void_claims: int
    n_foreign_files: int


@dataclass(frozen=True)
class VerifyReport:
    """What reading every row of a cache has shown.

    Attributes
    ----------
    n_rows, n_shards : int
        How many were read and are sound.
    n_damaged_rows : int
        Rows that are not as they were stored.
    unreadable_shards : tuple of str
        Shards that cannot be read at all.
    foreign_files : tuple of str
        What lies among the shards and is not the cache's own.
    unchecked_tables : tuple of str
        Tables of another version of featx.
    n_temporary_files, n_void_claims : int
        What killed processes have left behind.
    repaired : bool
        Whether damaged rows and shards, and what was left behind, were removed.
    """

    n_rows: int
    n_shards: int
    n_damaged_rows: int
    unreadable_shards: tuple[str, ...]
    foreign_files: tuple[str, ...]
    unchecked_tables: tuple[str, ...]
    n_temporary_files: int
    n_void_claims: int
    repaired: bool

    @property
    def is_sound(self) -> bool:
        """Whether no damage was found."""
        return not self.n_damaged_rows and not self.unreadable_shards


@dataclass(frozen=True)
class RemovalReport:
    """What was removed from a cache.

    Attributes
    ----------
    n_shards : int
        How many shards.
    n_bytes : int
        What they took on the disk.
    n_temporary_files, n_void_claims : int
        What killed processes had left behind.
    n_bytes_left : int
        What the cache takes now.
    foreign_files : tuple of str
        What was found among the shards, is not the cache's own, and was left where it is.
    """

    n_shards: int
    n_bytes: int
    n_temporary_files: int
    n_void_claims: int
    n_bytes_left: int
    foreign_files: tuple[str, ...] = ()


def describe_cache(root: Path, max_bytes: int | None) -> CacheInfo:
    """Return what a cache holds; see `EmbeddingCache.info`."""
    n_temporary, n_void = _leftovers(root, remove=False)
    folders = list(table_folders(root))
    tables = [_describe_table(version, folder) for version, folder in folders]
    tables.sort(key=lambda table: -(table.last_used or 0))
    return CacheInfo(
        folder=str(root),
        n_bytes=_all_bytes(root),
        max_bytes=max_bytes,
        tables=tuple(table for table in tables if table.n_shards),
        n_temporary_files=n_temporary,
        n_void_claims=n_void,
        n_foreign_files=sum(len(foreign_files(folder)) for _, folder in folders),
    )


def verify_cache(root: Path, *, repair: bool) -> VerifyReport:
    """Read every row of a cache; see `EmbeddingCache.verify`."""
    rows = shards = damaged_rows = 0
    unreadable: list[str] = []
    foreign: list[str] = []
    unchecked: list[str] = []
    with _upkeep_lock(root, must=repair):
        temporary, void = _leftovers(root, remove=repair)
        for version, folder in table_folders(root):
            foreign += map(str, foreign_files(folder))
            if version != FORMAT_VERSION:
                unchecked.append(str(folder))
                continue
            # Where no shard tells the dimension, none can be read in any case.
            dimension = _describe_table(version, folder).dimension or 1
            table = EmbeddingTable(folder, folder.name, dimension)
            for name in sorted(files_of(folder)):
                path = folder / name
                try:
                    shard = Shard(path, table.schema)
                except FileNotFoundError:
                    continue
                except SchemaError:
                    unreadable.append(str(path))
                    if repair:
                        path.unlink(missing_ok=True)
                    continue
                n_damaged = shard.count_damaged()
                rows, shards = rows + len(shard) - n_damaged, shards + 1
                damaged_rows += n_damaged
                if n_damaged and repair:
                    merge_shards(table, [name])
    return VerifyReport(
        n_rows=rows,
        n_shards=shards,
        n_damaged_rows=damaged_rows,
        unreadable_shards=tuple(unreadable),
        foreign_files=tuple(foreign),
        unchecked_tables=tuple(unchecked),
        n_temporary_files=temporary,
        n_void_claims=void,
        repaired=repair,
    )


def prune_cache(root: Path, *, max_bytes: int | None, unused_days: float | None) -> RemovalReport:
    """Remove what has not been used for long; see `EmbeddingCache.prune`."""
    with _upkeep_lock(root, must=True):
        temporary, void = _leftovers(root, remove=True)
        since = 0.0 if unused_days is None else time.time() - unused_days * _SECONDS_OF_A_DAY
        limit = total_bytes(root) if max_bytes is None else max_bytes
        dropped = drop_oldest(root, limit, unused_since=since)
    n_shards = sum(SHARDS.fullmatch(path.name) is not None for path in dropped)
    return RemovalReport(n_shards, sum(dropped.values()), temporary, void, _all_bytes(root))


def clear_cache(root: Path, *, fingerprint: str | None) -> RemovalReport:
    """Remove the tables of one fingerprint or of all; see `EmbeddingCache.clear`."""
    n_shards = n_bytes = 0
    foreign: list[str] = []
    with _upkeep_lock(root, must=True):
        temporary, void = _leftovers(root, remove=True, fingerprint=fingerprint)
        for _, folder in list(table_folders(root)):
            if fingerprint in (None, folder.name):
                for name, status in files_of(folder).items():
                    (folder / name).unlink(missing_ok=True)
                    n_shards, n_bytes = n_shards + 1, n_bytes + status.st_size
                foreign += map(str, foreign_files(folder))
                _remove_empty(folder)
        if fingerprint is None:
            for path, status in [*evictable_files(root), *files_beside(root).items()]:
                path.unlink(missing_ok=True)
                n_bytes += status.st_size
    return RemovalReport(n_shards, n_bytes, temporary, void, _all_bytes(root), tuple(foreign))


def _all_bytes(root: Path) -> int:
    """Return what a cache takes on the disk, with what the limit is not about."""
    return total_bytes(root) + sum(status.st_size for status in files_beside(root).values())


@contextlib.contextmanager
def _upkeep_lock(root: Path, *, must: bool) -> Iterator[None]:
    """Keep the shards where they are while the block runs; without `must`, where that can be."""
    with contextlib.ExitStack() as leaving:
        path = upkeep_lock(root)
        if any(folder.parent == path.parent for _, folder in table_folders(root)):
            try:
                leaving.enter_context(lock := LockedFile(path, create=must))
                lock.lock()
            except OSError:
                if must:
                    raise
        yield


def _describe_table(version: int, folder: Path) -> TableInfo:
    statuses = files_of(folder)
    rows, dimensions = 0, Counter[int]()
    for name in statuses:
        n_rows, dimension = _read_header(folder / name)
        rows += n_rows
        dimensions[dimension] += n_rows
    del dimensions[0]
    recipe = None
    with contextlib.suppress(OSError, ValueError):
        recipe = json.loads((folder / RECIPE_NAME).read_bytes())
    return TableInfo(
        fingerprint=folder.name,
        format_version=version,
        recipe=recipe if isinstance(recipe, dict) else None,
        dimension=max(dimensions, key=dimensions.__getitem__, default=None),
        n_rows=rows,
        n_shards=len(statuses),
        n_bytes=sum(status.st_size for status in statuses.values()),
        last_used=max((status.st_mtime for status in statuses.values()), default=None),
    )


def _read_header(path: Path) -> tuple[int, int]:
    """Return the rows of a shard and the length of its embeddings; 0 where it cannot be read."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = ipc.open_file(source)
            rows = sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))
            dimension = reader.schema.field("embedding").type.list_size
    except (OSError, MemoryError, ValueError, KeyError, AttributeError, pa.ArrowException):
        return 0, 0
    return rows, dimension


def _leftovers(root: Path, *, remove: bool, fingerprint: str | None = None) -> tuple[int, int]:
    """Count what killed processes have left behind: temporary files and void claims.

    It is removed where that is wanted; `fingerprint` names the only table to look at.
    """
    folders = [folder for _, folder in table_folders(root) if fingerprint in (None, folder.name)]
    young = time.time() - _ABANDONED_AFTER_SECONDS
    files = [
        root / GRAPHS_NAME / name
        for name, status in files_of(root / GRAPHS_NAME, GRAPH_TEMPORARY_FILES).items()
        if status.st_mtime < young
    ]
    n_void = 0
    for folder in folders:
        claims, void = ClaimFolder(folder), set[str]()
        with contextlib.ExitStack() as lock:
            if (folder / CLAIMS_NAME).is_dir():
                try:
                    lock.enter_context(claims.locked())
                    void = claims.void()
                except OSError:  # in a folder that is only read nobody writes
                    if remove:
                        raise
            claimed = claims.names() - void
            for name, status in files_of(folder, TEMPORARY_FILES).items():
                owner = name.removesuffix(".tmp")
                if owner in void or (owner not in claimed and status.st_mtime < young):
                    files.append(folder / name)
            if remove and void:
                claims.live()  # which removes them
        n_void += len(void)
    for path in files if remove else ():
        path.unlink(missing_ok=True)
    return len(files), n_void


def _remove_empty(folder: Path) -> None:
    """Remove what is left of a table, unless somebody works in it or has put something there."""
    for name in (RECIPE_NAME, RECIPE_TEMPORARY_NAME):
        (folder / name).unlink(missing_ok=True)
    present = {path.name for path in folder.iterdir()}
    claims = folder / CLAIMS_NAME
    with contextlib.suppress(OSError):
        if present <= {CLAIMS_NAME} and {path.name for path in claims.iterdir()} <= {"lock"}:
            (claims / "lock").unlink(missing_ok=True)
            claims.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
