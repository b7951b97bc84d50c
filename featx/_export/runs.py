"""The two ways of an export: to one file, and to a dataset."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featx._errors import DecodeFailure, ImageDecodeError
from featx._export.parts import PartWriter, remove_rows
from featx._export.place import temporary_of
from featx._export.request import WINDOW_ROWS, Window
from featx._export.stored import StoredRows, StoredVectors, tables_beside
from featx._extraction.parcels import Extraction
from featx._images.digest import DIGEST_BYTES
from featx._images.sources import describe_item
from featx._parquet.columns import (
    EMBEDDING,
    embedding_column,
    narrow_vectors,
    path_column,
    text_column,
)
from featx._parquet.files import EmbeddingFile, open_writer
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from featx._export.request import Request
    from featx._export.vectors import WindowEmbedder


@public
@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes
    ----------
    rows : int
        Rows of the output: ``new + kept + replaced``.
    dimension : int
        The length of an embedding.
    failures : tuple of DecodeFailure
        The images that could not be read; their rows have a null embedding.
    new : int
        Rows of images that were not in the output.
    kept : int
        Rows that were there before, also those of images that were not asked for.
    replaced : int
        Rows of images that were there with another content, label or further column.
    files : tuple of Path
        The file, or the parts of the dataset.

    See Also
    --------
    featx.export_embeddings : Returns it, with an example.
    """

    rows: int
    dimension: int
    failures: tuple[DecodeFailure, ...]
    new: int
    kept: int
    replaced: int
    files: tuple[Path, ...]


class Export:
    """What both ways share: windows become tables, and failures are noted.

    Parameters
    ----------
    request : Request
        What is asked for.
    embedder : WindowEmbedder
        What computes.
    schema : pyarrow.Schema
        Of every file.
    """

    def __init__(
        self,
        request: Request,
        embedder: WindowEmbedder,
        schema: pa.Schema,
    ) -> None:
        self._request = request
        self._embedder = embedder
        self._schema = schema
        self._failures: list[DecodeFailure] = []

    def _make_table(self, window: Window, embedded: Extraction) -> pa.Table:
        vectors: NDArray[np.floating] = embedded.vectors
        kind = self._schema.field(EMBEDDING).type
        if kind.value_type == pa.float16():
            vectors = narrow_vectors(vectors, lambda place: describe_item(window.items[place]))
        is_null = None
        reasons: list[str | None] = []
        if embedded.failures:
            is_null = np.zeros(len(vectors), np.bool_)
            reasons = [None] * len(vectors)
            for failure in embedded.failures:
                is_null[failure.row] = True
                reasons[failure.row] = failure.reason
        column = embedding_column(vectors, kind, is_null)
        table = self._make_table_beside(window, embedded.digests, reasons)
        return table.append_column(EMBEDDING, column).select(self._schema.names).cast(self._schema)

    def _make_table_beside(
        self, window: Window, digests: Sequence[bytes | None], reasons: Sequence[str | None] = ()
    ) -> pa.Table:
        count = len(window.items)
        columns = {
            "path": path_column(window.items),
            "digest": pa.array(digests, pa.binary(DIGEST_BYTES)),
            "error": text_column("errors", reasons) if reasons else pa.nulls(count, pa.string()),
        }
        for name in window.beside.column_names:
            columns[name] = window.beside.column(name)
        return pa.table(columns)

    def _note_failures(self, window: Window, embedded: Extraction) -> None:
        for failure in embedded.failures:
            row = window.rows[failure.row]
            self._failures.append(DecodeFailure(row, failure.source, failure.reason))

    def _refuse_all_failed(self) -> None:
        if len(self._failures) == self._request.total:
            first = self._failures[0]
            reason = f"{first.reason}; none of the {self._request.total} images could be read"
            raise ImageDecodeError(first.source, reason, first.row)


