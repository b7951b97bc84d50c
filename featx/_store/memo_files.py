"""The files of the memo: sorted entries of one width, each with a checksum, mapped for reading."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_ROWS_AT_ONCE = 65_536

# A file is this, then the keys, then the entries; how many there are follows from its size.
HEAD = b"featx stat memo, layout 1".ljust(64, b"\n")

_KEY = np.dtype("<u8")  # the first half of the path's hash, by which a file is sorted
ENTRY = np.dtype(
    [
        ("path", "<u8", 2),  # xxh3-128 of the absolute path
        ("identity", "<u8", 5),  # as _IDENTITY packs it
        ("digest", "V16"),
        ("seen", "<u8"),  # when it was observed, in ns
        ("checksum", "<u8"),  # xxh3-64 of all that stands before
    ]
)
_CHECKED_BYTES = ENTRY.itemsize - 8


class MemoFile(NamedTuple):
    """One file of the memo, mapped, sorted by the key."""

    path: Path
    keys: NDArray[np.uint64]
    entries: NDArray[np.void]


def open_memo_file(path: Path) -> MemoFile | None:
    """Map a file, or return None if it is damaged or not the memo's."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        count, rest = divmod(size - len(HEAD), _KEY.itemsize + ENTRY.itemsize)
        if count < 1 or rest or file.read(len(HEAD)) != HEAD:
            return None
        content = np.asarray(np.memmap(file, np.uint8, "r", shape=(size,)))
    entries_start = len(HEAD) + count * _KEY.itemsize
    keys, entries = content[len(HEAD) : entries_start], content[entries_start:]
    return MemoFile(path, keys.view(_KEY), entries.view(ENTRY))


def path_hashes(paths: Iterable[str]) -> NDArray[np.uint64]:
    """Return the xxh3-128 of absolute paths, shape (n, 2).

    They are not normalised: ``link/../a.jpg`` need not be ``a.jpg``.
    """
    try:
        current = os.getcwd()  # noqa: PTH109 - a string is wanted
    except OSError:  # it has been deleted, and what is relative to it cannot be found either
        current = ""
    hash_bytes, join, root = xxhash.xxh3_128_digest, os.path.join, os.sep
    hashes = [
        hash_bytes(
            (path if path.startswith(root) else join(current, path)).encode(errors="surrogatepass")
        )
        for path in paths
    ]
    return as_words(b"".join(hashes), 2)


def as_words(content: bytes, words: int) -> NDArray[np.uint64]:
    """Return bytes as rows of numbers, shape (n, words)."""
    return np.frombuffer(content, "<u8").reshape(-1, words)


def _checksums(entries: NDArray[np.void]) -> NDArray[np.uint64]:
    content = memoryview(entries.tobytes())
    hash_bytes, step, checked = xxhash.xxh3_64_intdigest, ENTRY.itemsize, _CHECKED_BYTES
    sums = [hash_bytes(content[start : start + checked]) for start in range(0, len(content), step)]
    return np.array(sums, np.uint64)


def build_entries(
    paths: Sequence[str], identities: Sequence[bytes], digests: Sequence[bytes], seen: Sequence[int]
) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """Return the keys and entries of files, sorted by the key."""
    entries = np.empty(len(paths), ENTRY)
    entries["path"] = path_hashes(paths)
    entries["identity"] = as_words(b"".join(identities), 5)
    entries["digest"] = np.frombuffer(b"".join(digests), "V16")
    entries["seen"] = seen
    entries["checksum"] = _checksums(entries)
    keys = entries["path"][:, 0]
    order = np.argsort(keys, kind="stable")
    return keys[order], entries[order]


def newest_entries(
    files: Iterable[MemoFile], hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.void]]:
    """Return the rows of hashes that have a sound entry, and the newest such entry of each."""
    open_rows = np.argsort(hashes[:, 0])  # sorted keys are found several times faster
    found: list[tuple[NDArray[np.intp], NDArray[np.void]]] = []
    for file in files:  # the newest first
        wanted = hashes[open_rows]
        places = np.searchsorted(file.keys, wanted[:, 0])
        places[places == len(file.keys)] = 0
        near = np.flatnonzero(file.keys[places] == wanted[:, 0])
        entries = file.entries[places[near]]
        sound = (entries["path"] == wanted[near]).all(axis=1)
        sound &= entries["checksum"] == _checksums(entries)
        found.append((open_rows[near[sound]], entries[sound]))
        open_rows = np.delete(open_rows, near[sound])
        if not len(open_rows):
            break
    rows = np.concatenate([rows for rows, _ in found])
    entries = np.concatenate([entries for _, entries in found])
    order = np.argsort(rows)  # the order of the request, which is that of the disk, if any is
    return rows[order], entries[order]


def newest_rows(parts: Sequence[MemoFile], rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return those of some rows, counted through all parts, that were seen last."""
    seen = np.concatenate([part.entries["seen"] for part in parts])[rows]
    return rows[np.sort(np.argpartition(seen, -count)[-count:])]


def gather(parts: Sequence[MemoFile], rows: NDArray[np.intp]) -> Iterator[NDArray[np.void]]:
    """Yield the entries of rows, counted through all parts, some at a time."""
    stops = np.cumsum([len(part.keys) for part in parts])
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = rows[start : start + _ROWS_AT_ONCE]
        part_of_row = np.searchsorted(stops, chunk, side="right")
        entries = np.empty(len(chunk), ENTRY)
        for number, part in enumerate(parts):
            inside = part_of_row == number
            entries[inside] = part.entries[chunk[inside] - (stops[number] - len(part.keys))]
        yield entries
