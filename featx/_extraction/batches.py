"""Batches: images decoded ahead of the network in threads, and batches computed side by side."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from featx._errors import ImageDecodeError
from featx._images.preprocess import count_views

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from numpy.typing import NDArray

    from featx._backbones.taps import Tap
    from featx._extraction.recipe import EmbeddingRecipe
    from featx._extraction.runtime import Runtime

Key = TypeVar("Key")
Value = TypeVar("Value")

# Images that a thread decodes at a time: handing over costs as much as a small image, and a thread
# that goes on with the same work finds its code and data in the processor's caches. Measured: 8 %.
IMAGES_A_TASK = 16

# How many batches of images may be decoded or waiting ahead of the network: enough to hide a slow
# image, few enough that memory does not grow with the number of images.
_BATCHES_AHEAD = 2


@dataclass
class Batch(Generic[Key]):
    """Some images on their way to the network.

    Attributes
    ----------
    pixels : Tensor
        uint8 (n, n_views, 3, side, side): the images that could be decoded.
    keys : list
        The key of each of them.
    failures : list of (key, ImageDecodeError)
        The images met on the way that could not be decoded.
    """

    pixels: torch.Tensor
    keys: list[Key]
    failures: list[tuple[Key, ImageDecodeError]]


def compute_batches(
    keys: Iterable[Key],
    decode: Callable[[Key], torch.Tensor],
    recipe: EmbeddingRecipe,
    taps: tuple[Tap, ...],
    runtime: Runtime,
    *,
    n_images: int,
    num_workers: int,
) -> Generator[tuple[Batch[Key], dict[Tap, NDArray[np.float32]]]]:
    """Decode images and run the network over them, batch by batch.

    Keys, one an image and ``n_images`` at most, are drawn only as far ahead as decoding runs; an
    `ImageDecodeError` of ``decode`` becomes a failure of the batch. Beside each batch stand the
    vectors of its images for each tap, the views of an image averaged. With ``num_workers=0`` all
    happens in the calling thread.
    """
    calls = runtime.calls_at_a_time(n_images)
    in_threads = 0 if num_workers == 0 or calls == 1 else calls
    n_views = count_views(recipe.views)
    side = recipe.backbone.preprocessing.image_size
    task = max(1, min(IMAGES_A_TASK, n_images // (4 * max(1, calls, num_workers))))
    # Whole batches of the network, but no fewer images than a thread decodes at a time.
    batch_size = max(1, recipe.plan.batch_size // n_views)
    batches = _decode_batches(
        keys,
        decode,
        batch_size=batch_size * math.ceil(task / batch_size),
        shape=(n_views, 3, side, side),
        num_workers=num_workers,
        task=task,
    )

    def run(batch: Batch[Key]) -> dict[Tap, NDArray[np.float32]]:
        n_batch = len(batch.keys)
        if n_batch == 0:
            return {tap: np.empty((0, recipe.backbone.dimension(tap)), np.float32) for tap in taps}
        vectors = runtime.run(batch.pixels.flatten(0, 1), max(1, in_threads))
        if n_views > 1:
            vectors = [
                of_tap.reshape(n_batch, n_views, -1).mean(axis=1, dtype=np.float32)
                for of_tap in vectors
            ]
        return dict(zip(taps, vectors, strict=True))

    with closing(batches):
        yield from load_in_order(batches, run, num_workers=in_threads, ahead=calls + 1)


def _decode_batches(
    keys: Iterable[Key],
    decode: Callable[[Key], torch.Tensor],
    *,
    batch_size: int,
    shape: tuple[int, ...],
    num_workers: int,
    task: int,
) -> Generator[Batch[Key]]:
    """Decode images in threads, as decoding releases the GIL, and yield them in order, in batches.

    The last batch may have fewer images.
    """

    def decode_task(some: list[Key]) -> list[torch.Tensor | ImageDecodeError]:
        outcomes: list[torch.Tensor | ImageDecodeError] = []
        for key in some:
            try:
                outcomes.append(decode(key))
            except ImageDecodeError as error:
                outcomes.append(error)
        return outcomes

    ahead = num_workers + _BATCHES_AHEAD * max(1, batch_size // task)
    tasks = load_in_order(cut(keys, task), decode_task, num_workers=num_workers, ahead=ahead)
    batch: Batch[Key] | None = None
    with closing(tasks):
        for some, outcomes in tasks:
            for key, outcome in zip(some, outcomes, strict=True):
                if batch is None:
                    batch = Batch(torch.empty(batch_size, *shape, dtype=torch.uint8), [], [])
                if isinstance(outcome, ImageDecodeError):
                    batch.failures.append((key, outcome))
                    continue
                batch.pixels[len(batch.keys)] = outcome
                batch.keys.append(key)
                if len(batch.keys) == batch_size:
                    yield batch
                    batch = None
    if batch is not None:
        batch.pixels = batch.pixels[: len(batch.keys)]
        yield batch


def cut(keys: Iterable[Key], size: int) -> Generator[list[Key]]:
    """Yield keys in lists of a size; the last one may be shorter."""
    iterator = iter(keys)
    while some := list(islice(iterator, size)):
        yield some


def load_in_order(
    keys: Iterable[Key],
    load: Callable[[Key], Value],
    *,
    num_workers: int,
    ahead: int,
) -> Generator[tuple[Key, Value]]:
    """Call ``load`` on each key in threads and yield keys and outcomes in the order of the keys.

    Keys are drawn at most ``ahead`` further than what was yielded; what ``load`` raises is raised
    here. With ``num_workers=0`` it is called in the calling thread.
    """
    if num_workers == 0:
        for key in keys:
            yield key, load(key)
        return
    pending: deque[tuple[Key, Future[Value]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="featx")
    try:
        for key in keys:
            pending.append((key, pool.submit(load, key)))
            if len(pending) >= ahead:
                first, outcome = pending.popleft()
                yield first, outcome.result()
        while pending:
            first, outcome = pending.popleft()
            yield first, outcome.result()
    finally:
        # Also when the consumer stops early: what was not begun is not worth waiting for.
        pool.shutdown(wait=True, cancel_futures=True)
