"""`export_embeddings`: the embeddings of images as a Parquet file or a dataset of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featx._embedder import ImageEmbedder
from featx._errors import InputError, did_you_mean
from featx._export.place import find_place, hold, stored_files
from featx._export.request import Request
from featx._export.runs import DatasetExport, ExportSummary, FileExport
from featx._export.vectors import WindowEmbedder
from featx._images.digest import DIGEST_BYTES
from featx._parquet.columns import (
    EMBEDDING,
    LABEL,
    OWN_COLUMNS,
    PRECISIONS,
    embedding_type,
)
from featx._parquet.files import EmbeddingFile, as_metadata
from featx._progress import progress_bar
from featx._public import public

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path


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

    Images are taken window by window, so that memory does not grow with their number. An output
    that is there already is gone on from: what it holds is not computed again.

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
        images that are not among the given ones. An image is the same one by its path, or by its
        content where it has none.
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
        Begin anew, in place of whatever is there. Of a folder the parts are removed, and nothing
        else.

    Returns
    -------
    ExportSummary
        Rows, dimension, files, and the images that could not be read.

    Raises
    ------
    ImageDecodeError
        When an image cannot be read and the embedder has ``on_error="raise"``, or when none can.
    InputError
        When labels and images differ in length; when the output holds something else than the same
        kind of embeddings and ``overwrite`` is False; when another export is writing it; when its
        folder does not exist; when a value is beyond the range of float16, as an infinite element
        would make every similarity to that row worthless.

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
    if precision_out not in PRECISIONS:
        hint = did_you_mean(str(precision_out), PRECISIONS)
        raise InputError(
            f"Got precision_out={precision_out!r} but expected 'float32' or 'float16'{hint}"
        )
    place = find_place(out)
    request = Request(images, labels, {} if further is None else further)
    embedder = ImageEmbedder() if embedder is None else embedder
    provenance = embedder.get_provenance()
    dimension = len(embedder.get_feature_names_out())
    with hold(place):
        stored = stored_files(place, provenance, precision_out, overwrite=overwrite)
        request.adopt_types(_stored_types(stored[0]) if place.is_dataset and stored else None)
        schema = _make_schema(request.types, dimension, precision_out, provenance)
        with progress_bar("Embedding", request.total, embedder.progress) as advance:
            windows = WindowEmbedder(embedder, advance)
            if not place.is_dataset:
                return FileExport(request, windows, schema).run(place.path, stored)
            export = DatasetExport(request, windows, schema)
            return export.run(
                place.path, stored, remove_before=place.remove_parts if overwrite else None
            )


def _stored_types(part: Path) -> dict[str, pa.DataType]:
    with EmbeddingFile(part) as file:
        return {
            field.name: field.type
            for field in file.schema
            if field.name == LABEL or field.name not in OWN_COLUMNS
        }


def _make_schema(
    types: Mapping[str, pa.DataType], dimension: int, precision: str, provenance: Mapping[str, Any]
) -> pa.Schema:
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
