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

Where it lies. One SQLite database for each machine, by the machine's name, in the folder of the
cache: device and inode mean something on one machine only, and so those that lock the database
share a kernel (or an NFS client), although the folder may be of a network file system. It has a
rollback journal, as the shared memory of a write-ahead log needs a local one. A machine with a new
name, as a container may have, begins with an empty memo. Nothing is flushed to the disk: a kill
costs nothing, and what a power cut damages is told by SQLite or by the checksum of the entry, and
is begun anew. A database that is busy, read-only, full or damaged is a miss and one warning.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import stat
import struct
import time
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import xxhash

from featx._errors import CacheWarning, InputError
from featx._files import no_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

Result = TypeVar("Result")

GRANULARITY_NS = 2_000_000_000

# Of some 8 million files; beyond it the memo begins anew.
MAX_BYTES = 1_000_000_000

# How long a busy database is waited for, and how long it is left alone after any trouble.
BUSY_SECONDS = 2.0
SECONDS_AFTER_TROUBLE = 60.0

_HAS_CHANGE_TIME = os.name != "nt"

_DIGEST_BYTES = 16
_IDENTITY = struct.Struct("<QQQqq")  # device, inode, size, modification time, change time
_SIZE = 2

# An entry is the identity, the digest, the bytes of the content (of a member, where the identity
# is its archive's) and a checksum of all that and the key.
_CONTENT = struct.Struct(f"<{_IDENTITY.size}s{_DIGEST_BYTES}sQ")

_TABLE = "CREATE TABLE IF NOT EXISTS memo (key BLOB PRIMARY KEY, entry BLOB) WITHOUT ROWID"

# Files of one folder that are asked for together lie together in the table, in most requests: they
# are read as one range, three times as fast as one by one, if that has few others between.
_LEAST_OF_A_RANGE = 64
_MOST_OTHERS = 2
_KEYS_AT_ONCE = 256
_READ_RANGE = "SELECT key, entry FROM memo WHERE key BETWEEN ? AND ? LIMIT ?"
_READ_KEYS = f"SELECT key, entry FROM memo WHERE key IN ({', '.join('?' * _KEYS_AT_ONCE)})"  # noqa: S608

# What processes have opened that were forked later: closing it there is not safe.
_of_parents: list[sqlite3.Connection] = []

_clock_ns = time.time_ns
_stat = os.stat


class Observation(NamedTuple):
    """What a file was like before it was read; of `StatMemo.observe`.

    Attributes
    ----------
    identity : bytes or None
        Its device, inode, size and times; None where there is no such file, or no regular one.
    clock_ns : int
        The time before the identity was taken, in nanoseconds since 1970.
    n_bytes : int, optional
        The bytes of what was read, for an image in an archive; by default those of the file.
    """

    path: str
    identity: bytes | None
    clock_ns: int
    n_bytes: int | None = None


class StatMemo:
    """The digests of files that have not changed since they were read.

    Several processes and threads may use one folder at once; it is made when something is to be
    remembered. A process has one connection to the database, which a forked child does not take
    over. A path in an archive, as ``photos.zip/cats/1.jpg``, has the identity of the archive:
    ``split_archive_path`` returns it and the name inside, or None. Without it such paths are not
    remembered.

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
        self.path = folder / f"{xxhash.xxh3_64_hexdigest(socket.gethostname().encode())}.sqlite"
        self._split_archive_path = split_archive_path
        self._database: sqlite3.Connection | None = None
        self._opened: tuple[int, int, int] | None = None  # process, device and inode
        self._left_alone_until = 0.0
        self._has_warned = False

    def __reduce__(self) -> tuple[type[StatMemo], tuple[Any, ...]]:
        return StatMemo, (self.folder, self._split_archive_path)

    def lookup(self, paths: Sequence[str], max_bytes: int | None = None) -> list[bytes | None]:
        """Return the digests of files, without opening any of them; None where one is not known.

        Files of more than ``max_bytes`` count as not known.
        """
        digests: list[bytes | None] = [None] * len(paths)
        if not paths or not self.path.exists():
            return digests
        keys = _keys(paths)
        entries = self._use(lambda database: _read(database, keys)) or {}
        identify, hash_bytes = self._identifier(), xxhash.xxh3_64_digest
        for row, key in enumerate(keys):
            entry = entries.get(key)
            if not isinstance(entry, bytes):  # it is absent, or its type is damaged
                continue
            content = entry[: _CONTENT.size]
            if entry[_CONTENT.size :] != hash_bytes(content + key):
                continue
            identity, digest, n_bytes = _CONTENT.unpack(content)
            is_too_large = max_bytes is not None and n_bytes > max_bytes
            if not is_too_large and identity == identify(paths[row]):
                digests[row] = digest
        return digests

    def observe(self, path: str) -> Observation:
        """Return what a file is like; to be called before the file is opened for reading."""
        clock_ns = _clock_ns()  # never after the reading has begun: later writes must be later
        return Observation(path, self._identifier()(path), clock_ns)

    def remember(self, observed: Sequence[tuple[Observation, bytes]]) -> bool:
        """Record the digests of files that were read after they were observed; False if it cannot.

        Files that have changed since, or were too young when they were observed, are left out. Of
        several of one path the last one counts. A folder that cannot be made is left to the cache
        to tell of.
        """
        for _, digest in observed:
            if len(digest) != _DIGEST_BYTES:
                raise InputError(f"Got a digest of {len(digest)} bytes, expected {_DIGEST_BYTES}")
        identify = self._identifier()
        trusted = [
            (observation, digest)
            for observation, digest in observed
            if _is_trusted(observation) and identify(observation.path) == observation.identity
        ]
        if not trusted:
            return True
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        if not os.access(self.folder, os.W_OK):
            return False
        keys = _keys([observation.path for observation, _ in trusted])
        rows = [(key, _entry(key, *seen)) for key, seen in zip(keys, trusted, strict=True)]
        return self._use(lambda database: _write(database, rows)) is not None

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
                identity = None
                member = self._split_archive_path(path) if self._split_archive_path else None
                if member is not None:
                    with contextlib.suppress(OSError, ValueError):
                        identity = _identity(_stat(member[0]))
                archives[path.rpartition("/")[0]] = identity
                return identity
            except (OSError, ValueError):  # ValueError: a null byte in the path
                return None

        return identify

    def _use(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return what is done with the database, or None where it cannot be used.

        A thread at a time, and no process is forked meanwhile: the child would inherit what
        SQLite has locked.
        """
        with no_fork:
            if time.monotonic() < self._left_alone_until:
                return None
            try:
                return work(self._open())
            except (sqlite3.Error, OSError, UnicodeError) as error:
                self._left_alone_until = time.monotonic() + SECONDS_AFTER_TROUBLE
                self._close()
                if _is_damage(error):
                    # Others that have it open go on with what nobody sees.
                    for suffix in ("", "-journal"):
                        with contextlib.suppress(OSError):
                            self.path.with_name(self.path.name + suffix).unlink()
                message = f"The memo of digests, {self.path}, cannot be used: {error}."
        if not self._has_warned:
            self._has_warned = True
            message += " Images are read again; the embeddings are right all the same."
            warnings.warn(message, CacheWarning, stacklevel=3)
        return None

    def _open(self) -> sqlite3.Connection:
        """Return the connection of this process to the file that lies there now."""
        with contextlib.suppress(FileNotFoundError):
            status = self.path.stat()
            if self._database and self._opened == (os.getpid(), status.st_dev, status.st_ino):
                return self._database
        self._close()
        # No transactions but those that are begun here; threads take turns.
        database = self._database = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._opened = (os.getpid(), 0, 0)
        for setting in ("synchronous = OFF", "trusted_schema = OFF", "cell_size_check = ON"):
            database.execute(f"PRAGMA {setting}")
        database.execute(_TABLE)
        status = self.path.stat()
        self._opened = (os.getpid(), status.st_dev, status.st_ino)
        return database

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None and self._opened is not None:
            if self._opened[0] == os.getpid():
                with contextlib.suppress(sqlite3.Error):
                    database.close()
            else:
                _of_parents.append(database)


