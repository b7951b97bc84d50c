"""Ranking: which pretrained network serves a set of labelled images, before anything is tuned."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone

from featx._backbones.frozen import FrozenBackbone
from featx._backbones.listing import list_backbones
from featx._backbones.providers import load_backbone
from featx._checks import check_choice, refuse
from featx._embedder import ImageEmbedder
from featx._errors import ImageDecodeWarning, InputError, WeightsError
from featx._images.sources import as_image_list
from featx._labels import check_folds, check_lengths, encode_labels
from featx._public import public
from featx._selection.labelled_embeddings import LabelledEmbeddings, embed_labelled
from featx._selection.transferability import (
    PROBE_FOLDS,
    linear_probe_score,
    log_me,
    nearest_neighbour_score,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# In the order of their agreement with a search, as it was measured: the first one decides.
_SCORES: dict[str, Callable[[np.ndarray, Any], float]] = {
    "linear_probe": linear_probe_score,
    "logme": log_me,
    "knn": nearest_neighbour_score,
}

SCORES = tuple(_SCORES)
"""The names that ``scores=`` takes, all of which are the default."""


@public
def rank_backbones(
    X: Any,
    y: Any,
    backbones: Iterable[str | FrozenBackbone] | None = None,
    *,
    layers: Any = None,
    pooling: Any = None,
    scores: str | Iterable[str] = SCORES,
    embedder: ImageEmbedder | None = None,
    on_missing: str = "raise",
    skip_unreadable: bool = False,
    timed_images: int = 128,
) -> pd.DataFrame:
    """Rank pretrained networks by how well their embeddings serve some labelled images.

    Each network embeds every image once, through the embedder's cache; the scores are computed
    from the embeddings. Weights are downloaded only where the environment variable
    ``FEATX_DOWNLOAD=1`` allows it.

    Parameters
    ----------
    X : sequence of images
        As `ImageEmbedder` takes them.
    y : array-like of shape (n_images,)
        The class of each image.
    backbones : iterable of str or FrozenBackbone, optional
        The networks: names, or what `load_backbone` returns, such as one network at several image
        sizes. By default those that come as packages of PyPI and are on this machine.
    layers, pooling : optional
        As `ImageEmbedder` takes them; by default those of ``embedder``.
    scores : str or iterable of str, default=("linear_probe", "logme", "knn")
        Any of these: the cross-validated accuracy of a logistic regression; LogME (You et al.,
        2021), for which copies of an image, byte for byte, count once; the share of images whose
        class their nearest neighbours tell. The first decides the order, the next ones its ties.
    embedder : ImageEmbedder, optional
        Views, device, cache and all else that an embedding takes; by default ``ImageEmbedder()``.
        Its ``weights`` and ``image_size`` hold for networks given by name.
    on_missing : {"raise", "skip"}, default="raise"
        What to do about a network whose weights are not on this machine: raise before any image is
        embedded, or leave it out with a warning.
    skip_unreadable : bool, default=False
        Leave out images that cannot be read, with one `ImageDecodeWarning`, instead of raising.
    timed_images : int, default=128
        How many images are embedded once more, past the cache, for ``seconds_per_image``; 0 leaves
        it NaN.

    Returns
    -------
    DataFrame
        One row per network, the best first:

        - ``backbone``, ``weights`` and ``image_size`` (pixels) name it;
        - ``rank``: 1 is the best; networks with equal scores share one;
        - a column per score, greater is better, and a column ``<score>_rank`` beside it, in which
          equal ones share the mean of their places;
        - ``seconds_per_image``: reading, decoding and the network, on this machine as it is now;
        - ``parameters``: in millions, the classifier's included;
        - ``dimension``: length of an embedding.

    Raises
    ------
    InputError
        When a score or a network is not known, the labels are not one per image, are of one class
        only or too few for a score, or the embedder would hand NaN rows to the scores.
    WeightsError
        When weights are not on this machine and ``on_missing="raise"``, or none are left.
    ImageDecodeError
        When an image cannot be read and ``skip_unreadable`` is False, or when none can.

    Notes
    -----
    ``benchmarks/ranking.py`` measures how well each order agrees with that of a cross-validated
    search: the linear probe's best, then LogME's. Close scores change places on other images; let
    `head_search` decide between the first ones.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import load_backbone
    >>> from featx._selection.ranking import rank_backbones
    >>> random = np.random.default_rng(0)
    >>> images = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    >>> images[6:, :, ::4] = 0
    >>> labels = ["plain"] * 6 + ["striped"] * 6
    >>> small = load_backbone("efficientnet_lite0", image_size=64)
    >>> table = rank_backbones(images, labels, [small], timed_images=0)
    >>> table[["backbone", "rank", "image_size", "dimension"]]
                 backbone  rank  image_size  dimension
    0  efficientnet_lite0     1          64       1280
    """
    names = _checked_scores(scores)
    candidates = _checked_backbones(backbones)
    prototype = _prototype(embedder, layers, pooling)
    items = as_image_list(X)
    _check_labels(items, y, names)
    check_choice("on_missing", on_missing, ("raise", "skip"))
    embedders = [_embedder_of(candidate, prototype) for candidate in candidates]
    embedders = _with_weights(embedders, on_missing)
    if skip_unreadable:
        items, y = _readable(items, y, embedders[0])
        _check_labels(items, y, names)
    rows = [_describe(each, items, y, names, timed_images) for each in embedders]
    return order_by_rank(pd.DataFrame(rows), names)


def order_by_rank(table: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Return a table of networks with their ranks by some columns of scores, the best row first.

    The first score decides, the next ones where it is equal. A network without a score (NaN) comes
    after those that have it.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"backbone": ["a", "b"], "knn": [0.5, 0.7]})
    >>> order_by_rank(table, ["knn"])
      backbone  rank  knn  knn_rank
    0        b     1  0.7       1.0
    1        a     2  0.5       2.0
    """
    places = table[list(scores)].rank(ascending=False)
    columns: dict[str, Any] = {}
    for name in table.columns:
        columns[name] = table[name]
        if name in scores:
            columns[f"{name}_rank"] = places[name]
    ranked = pd.DataFrame(columns)
    by_place = [f"{score}_rank" for score in scores]
    ranked = ranked.sort_values(by_place, kind="stable", ignore_index=True)
    # Equal in every score is equal in rank; so are networks that lack the same ones.
    n_equals_before = ranked.groupby(by_place, dropna=False).cumcount()
    ranked.insert(1, "rank", ranked.index + 1 - n_equals_before)
    return ranked


