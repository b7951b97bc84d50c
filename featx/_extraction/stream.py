"""The stream: images decoded ahead of the network, in blocks, and blocks computed side by side."""

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
LARGEST_PIECE = 16

# How many blocks of images may be decoded or waiting ahead of the network: enough to hide a slow
# image, few enough that memory does not grow with the number of images.
BLOCKS_AHEAD = 2


@dataclass
class Block(Generic[Key]):
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


def choose_piece(n_images: int, threads: int) -> int:
    """Return how many images a thread takes at a time: few of few, so that all threads have some.

    Examples
    --------
    >>> choose_piece(1, threads=2), choose_piece(64, threads=2), choose_piece(10_000, threads=2)
    (1, 8, 16)
    """
    return max(1, min(LARGEST_PIECE, n_images // (4 * max(1, threads))))


def stream_blocks(
    keys: Iterable[Key],
    load: Callable[[Key], torch.Tensor],
    *,
    block_size: int,
    shape: tuple[int, ...],
    num_workers: int,
    piece: int = LARGEST_PIECE,
) -> Generator[Block[Key]]:
    """Load images in threads and yield them in order, in blocks.

    Threads serve because decoding and resizing release the GIL. Keys are drawn only as far ahead
    as decoding runs, so that whoever hands them out can decide late.

    Parameters
    ----------
    keys : iterable
        One key per image.
    load : callable
        Returns the pixels of a key, uint8 of ``shape``. An `ImageDecodeError` of it becomes a
        failure of the block; any other exception ends the stream.
    block_size : int
        Images of a block; the last one may have fewer.
    shape : tuple of int
        The shape of each image's pixels, such as (n_views, 3, side, side).
    num_workers : int
        Threads that load; 0 loads in the calling thread.
    piece : int
        Images that a thread loads at a time.

    Yields
    ------
    Block
        In the order of the keys.
    """

    def load_piece(piece_keys: list[Key]) -> list[torch.Tensor | ImageDecodeError]:
        return [_attempt(load, key) for key in piece_keys]

    block = _Filling[Key](block_size, shape)
    ahead = num_workers + BLOCKS_AHEAD * max(1, block_size // piece)
    pieces = load_in_order(_cut(keys, piece), load_piece, num_workers=num_workers, ahead=ahead)
    with closing(pieces):
        for piece_keys, outcomes in pieces:
            for key, outcome in zip(piece_keys, outcomes, strict=True):
                block.add(key, outcome)
                if block.is_full:
                    yield block.take()
    if not block.is_empty:
        yield block.take()


class _Filling(Generic[Key]):
    """The block that is being filled, and the next one after it has been taken."""

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

    def take(self) -> Block[Key]:
        block = Block(self._pixels[: len(self._keys)], self._keys, self._failures)
        self._start()
        return block


def _attempt(load: Callable[[Key], Value], key: Key) -> Value | ImageDecodeError:
    try:
        return load(key)
    except ImageDecodeError as error:
        return error


def _cut(keys: Iterable[Key], size: int) -> Generator[list[Key]]:
    iterator = iter(keys)
    while piece := list(islice(iterator, size)):
        yield piece


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