def _keys(paths: Iterable[str]) -> list[bytes]:
    """Return the keys of paths: the xxh3-128 of the folder, then the name.

    Paths are made absolute but not normalised: ``link/../a.jpg`` need not be ``a.jpg``.
    """
    try:
        current = os.getcwd()  # noqa: PTH109 - a string is wanted
    except OSError:  # it has been deleted, and what is relative to it cannot be found either
        current = ""
    hashes: dict[str, bytes] = {}
    keys = []
    for path in paths:
        folder, separator, name = path.rpartition("/")
        folder_hash = hashes.get(folder + separator)
        if folder_hash is None:
            absolute = os.path.join(current, folder + separator)  # noqa: PTH118
            absolute = absolute if absolute.endswith("/") else absolute + "/"
            folder_hash = xxhash.xxh3_128_digest(absolute.encode(errors="surrogatepass"))
            hashes[folder + separator] = folder_hash
        keys.append(folder_hash + name.encode(errors="surrogatepass"))
    return keys


def _read(database: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the entries of keys, and maybe of a few others."""
    of_folder = defaultdict(list)
    for key in keys:
        of_folder[key[:_DIGEST_BYTES]].append(key)
    entries: dict[bytes, bytes] = {}
    single: list[bytes | None] = []
    for wanted in of_folder.values():
        if len(wanted) >= _LEAST_OF_A_RANGE:
            most = _MOST_OTHERS * len(wanted)
            found = database.execute(_READ_RANGE, (min(wanted), max(wanted), most)).fetchall()
            if len(found) < most:
                entries.update(found)
                continue
        single += wanted
    for start in range(0, len(single), _KEYS_AT_ONCE):
        some = single[start : start + _KEYS_AT_ONCE]
        some += [None] * (_KEYS_AT_ONCE - len(some))
        entries.update(database.execute(_READ_KEYS, some))
    return entries


def _write(database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> bool:
    database.execute("BEGIN IMMEDIATE")
    pages, free, size = (
        database.execute(f"PRAGMA {number}").fetchone()[0]
        for number in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size > MAX_BYTES:
        database.execute("DELETE FROM memo")
    database.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?)", rows)
    database.execute("COMMIT")
    return True


def _entry(key: bytes, observation: Observation, digest: bytes) -> bytes:
    identity = observation.identity or b""
    n_bytes = observation.n_bytes
    if n_bytes is None:
        n_bytes = _IDENTITY.unpack(identity)[_SIZE]
    content = _CONTENT.pack(identity, digest, n_bytes)
    return content + xxhash.xxh3_64_digest(content + key)


def _is_damage(error: Exception) -> bool:
    # Of other troubles there are classes of their own, but for a table that is not there.
    # UnicodeError: what SQLite says of a damaged schema repeats bytes of it.
    is_plain = isinstance(error, UnicodeError) or type(error) is sqlite3.DatabaseError
    return is_plain or str(error).startswith(("no such", "malformed"))


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
