"""The memo: which digest a file had when it was last read, so that it need not be read again.

An entry says that a path whose device, inode, size, modification time and change time (its
identity) are these has content with this digest. It is never the key of anything: what is asked
for by digest is stored by digest, and an entry only saves reading the file, as git's index does.

Why an entry is never wrong. `StatMemo.observe` takes the clock, then the identity; only then is
the file read. A write before the identity was taken is in what was read. A write after the clock
was taken, be it before, during or after the reading, stamps the change time with a later time,
rounded down to the file system's granularity; a modification time put back, a rename, another
file in its place do so too or show another inode. So if the stamps of the identity lie further
before the clock than the granularity, every later write gives another identity and the entry is
dead, not wrong. If they lie nearer, the file is "racily clean" and is not recorded; it is read
once more next time. As git's margin, ours covers the coarsest clock in use, FAT's 2 s. What was
observed is also compared once more after the reading, which catches attributes that a network
client had kept from before.

What this rests on. The clock that stamps files may lag behind ours by 2 s less its granularity
(some ms, on most file systems); if it runs ahead, young files are merely read again. Where it lags
further, as a file server's may, two writes with a reading in between would have to fall into one
tick of it to be missed. Not seen are: a clock set back to the very tick of an earlier stamp; a
single write call within a file that goes on for 2 s after it has stamped it, and a page of a
shared writable mapping that is changed again before it is written back; on FAT and where else the
change time is the modification time, a rewrite of the same size whose time is put back; on NFS,
for as long as the client keeps attributes (a minute at most by default), what another machine has
written. Windows states no change time, so nothing is remembered there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featx._errors import InputError
from featx._files import write_atomically
from featx._store.memo_files import (
    HEAD,
    MemoFile,
    as_words,
    build_entries,
    gather,
    newest_entries,
    newest_rows,
    open_memo_file,
    path_hashes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

GRANULARITY_NS = 2_000_000_000
SUFFIX = ".v1.memo"  # another layout needs another suffix, so that versions share a folder
MAX_FILES = 16
MAX_ENTRIES = 10_000_000

_TEMPORARY_SUFFIX = ".v1.tmp"
_ABANDONED_AFTER_SECONDS = 24 * 3600
_ATTEMPTS = 5
_HAS_CHANGE_TIME = os.name != "nt"

_DIGEST_BYTES = 16
_IDENTITY = struct.Struct("<QQQqq")  # device, inode, size, modification time, change time
_SIZE = 2

_clock_ns = time.time_ns
_stat = os.stat


class Observation(NamedTuple):
    """What a file was like before it was read; of `StatMemo.observe`.

    Attributes
    ----------
    path : str
        The path, as it was given.
    identity : bytes or None
        Its device, inode, size and times; None where there is no such file, or no regular one.
    clock_ns : int
        The time before the identity was taken, in nanoseconds since 1970.
    """

    path: str
    identity: bytes | None
    clock_ns: int


class StatMemo:
    """The digests of files that have not changed since they were read.

    Several processes and threads may use one folder at once, without locks: files are written
    under names of their own and never changed. A folder that cannot be read or written, and
    files in it that are damaged or not the memo's, are no error: images are read again.

    Parameters
    ----------
    folder : Path
        Where the memo's files lie. It is made when something is to be remembered.
    split_archive_path : callable, optional
        Returns the archive that a path goes into and the name inside it, or None, by the folder
        of the path. A path in an archive, as ``photos.zip/cats/1.jpg``, has the identity of the
        archive. Without it such paths are not remembered.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     memo, image = StatMemo(pathlib.Path(name, "memo")), pathlib.Path(name, "a.jpg")
    ...     _ = image.write_bytes(b"...")
    ...     young = memo.observe(str(image))
    ...     old = young._replace(clock_ns=young.clock_ns + 3_000_000_000)
    ...     memo.remember([(young, b"digest of 16 B..")]), memo.lookup([str(image)])
    ...     memo.remember([(old, b"digest of 16 B..")]), memo.lookup([str(image), "none.jpg"])
    (True, [None])
    (True, [b'digest of 16 B..', None])
    """

    def __init__(
        self,
        folder: Path,
        split_archive_path: Callable[[str], tuple[str, str] | None] | None = None,
    ) -> None:
        self.folder = folder
        self._split_archive_path = split_archive_path
        # Replaced, never changed, so that threads may read it; None stands for a damaged file.
        self._opened: dict[str, MemoFile | None] = {}

    def __reduce__(self) -> tuple[type[StatMemo], tuple[Any, ...]]:
        return StatMemo, (self.folder, self._split_archive_path)

    def lookup(self, paths: Sequence[str], max_bytes: int | None = None) -> list[bytes | None]:
        """Return the digests of files, without opening any of them.

        Parameters
        ----------
        paths : sequence of str
            Of files, or of images in archives; relative ones start at the current folder.
        max_bytes : int, optional
            Files that are larger, or lie in an archive that is, count as not known.

        Returns
        -------
        list of (bytes of length 16) or None
            In the order of the request; None where the content is not known, for whatever reason.
        """
        digests: list[bytes | None] = [None] * len(paths)
        files = self._files()
        if not paths or not files:
            return digests
        rows, entries = newest_entries(files, path_hashes(paths))
        identify = self._identifier()
        unknown = bytes(_IDENTITY.size)
        present = b"".join([identify(paths[row]) or unknown for row in rows.tolist()])
        same = (entries["identity"] == as_words(present, 5)).all(axis=1)
        if max_bytes is not None:
            same &= entries["identity"][:, _SIZE] <= np.uint64(min(max_bytes, 2**63))
        for row, digest in zip(rows[same].tolist(), entries["digest"][same].tolist(), strict=True):
            digests[row] = digest
        return digests

    def observe(self, path: str) -> Observation:
        """Return what a file is like; to be called before the file is opened for reading.

        Parameters
        ----------
        path : str
            Of a file, or of an image in an archive.

        Returns
        -------
        Observation
            To be passed to `remember` with the digest of what is then read.
        """
        clock_ns = _clock_ns()  # never after the reading has begun: later writes must be later
        return Observation(path, self._identifier()(path), clock_ns)

    def remember(self, observed: Sequence[tuple[Observation, bytes]]) -> bool:
        """Record the digests of files that were read after they were observed.

        Files that have changed since, or were too young when they were observed, are left out.

        Parameters
        ----------
        observed : sequence of (Observation, bytes)
            With the digest of each content, 16 bytes. Of several of one path the last one counts.

        Returns
        -------
        bool
            False if the folder cannot be written. Nothing is lost by it but time.

        Raises
        ------
        InputError
            A digest has not 16 bytes.
        """
        for _, digest in observed:
            if len(digest) != _DIGEST_BYTES:
                raise InputError(f"Got a digest of {len(digest)} bytes, expected {_DIGEST_BYTES}")
        identify = self._identifier()
        trusted = {
            observation.path: (observation, digest)
            for observation, digest in observed
            if _is_trusted(observation) and identify(observation.path) == observation.identity
        }
        if not trusted:
            return True
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            observations, digests = zip(*trusted.values(), strict=True)
            keys, entries = build_entries(
                [observation.path for observation in observations],
                [observation.identity or b"" for observation in observations],
                digests,
                [observation.clock_ns for observation in observations],
            )
            self._write(f"{time.time_ns():020d}", keys, [entries])
        except OSError:
            return False
        # Without room for the merged file there are more files, and no other harm.
        with contextlib.suppress(OSError):
            self._merge_if_many()
        return True

    def _identifier(self) -> Callable[[str], bytes | None]:
        """Return a function from paths to identities that looks at each archive once."""
        archives: dict[str, bytes | None] = {}

        def identify(path: str) -> bytes | None:
            folder = path.rpartition("/")[0] if archives else ""
            if folder in archives:
                return archives[folder]
            try:
                return _identity(_stat(path))
            except NotADirectoryError:
                identity = archives[path.rpartition("/")[0]] = self._archive_identity(path)
                return identity
            except (OSError, ValueError):  # ValueError: a null byte in the path
                return None

        return identify

    def _archive_identity(self, path: str) -> bytes | None:
        try:
            member = self._split_archive_path(path) if self._split_archive_path else None
            return None if member is None else _identity(_stat(member[0]))
        except (OSError, ValueError):
            return None

    def _files(self) -> list[MemoFile]:
        """Open what has appeared, and return the sound files, the newest first."""
        files: list[MemoFile] = []
        for _ in range(_ATTEMPTS):
            try:
                with os.scandir(self.folder) as found:
                    names = sorted(entry.name for entry in found if entry.name.endswith(SUFFIX))
            except OSError:
                names = []
            opened = {name: self._opened[name] for name in names if name in self._opened}
            for name in names:
                if name not in opened:
                    # What cannot be opened now is tried again; a damaged file stays damaged.
                    with contextlib.suppress(OSError, ValueError):
                        opened[name] = open_memo_file(self.folder / name)
            self._opened = opened
            files = [file for name in reversed(names) if (file := opened.get(name)) is not None]
            # A file that was gone when it was opened has been merged into one not yet listed.
            if len(opened) == len(names):
                break
        return files

    def _write(
        self, since: str, keys: NDArray[np.uint64], chunks: Iterable[NDArray[np.void]]
    ) -> None:
        # The time comes first in the name, so that names sort from the oldest to the newest.
        stem = f"{since}-{uuid.uuid4().hex}"
        path = self.folder / f"{stem}{SUFFIX}"
        with write_atomically(path, self.folder / f"{stem}{_TEMPORARY_SUFFIX}") as file:
            file.write(HEAD)
            file.write(keys.tobytes())
            for chunk in chunks:
                file.write(chunk.tobytes())

    def _merge_if_many(self) -> None:
        """Put files together where there are too many, then remove those that were.

        The merged file is whole before the first of its parts is removed, so whoever is killed in
        between, or merges the same files at the same time, leaves entries twice, and none lost.
        """
        files = self._files()
        if len(files) <= MAX_FILES:
            return
        parts = _parts_to_merge(files)
        keys = np.concatenate([file.keys for file in parts])
        # The first of equal keys is kept, which is the newest.
        _, rows = np.unique(keys, return_index=True)
        if len(rows) > MAX_ENTRIES:
            rows = newest_rows(parts, rows, MAX_ENTRIES * 3 // 4)  # to have peace for a while
        # It takes the place of its newest part, before files that others write meanwhile.
        self._write(parts[0].path.name.partition("-")[0], keys[rows], gather(parts, rows))
        for part in parts:
            with contextlib.suppress(OSError):
                part.path.unlink()
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were writing; a write takes seconds, not a day."""
        for path in self.folder.glob(f"*{_TEMPORARY_SUFFIX}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    path.unlink()


def _identity(status: os.stat_result) -> bytes | None:
    if not stat.S_ISREG(status.st_mode) or not _HAS_CHANGE_TIME:
        return None
    try:
        return _IDENTITY.pack(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )
    except struct.error:  # a time after the year 2262
        return None


def _is_trusted(observation: Observation) -> bool:
    if observation.identity is None:
        return False
    *_, modified_ns, changed_ns = _IDENTITY.unpack(observation.identity)
    youngest: int = max(modified_ns, changed_ns)
    return youngest < observation.clock_ns - GRANULARITY_NS


def _parts_to_merge(files: Sequence[MemoFile]) -> Sequence[MemoFile]:
    """Return the newest files, as many as make the work of all merges grow slowly.

    Large old files are left alone until what is merged has come near to them in size, so an entry
    is written again only a few times, however many there are.
    """
    if sum(len(file.keys) for file in files) > MAX_ENTRIES:
        return files
    count, merged = 1, len(files[0].keys)
    while count < len(files) and (
        len(files) - count >= MAX_FILES // 2 or len(files[count].keys) <= 2 * merged
    ):
        merged += len(files[count].keys)
        count += 1
    return files[:count]
