"""The output of an export: a file or a dataset, written by one process, without leftovers."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from featx._errors import InputError, SchemaError
from featx._files import LockedFile
from featx._parquet.files import (
    MACHINERY,
    EmbeddingFile,
    describe_maker,
    is_part_name,
    list_parts,
    open_writer,
    part_name,
    read_headers,
    rows_of_a_group,
    same_recipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from featx._parquet.files import EmbeddingWriter

_SUFFIX = ".parquet"
# About 128 MB: what is lost at most when an export is killed, and a size readers like.
_GROUPS_OF_A_PART = 8
_ADVICE = "name another output or pass overwrite=True / --overwrite"


@dataclass(frozen=True)
class Output:
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
        """Return the temporary files that are there, or may be."""
        if not self.is_dataset:
            return [temporary_of(self.path)]
        return [
            path
            for path in self.path.glob(".*.tmp")
            if is_part_name(path.name.removeprefix(".").removesuffix(".tmp"))
        ]

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


def find_output(out: str | os.PathLike[str]) -> Output:
    """Decide whether an output is a file or a dataset.

    A folder that exists, a name that ends in a slash or has no suffix is a dataset; a name that
    ends in ``.parquet`` is a file.
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
    return Output(path, is_dataset)


class _OutputLock(LockedFile):
    """A lock whose file is removed at the end, so that it may be gone when it is held at last."""

    def is_at(self, path: Path) -> bool:
        """Return whether the file still has its name."""
        try:
            return os.path.samestat(os.fstat(self._opened()), path.stat())
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def hold_output(output: Output) -> Iterator[None]:
    """Keep other exports out, and remove what a dead one left behind.

    A dataset's folder is made, and is removed again if it stays empty. InputError where another
    export is writing there now, or the output cannot be written.
    """
    is_new = output.is_dataset and not output.path.exists()
    try:
        try:
            if is_new:
                output.path.mkdir(exist_ok=True)
            lock = _acquire(output)
        except OSError as error:
            raise InputError(f"Cannot write {output.path}: {error.strerror}") from error
        try:
            for path in output.leftovers():
                path.unlink(missing_ok=True)
            yield
        finally:
            # Removed while it is held: nobody else can hold a lock on a file of this name.
            with contextlib.suppress(OSError):
                output.lock.unlink()
            lock.close()
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                output.path.rmdir()


def _acquire(output: Output) -> _OutputLock:
    while True:
        lock = _OutputLock(output.lock, create=True)
        try:
            is_held = lock.try_lock()
        except OSError:
            return lock  # a file system without locks: an export goes on without one
        if not is_held:
            lock.close()
            raise InputError(
                f"Got {output.path} to write to, but another export is writing it now; wait until "
                "it has ended, or name another output"
            )
        if lock.is_at(output.lock):
            return lock
        lock.close()


def stored_files(
    output: Output, provenance: Mapping[str, Any], precision: str, *, overwrite: bool
) -> list[EmbeddingFile]:
    """Return the files that an export goes on from, closed; with overwrite there are none.

    InputError where what is there is not featx's, is damaged, or holds other embeddings.
    """
    if overwrite:
        return []
    if not output.is_dataset:
        paths = [output.path] if output.path.exists() else []
    else:
        for path in sorted(output.path.iterdir()):
            if not path.name.startswith(".") and not is_part_name(path.name):
                raise InputError(
                    f"{output.path} holds {path.name!r}, which is no part of an export; {_ADVICE}"
                )
        paths = list_parts(output.path)
    try:
        files = read_headers(paths)
    except SchemaError as error:
        raise InputError(f"{error}; {_ADVICE}") from error
    for file in files:
        if not same_recipe(stored := file.provenance, provenance):
            names = (name for name in provenance if name not in MACHINERY)
            differing = [name for name in names if stored.get(name) != provenance[name]]
            which = f", which differ in {', '.join(differing)}" if differing else ""
            raise InputError(
                f"{file.path} holds embeddings of {describe_maker(stored)}, got "
                f"{describe_maker(provenance)}{which}; {_ADVICE}"
            )
        if file.precision != precision:
            raise InputError(
                f"{file.path} holds embeddings in {file.precision}, got {precision}; {_ADVICE}"
            )
    return files


class PartWriter:
    """Takes tables of any number of rows and adds parts to a dataset.

    A part gets its name when it is whole; ``before_first`` is called before the first one does.
    The part that is being written is left to ``open_part``: when that ends with an error, the part
    is gone. ``paths`` are the parts that are whole, ``rows`` is how many rows were taken.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        schema: pa.Schema,
        open_part: contextlib.ExitStack,
        before_first: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._before_first = before_first
        self._number = number
        self._schema = schema
        self._part_rows = _GROUPS_OF_A_PART * rows_of_a_group(schema)
        self._open = open_part
        self._writer: EmbeddingWriter | None = None
        self._filled = 0
        self.paths: list[Path] = []
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.rows += table.num_rows
        while table.num_rows:
            if self._writer is None:
                path = self._folder / part_name(self._number)
                self._writer = self._open.enter_context(
                    open_writer(path, self._schema, temporary_of(path))
                )
            rows = table.slice(0, self._part_rows - self._filled)
            self._writer.write(rows)
            self._filled += rows.num_rows
            if self._filled == self._part_rows:
                self.finish_part()
            table = table.slice(rows.num_rows)

    def remove(self) -> None:
        """Remove the parts that were written."""
        for path in reversed(self.paths):
            path.unlink()
        self.paths.clear()

    def finish_part(self) -> None:
        """Give the part that is being written its name, if there is one."""
        if self._writer is None:
            return
        if self._before_first is not None and not self.paths:
            self._before_first()
        self._open.close()
        self.paths.append(self._folder / part_name(self._number))
        self._number += 1
        self._writer = None
        self._filled = 0


def remove_rows(parts: Sequence[EmbeddingFile], is_removed: NDArray[np.bool_]) -> None:
    """Write parts anew without some of their rows; a part of no rows stays as one."""
    end = 0
    for part in parts:
        start, end = end, end + part.rows
        if not is_removed[start:end].any():
            continue
        with (
            EmbeddingFile(part.path) as old,
            open_writer(part.path, old.schema, temporary_of(part.path)) as writer,
        ):
            for group, rows in enumerate(old.group_rows):
                is_kept = pa.array(~is_removed[start : start + rows])
                writer.write(old.read_group(group).filter(is_kept))
                start += rows
