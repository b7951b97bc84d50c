"""The vectors of a window of images, by an `ImageEmbedder`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import ImageDecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from featx._embedder import ImageEmbedder
    from featx._extraction.parcels import Extraction
    from featx._progress import Advance


class WindowEmbedder:
    """What embeds the images of an export, window by window and without a progress bar of its own.

    Parameters
    ----------
    embedder : ImageEmbedder
        Its parameters decide; it stays as it is.
    advance : callable
        Is told how many images are done, and how many of them were found.
    """

    def __init__(self, embedder: ImageEmbedder, advance: Advance) -> None:
        quiet: ImageEmbedder = copy.copy(embedder).set_params(progress=False)
        self._stream = quiet._open_stream()
        self.advance = advance
        self.dimension = len(embedder.get_feature_names_out())

    def embed(self, items: Sequence[Any], rows: Sequence[int]) -> Extraction:
        """Embed some images.

        Parameters
        ----------
        items : sequence of images
            At least one.
        rows : sequence of int
            Their rows in the export, to be named in errors.

        Returns
        -------
        Extraction
            Its failures are by the place among the items.

        Raises
        ------
        ImageDecodeError
            An image cannot be read and the embedder has ``on_error="raise"``.
        """
        try:
            return self._stream.extract(list(items), self.advance)
        except ImageDecodeError as error:
            row = None if error.row is None else rows[error.row]
            raise ImageDecodeError(error.source, error.reason, row) from error

    def digest(self, items: Sequence[Any]) -> list[bytes | None]:
        """Return the digests of some images, None where one cannot be read."""
        parcels = self._stream.parcels(
            list(items), skip=lambda _, some, __: np.ones(len(some), bool)
        )
        return [digest for parcel in parcels for digest in parcel.digests]