class FileExport(Export):
    """An export to one file, which takes vectors from the old one where it has them."""

    def run(self, path: Path, stored: Sequence[Path]) -> ExportSummary:
        """Write the file.

        Parameters
        ----------
        path : Path
            The file.
        stored : sequence of Path
            The old file, if there is one.

        Returns
        -------
        ExportSummary
        """
        rows = StoredRows(tables_beside(stored))
        kept = 0
        with ExitStack() as stack:
            vectors = [StoredVectors(stack.enter_context(EmbeddingFile(old))) for old in stored]
            writer = stack.enter_context(open_writer(path, self._schema, temporary_of(path)))
            for window in self._request.windows():
                embedded = (
                    self._embed_missing(window, vectors[0])
                    if vectors
                    else self._embedder.embed(window.items, window.rows)
                )
                self._note_failures(window, embedded)
                table = self._make_table(window, embedded)
                kept += rows.match_and_note(table.drop_columns(EMBEDDING)).sum()
                writer.write(table)
            self._refuse_all_failed()
        total, replaced = self._request.total, rows.count_replacements()
        return ExportSummary(
            rows=total,
            dimension=self._embedder.dimension,
            failures=tuple(self._failures),
            new=total - int(kept) - replaced,
            kept=int(kept),
            replaced=replaced,
            files=(path,),
        )

    def _embed_missing(self, window: Window, stored: StoredVectors) -> Extraction:
        digests = self._embedder.digest(window.items)
        vectors = np.empty((len(digests), self._embedder.dimension), np.float32)
        is_missing = ~stored.take(digests, out=vectors)
        n_stored = len(digests) - int(is_missing.sum())
        self._embedder.advance(n_stored, found=n_stored)
        if not is_missing.any():
            return Extraction(vectors, digests, ())
        missing = window.select(is_missing)
        embedded = self._embedder.embed(missing.items, missing.rows)
        places = np.flatnonzero(is_missing)
        vectors[places] = embedded.vectors
        for place, digest in zip(places, embedded.digests, strict=True):
            digests[place] = digest
        failures = [
            DecodeFailure(int(places[failure.row]), failure.source, failure.reason)
            for failure in embedded.failures
        ]
        return Extraction(vectors, digests, tuple(failures))


class DatasetExport(Export):
    """An export to a folder of parts, to which it adds."""

    def run(
        self,
        folder: Path,
        stored: Sequence[Path],
        remove_before: Callable[[], None] | None = None,
    ) -> ExportSummary:
        """Write what is missing as new parts, then rewrite those that hold outdated rows.

        In this order no row is ever lost: a kill between the two leaves both, and the next export
        removes the old one.

        Parameters
        ----------
        folder : Path
            The dataset.
        stored : sequence of Path
            Its parts.
        remove_before : callable, optional
            Removes an older dataset, once there is something to put in its place.

        Returns
        -------
        ExportSummary
        """
        self._remove_before = remove_before
        rows = StoredRows(tables_beside(stored))
        with PartWriter(folder, len(stored), self._schema) as parts:
            waiting: list[Window] = []
            count = 0
            for window in self._request.windows():
                missing = self._find_missing(window, rows)
                n_stored = len(window.items) - len(missing.items)
                self._embedder.advance(n_stored, found=n_stored)
                waiting.append(missing)
                count += len(missing.items)
                # A few missing ones of each window wait for each other, to fill batches. Windows
                # that are short are so for the size of their images, which is not to add up.
                if count >= WINDOW_ROWS or len(window.items) < WINDOW_ROWS:
                    self._write(Window.join(waiting), rows, parts)
                    waiting, count = [], 0
            if count:
                self._write(Window.join(waiting), rows, parts)
        try:
            self._refuse_all_failed()
        except ImageDecodeError:
            parts.remove()
            raise
        return self._finish(stored, rows, parts)

    def _find_missing(self, window: Window, rows: StoredRows) -> Window:
        if not len(rows):
            return window
        digests = self._embedder.digest(window.items)
        return window.select(~rows.match(self._make_table_beside(window, digests)))

    def _write(self, window: Window, rows: StoredRows, parts: PartWriter) -> None:
        if not window.items:
            return
        embedded = self._embedder.embed(window.items, window.rows)
        self._note_failures(window, embedded)
        table = self._make_table(window, embedded)
        if self._remove_before is not None:
            self._refuse_to_replace_by_nothing(window, embedded)
            self._remove_before()
            self._remove_before = None
        # Images that could not be read the last time either have their row already.
        is_there = rows.match_and_note(table.drop_columns(EMBEDDING))
        parts.write(table.filter(pa.array(~is_there)) if is_there.any() else table)

    def _refuse_to_replace_by_nothing(self, window: Window, embedded: Extraction) -> None:
        if len(embedded.failures) == len(window.items):
            first = self._failures[0]
            reason = (
                f"{first.reason}; none of the first {len(window.items)} images could be read, so "
                "nothing was overwritten"
            )
            raise ImageDecodeError(first.source, reason, first.row)

    def _finish(self, stored: Sequence[Path], rows: StoredRows, parts: PartWriter) -> ExportSummary:
        is_outdated = rows.outdated()
        start = 0
        for path in stored:
            with EmbeddingFile(path) as file:
                of_part = is_outdated[start : start + file.rows]
            start += len(of_part)
            if of_part.any():
                remove_rows(path, of_part)
        kept, replaced = len(rows) - int(is_outdated.sum()), rows.count_replacements()
        return ExportSummary(
            rows=kept + parts.rows,
            dimension=self._embedder.dimension,
            failures=tuple(self._failures),
            new=parts.rows - replaced,
            kept=kept,
            replaced=replaced,
            files=(*stored, *parts.paths),
        )
