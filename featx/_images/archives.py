"""Images inside zip and tar archives, read in place.

A path may go on inside an archive, as in ``photos.zip/cats/1.jpg``: nothing is unpacked, so nothing
can be written outside a folder, and a table, an export or a prediction names its images as always.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from featx._errors import ImageDecodeError, InputError, reason_of
from featx._files import lock_of_process
from featx._images.headers import UNKNOWN, why_unknown

if TYPE_CHECKING:
    from collections.abc import Collection

    from featx._images.limits import Limits

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar",)
ARCHIVE_SUFFIXES = ZIP_SUFFIXES + TAR_SUFFIXES

# Reading any member of these means unpacking all that stand before it.
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
PACKED_SUFFIXES = (*ARCHIVE_SUFFIXES, *COMPRESSED_TAR_SUFFIXES, ".rar", ".7z")

_OPEN_ARCHIVES = 8
_HEAD_BYTES = 1024

_DRIVE = re.compile("[A-Za-z]:")
_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # an extra field, the name in UTF-8
_UNIX = (3, 19)  # the systems whose zip archives say what kind of file an entry is

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
    """A zip archive, its files by their names; several threads may read it at once.

    ``others`` are the entries that are no files with a name inside the archive, ``strange`` is the
    first name of which nobody knows the encoding, and ``is_absolute`` says whether all names begin
    with the root of a file system.
    """

    def __init__(self, path: str) -> None:
        self._file = zipfile.ZipFile(path)
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self.others: list[str] = []
        self.strange: str | None = None
        self.is_absolute = True
        for entry in self._file.infolist():
            stored, is_known = _name_of(entry)
            kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system in _UNIX else 0
            if stored.endswith(("/", "\\")) or kind == stat.S_IFDIR:
                continue
            self.is_absolute &= stored.startswith(("/", "\\"))
            if not is_known:
                self.strange = self.strange or stored
            name = plain_name(stored)
            if name is None or kind not in (0, stat.S_IFREG):
                self.others.append(stored)
            else:
                # A name that is stored twice means its last entry, as when the archive is unpacked.
                self._entries[name] = entry
        self.names: Collection[str] = self._entries.keys()

    def size(self, name: str) -> int:
        """Return the number of bytes that the archive states for a file."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a file, after checking its checksum."""
        # zipfile never unpacks more than the size that was stated and looked at.
        return self._file.read(self._entries[name])


class TarArchive:
    """An uncompressed tar archive, read at its offsets, by several threads at once.

    ``others``, ``strange`` and ``is_absolute`` are as those of `ZipArchive`.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._entries: dict[str, tuple[int, int]] = {}
        self.others: list[str] = []
        self.strange: str | None = None
        self.is_absolute = True
        with tarfile.open(path, "r:") as file:
            for member in file:
                if member.isdir():
                    continue
                self.is_absolute &= member.name.startswith("/")
                if self.strange is None and not _is_utf8(member.name):
                    self.strange = member.name
                name, place = plain_name(member.name), self._place(member)
                if name is None or place is None:
                    self.others.append(member.name)
                else:
                    self._entries[name] = place
            # tarfile takes a header that is cut off or damaged for the end of the archive.
            rest = os.pread(self._descriptor, 2 * tarfile.RECORDSIZE, file.offset)
            if not rest.startswith(bytes(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("it is damaged, or was cut off before its end")
            if rest.strip(b"\0"):
                raise tarfile.ReadError("another archive was joined to it: unpack it by 'tar -i'")
        self.names: Collection[str] = self._entries.keys()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _place(self, member: tarfile.TarInfo) -> tuple[int, int] | None:
        """Return where the content of a file begins, and its size; None of what is no file.

        A hard link is the file that it names, which stands before it. Symbolic links and devices
        are not followed.
        """
        if member.islnk():
            return self._entries.get(plain_name(member.linkname) or "")
        is_plain = member.isreg() and not member.issparse()
        return (member.offset_data, member.size) if is_plain else None

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
    path = Path(path)  # without a slash at its end
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


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
            name = path.relative_to(parent).as_posix()
            return os.fspath(parent), plain_name(name) or name
    return None


def plain_name(stored: str) -> str | None:
    r"""Return the one form of a name in an archive, or None if it names nothing inside of it.

    Windows writes ``\``, ``find`` and ``tar`` write ``./``, and some programs begin with ``/``.

    Examples
    --------
    >>> plain_name(r".\cats\1.jpg"), plain_name("/cats//1.jpg"), plain_name("../1.jpg")
    ('cats/1.jpg', 'cats/1.jpg', None)
    """
    parts = [part for part in stored.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or _DRIVE.fullmatch(parts[0]):
        return None
    return "/".join(parts)


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


def list_members(path: str, below: str = "") -> tuple[list[str], list[str]]:
    """Return the names of the files of an archive below a folder, relative to that, sorted.

    The second list is of the entries that are no files, or none inside the archive. Names in an
    unknown encoding bring a warning.
    """
    archive = open_archive(path)
    if archive.strange is not None:
        warnings.warn(
            f"Names in {path} are in an unknown encoding, the first {archive.strange!a}: "
            "classes and paths may not be called what they should; make the archive anew with "
            "names in UTF-8",
            stacklevel=4,
        )
    start = f"{below}/" if below else ""
    names = [name[len(start) :] for name in archive.names if name.startswith(start)]
    others = [
        name[len(start) :]
        for name in (plain_name(stored) or stored for stored in archive.others)
        if name.startswith(start)
    ]
    return sorted(names, key=_parts), sorted(others, key=_parts)


def _parts(name: str) -> list[str]:
    return name.split("/")


def _name_of(entry: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return the name of an entry as it is stored, and whether its encoding is known."""
    name = entry.filename
    if name.isascii() or entry.flag_bits & _UTF8_FLAG:
        return name, True
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH:
            # After a version and a checksum.
            return extra[9 : 4 + size].decode(errors="replace"), True
        extra = extra[4 + size :]
    # zipfile takes it for code page 437. macOS stores UTF-8 without saying so, and others what they
    # speak at home.
    try:
        return name.encode("cp437").decode(), True
    except UnicodeError:
        return name, False


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in name)


_open: OrderedDict[tuple[object, ...], Archive] = OrderedDict()


def _read_archive(path: str) -> Archive:
    """Open an archive by its content: some are called .zip and are none."""
    head = b""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
        is_tar = head.startswith(b"ustar", 257)
        if not is_tar and (head.startswith(b"PK") or path.lower().endswith(ZIP_SUFFIXES)):
            return ZipArchive(path)
        return TarArchive(path)
    except _DAMAGE as error:
        is_named = head and not head.startswith(b"PK") and not head.startswith(b"ustar", 257)
        reason = why_unknown(head) if is_named else UNKNOWN
        reason = reason_of(error) if reason == UNKNOWN else reason
        raise InputError(f"Cannot read the archive {path}: {reason}") from error
