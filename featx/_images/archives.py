"""Images inside zip and tar archives, read in place.

A path may go on inside an archive, as in ``photos.zip/cats/1.jpg``: nothing is unpacked, so nothing
can be written outside a folder, and a table, an export or a prediction names its images as always.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from featx._errors import ImageDecodeError, InputError, reason_of
from featx._files import lock_of_process

if TYPE_CHECKING:
    from collections.abc import Collection

    from featx._images.limits import Limits

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar",)
ARCHIVE_SUFFIXES = ZIP_SUFFIXES + TAR_SUFFIXES

# Reading any member of these means unpacking all that stand before it.
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_OPEN_ARCHIVES = 8

# What zipfile, tarfile and zlib raise at archives that are damaged, encrypted or of unknown kinds.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # NotImplementedError too
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)


class ZipArchive:
    """A zip archive, its files by their names; several threads may read it at once."""

    def __init__(self, path: str) -> None:
        self._file = zipfile.ZipFile(path)
        # A name that is stored twice means its last entry, as when the archive is unpacked.
        self._entries = {
            entry.filename: entry for entry in self._file.infolist() if not entry.is_dir()
        }
        self.names: Collection[str] = self._entries.keys()

    def size(self, name: str) -> int:
        """Return the number of bytes that the archive states for a file."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a file, after checking its checksum."""
        # zipfile never unpacks more than the size that was stated and looked at.
        return self._file.read(self._entries[name])


class TarArchive:
    """An uncompressed tar archive, read at its offsets, by several threads at once."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        with tarfile.open(path, "r:") as file:
            # Links and devices inside an archive are not followed: only files have content.
            self._entries = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in file
                if member.isreg() and not member.issparse()
            }
        self.names: Collection[str] = self._entries.keys()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def size(self, name: str) -> int:
        """Return the number of bytes that the archive states for a file."""
        return self._entries[name][1]

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        offset, size = self._entries[name]
        content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise tarfile.ReadError("the archive ends before the file does")
        return content


Archive: TypeAlias = ZipArchive | TarArchive


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a file with the ending of an archive that is read in place."""
    name = os.fspath(path)
    return name.lower().endswith(ARCHIVE_SUFFIXES) and Path(name).is_file()


def split_archive_path(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the archive that a path goes into and the name inside it, or None.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     archive = Path(folder, "photos.zip")
    ...     archive.touch()
    ...     found = split_archive_path(archive / "cats" / "1.jpg")
    >>> found[1], split_archive_path("photos/cats/1.jpg")
    ('cats/1.jpg', None)
    """
    path = Path(path)
    for parent in path.parents:
        if parent.suffix.lower() in ARCHIVE_SUFFIXES and parent.is_file():
            return os.fspath(parent), path.relative_to(parent).as_posix()
    return None


def open_archive(path: str) -> Archive:
    """Return an archive; the same object as long as the file does not change."""
    status = Path(path).stat()
    # The process is part of the key: a forked child that shared the parent's file position would
    # read another file's bytes.
    key = (
        path,
        *(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
        os.getpid(),
    )
    with lock_of_process("archives"):
        archive = _open.pop(key, None)
        if archive is None:
            archive = _read_archive(path)
        _open[key] = archive
        while len(_open) > _OPEN_ARCHIVES:
            _open.popitem(last=False)
    return archive


def read_member(path: str, name: str, source: str, limits: Limits) -> bytes:
    """Return the content of a file in an archive.

    ``path`` and ``name`` are what `split_archive_path` returns, ``source`` is what to call the file
    in an error. The limit of bytes is for the file: the archive may have any size.
    """
    try:
        archive = open_archive(path)
    except (InputError, OSError) as error:
        raise ImageDecodeError(source, str(error)) from error
    if name not in archive.names:
        raise ImageDecodeError(source, f"no such file in the archive {path}")
    limits.check_bytes(archive.size(name), source)
    try:
        return archive.read(name)
    except _DAMAGE as error:
        raise ImageDecodeError(source, reason_of(error)) from error


def list_members(path: str, below: str = "") -> list[str]:
    """Return the names of the files of an archive below a folder, relative to that, sorted."""
    start = PurePosixPath(below)
    names = (PurePosixPath(name) for name in open_archive(path).names)
    inside = {name.relative_to(start) for name in names if name.is_relative_to(start)}
    return [name.as_posix() for name in sorted(inside, key=lambda name: name.parts)]


_open: OrderedDict[tuple[object, ...], Archive] = OrderedDict()


def _read_archive(path: str) -> Archive:
    try:
        return ZipArchive(path) if path.lower().endswith(ZIP_SUFFIXES) else TarArchive(path)
    except _DAMAGE as error:
        raise InputError(f"Cannot read the archive {path}: {reason_of(error)}") from error
