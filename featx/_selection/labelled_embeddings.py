"""Labelled embeddings: the images of a set that could be read, and those that could not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from featx._images.sources import as_image_list
from featx._parquet.embeddings import write_embeddings

if TYPE_CHECKING:
    from pathlib import Path

    from featx._embedder import ImageEmbedder
    from featx._errors import DecodeFailure


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Labelled images that could be read, with their embeddings, and those that could not.

    Attributes
    ----------
    paths : ndarray of str objects, shape (n_images,)
    labels : ndarray of str objects, shape (n_images,)
    vectors : ndarray of float32, shape (n_images, dimension)
    digests : list of bytes or None
    failures : tuple of DecodeFailure
        The images that were left out.
    """

    paths: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    digests: list[bytes | None]
    failures: tuple[DecodeFailure, ...]

    def save(self, file: Path, provenance: dict[str, Any]) -> None:
        """Write a Parquet file that `read_embeddings` reads."""
        write_embeddings(
            file,
            self.vectors,
            paths=list(self.paths),
            labels=list(self.labels),
            digests=self.digests,
            provenance=provenance,
        )


def embed_labelled(
    images: Any, embedder: ImageEmbedder, *, skip_unreadable: bool
) -> LabelledEmbeddings:
    """Embed labelled images.

    Parameters
    ----------
    images : Bunch
        As `load_image_folder` and `load_manifest` return it: ``data`` and ``target``.
    embedder : ImageEmbedder
        It is not changed.
    skip_unreadable : bool
        Leave out images that cannot be read, instead of raising at the first.

    Raises
    ------
    ImageDecodeError
        When an image cannot be read and ``skip_unreadable`` is False, or when none can.
    """
    tolerant = clone(embedder).set_params(on_error="nan" if skip_unreadable else "raise")
    extraction = tolerant.extract(images.data)
    unread = {failure.row for failure in extraction.failures}
    items = as_image_list(images.data)
    rows = [row for row in range(len(items)) if row not in unread]
    # Filled, not converted: numpy would make arrays of one shape into one of four dimensions.
    paths = np.empty(len(rows), dtype=object)
    paths[:] = [items[row] for row in rows]
    return LabelledEmbeddings(
        paths=paths,
        labels=np.asarray(images.target)[rows],
        vectors=extraction.vectors[rows],
        digests=[extraction.digests[row] for row in rows],
        failures=extraction.failures,
    )
