"""Timing: what an image costs that is in no cache."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import clone

from featx._images.sources import as_image_list

if TYPE_CHECKING:
    from featx._embedder import ImageEmbedder


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