def _checked_scores(scores: str | Iterable[str]) -> list[str]:
    names = [scores] if isinstance(scores, str) else list(dict.fromkeys(scores))
    if not names:
        raise refuse("scores", names, f"some of {', '.join(SCORES)}")
    for name in names:
        check_choice("scores", name, SCORES)
    return names


def _checked_backbones(
    backbones: Iterable[str | FrozenBackbone] | None,
) -> list[str | FrozenBackbone]:
    if backbones is None:
        backbones = [entry.name for entry in list_backbones(installed=True)]
    elif isinstance(backbones, str | FrozenBackbone):
        backbones = [backbones]
    candidates = list(backbones)
    expected = "names of networks, or what load_backbone returns"
    if not candidates:
        raise refuse("backbones", candidates, expected)
    for candidate in candidates:
        if not isinstance(candidate, str | FrozenBackbone):
            raise refuse("backbones", candidate, expected)
    return list(dict.fromkeys(candidates))


def _prototype(embedder: ImageEmbedder | None, layers: Any, pooling: Any) -> ImageEmbedder:
    prototype: ImageEmbedder = clone(ImageEmbedder() if embedder is None else embedder)
    given = {"layers": layers, "pooling": pooling}
    prototype.set_params(**{name: value for name, value in given.items() if value is not None})
    if prototype.on_error == "nan":
        raise InputError(
            "Got an embedder with on_error='nan' but expected on_error='raise': scores cannot be "
            "had of NaN rows; pass skip_unreadable=True to leave unreadable images out"
        )
    return prototype


def _check_labels(items: Sequence[Any], y: Any, scores: Sequence[str]) -> None:
    check_lengths(len(items), len(encode_labels(y)))
    if "linear_probe" in scores:
        check_folds(y, PROBE_FOLDS, "leave the linear probe out")


def _embedder_of(backbone: str | FrozenBackbone, prototype: ImageEmbedder) -> ImageEmbedder:
    embedder: ImageEmbedder = clone(prototype).set_params(backbone=backbone)
    if isinstance(backbone, FrozenBackbone):
        # It has weights and an image size of its own.
        embedder.set_params(weights="default", image_size=None)
    return embedder


