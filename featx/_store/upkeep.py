"""Upkeep: small shards are merged into larger ones, and the cache is kept below its limit.

It is done by those that write, after they have written, by one process at a time for a whole
cache; who finds another at it leaves it to that one.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import SchemaError
from featx._files import LockedFile, write_atomically
from featx._store.layout import evictable_files, files_of, upkeep_lock
from featx._store.shards import Shard, new_shard_name, write_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from featx._store.table import EmbeddingTable

# So many shards of about one size become one, which is so many times larger: a row is therefore
# written again once for each step of size, two times on the way from a flush of 256 x 1280 floats
# (1.3 MB) to the largest shards. Opening a shard takes 0.1 to 0.4 ms, in which 0.1 to 0.35 MB of
# rows are read and verified; of a shard of 64 MB that is less than a hundredth, so that a larger
# one would gain nothing, cost more memory to merge, and make the limit coarser.
_MERGED_AT_ONCE = 8
_LARGEST_BYTES = 64_000_000

# How far a process writes before it looks again what others have written.
_LARGEST_SLACK = 512_000_000

# What each cache folder held when this process last looked, with what it has written since, and
# how much the latter is.
_totals: dict[Path, tuple[int, int]] = {}


def keep_up(table: EmbeddingTable, written: Path) -> None:
    """Do what is due after a shard was written; trouble is left for the next time."""
    root = table.folder.parents[1]
    with contextlib.suppress(OSError, MemoryError):
        n_written, max_bytes = written.stat().st_size, table.max_bytes
        is_over = max_bytes is not None and _is_over(root, n_written, max_bytes)
        if not is_over and not _choose_shards(table):
            return
        with LockedFile(upkeep_lock(root), create=True) as lock:
            if not lock.try_lock():
                return
            if is_over and max_bytes is not None:
                # A tenth less, so that the next write does not find the cache full again.
                drop_oldest(root, limit := max_bytes * 9 // 10)
                _totals.pop(root, None)
                if n_written > limit:
                    table.warn(
                        "limit",
                        f"Nothing stays in the cache: max_bytes={max_bytes:,} is too little "
                        f"for what is stored at once, {n_written:,} bytes; raise it",
                    )
            if names := _choose_shards(table):
                merge_shards(table, names)


def total_bytes(root: Path) -> int:
    """Return what a cache takes of its limit: all its shards and graphs."""
    return sum(status.st_size for _, status in evictable_files(root))


def drop_oldest(root: Path, max_bytes: int, *, unused_since: float = 0.0) -> dict[Path, int]:
    """Remove shards and graphs, those that were not used for the longest time first.

    What is left takes at most ``max_bytes``; what was last used before ``unused_since``, in seconds
    since 1970, is removed too. The upkeep lock must be held. Return the bytes of what was removed.
    """
    files = sorted(evictable_files(root), key=lambda file: file[1].st_mtime_ns)
    left = sum(status.st_size for _, status in files)
    dropped: dict[Path, int] = {}
    for path, status in files:
        if left <= max_bytes and status.st_mtime >= unused_since:
            break
        path.unlink(missing_ok=True)
        dropped[path] = status.st_size
        left -= status.st_size
    return dropped


def choose_to_merge(sizes: Mapping[str, int], largest: int) -> list[str]:
    """Return the names of shards that should become one of about so many bytes, oldest first.

    Examples
    --------
    >>> choose_to_merge({f"{number}.arrow": 1000 for number in range(9)}, 5000)
    ['0.arrow', '1.arrow', '2.arrow', '3.arrow', '4.arrow']
    >>> choose_to_merge({f"{number}.arrow": 8**number for number in range(9)}, 10**9)
    []
    """
    of_size: dict[int, list[str]] = defaultdict(list)
    for name in sorted(sizes):
        if 0 < 2 * sizes[name] <= largest:
            of_size[int(math.log(sizes[name], _MERGED_AT_ONCE))].append(name)
    for _, names in sorted(of_size.items()):
        if len(names) >= _MERGED_AT_ONCE:
            ends = np.cumsum([sizes[name] for name in names])
            return names[: int(np.searchsorted(ends, largest, side="right"))]
    return []


def merge_shards(table: EmbeddingTable, names: Sequence[str]) -> int:
    """Put one shard in the place of several; return how many damaged rows were left out.

    Repeated rows are left out too, and shards that cannot be read stay where they are. Whoever
    reads meanwhile finds each row all the time: the new shard is in its place before the old ones
    are removed, and where it cannot be written they are still there. The upkeep lock must be held.
    """
    shards = []
    for name in names:
        with contextlib.suppress(SchemaError, FileNotFoundError):
            shards.append(Shard(table.folder / name, table.schema))
    digests, vectors, n_damaged = _sound_rows(shards, table.dimension)
    name = uuid.uuid4().hex
    with table.claims.locked():
        # A claim on nothing: if this process dies, the next one removes the temporary file.
        claim = table.claims.add(name, [])
    with contextlib.ExitStack() as leaving:
        leaving.callback(claim.remove)
        if digests:
            path = table.folder / new_shard_name()
            with write_atomically(path, table.claims.temporary(name)) as file:
                write_shard(file, table.schema, digests, vectors)
                file.flush()
                os.fsync(file.fileno())  # the slow part, while nobody has to wait for it
                leaving.enter_context(table.claims.locked())
            used = max(shard.last_used for shard in shards)
            os.utime(path, (used, used))
        for shard in shards:
            shard.path.unlink(missing_ok=True)
    return n_damaged


def _sound_rows(
    shards: Sequence[Shard], dimension: int
) -> tuple[list[bytes], NDArray[np.float32], int]:
    digests: dict[bytes, None] = {}
    vectors = np.empty((sum(map(len, shards)), dimension), np.float32)
    n_damaged = 0
    for shard in reversed(shards):
        of_shard = shard.digests()
        sound, rows = shard.read(slice(None), of_shard)
        new = sound.copy()
        for row in np.flatnonzero(sound).tolist():
            new[row] = of_shard[row] not in digests
            if new[row]:
                digests[of_shard[row]] = None
        n_damaged += int((~sound).sum())
        vectors[len(digests) - int(new.sum()) : len(digests)] = rows[new]
    return list(digests), vectors[: len(digests)], n_damaged


def _choose_shards(table: EmbeddingTable) -> list[str]:
    sizes = {
        name: status.st_size
        for name, status in files_of(table.folder).items()
        if name not in table.damaged_shards
    }
    # With a small limit the shards are small too, for only whole ones can be dropped.
    limit = _LARGEST_BYTES if table.max_bytes is None else table.max_bytes // 20
    return choose_to_merge(sizes, min(limit, _LARGEST_BYTES))


def _is_over(root: Path, n_written: int, max_bytes: int) -> bool:
    total, since = _totals.get(root, (max_bytes, 0))
    total, since = total + n_written, since + n_written
    if total > max_bytes or since > min(max_bytes // 20, _LARGEST_SLACK):
        total, since = total_bytes(root), 0
    _totals[root] = total, since
    return total > max_bytes
