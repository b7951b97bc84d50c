"""Batches: images decoded ahead of the network in threads, and batches computed side by side."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from featx._errors import ImageDecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

Key = TypeVar("Key")
Value = TypeVar("Value")

# Images that a thread loads at a time: handing over costs as much as a small image, and a thread
# that goes on with the same work finds its code and data in the processor's caches. Measured: 8 %.
LARGEST_TASK = 16

# How many batches of images may be decoded or waiting ahead of the network: enough to hide a slow
# image, few enough that memory does not grow with the number of images.
BATCHES_AHEAD = 2


@dataclass
class Batch(Generic[Key]):
    """Some images on their way to the network.

    Attributes
    ----------
    pixels : Tensor
        uint8 (n, n_views, 3, side, side): the images that could be read.
    keys : list
        The key of each of them.
    failures : list of (key, ImageDecodeError)
        The images met on the way that could not be read.
    """

    pixels: torch.Tensor
    keys: list[Key]
    failures: list[tuple[Key, ImageDecodeError]] = field(default_factory=list)


def images_a_task(n_images: int, threads: int) -> int:
    """Return how many images a thread takes at a time: few of few, so that all threads have some.

    Examples
    --------
    >>> images_a_task(1, threads=2), images_a_task(64, threads=2), images_a_task(10_000, threads=2)
    (1, 8, 16)
    """
    return max(1, min(LARGEST_TASK, n_images // (4 * max(1, threads))))


def stream_batches(
    keys: Iterable[Key],
    load: Callable[[Key], torch.Tensor],
    *,
    batch_size: int,
    shape: tuple[int, ...],
    num_workers: int,
    task: int = LARGEST_TASK,
) -> Generator[Batch[Key]]:
    """Load images in threads and yield them in order, in batches.

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
        Images of a batch; the last one may have fewer.
    shape : tuple of int
        The shape of each image's pixels, such as (n_views, 3, side, side).
    num_workers : int
        Threads that load; 0 loads in the calling thread.
    task : int
        Images that a thread loads at a time.

    Yields
    ------
    Batch
        In the order of the keys.
    """

    def load_task(task_keys: list[Key]) -> list[torch.Tensor | ImageDecodeError]:
        return [_attempt(load, key) for key in task_keys]

    batch = _Filling[Key](batch_size, shape)
    ahead = num_workers + BATCHES_AHEAD * max(1, batch_size // task)
    tasks = load_in_order(cut(keys, task), load_task, num_workers=num_workers, ahead=ahead)
    with closing(tasks):
        for task_keys, outcomes in tasks:
            for key, outcome in zip(task_keys, outcomes, strict=True):
                batch.add(key, outcome)
                if batch.is_full:
                    yield batch.take()
    if not batch.is_empty:
        yield batch.take()


class _Filling(Generic[Key]):
    """The batch that is being filled, and the next one after it has been taken."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self._size = size
        self._shape = shape
        self._start()

    def _start(self) -> None:
        self._pixels = torch.empty(self._size, *self._shape, dtype=torch.uint8)
        self._keys: list[Key] = []
        self._failures: list[tuple[Key, ImageDecodeError]] = []

    @property
    def is_full(self) -> bool:
        return len(self._keys) == self._size

    @property
    def is_empty(self) -> bool:
        return not self._keys and not self._failures

    def add(self, key: Key, outcome: torch.Tensor | ImageDecodeError) -> None:
        if isinstance(outcome, ImageDecodeError):
            self._failures.append((key, outcome))
        else:
            self._pixels[len(self._keys)] = outcome
            self._keys.append(key)

    def take(self) -> Batch[Key]:
        batch = Batch(self._pixels[: len(self._keys)], self._keys, self._failures)
        self._start()
        return batch


def _attempt(load: Callable[[Key], Value], key: Key) -> Value | ImageDecodeError:
    try:
        return load(key)
    except ImageDecodeError as error:
        return error


def cut(keys: Iterable[Key], size: int) -> Generator[list[Key]]:
    iterator = iter(keys)
    while task := list(islice(iterator, size)):
        yield task


def load_in_order(
    keys: Iterable[Key],
    load: Callable[[Key], Value],
    *,
    num_workers: int,
    ahead: int,
) -> Generator[tuple[Key, Value]]:
    """Call ``load`` on each key in threads and yield the outcomes in the order of the keys.

    Parameters
    ----------
    keys : iterable
        Drawn at most ``ahead`` further than what was yielded.
    load : callable
        What to call; what it raises is raised here.
    num_workers : int
        Threads; 0 calls ``load`` in the calling thread.
    ahead : int
        How many calls may be under way or waiting.

    Yields
    ------
    tuple
        A key, and what was loaded.
    """
    if num_workers == 0:
        yield from ((key, load(key)) for key in keys)
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
