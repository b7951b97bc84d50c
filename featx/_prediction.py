"""Predictions: new images through a saved model, one row per image."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from featx._embedder import ImageEmbedder
from featx._errors import InputError
from featx._extraction.parcels import refuse_all_failed
from featx._images.sources import as_image_list, describe_item
from featx._progress import progress_bar
from featx._public import public

if TYPE_CHECKING:
    from featx._errors import DecodeFailure
    from featx._extraction.parcels import Parcel


@public
def predict_images(
    model: Any, images: Any, *, skip_unreadable: bool = False, **embedder_params: Any
) -> tuple[pd.DataFrame, tuple[DecodeFailure, ...]]:
    """Classify images by a fitted pipeline whose first step is an `ImageEmbedder`.

    Parameters
    ----------
    model : Pipeline
        As `load_model` returns it.
    images : sequence of images
        As `ImageEmbedder` takes them.
    skip_unreadable : bool, default=False
        Leave out images that cannot be read, instead of raising at the first.
    **embedder_params : dict
        Parameters to change in the embedder that do not change a vector, such as ``cache``.

    Returns
    -------
    predictions : DataFrame
        Columns ``path``, ``label`` and, where the model has probabilities, ``probability``: that
        of the label.
    failures : tuple of DecodeFailure
        The images that were left out.

    Raises
    ------
    InputError
        When the model is not such a pipeline.
    ImageDecodeError
        When an image cannot be read and ``skip_unreadable`` is False, or when none can.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import ImageEmbedder, predict_images
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> images = [np.full((32, 32, 3), grey, dtype=np.uint8) for grey in (0, 40, 200, 240)]
    >>> embedder = ImageEmbedder(image_size=64, runtime="torch")
    >>> model = make_pipeline(embedder, LogisticRegression())
    >>> model = model.fit(images, ["dark", "dark", "light", "light"])
    >>> predictions, failures = predict_images(model, images[1:3])
    >>> predictions["label"].to_list(), failures
    (['dark', 'light'], ())
    """
    if not isinstance(model, Pipeline) or not isinstance(model.steps[0][1], ImageEmbedder):
        raise InputError(
            f"Got a {type(model).__name__} but expected a Pipeline whose first step is an "
            "ImageEmbedder, as featx select writes it"
        )
    # A copy keeps the recipe it was fitted with: one that would compute others must be refused.
    embedder = copy.copy(model.steps[0][1]).set_params(
        on_error="nan" if skip_unreadable else "raise", **embedder_params
    )
    items = as_image_list(images)
    tables: list[pd.DataFrame] = []
    failures: list[DecodeFailure] = []
    with progress_bar("Embedding", len(items), embedder.progress) as advance:
        # Parcel by parcel: the vectors of a million images never stand in memory together.
        for parcel in embedder.stream(items, advance=advance):
            failures += parcel.failures
            if len(parcel.failures) < len(parcel.items):
                tables.append(_predict_parcel(model[1:], parcel))
    refuse_all_failed(failures, len(items))
    return pd.concat(tables, ignore_index=True), tuple(failures)


def _predict_parcel(head: Pipeline, parcel: Parcel) -> pd.DataFrame:
    unread = {failure.row - parcel.start for failure in parcel.failures}
    rows = [row for row in range(len(parcel.items)) if row not in unread]
    vectors = parcel.vectors[rows]
    labels = head.predict(vectors)
    columns: dict[str, Any] = {
        # As objects: text of Arrow cannot hold a name that is no UTF-8.
        "path": pd.Series([_path(parcel.items[row]) for row in rows], dtype=object),
        "label": [_printable(label) for label in labels],
    }
    if hasattr(head, "predict_proba"):
        # The label is the model's own; its probability is looked up by its class.
        places = np.searchsorted(head.classes_, labels)
        columns["probability"] = head.predict_proba(vectors)[np.arange(len(rows)), places]
    return pd.DataFrame(columns)


def _path(item: Any) -> str:
    """Return the path itself, not its text in a message; of what has none, what it is."""
    return os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else describe_item(item)


def _printable(label: Any) -> Any:
    # The name of a class folder may hold bytes that are no text; a table cannot.
    if isinstance(label, str):
        return label.encode("utf-8", "backslashreplace").decode("utf-8")
    return label
