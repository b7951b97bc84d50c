"""Claims: which images a process is computing, so that no other computes them too.

A claim is a file with the digests of some images, locked by the process that computes them. A
claim whose lock can be taken belongs to a process that has died; it is void and is removed.
Claims are read and made under one short lock, and whoever holds that lock reads the claims first
and the finished shards second. The other order would lose a race: a claim that ends between the
two readings would be missing from the second and its shard from the first.

A process that is stopped (Ctrl-Z) keeps its locks. A claim therefore has a heartbeat: a thread of
its holder changes the time of the file every few seconds, and is stopped with the process. Whoever
waits looks for the change and not at the time, as the clocks of two machines may differ.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from featx._files import LockedFile, no_fork
from featx._store.layout import CLAIMS, CLAIMS_NAME
from featx._store.shards import split_digests

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

SECONDS_BETWEEN_HEARTBEATS = 5.0

# The short lock is held for milliseconds; after so long its holder has been stopped.
SECONDS_FOR_THE_LOCK = 60.0

_SUFFIX = ".claim"

# What stands in the file between the digests and the name of its holder. To a version that does
# not know of it, it is the digest of no image.
_HOLDER = b"\nclaimed by:\n"


class ClaimFile:
    """A claim on the disk, held by this process until it is removed; the file must be a new one."""

    def __init__(self, path: Path, digests: Sequence[bytes]) -> None:
        self._path = path
        self._file = LockedFile(path, create=True)
        try:
            self._file.try_lock()  # it is free: others look at it under the short lock only
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            self._file.write(b"".join(digests) + _HOLDER + holder.encode())
            _heart.start_beating_for(self)
        except BaseException:
            self.remove()
            raise

    def beat(self) -> bool:
        """Change the time of the file; return whether this process, and no parent, holds it."""
        if self._file.is_open:
            with contextlib.suppress(OSError):  # it was removed in this moment
                os.utime(self._path)
        return self._file.is_open

    def remove(self) -> None:
        """End the claim; a second call, or one in a forked child, does nothing."""
        if self._file.is_open:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()


class _Heart:
    """The thread that beats for the claims of this process, as long as there are any."""

    def __init__(self) -> None:
        self._claims: set[ClaimFile] = set()
        self._thread: threading.Thread | None = None

    def start_beating_for(self, claim: ClaimFile) -> None:
        """Beat for a claim until it is removed."""
        with no_fork:  # so that a forked child finds neither a held lock nor half a start
            self._claims.add(claim)
            # In a forked child the thread is there no longer.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="featx claims", daemon=True)
                self._thread.start()

    def _beat(self) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_HEARTBEATS)
            ended = {claim for claim in self._claims.copy() if not claim.beat()}
            with no_fork:
                self._claims -= ended
                if not self._claims:
                    self._thread = None
                    return


_heart = _Heart()


class ClaimFolder:
    """The claims of all processes on the rows of a table, whose folder exists when one is made."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._folder = table / CLAIMS_NAME
        self._is_stuck = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the short lock, under which claims are read and made.

        Raises
        ------
        OSError
            The folder cannot be made or written, its file system knows no locks, or the lock
            is held by a process that was stopped.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with LockedFile(self._folder / "lock", create=True) as file:
            try:
                file.lock(0.0 if self._is_stuck else SECONDS_FOR_THE_LOCK)
            except TimeoutError:
                self._is_stuck = True  # so that it is waited for once, not for each claim
                raise
            self._is_stuck = False
            yield

    def names(self) -> set[str]:
        """Return the names of all claims, live or void; there are none where no folder is."""
        try:
            names = {path.name for path in self._folder.iterdir()}
        except OSError:
            return set()
        return {name.removesuffix(_SUFFIX) for name in names if CLAIMS.fullmatch(name)}

    def heartbeat(self, name: str) -> int | None:
        """Return what changes every few seconds while a claim's holder runs; None without one."""
        try:
            return self._path(name).stat().st_mtime_ns
        except OSError:
            return None

    def holder(self, name: str) -> str:
        """Return who holds a claim, for people, as ``process 4711 on host``."""
        try:
            _, _, holder = self._path(name).read_bytes().partition(_HOLDER)
        except OSError:
            holder = b""
        return holder.decode(errors="replace") or "another process"

    def live(self, ignored: Collection[str] = frozenset()) -> dict[bytes, str]:
        """Return each claimed digest with the name of its claim, and remove void claims.

        The short lock must be held. Claims with ignored names count no longer, as their holders do
        not go on.
        """
        claimed: dict[bytes, str] = {}
        for name in (void := self.void()):
            self.temporary(name).unlink(missing_ok=True)
            self._path(name).unlink(missing_ok=True)
        for name in self.names() - void - set(ignored):
            with contextlib.suppress(FileNotFoundError):  # the claim has ended in this moment
                content, _, _ = self._path(name).read_bytes().partition(_HOLDER)
                claimed.update(dict.fromkeys(split_digests(content), name))
        return claimed

    def void(self) -> set[str]:
        """Return the claims whose holders have died; the short lock must be held."""
        void = set()
        for name in self.names():
            with (
                contextlib.suppress(FileNotFoundError),
                LockedFile(self._path(name), create=False) as file,
            ):
                if file.try_lock():
                    void.add(name)
        return void

    def add(self, name: str, digests: Sequence[bytes]) -> ClaimFile:
        """Claim images; the short lock must be held."""
        return ClaimFile(self._path(name), digests)

    def temporary(self, name: str) -> Path:
        """Return the file to which the holder of a claim may write; a void claim's is removed."""
        return self._table / f"{name}.tmp"

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)
