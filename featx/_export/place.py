"""Where an export goes: a file or a dataset, held by one process, without leftovers."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featx._errors import InputError, SchemaError
from featx._parquet.files import EmbeddingFile, check_same_maker, describe_maker
from featx._parquet.parts import is_part_name, list_parts
from featx._store.locks import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_SUFFIX = ".parquet"
ADVICE = "name another output or pass overwrite=True / --overwrite"


@dataclass(frozen=True)
class Place:
    """The file, or the folder of a dataset, that an export writes."""

    path: Path
    is_dataset: bool

    @property
    def lock(self) -> Path:
        """The file whose lock says that an export is running."""
        if self.is_dataset:
            return self.path / ".featx.lock"
        return self.path.with_name(f".{self.path.name}.lock")

    def leftovers(self) -> list[Path]:
        """Return the temporary files that are there."""
        if not self.is_dataset:
            return [path for path in [temporary_of(self.path)] if path.exists()]
        return [path for path in self.path.iterdir() if _is_temporary_part(path.name)]

    def remove_parts(self) -> None:
        """Remove the parts of a dataset, the last one first, so that none is ever missing."""
        parts = [path for path in self.path.iterdir() if is_part_name(path.name)]
        for path in sorted(parts, reverse=True):
            path.unlink()


def temporary_of(path: Path) -> Path:
    """Return the name of a file while it is written, the same in every process.

    Examples
    --------
    >>> temporary_of(Path("run/photos.parquet")).name
    '.photos.parquet.tmp'
    """
    return path.with_name(f".{path.name}.tmp")


def _is_temporary_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp") and is_part_name(name[1:-4])


def find_place(out: str | os.PathLike[str]) -> Place:
    """Decide whether an output is a file or a dataset.

    Parameters
    ----------
    out : path
        A folder that exists, a name that ends in a slash or has no suffix is a dataset; a name that
        ends in ``.parquet`` is a file.

    Returns
    -------
    Place

    Raises
    ------
    InputError
        It is neither, or the folder it would stand in does not exist.
    """
    text = os.fspath(out)
    path = Path(text)
    separators = tuple(filter(None, (os.sep, os.altsep)))
    is_dataset = path.is_dir() or text.endswith(separators) or not path.suffix
    if not is_dataset and path.suffix != _SUFFIX:
        raise InputError(
            f"Got {text} to write to; expected a file that ends in {_SUFFIX}, or a folder, whose "
            "name ends in '/'"
        )
    if is_dataset and path.exists() and not path.is_dir():
        raise InputError(f"Got {text} to write to, but it is a file; expected a folder")
    if not path.parent.is_dir():
        raise InputError(f"Got {text} to write to, but its folder does not exist; make it first")
    return Place(path, is_dataset)


class _OutputLock(LockedFile):
    """A lock whose file is removed at the end, so that it may be gone when it is held at last."""

    def is_at(self, path: Path) -> bool:
        """Return whether the file still has its name."""
        try:
            return os.path.samestat(os.fstat(self._opened()), path.stat())
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def hold(place: Place) -> Iterator[None]:
    """Keep other exports out, and remove what a dead one left behind.

    A dataset's folder is made, and is removed again if it stays empty.

    Raises
    ------
    InputError
        Another export is writing there now.
        Or the place cannot be written.
    """
    is_new = place.is_dataset and not place.path.exists()
    try:
        try:
            if is_new:
                place.path.mkdir(exist_ok=True)
            lock = _acquire(place)
        except OSError as error:
            raise InputError(f"Cannot write {place.path}: {error.strerror}") from error
        try:
            for path in place.leftovers():
                path.unlink()
            yield
        finally:
            # Removed while it is held: nobody else can hold a lock on a file of this name.
            with contextlib.suppress(OSError):
                place.lock.unlink()
            lock.close()
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                place.path.rmdir()


def _acquire(place: Place) -> _OutputLock:
    while True:
        lock = _OutputLock(place.lock, create=True)
        try:
            is_held = lock.try_lock()
        except OSError:
            return lock  # a file system without locks: an export goes on without one
        if not is_held:
            lock.close()
            raise InputError(
                f"Got {place.path} to write to, but another export is writing it now; wait until "
                "it has ended, or name another output"
            )
        if lock.is_at(place.lock):
            return lock
        lock.close()


def stored_files(
    place: Place, provenance: Mapping[str, Any], precision: str, *, overwrite: bool
) -> list[Path]:
    """Return the files that an export goes on from.

    Parameters
    ----------
    place : Place
        The output.
    provenance : mapping
        What is going to make the embeddings.
    precision : {"float32", "float16"}
        Of their elements.
    overwrite : bool
        Go on from nothing, whatever is there.

    Returns
    -------
    list of Path
        The file, or the parts of the dataset; empty where nothing is there.

    Raises
    ------
    InputError
        What is there is not featx's, is damaged, or holds other embeddings.
    """
    if overwrite:
        return []
    if not place.is_dataset:
        paths = [place.path] if place.path.exists() else []
    else:
        _refuse_foreign_files(place.path)
        paths = list_parts(place.path)
    files = []
    try:
        for path in paths:
            with EmbeddingFile(path) as file:
                files.append(file)
        if files:
            check_same_maker(files)
    except SchemaError as error:
        raise InputError(f"{error}; {ADVICE}") from error
    for file in files:
        _refuse_other(file, provenance, precision)
    return paths


def _refuse_foreign_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and not is_part_name(path.name):
            raise InputError(
                f"{folder} holds {path.name!r}, which is no part of an export; {ADVICE}"
            )


def _refuse_other(file: EmbeddingFile, provenance: Mapping[str, Any], precision: str) -> None:
    if file.provenance.get("fingerprint") != provenance["fingerprint"]:
        raise InputError(
            f"{file.path} holds embeddings of {describe_maker(file.provenance)}, got "
            f"{describe_maker(provenance)}{_differences(file.provenance, provenance)}; {ADVICE}"
        )
    if file.precision != precision:
        raise InputError(
            f"{file.path} holds embeddings in {file.precision}, got {precision}; {ADVICE}"
        )


def _differences(stored: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    names = [
        name
        for name, value in made.items()
        if name not in ("fingerprint", "versions") and stored.get(name) != value
    ]
    return f", which differ in {', '.join(names)}" if names else ""
