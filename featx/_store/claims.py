"""Claims: which images a process is computing, so that no other computes them too.

A claim is a file with the digests of some images, locked by the process that computes them. A
claim whose lock can be taken belongs to a process that has died; it is void and is removed.
Claims are read and made under one short lock, and whoever holds that lock reads the claims first
and the finished shards second. The other order would lose a race: a claim that ends between the
two readings would be missing from the second and its shard from the first.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featx._images.digest import DIGEST_BYTES
from featx._store.layout import CLAIMS, CLAIMS_NAME
from featx._store.locks import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SUFFIX = ".claim"


class ClaimFile:
    """A claim on the disk, held by this process until it is removed.

    Parameters
    ----------
    path : Path
        Its file, which must not exist.
    digests : sequence of bytes
        The images that are claimed.

    Raises
    ------
    OSError
        The file cannot be written or locked.
    """

    def __init__(self, path: Path, digests: Sequence[bytes]) -> None:
        self._path = path
        self._file = LockedFile(path, create=True)
        try:
            self._file.try_lock()  # it is free: others look at it under the short lock only
            self._file.write(b"".join(digests))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """End the claim; a second call, or one in a forked child, does nothing."""
        if self._file.is_open:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()


class ClaimFolder:
    """The claims of all processes on the rows of one table.

    Parameters
    ----------
    table : Path
        The folder of the table, which must exist when a claim is made.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._folder = table / CLAIMS_NAME

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the short lock, under which claims are read and made.

        Raises
        ------
        OSError
            The folder cannot be made or written, or its file system knows no locks.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with LockedFile(self._folder / "lock", create=True) as file:
            file.lock()
            yield

    def names(self) -> set[str]:
        """Return the names of all claims, live or void; there are none where no folder is."""
        try:
            names = {path.name for path in self._folder.iterdir()}
        except OSError:
            return set()
        return {name.removesuffix(_SUFFIX) for name in names if CLAIMS.fullmatch(name)}

    def live(self) -> dict[bytes, str]:
        """Return each claimed digest with the name of its claim, and remove void claims.

        The short lock must be held.

        Raises
        ------
        OSError
            A claim cannot be opened or removed.
        """
        claimed: dict[bytes, str] = {}
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):  # the claim has ended in this moment
                if self._remove_if_void(name):
                    continue
                content = self._path(name).read_bytes()
                starts = range(0, len(content), DIGEST_BYTES)
                claimed.update((content[start : start + DIGEST_BYTES], name) for start in starts)
        return claimed

    def void(self) -> set[str]:
        """Return the names of the void claims, which `live` would remove.

        The short lock must be held.

        Raises
        ------
        OSError
            A claim cannot be opened.
        """
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
        """Claim images; the short lock must be held.

        Raises
        ------
        OSError
            The claim cannot be written.
        """
        return ClaimFile(self._path(name), digests)

    def temporary(self, name: str) -> Path:
        """Return the file to which the holder of a claim may write; a void claim's is removed."""
        return self._table / f"{name}.tmp"

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)

    def _remove_if_void(self, name: str) -> bool:
        with LockedFile(self._path(name), create=False) as file:
            if not file.try_lock():
                return False
            self.temporary(name).unlink(missing_ok=True)
            self._path(name).unlink()
            return True
