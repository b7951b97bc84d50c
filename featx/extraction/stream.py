"""The stream: images decoded ahead of the network, in batches of one fixed shape."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from featx.errors import ImageDecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

Key = TypeVar("Key")
Value = TypeVar("Value")

# How many batches of images may be decoded or waiting ahead of the network: enough to hide a slow
# image, few enough that memory does not grow with the number of images.
BATCHES_AHEAD = 2


@dataclass
class Batch(Generic[Key]):
    """A batch of the fixed shape: its first ``len(keys)`` rows are images, the others padding.

    Attributes
    ----------
    pixels : Tensor
        uint8 (batch_size, n_views, 3, side, side).
    keys : list
        The key of each image, in the order of the rows.
    failures : list of (key, ImageDecodeError)
        The images met on the way that could not be read; they have no row.
    """

    pixels: torch.Tensor
    keys: list[Key] = field(default_factory=list)
    failures: list[tuple[Key, ImageDecodeError]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether every row is an image."""
        return len(self.keys) == len(self.pixels)

    def append(self, key: Key, pixels: torch.Tensor) -> None:
        """Place an image in the next free row."""
        self.pixels[len(self.keys)] = pixels
        self.keys.append(key)


def stream_batches(
    keys: Iterable[Key],
    load: Callable[[Key], torch.Tensor],
    *,
    batch_size: int,
    shape: tuple[int, ...],
    num_workers: int,
) -> Generator[Batch[Key]]:
    """Load images in threads and yield them in order, in batches of one shape.

    Threads serve because decoding and resizing release the GIL. Keys are drawn only as far ahead
    as decoding runs, so that whoever hands them out can decide late.

    Parameters
    ----------
    keys : iterable
        One key per image.
    load : callable
        Returns the pixels of a key, uint8 of ``shape``. An `ImageDecodeError` of it becomes a
        failure of the batch; any other exception ends the stream.
    batch_size : int
        Images of a batch.
    shape : tuple of int
        The shape of each image's pixels, such as (n_views, 3, side, side).
    num_workers : int
        Threads that load; 0 loads in the calling thread.

    Yields
    ------
    Batch
        Full but for the last; the padding is zeros.
    """
    ahead = BATCHES_AHEAD * batch_size
    batch: Batch[Key] = Batch(torch.zeros(batch_size, *shape, dtype=torch.uint8))
    with closing(load_in_order(keys, load, num_workers=num_workers, ahead=ahead)) as loaded:
        for key, outcome in loaded:
            if isinstance(outcome, ImageDecodeError):
                batch.failures.append((key, outcome))
                continue
            batch.append(key, outcome)
            if batch.is_full:
                yield batch
                batch = Batch(torch.zeros(batch_size, *shape, dtype=torch.uint8))
    if batch.keys or batch.failures:
        yield batch


def load_in_order(
    keys: Iterable[Key],
    load: Callable[[Key], Value],
    *,
    num_workers: int,
    ahead: int,
) -> Generator[tuple[Key, Value | ImageDecodeError]]:
    """Call ``load`` on each key in threads and yield the outcomes in the order of the keys.

    Parameters
    ----------
    keys : iterable
        Drawn at most ``ahead`` further than what was yielded.
    load : callable
        What to call; an `ImageDecodeError` is an outcome, any other exception is raised.
    num_workers : int
        Threads; 0 calls ``load`` in the calling thread.
    ahead : int
        How many calls may be under way or waiting.

    Yields
    ------
    tuple
        A key, and what was loaded or the error that says why not.
    """

    def attempt(key: Key) -> Value | ImageDecodeError:
        try:
            return load(key)
        except ImageDecodeError as error:
            return error

    if num_workers == 0:
        yield from ((key, attempt(key)) for key in keys)
        return
    pending: deque[tuple[Key, Future[Value | ImageDecodeError]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="featx-load")
    try:
        for key in keys:
            pending.append((key, pool.submit(attempt, key)))
            if len(pending) >= ahead:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        # Also when the consumer stops early: what has not begun is dropped, not waited for.
        pool.shutdown(wait=True, cancel_futures=True)
