"""`export_embeddings`: the embeddings of images as a Parquet file or a dataset of parts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featx._checks import check_choice, check_flag
from featx._embedder import ImageEmbedder
from featx._errors import DecodeFailure, ImageDecodeError
from featx._export.output import (
    PartWriter,
    find_output,
    hold_output,
    remove_rows,
    stored_files,
    temporary_of,
)
from featx._export.stored_rows import StoredRows
from featx._extraction.contents import chosen_images
from featx._images.digest import DIGEST_BYTES
from featx._images.sources import describe_item
from featx._parquet.columns import (
    EMBEDDING,
    LABEL,
    PRECISIONS,
    embedding_column,
    embedding_type,
    fit_types,
    make_annotations,
    narrow_vectors,
    path_column,
    text_column,
)
from featx._parquet.files import as_metadata, open_writer
from featx._progress import progress_bar
from featx._public import public

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from featx._export.output import Output
    from featx._extraction.parcels import Parcel
    from featx._parquet.files import EmbeddingFile
    from featx._progress import Advance


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


@public
def export_embeddings(
    images: Any,
    out: str | os.PathLike[str],
    *,
    embedder: ImageEmbedder | None = None,
    labels: Sequence[Any] | None = None,
    further: Mapping[str, Sequence[Any]] | None = None,
    precision_out: str = "float32",
    overwrite: bool = False,
) -> ExportSummary:
    """Embed images and write the embeddings to a Parquet file or to a dataset of parts.

    Images are taken a few at a time, so that memory does not grow with their number. An output
    that is there already is gone on from: a dataset by what it holds, a file by what the
    embedder's cache keeps.

    Parameters
    ----------
    images : sequence of images
        As `ImageEmbedder` takes them, or any object with a length whose items are images, which
        may be made when they are taken.
    out : path
        A name that ends in ``.parquet`` is a file. It is absent, the old file or the complete new
        one, whatever happens, and holds exactly the given images in their order.

        A folder (one that exists, or a name that ends in a slash or has no suffix) is a dataset of
        parts ``part-00000.parquet``, …, of about 128 MB, each absent or complete. A further export
        to it adds what is new as new parts, replaces the rows of images whose content, label or
        further columns have changed, tries again what could not be read, and keeps the rows of
        images that are not among the given ones. An image is the same one by its path, however
        that is spelt, or by its content where it has none. Parts may come from different devices
        and runtimes; each names its own.
    embedder : ImageEmbedder, optional
        What turns images into embeddings; by default ``ImageEmbedder()``. With
        ``on_error="nan"`` an unreadable image is a row with a null embedding and the reason.
    labels : sequence of str, optional
        One label per image.
    further : mapping of str to sequence, optional
        More columns, with one value per image, such as `load_manifest` returns.
    precision_out : {"float32", "float16"}, default="float32"
        Of the stored numbers. ``"float16"`` halves the output and rounds to three digits.
    overwrite : bool, default=False
        Begin anew, in place of whatever is there. Of a folder the parts are removed, once the
        first new one is whole, and nothing else.

    Returns
    -------
    ExportSummary
        Rows, dimension, files, and the images that could not be read.

    Raises
    ------
    ImageDecodeError
        When an image cannot be read and the embedder has ``on_error="raise"``, or when none can.
    InputError
        When labels and images differ in length; when the output holds something else than
        embeddings of the same recipe and ``overwrite`` is False; when another export is writing
        it; when its folder does not exist; when a value is beyond the range of float16, as an
        infinite element would make every similarity to that row worthless.

    Notes
    -----
    A killed export to a dataset has lost one part at most, even without a cache. One to a file
    finds what it had computed in the cache only.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from featx import export_embeddings, read_embeddings
    >>> images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = export_embeddings(images, Path(folder) / "two.parquet", labels=["a", "b"])
    ...     table = read_embeddings(Path(folder) / "two.parquet")
    >>> summary.rows, table.data.shape, table.provenance["backbone"]
    (2, (2, 1280), 'efficientnet_lite0')
    """
    # What can be refused is refused before hours of work.
    check_choice("precision_out", precision_out, PRECISIONS)
    check_flag("overwrite", overwrite)
    output = find_output(out)
    items = chosen_images(images)
    annotations = make_annotations(len(items), labels, {} if further is None else further)
    embedder = ImageEmbedder() if embedder is None else embedder
    provenance = embedder.get_provenance()
    dimension = len(embedder.get_feature_names_out())
    with hold_output(output):
        stored = stored_files(output, provenance, precision_out, overwrite=overwrite)
        is_continued = output.is_dataset and bool(stored)
        annotations = fit_types(annotations, stored[0].schema if is_continued else None)
        schema = _make_schema(annotations, dimension, precision_out, provenance)
        with progress_bar("Embedding", len(items), embedder.progress) as advance:
            rows = StoredRows([file.path for file in stored])
            export = _Export(embedder, items, annotations, schema, rows, advance)
            if output.is_dataset:
                return export.to_dataset(output, stored, overwrite=overwrite)
            return export.to_file(output.path)


def _make_schema(
    annotations: Mapping[str, pa.Array],
    dimension: int,
    precision: str,
    provenance: Mapping[str, Any],
) -> pa.Schema:
    types = {name: column.type for name, column in annotations.items()}
    label = {LABEL: types[LABEL]} if LABEL in types else {}
    columns = {
        "path": pa.string(),
        **label,
        EMBEDDING: embedding_type(dimension, precision),
        "digest": pa.binary(DIGEST_BYTES),
        "error": pa.string(),
        **types,  # a label among them stays where it is
    }
    return pa.schema(columns, metadata=as_metadata(provenance))


@dataclass
class _Export:
    """One export: parcels of embeddings become rows of a file or of a dataset.

    The schema is that of every file; ``stored`` has what the output holds already.
    """

    embedder: ImageEmbedder
    items: Sequence[Any]
    annotations: Mapping[str, pa.Array]
    schema: pa.Schema
    stored: StoredRows
    advance: Advance
    n_seen: int = 0
    failures: list[DecodeFailure] = field(default_factory=list)

    def to_file(self, path: Path) -> ExportSummary:
        """Write the rows of all images to a file, in place of an older one."""
        n_kept = 0
        with open_writer(path, self.schema, temporary_of(path)) as writer:
            for table, is_there in self._tables():
                n_kept += int(is_there.sum())
                writer.write(table)
            self._refuse_if_none_was_read()
        n_rows, replaced = len(self.items), self.stored.count_replacements()
        return self._summary(n_rows - n_kept - replaced, n_kept, replaced, [path])

    def to_dataset(
        self, output: Output, stored: Sequence[EmbeddingFile], *, overwrite: bool
    ) -> ExportSummary:
        """Write what is missing as new parts, then rewrite those that hold outdated rows.

        In this order no row is ever lost: a kill between the two leaves both, and the next export
        removes the old one.
        """

        def replace_older() -> None:
            self._refuse_if_none_was_read()
            output.remove_parts()

        with contextlib.ExitStack() as open_part:
            parts = PartWriter(
                output.path,
                len(stored),
                self.schema,
                open_part,
                before_first=replace_older if overwrite else None,
            )
            for table, is_there in self._tables(skip_stored=len(self.stored) > 0):
                parts.write(table.filter(pa.array(~is_there)) if is_there.any() else table)
            try:
                self._refuse_if_none_was_read()
            except ImageDecodeError:
                parts.remove()
                raise
            parts.finish_part()
        is_outdated = self.stored.outdated()
        remove_rows(stored, is_outdated)
        n_kept = int((~is_outdated).sum())
        replaced = self.stored.count_replacements()
        return self._summary(
            parts.rows - replaced, n_kept, replaced, [*(file.path for file in stored), *parts.paths]
        )

    def _tables(self, *, skip_stored: bool = False) -> Iterator[tuple[pa.Table, NDArray[np.bool_]]]:
        """Yield the rows of each parcel, and which of them are stored already."""
        skip = self._find_stored if skip_stored else None
        for parcel in self.embedder.stream(self.items, skip=skip, advance=self.advance):
            self.n_seen += len(parcel.items)
            self.failures.extend(parcel.failures)
            table = self._rows(parcel)
            yield table, self.stored.settle(parcel.start, table.drop_columns(EMBEDDING))

    def _find_stored(
        self, start: int, items: Sequence[Any], digests: Sequence[bytes | None]
    ) -> NDArray[np.bool_]:
        columns = self._columns_beside(start, items, digests, [None] * len(items))
        return self.stored.reserve(start, pa.table(columns))

    def _rows(self, parcel: Parcel) -> pa.Table:
        vectors: NDArray[np.floating] = parcel.vectors
        kind = self.schema.field(EMBEDDING).type
        if kind.value_type == pa.float16():
            vectors = narrow_vectors(
                parcel.vectors, lambda place: describe_item(parcel.items[place])
            )
        reasons: list[str | None] = [None] * len(vectors)
        for failure in parcel.failures:
            reasons[failure.row - parcel.start] = failure.reason
        is_null = np.array([reason is not None for reason in reasons]) if parcel.failures else None
        columns = self._columns_beside(parcel.start, parcel.items, parcel.digests, reasons)
        columns[EMBEDDING] = embedding_column(vectors, kind, is_null)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _columns_beside(
        self,
        start: int,
        items: Sequence[Any],
        digests: Sequence[bytes | None],
        reasons: Sequence[str | None],
    ) -> dict[str, pa.Array]:
        return {
            "path": path_column(items),
            "digest": pa.array(digests, pa.binary(DIGEST_BYTES)),
            "error": text_column("errors", reasons),
            **{name: of_all.slice(start, len(items)) for name, of_all in self.annotations.items()},
        }

    def _refuse_if_none_was_read(self) -> None:
        if len(self.failures) == self.n_seen > 0:
            first = self.failures[0]
            which = f"{'first ' if self.n_seen < len(self.items) else ''}{self.n_seen}"
            raise ImageDecodeError(
                first.source,
                f"{first.reason}; none of the {which} images could be read, so nothing was written",
                first.row,
            )

    def _summary(self, new: int, kept: int, replaced: int, files: Sequence[Path]) -> ExportSummary:
        return ExportSummary(
            rows=new + kept + replaced,
            dimension=self.schema.field(EMBEDDING).type.list_size,
            failures=tuple(self.failures),
            new=new,
            kept=kept,
            replaced=replaced,
            files=tuple(files),
        )