def _name(backbone: str | FrozenBackbone) -> str:
    return backbone if isinstance(backbone, str) else backbone.name


def _load(embedder: ImageEmbedder) -> FrozenBackbone:
    if isinstance(embedder.backbone, FrozenBackbone):
        return embedder.backbone
    return load_backbone(
        embedder.backbone, weights=embedder.weights, image_size=embedder.image_size
    )


def _with_weights(embedders: Sequence[ImageEmbedder], on_missing: str) -> list[ImageEmbedder]:
    """Return those whose weights are here, before hours are spent on the first ones."""
    found = []
    for embedder in embedders:
        try:
            # Loaded again when its turn comes: many networks may not fit into memory together.
            _load(embedder)
        except WeightsError as error:
            if on_missing == "raise":
                raise
            warnings.warn(f"Left out {_name(embedder.backbone)}: {error}", stacklevel=3)
        else:
            found.append(embedder)
    if not found:
        names = ", ".join(_name(embedder.backbone) for embedder in embedders)
        raise WeightsError(
            f"The weights of none of {names} are on this machine; 'featx backbones --installed' "
            "lists the networks whose weights are"
        )
    return found


def _readable(items: Sequence[Any], y: Any, embedder: ImageEmbedder) -> tuple[list[Any], list[Any]]:
    """Return the images that can be read, with their labels; embeds them by the first network."""
    read = embed_labelled(items, y, embedder, skip_unreadable=True)
    if read.failures:
        warnings.warn(ImageDecodeWarning(read.failures, len(items)), stacklevel=3)
    labels = list(y)
    return list(read.images), [labels[row] for row in read.rows]


def _describe(
    embedder: ImageEmbedder, items: Sequence[Any], y: Any, scores: Sequence[str], timed_images: int
) -> dict[str, Any]:
    """Return a row of the table."""
    backbone = _load(embedder)
    embedded = embed_labelled(items, y, embedder, skip_unreadable=False)
    return {
        "backbone": _name(embedder.backbone),
        **{name: _score(name, embedded) for name in scores},
        "seconds_per_image": seconds_per_image(embedder, items, timed_images),
        "parameters": sum(part.numel() for part in backbone.module.parameters()) / 1e6,
        "dimension": embedded.vectors.shape[1],
        "image_size": backbone.preprocessing.image_size,
        "weights": backbone.weights,
    }


def seconds_per_image(embedder: ImageEmbedder, items: Any, count: int) -> float:
    """Return how long reading, decoding and the network take for an image, here and now.

    Nothing is looked up in the cache or kept there. What is paid once, such as the export of the
    network to ONNX, is not counted, and not paid again where it lies beside the cache.

    ``count`` of the items are embedded, spread evenly. NaN where that is 0, or none can be read.

    Raises
    ------
    ImageDecodeError
        If one cannot be read, unless the embedder has ``on_error="nan"``.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import ImageEmbedder
    >>> images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    >>> embedder = ImageEmbedder("timm/test_efficientnet", weights=None, runtime="torch")
    >>> seconds_per_image(embedder, images, 3) > 0
    True
    """
    if count < 1:
        return math.nan
    images = as_image_list(items)
    step = max(1, len(images) // count)
    sample = [images[row] for row in range(0, len(images), step)][:count]
    quiet: ImageEmbedder = clone(embedder).set_params(progress=False)
    # What is built once is built before: with so many images each thread gets its own, as then.
    list(quiet.stream(sample[: 2 * torch.get_num_threads()], use_cache=False))
    start = time.perf_counter()
    parcels = list(quiet.stream(sample, use_cache=False))
    seconds = time.perf_counter() - start
    computed = {digest for parcel in parcels for digest in parcel.digests} - {None}
    return seconds / len(computed) if computed else math.nan


def _score(name: str, embedded: LabelledEmbeddings) -> float:
    vectors, labels = embedded.vectors, embedded.labels
    if name == "logme":
        # With as many dimensions as images, one copy is enough for an evidence without bound.
        _, distinct = np.unique(np.array(embedded.digests), return_index=True)
        vectors, labels = vectors[distinct], labels[distinct]
        if len(set(labels.tolist())) < 2:
            return math.nan
    return _SCORES[name](vectors, labels)
