"""The extractor: digest every image, look it up, compute what is missing, store that."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import DecodeFailure, ImageDecodeError, WeightsError
from featx._extraction.claiming import OpenClaims
from featx._extraction.contents import Contents, MemoMistakenError
from featx._extraction.runtime import in_one_order, open_runtime
from featx._extraction.stream import choose_piece, load_in_order, stream_blocks
from featx._extraction.work import Work
from featx._images.decode import decode_content
from featx._images.preprocess import count_views
from featx._images.sources import describe_item
from featx._progress import no_progress, progress_bar
from featx._store.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from typing import Any

    import torch

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.plan import ExecutionPlan
    from featx._extraction.runtime import Runtime
    from featx._extraction.stream import Block
    from featx._images.limits import Limits
    from featx._progress import Advance
    from featx._store.graphs import GraphStore
    from featx._store.memo import StatMemo
    from featx._store.session import Session
    from featx._store.table import EmbeddingTable

# Images that are digested, looked up and computed before the next ones are looked at: many batches,
# so that little is lost where one window ends, and few enough to bound the memory.
WINDOW = 4096

# Images a claim takes at most; a crash loses no more than one such flush.
_LARGEST_CLAIM = 256


@dataclass(frozen=True)
class Extraction:
    """The embeddings of a sequence of images.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n_images, dimension)
        Row i is image i; NaN where it could not be read.
    digests : list of bytes or None
        The digest of each image's content; None where it could not be read.
    failures : tuple of DecodeFailure
        The images that could not be read, in the order of their rows.
    """

    vectors: np.ndarray
    digests: list[bytes | None]
    failures: tuple[DecodeFailure, ...]


@dataclass(frozen=True)
class Stores:
    """Where the embeddings of each tap are kept, and what knows the digests of files.

    Attributes
    ----------
    tables : sequence of EmbeddingTable
        One for each tap.
    further_tables : sequence of EmbeddingTable
        One for each further tap.
    memo : StatMemo
        The digests of files that have not changed.
    graphs : GraphStore
        Exported networks.
    """

    tables: Sequence[EmbeddingTable]
    further_tables: Sequence[EmbeddingTable]
    memo: StatMemo
    graphs: GraphStore


class Extractor:
    """Computes each distinct image among some items once, through a cache where there is one.

    It may be called for one window of images after the other: what it has opened stays open.

    Parameters
    ----------
    backbone : FrozenBackbone
        The network and its recipe.
    taps : sequence of Tap
        What to take from the network; an embedding is their concatenation.
    further_taps : sequence of Tap
        What to store beside, whenever the network runs.
    views : str
        Which views of an image are averaged.
    plan : ExecutionPlan
        How and where the network runs.
    stores : Stores or None
        Where embeddings are kept; None keeps nothing.
    num_workers : int
        Threads that read and decode; 0 does it in the calling thread.
    stop_at_failure : bool
        Raise the first `ImageDecodeError` instead of collecting them.
    limits : Limits
        The largest images that are read.
    progress : {"auto"} or bool
        Whether to show a progress bar.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        taps: Sequence[Tap],
        plan: ExecutionPlan,
        *,
        further_taps: Sequence[Tap] = (),
        views: str = "center",
        stores: Stores | None,
        num_workers: int,
        stop_at_failure: bool,
        limits: Limits,
        progress: bool | str,
    ) -> None:
        self._backbone = backbone
        self._taps = tuple(taps)
        self._plan = plan
        self._stores = stores
        # Without a cache there is nowhere to keep what was not asked for.
        self._computed_taps = self._taps if stores is None else (*self._taps, *further_taps)
        self._views = views
        self._num_workers = num_workers
        self._stop_at_failure = stop_at_failure
        self._limits = limits
        self._progress = progress

    def extract(self, items: Sequence[Any], advance: Advance | None = None) -> Extraction:
        """Embed the items.

        Parameters
        ----------
        items : sequence
            Paths, bytes, PIL images, arrays or tensors.
        advance : callable, optional
            Is told how many images are done, and how many of them were found in the cache, in
            place of a progress bar of this call.

        Returns
        -------
        Extraction
            One row for each item.

        Raises
        ------
        ImageDecodeError
            With the path and the row of the first unreadable image, when ``stop_at_failure``.
        """
        memo = None if self._stores is None else self._stores.memo
        with ExitStack() as stack:
            if advance is None:
                bar = progress_bar("Embedding", len(items), self._progress)
                advance = stack.enter_context(bar)
            try:
                return self._extract(items, memo, advance)
            except MemoMistakenError:
                # A file was rewritten under our hands, or a clock misled the memo. What was done
                # has been counted.
                return self._extract(items, None, no_progress)

    def digest(self, items: Sequence[Any]) -> list[bytes | None]:
        """Return the digest of each item's content, None where it cannot be read."""
        memo = None if self._stores is None else self._stores.memo
        contents = Contents(items, memo, self._limits, self._num_workers)
        digests, _ = contents.digest(range(len(items)), keep=False, stop_at_failure=False)
        return digests

    def _extract(self, items: Sequence[Any], memo: StatMemo | None, advance: Advance) -> Extraction:
        contents = Contents(items, memo, self._limits, self._num_workers)
        work = Work(len(items), [self._backbone.dimension(tap) for tap in self._taps])
        for start in range(0, len(items), WINDOW):
            rows = range(start, min(start + WINDOW, len(items)))
            digests, unreadable = contents.digest(
                rows, keep=True, stop_at_failure=self._stop_at_failure
            )
            work.add(digests, unreadable)
            self._fill(_Window(items, contents, work, _Counter(advance, len(rows), work)))
            contents.forget()
        failures = tuple(
            DecodeFailure(row, describe_item(items[row]), reason)
            for row, reason in work.reasons().items()
        )
        return Extraction(work.vectors(), work.digests, failures)

    def _fill(self, window: _Window) -> None:
        """Bring in every vector that the window lacks."""
        missing = window.work.missing
        if self._stores is None:
            window.counter.to_missing()
            with closing(self._forward(list(missing[0]), window)) as computed:
                for _ in computed:
                    window.counter.to_missing()
            return
        window.counter.to_missing()  # what cannot be read, and what another row shows too
        # Most often everything is there, and nothing needs to be claimed.
        for tap, table in enumerate(self._stores.tables):
            wanted = list(missing[tap])
            for positions, stored in table.serve(wanted) if wanted else ():
                window.work.place(tap, [wanted[place] for place in positions.tolist()], stored)
        window.counter.to_missing(found=True)
        if window.work.is_complete:
            return
        digests = dict.fromkeys(digest for of_tap in missing for digest in of_tap)
        further = self._stores.further_tables
        with open_session(self._stores.tables, digests, further) as session:
            _collect(session, window.work)
            window.counter.to_missing(found=True)
            while not window.work.is_complete:
                limit = self._choose_claim(session.remaining)
                with (
                    OpenClaims(session, len(self._computed_taps), limit) as claims,
                    closing(self._forward(claims.digests(), window)) as computed,
                ):
                    for keys, vectors in computed:
                        claims.finish(keys, vectors)
                        window.counter.to_missing()
                # What is left is being computed by others: theirs to compute, ours to await.
                session.wait()
                _collect(session, window.work)
                window.counter.to_missing(found=True)

    def _choose_claim(self, remaining: int) -> int:
        # Small pieces of small work, so that others who want the same images share it.
        return max(self._plan.batch_size, min(_LARGEST_CLAIM, remaining // 8))

    def _forward(
        self, digests: Iterable[bytes], window: _Window
    ) -> Generator[tuple[list[bytes], list[np.ndarray]]]:
        """Run the network over the images of some digests and place the vectors.

        What is yielded, block by block, are the digests that are done and, for each computed tap,
        the vectors of those that could be decoded, which come first.
        """
        n_images = len({digest for missing in window.work.missing for digest in missing})
        # Closed at once when something goes wrong: an exception that somebody keeps would otherwise
        # keep the threads.
        with closing(self._compute_blocks(digests, n_images, window)) as computed:
            for block, vectors in computed:
                for digest, error in block.failures:
                    if self._stop_at_failure:
                        row = window.work.row(digest)
                        raise ImageDecodeError(error.source, error.reason, row) from error
                    window.work.fail(digest, error.reason)
                self._check_finite(block.keys, vectors, window)
                for tap in range(len(self._taps)):
                    window.work.place(tap, block.keys, vectors[tap])
                yield block.keys + [digest for digest, _ in block.failures], vectors

    def _compute_blocks(
        self, digests: Iterable[bytes], n_images: int, window: _Window
    ) -> Generator[tuple[Block[bytes], list[np.ndarray]]]:
        """Load at most so many images, in blocks, and run the network over them, block by block."""
        if n_images == 0:  # nothing is built for nothing
            return
        n_views = count_views(self._views)
        side = self._backbone.preprocessing.image_size
        # Opened in this thread alone: how many threads torch has may be another in those of a pool.
        runtime = self._open_runtime()
        lanes = runtime.lanes(n_images)
        piece = choose_piece(n_images, max(lanes, self._num_workers))
        # Whole batches of the network, but no fewer images than a thread loads at a time.
        batch = max(1, self._plan.batch_size // n_views)
        blocks = stream_blocks(
            digests,
            self._loader(window),
            block_size=batch * math.ceil(piece / batch),
            shape=(n_views, 3, side, side),
            num_workers=self._num_workers,
            piece=piece,
        )
        in_threads = 0 if self._num_workers == 0 or lanes == 1 else lanes
        with closing(blocks):
            yield from load_in_order(
                blocks,
                lambda block: self._run(runtime, block, max(1, in_threads)),
                num_workers=in_threads,
                ahead=lanes + 1,
            )

    def _open_runtime(self) -> Runtime:
        graphs = None if self._stores is None else self._stores.graphs
        return open_runtime(self._backbone, in_one_order(self._computed_taps), self._plan, graphs)

    def _run(self, runtime: Runtime, block: Block[bytes], lanes: int) -> list[np.ndarray]:
        """Return each computed tap's vectors of a block, the views of each image averaged."""
        n_images, n_views = block.pixels.shape[:2]
        if n_images == 0:
            return [
                np.empty((0, self._backbone.dimension(tap)), np.float32)
                for tap in self._computed_taps
            ]
        vectors = dict(
            zip(
                in_one_order(self._computed_taps),
                runtime.run(block.pixels.flatten(0, 1), lanes),
                strict=True,
            )
        )
        all_views = [vectors[tap].reshape(n_images, n_views, -1) for tap in self._computed_taps]
        return [of_tap[:, 0] if n_views == 1 else of_tap.mean(axis=1) for of_tap in all_views]

    def _check_finite(
        self, digests: list[bytes], vectors: list[np.ndarray], window: _Window
    ) -> None:
        for tap, of_tap in zip(self._computed_taps, vectors, strict=True):
            is_finite = np.isfinite(of_tap).all(axis=1)
            if not is_finite.all():
                row = window.work.row(digests[int(np.flatnonzero(~is_finite)[0])])
                raise WeightsError(
                    f"{self._backbone.name} puts out NaN or infinity at {tap.layer!r} for "
                    f"{describe_item(window.items[row])}; check its weights and its preprocessing"
                )

    def _loader(self, window: _Window) -> Callable[[bytes], torch.Tensor]:
        def load(digest: bytes) -> torch.Tensor:
            row = window.work.row(digest)
            source = describe_item(window.items[row])
            pixels = decode_content(_read(window, digest, row), source, self._limits)
            return self._backbone.preprocessing.views(pixels, self._views, source)

        return load


@dataclass(frozen=True)
class _Window:
    """What one window of images needs while it is filled."""

    items: Sequence[Any]
    contents: Contents
    work: Work
    counter: _Counter


class _Counter:
    """Moves the progress bar to what is no longer missing of a window of rows."""

    def __init__(self, advance: Advance, n_rows: int, work: Work) -> None:
        self._advance = advance
        self._left = n_rows
        self._work = work

    def to_missing(self, *, found: bool = False) -> None:
        """Count as done what the first tap no longer lacks, and whether it was found."""
        left = len(self._work.missing[0])
        done = self._left - left
        self._advance(done, done if found else 0)
        self._left = left


def _read(window: _Window, digest: bytes, first_row: int) -> bytes | np.ndarray:
    """Return the content of an image, from whichever of its rows still has it."""
    try:
        return window.contents.read(first_row, digest)
    except ImageDecodeError:
        for row in window.work.rows(digest)[1:]:
            with suppress(ImageDecodeError):
                return window.contents.read(row, digest)
        raise


def _collect(session: Session, work: Work) -> None:
    """Take what the cache has by now."""
    for table, digests, vectors in session.collect():
        work.place(table, digests, vectors)
