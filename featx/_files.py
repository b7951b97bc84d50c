"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


def output_file(file: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write, after checking that it can be one.

    Parameters
    ----------
    file : path
        What somebody asked for.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        It is a folder, or its folder does not exist.
    """
    target = Path(file)
    if target.is_dir():
        raise InputError(f"Got {target} to write to, but it is a folder; name a file")
    if not target.parent.is_dir():
        raise InputError(f"Got {target} to write to, but its folder does not exist; make it first")
    return target


@contextlib.contextmanager
def write_atomically(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Readers see the old file (or none) until the new one is whole and on the disk.

    Parameters
    ----------
    path : Path
        The file to make or to replace.
    temporary : Path, optional
        A name in the same folder that nothing else uses; by default a random one. The file is
        removed if anything fails.

    Yields
    ------
    BinaryIO
        The temporary file, to be written.

    Raises
    ------
    OSError
        The file could not be written; `path` is as it was before.

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
