"""Exports: the embeddings of images as a Parquet file that says what made them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featx.embedder import ImageEmbedder
from featx.errors import InputError
from featx.files import output_file
from featx.images.sources import as_image_list
from featx.store.parquet import check_further_names, write_embeddings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featx.errors import DecodeFailure


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote: the file's rows and columns, and the images that had no vector."""

    rows: int
    dimension: int
    failures: tuple[DecodeFailure, ...]


def export_embeddings(
    images: Any,
    out: str | os.PathLike[str],
    *,
    embedder: ImageEmbedder | None = None,
    labels: Sequence[Any] | None = None,
    further: Mapping[str, Sequence[Any]] | None = None,
) -> ExportSummary:
    """Embed images and write the embeddings to a Parquet file.

    Parameters
    ----------
    images : sequence of images
        As `ImageEmbedder` takes them.
    out : path
        The file to write; complete or absent, whatever happens.
    embedder : ImageEmbedder, optional
        What turns images into embeddings; by default ``ImageEmbedder()``. With
        ``on_error="nan"`` an unreadable image is a row with a null embedding and the reason.
    labels : sequence of str, optional
        One label per image.
    further : mapping of str to sequence, optional
        More columns, with one value per image, such as `load_manifest` returns.

    Returns
    -------
    ExportSummary
        Rows, dimension, and the images that could not be read.

    Raises
    ------
    ImageDecodeError
        When an image cannot be read and the embedder has ``on_error="raise"``.
    InputError
        When labels and images differ in length, or the folder of ``out`` does not exist.

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
    target = output_file(out)
    check_further_names(further or ())
    items = as_image_list(images)
    if labels is not None and len(labels) != len(items):
        raise InputError(
            f"Got {len(items)} images and {len(labels)} labels but expected one label per image"
        )
    embedder = ImageEmbedder() if embedder is None else embedder
    extraction = embedder.extract(items)
    reasons = {failure.row: failure.reason for failure in extraction.failures}
    write_embeddings(
        target,
        extraction.vectors,
        paths=[item if isinstance(item, str | os.PathLike) else None for item in items],
        labels=labels,
        digests=extraction.digests,
        further=further,
        errors=[reasons.get(row) for row in range(len(items))],
        provenance=embedder.get_provenance(),
    )
    return ExportSummary(len(items), extraction.vectors.shape[1], extraction.failures)
