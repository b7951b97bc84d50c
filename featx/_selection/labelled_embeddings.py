"""Labelled embeddings: the images of a set that could be read, and a score on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest
from sklearn.base import clone

from featx._images.sources import as_image_list, describe_item
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
    images : ndarray of objects, shape (n_images,)
        As they were given.
    rows : ndarray of int64, shape (n_images,)
        Where each stood among those that were given.
    labels : ndarray, shape (n_images,)
    vectors : ndarray of float32, shape (n_images, dimension)
    digests : list of bytes
    failures : tuple of DecodeFailure
        The images that were left out.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    digests: list[bytes | None]
    failures: tuple[DecodeFailure, ...]

    def save(self, file: Path, provenance: dict[str, Any]) -> None:
        """Write a Parquet file that `read_embeddings` reads."""
        write_embeddings(
            file,
            self.vectors,
            paths=[describe_item(image) for image in self.images],
            labels=list(self.labels),
            digests=self.digests,
            provenance=provenance,
        )


def embed_labelled(
    images: Any, labels: Any, embedder: ImageEmbedder, *, skip_unreadable: bool
) -> LabelledEmbeddings:
    """Embed labelled images, all in one go; the embedder is not changed."""
    tolerant = clone(embedder).set_params(on_error="nan" if skip_unreadable else "raise")
    items = as_image_list(images)
    extraction = tolerant.extract(items)
    unread = {failure.row for failure in extraction.failures}
    rows = np.array([row for row in range(len(items)) if row not in unread])
    # Filled, not converted: numpy would make arrays of one shape into one of four dimensions.
    read = np.empty(len(rows), dtype=object)
    read[:] = [items[row] for row in rows]
    return LabelledEmbeddings(
        images=read,
        rows=rows,
        labels=np.asarray(labels)[rows],
        vectors=extraction.vectors[rows] if unread else extraction.vectors,
        digests=[extraction.digests[row] for row in rows],
        failures=extraction.failures,
    )


@dataclass(frozen=True)
class HeldOutScore:
    """Accuracy on images that took no part in the search, with its 95 % Wilson interval.

    Examples
    --------
    >>> score = HeldOutScore(correct=90, total=100)
    >>> score.accuracy
    0.9
    >>> [round(end, 3) for end in score.interval]
    [0.826, 0.945]
    """

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of the images whose label was predicted."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the interval (Wilson, 1927)."""
        interval = binomtest(self.correct, self.total).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)
