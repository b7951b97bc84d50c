"""The parts of a dataset as an export writes and rewrites them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pyarrow as pa

from featx._export.place import temporary_of
from featx._parquet.files import EmbeddingFile, open_writer, rows_of_a_group
from featx._parquet.parts import part_name

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from featx._parquet.files import EmbeddingWriter

# About 128 MB: what is lost at most when an export is killed, and a size readers like.
_GROUPS_OF_A_PART = 8


class PartWriter:
    """Takes rows in pieces of any size and adds parts to a dataset.

    A part gets its name when it is whole. Used as a context manager; when the block ends with an
    error, what was not whole is gone.

    Parameters
    ----------
    folder : Path
        The dataset.
    number : int
        Of the first part to write.
    schema : pyarrow.Schema
        Of every part.

    Attributes
    ----------
    paths : list of Path
        The parts that are whole.
    rows : int
        How many rows were taken.
    """

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        self._folder = folder
        self._number = number
        self._schema = schema
        self._part_rows = _GROUPS_OF_A_PART * rows_of_a_group(schema)
        self._open = contextlib.ExitStack()
        self._writer: EmbeddingWriter | None = None
        self._filled = 0
        self.paths: list[Path] = []
        self.rows = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish_part()
        else:
            self._open.__exit__(kind, error, traceback)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.rows += table.num_rows
        while table.num_rows:
            if self._writer is None:
                path = self._folder / part_name(self._number)
                self._writer = self._open.enter_context(
                    open_writer(path, self._schema, temporary_of(path))
                )
            piece = table.slice(0, self._part_rows - self._filled)
            self._writer.write(piece)
            self._filled += piece.num_rows
            if self._filled == self._part_rows:
                self._finish_part()
            table = table.slice(piece.num_rows)

    def remove(self) -> None:
        """Remove the parts that were written."""
        for path in reversed(self.paths):
            path.unlink()
        self.paths.clear()

    def _finish_part(self) -> None:
        if self._writer is None:
            return
        self._open.close()
        self.paths.append(self._folder / part_name(self._number))
        self._number += 1
        self._writer = None
        self._filled = 0


def remove_rows(path: Path, is_removed: NDArray[np.bool_]) -> None:
    """Write a part anew without some of its rows; a part of no rows stays as one.

    Parameters
    ----------
    path : Path
        The part.
    is_removed : ndarray of bool, shape (rows,)
        Which rows go.
    """
    with (
        EmbeddingFile(path) as old,
        open_writer(path, old.schema, temporary_of(path)) as writer,
    ):
        start = 0
        for group, rows in enumerate(old.group_rows):
            is_kept = pa.array(~is_removed[start : start + rows])
            writer.write(old.rows_of(group).filter(is_kept))
            start += rows
