"""Files that are whole or absent, whatever happens while they are written; and locks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
import time
import unicodedata
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# How often a busy lock is tried again; the locks that are waited for are held for milliseconds.
_RETRY_SECONDS = 0.001

# In a table's column too, behind its folder, where Path() leaves one slash.
_URL = re.compile("(?:^|/)(?:https?|ftps?|s3|gs|az|hf|file):/|^data:", re.IGNORECASE)

# A forked child shares the locks of its parent as long as it keeps their descriptors open, so a
# parent that dies would still seem alive. The child therefore closes them at once, and no fork
# may fall between the opening of a descriptor and its entry here.
_open_descriptors: set[int] = set()
no_fork = threading.RLock()  # re-entrant, as the garbage collector may close a file at any time


def _close_in_forked_child() -> None:
    for descriptor in _open_descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open_descriptors.clear()
    no_fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=no_fork.acquire,
        after_in_parent=no_fork.release,
        after_in_child=_close_in_forked_child,
    )


def output_file(file: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write; InputError where it is a folder, or in none."""
    target = Path(file)
    if target.is_dir():
        raise InputError(f"Got {target} to write to, but it is a folder; name a file")
    if not target.parent.is_dir():
        raise InputError(f"Got {target} to write to, but its folder does not exist; make it first")
    return target


def hint_on_path(path: str | os.PathLike[str]) -> str:
    """Return a sentence part on why there may be nothing at a path; empty where it does not tell.

    Examples
    --------
    >>> hint_on_path("~/absent.jpg"), hint_on_path("absent.jpg")
    ('; ~ is not expanded: use os.path.expanduser', '')
    """
    name = os.fsdecode(path)
    if _URL.search(name):
        return "; it is a URL, and nothing is fetched: download it first"
    if os.path.islink(path):  # noqa: PTH114 - Path() would rewrite the path
        target = os.fsdecode(os.readlink(path))  # noqa: PTH115 - as above
        return (
            f"; it is a link to {target!r}, which is missing: fetch what is kept elsewhere, as by "
            "'git annex get' or 'dvc pull'"
        )
    likely = next(filter(os.path.exists, _other_spellings(name)), None)
    if likely is not None:
        return f"; {likely!a} is there"
    if name.startswith("~") or "/~/" in name:
        return "; ~ is not expanded: use os.path.expanduser"
    if "*" in name:
        return "; * is not expanded: use glob.glob"
    if "\\" in name:
        return "; it has \\ as on Windows, expected /"
    return ""


def _other_spellings(name: str) -> list[str]:
    """Return what a path may have been before another system or program had it."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - as above
    spellings = (
        name.strip(),
        name.replace("\\", "/"),
        os.path.expandvars(name),
        unicodedata.normalize("NFC", name),
        unicodedata.normalize("NFD", name),
        stem + ending.lower(),
        stem + ending.upper(),
    )
    return [other for other in spellings if other != name]


@contextlib.contextmanager
def write_atomically(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Readers see the old file (or none) until the new one is whole and on the disk; where anything
    fails, `path` is as it was before. ``temporary`` is a name in the same folder that nothing else
    uses, by default a random one.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = pathlib.Path(name)
    ...     with write_atomically(folder / "a.txt") as file:
    ...         _ = file.write(b"whole")
    ...     [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    temporary = temporary or path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The new name is in place already; a file system that cannot flush a folder is no failure.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LockedFile:
    """An open file with an exclusive lock, which the system ends with the process.

    Each object opens the file itself, so that two of them exclude each other even within one
    thread. Where the file system knows no locks an error is raised; there is no fallback to
    locks that outlive a killed process.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     path = pathlib.Path(name, "lock")
    ...     with LockedFile(path, create=True) as first, LockedFile(path, create=False) as second:
    ...         first.try_lock(), second.try_lock()
    (True, False)
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        self._path = path
        self._process = os.getpid()
        self._descriptor: int | None = None
        with no_fork:
            self._descriptor = os.open(path, flags, 0o600)
            _open_descriptors.add(self._descriptor)

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def lock(self, seconds: float = math.inf) -> None:
        """Wait until no other holds the lock, then hold it.

        Raises
        ------
        TimeoutError
            Another has held it for so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not self.try_lock():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{self._path} is held by a process that does not go on")
            time.sleep(_RETRY_SECONDS)

    def try_lock(self) -> bool:
        """Hold the lock if no other does, and say whether it is held now."""
        return filelock.lock_descriptor(self._opened(), blocking=False)

    def write(self, content: bytes) -> None:
        """Write the whole content of the file."""
        with open(self._opened(), "wb", closefd=False) as file:
            file.write(content)

    @property
    def is_open(self) -> bool:
        """Whether the file is open here; in a forked child it is not."""
        return self._descriptor is not None and self._process == os.getpid()

    def close(self) -> None:
        """End the lock and close the file; twice, or in a forked child, does nothing."""
        with no_fork:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None or self._process != os.getpid():
                return
            _open_descriptors.discard(descriptor)
            # A child forked by other means than Python's may hold a copy of the descriptor, and
            # with it the lock, so closing alone would not be enough.
            with contextlib.suppress(OSError):
                filelock.unlock_descriptor(descriptor)
            os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is None or not self.is_open:
            raise ValueError("the file is closed")
        return self._descriptor


_locks: dict[tuple[object, ...], threading.RLock] = {}


def lock_of_process(*name: object) -> threading.RLock:
    """Return the lock of a name, which one thread holds at a time, as often as it likes.

    A forked child has others than its parent: nobody there would release one that another thread
    of the parent held at the fork.

    Examples
    --------
    >>> lock_of_process("network") is lock_of_process("network")
    True
    """
    return _locks.setdefault((os.getpid(), *name), threading.RLock())


def json_text(value: Any) -> str:
    """Return JSON for programs; what is no finite number is null, as JSON has no NaN.

    Examples
    --------
    >>> json_text([1.5, float("nan")]).split()
    ['[', '1.5,', 'null', ']']
    """

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: finite(item) for name, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), indent=2, allow_nan=False)
