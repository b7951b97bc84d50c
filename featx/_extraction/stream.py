"""The stream: images in, parcels of embeddings out, each distinct image computed once.

Parcels are read ahead, digested and looked up; what is missing is claimed right before it is
decoded, computed in batches that reach across parcels, stored, and handed on in order.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import ImageDecodeError, WeightsError
from featx._extraction.batches import compute_batches
from featx._extraction.contents import PARCEL_IMAGES, Contents, MemoMistakenError, bytes_in_memory
from featx._extraction.parcels import Outlet, Parcel
from featx._extraction.runtime import Execution, in_one_order, torch_threads
from featx._images.decode import decode_content
from featx._images.sources import describe_item
from featx._progress import no_progress
from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import Any

    import torch
    from numpy.typing import NDArray

    from featx._backbones.taps import Tap
    from featx._errors import DecodeFailure
    from featx._extraction.batches import Batch
    from featx._extraction.parcels import OpenParcel
    from featx._extraction.recipe import EmbeddingRecipe
    from featx._extraction.runtime import ExecutionPlan, Runtime
    from featx._progress import Advance
    from featx._store.cache import EmbeddingCache
    from featx._store.memo import StatMemo

    Skip = Callable[[int, Sequence[Any], list[bytes | None]], NDArray[np.bool_] | None]

# A crash loses no more than the claims under way.
_LARGEST_CLAIM = 256

# Parcels that are computed or wait to be handed on: enough to keep the largest batches full.
_OPEN_IMAGES = 2048
_OPEN_BYTES = 256 * 2**20

# Bytes of vectors that are remembered here for images that come again.
_REMEMBERED_BYTES = 256 * 2**20


class _RuntimeUnavailableError(Exception):
    """A runtime cannot be opened here, although it could be when this cache was last used."""

    def __init__(self, plan: ExecutionPlan) -> None:
        super().__init__()
        self.plan = plan  # what takes its place


class EmbeddingStream:
    """Embeds sequences of images, parcel by parcel.

    ``num_workers`` threads read and decode, with 0 everything happens in the calling thread;
    ``threads`` compute. With ``stop_at_failure`` the `ImageDecodeError` of the lowest row is
    raised, otherwise failures are noted.
    """

    def __init__(
        self,
        recipe: EmbeddingRecipe,
        cache: EmbeddingCache | None,
        *,
        num_workers: int,
        threads: int,
        stop_at_failure: bool,
        use_cache: bool = True,
    ) -> None:
        self.recipe = recipe
        self.num_workers = num_workers
        self.threads = threads
        self.stop_at_failure = stop_at_failure
        self._cache = cache
        self._use_cache = use_cache
        self.stores = recipe.open_stores(cache, use_tables=use_cache)

    def parcels(
        self,
        items: Sequence[Any],
        advance: Advance = no_progress,
        *,
        skip: Skip | None = None,
        out: NDArray[np.float32] | None = None,
        use_memo: bool = True,
    ) -> Generator[Parcel]:
        """Embed images; where they are no list, each is taken when its parcel is read.

        ``advance`` is told how many images are done, and how many of them were found; ``skip`` is
        asked with a row, the items from there on and their digests, for which of them nothing is
        to be computed; ``out``, float32 of shape (n_images, dimension), is filled where it is
        given, and the vectors of the parcels are views of it.

        Raises
        ------
        ImageDecodeError
            With the path and the row of the first unreadable image, when ``stop_at_failure``.
        MemoMistakenError
            When a file has changed without a sign, and parcels in ``out`` may be mistaken too.
        """
        row, memo = 0, self.stores.memo if use_memo else None
        while True:
            try:
                run = _Run(self, items, advance, skip, out, row, memo)
                with closing(run.parcels()) as parcels:
                    for parcel in parcels:
                        row = parcel.start + len(parcel.items)
                        yield parcel
            except MemoMistakenError:
                # A file was rewritten under our hands, or a clock misled the memo.
                if out is not None and row > 0:
                    raise
                memo = None
            except _RuntimeUnavailableError as error:
                # What was kept of another machine said that it can be built.
                self.recipe = replace(self.recipe, plan=error.plan)
                self.stores = self.recipe.open_stores(self._cache, use_tables=self._use_cache)
            else:
                return
            advance = no_progress  # what is done again has been counted

    def extract(self, items: Sequence[Any], advance: Advance = no_progress) -> Parcel:
        """Return all images as one parcel; errors are those of `parcels`."""
        vectors = np.empty((len(items), self.recipe.dimension), np.float32)
        for use_memo in (True, False):
            digests: list[bytes | None] = []
            failures: list[DecodeFailure] = []
            with suppress(MemoMistakenError):
                for parcel in self.parcels(items, advance, out=vectors, use_memo=use_memo):
                    digests += parcel.digests
                    failures += parcel.failures
                break
            advance = no_progress  # what is done again has been counted
        return Parcel(0, items, digests, vectors, tuple(failures))

    def parcel_images(self, n_images: int) -> int:
        """Return how many images a parcel takes: few of few, so that other workers share them."""
        few = max(self.recipe.plan.batch_size, math.ceil(n_images / 8))
        return min(PARCEL_IMAGES, few)


class _Run:
    """One run of the stream over a sequence of images; parameters as those of `parcels`."""

    def __init__(
        self,
        stream: EmbeddingStream,
        items: Sequence[Any],
        advance: Advance,
        skip: Skip | None,
        out: NDArray[np.float32] | None,
        start: int,
        memo: StatMemo | None,
    ) -> None:
        recipe = stream.recipe
        self._stream = stream
        self._items = items
        self._advance = advance
        self._skip = skip
        self._out = out
        self._contents = Contents(
            items,
            memo,
            stream.recipe.limits,
            num_workers=stream.num_workers,
            parcel_images=stream.parcel_images(len(items) - start),
            start=start,
        )
        self._unread = self._contents.parcels()
        self._n_admitted = start
        self._session = Session(stream.stores.tables, (), stream.stores.further_tables)
        self._open: deque[OpenParcel] = deque()
        # The parcels that lack each image, the first one first.
        self._waiting: dict[bytes, list[OpenParcel]] = {}
        # Vectors that were computed here, the oldest first, and why other images have none.
        self._computed: dict[bytes, NDArray[np.float32]] = {}
        self._undecodable: dict[bytes, str] = {}
        self._stop_row: int | None = None
        # Without a cache there is nowhere to keep what was not asked for.
        self._taps = recipe.taps if not stream.stores.tables else recipe.all_taps
        self.outlet = Outlet(max(_OPEN_IMAGES, 8 * recipe.plan.batch_size), _OPEN_BYTES)

    def parcels(self) -> Generator[Parcel]:
        """Yield the parcels; without threads nothing is under way while one is handed on."""
        if self._stream.num_workers:
            yield from self.outlet.hand_on_from_a_thread(self.steps)
            return
        try:
            with closing(self.steps()) as steps:
                for _ in steps:
                    yield from self.outlet.drain()
        except Exception:
            yield from self.outlet.drain()  # what was finished before
            raise
        yield from self.outlet.drain()

    def steps(self) -> Generator[None]:
        """Compute, step by step; nothing is claimed between two steps, so that they may wait."""
        try:
            with self._session:
                while self._admit() or self._open:
                    self._compute_claims()
                    yield
                    if self._open:  # what is left of its first parcel is computed by others
                        self._await_others()
        finally:
            self._contents.close()

    def _admit(self) -> bool:
        """Look up parcels until something can be claimed; return whether there are more to come."""
        enough = self._stream.recipe.plan.batch_size
        while self._stop_row is None and len(self._session.candidates) < enough:
            if not self.outlet.has_room:
                return True
            parcel = next(self._unread, None)
            if parcel is None:
                return False
            self._look_up(parcel)
            self._hand_on()
        return self._stop_row is None

    def _look_up(self, parcel: OpenParcel) -> None:
        """Serve what is stored, and want the rest."""
        n_images, start = len(parcel.items), parcel.start
        self._n_admitted = start + n_images
        recipe = self._stream.recipe
        if self._out is None:
            vectors = np.empty((n_images, recipe.dimension), np.float32)
            made = 0 if isinstance(self._items, list) else sum(map(bytes_in_memory, parcel.items))
            self.outlet.admit(n_images, vectors.nbytes + made)
        else:
            vectors = self._out[start : start + n_images]
            self.outlet.admit(n_images, 0)
        is_skipped = self._skip and self._skip(start, parcel.items, parcel.digests)
        parcel.begin(vectors, recipe.columns, is_skipped)
        n_skipped = 0 if is_skipped is None else int(is_skipped.sum())
        self._advance(n_images - len(parcel.lacking[0]), n_skipped)
        self._open.append(parcel)
        before = len(parcel.lacking[0])
        for layer, table in enumerate(self._stream.stores.tables):
            wanted = list(parcel.rows)
            for positions, stored in table.serve(wanted) if wanted else ():
                parcel.place(layer, [wanted[place] for place in positions.tolist()], stored)
        n_found = before - len(parcel.lacking[0])
        self._advance(n_found, n_found)
        if parcel.is_complete:
            self._contents.drop(range(start, self._n_admitted))
        else:
            self._want(parcel)
        if self._stream.stop_at_failure and parcel.first_failure is not None:
            self._stop_at(parcel.first_failure[0])

    def _want(self, parcel: OpenParcel) -> None:
        """Ask for what a parcel lacks, unless it is computed here already."""
        new: dict[bytes, None] = {}
        for digest in dict.fromkeys(digest for lacking in parcel.lacking for digest in lacking):
            if digest in self._computed:
                vector = self._computed[digest]
                for layer, columns in enumerate(self._stream.recipe.columns):
                    parcel.place(layer, [digest], vector[columns])
                self._advance(1)
            elif digest in self._undecodable:
                parcel.fail(digest, self._undecodable[digest])
                self._advance(1)
            elif digest in self._waiting:
                self._waiting[digest].append(parcel)
            else:
                self._waiting[digest] = [parcel]
                new[digest] = None
        needed = {parcel.rows[digest][0] for digest in new}
        end = parcel.start + len(parcel.items)
        self._contents.drop([row for row in range(parcel.start, end) if row not in needed])
        self._session.want([[d for d in lacking if d in new] for lacking in parcel.lacking])

    def _compute_claims(self) -> None:
        """Claim, decode and compute until all that is missing is computed, or by others."""
        if not len(self._session.candidates):
            return
        taps = in_one_order(self._taps)
        computing = compute_batches(
            self._draw(),
            self._decode,
            self._stream.recipe,
            taps,
            self._open_runtime(taps),
            n_images=self._n_left(),
            num_workers=self._stream.num_workers,
        )
        with torch_threads(self._stream.threads), closing(computing) as computed:
            for batch, of_taps in computed:
                self._accept(batch, [of_taps[tap] for tap in self._taps])
                self._hand_on()

    def _draw(self) -> Iterator[bytes]:
        """Yield the images to compute here, each claimed when decoding comes to it."""
        while len(self._session.candidates) and not self.outlet.is_closed:
            # Small claims of small work, so that others who want the same images share it.
            limit = max(
                self._stream.recipe.plan.batch_size, min(_LARGEST_CLAIM, self._n_left() // 8)
            )
            claim = self._session.claim(limit)
            for digest in self._session.deferred:  # of others: their contents are not needed here
                self._contents.drop([self._waiting[digest][0].rows[digest][0]])
            if claim is not None:
                yield from claim.digests
            self._admit()

    def _n_left(self) -> int:
        return len(self._items) - self._n_admitted + len(self._session.candidates)

    def _accept(self, batch: Batch[bytes], vectors: list[NDArray[np.float32]]) -> None:
        """Place what was computed in every parcel that waits for it, and store it."""
        for digest, error in batch.failures:
            self._undecodable[digest] = error.reason
            for parcel in self._waiting.pop(digest):
                parcel.fail(digest, error.reason)
                self._advance(1)
                if self._stream.stop_at_failure:
                    self._stop_at(parcel.rows[digest][0])
        self._check_finite(batch.keys, vectors)
        places: dict[int, tuple[OpenParcel, list[int]]] = {}
        for place, digest in enumerate(batch.keys):
            for parcel in self._waiting.pop(digest):
                places.setdefault(id(parcel), (parcel, []))[1].append(place)
        for parcel, chosen in places.values():
            digests = [batch.keys[place] for place in chosen]
            for layer in range(len(self._stream.recipe.taps)):
                parcel.place(layer, digests, vectors[layer][chosen])
            for digest in digests:
                self._remember(digest, parcel.vectors[parcel.rows[digest][0] - parcel.start])
            self._advance(len(chosen))
        failed = [digest for digest, _ in batch.failures]
        self._session.finish(batch.keys + failed, vectors)

    def _remember(self, digest: bytes, vector: NDArray[np.float32]) -> None:
        """Keep a vector at hand for when its image comes again."""
        # A view would hold the vectors of its whole parcel; those in `out` are kept anyway.
        self._computed[digest] = vector.copy() if self._out is None else vector
        if self._out is None and len(self._computed) * vector.nbytes > _REMEMBERED_BYTES:
            del self._computed[next(iter(self._computed))]

    def _hand_on(self) -> None:
        """Hand on the first parcels, as far as they are complete."""
        while self._open and self._open[0].is_complete:
            parcel = self._open.popleft()
            if self._stream.stop_at_failure and (failure := parcel.first_failure) is not None:
                row, reason = failure
                raise ImageDecodeError(describe_item(parcel.item(row)), reason, row)
            self._contents.forget(parcel.start, len(parcel.items))
            self.outlet.put(parcel.close())

    def _await_others(self) -> None:
        if not self._session.remaining:  # what was stored is stored no longer
            self._session.want(self._open[0].lacking)
        self._session.wait()
        for layer, digests, vectors in self._session.collect():
            for place, digest in enumerate(digests):
                for parcel in self._waiting.get(digest, ()):
                    before = len(parcel.lacking[0])
                    parcel.place(layer, [digest], vectors[place : place + 1])
                    n_found = before - len(parcel.lacking[0])
                    self._advance(n_found, n_found)
                if not any(digest in lacking for p in self._open for lacking in p.lacking):
                    self._waiting.pop(digest, None)
        self._hand_on()

    def _stop_at(self, row: int) -> None:
        """Compute nothing that comes after a row that cannot be read; what is before it is."""
        self._stop_row = row if self._stop_row is None else min(row, self._stop_row)
        for parcel in self._open:
            later = [digest for digest, rows in parcel.rows.items() if rows[0] > self._stop_row]
            for digest in later:
                for lacking in parcel.lacking:
                    lacking.pop(digest, None)
            self._session.forget(
                digest
                for digest in later
                if digest in self._waiting
                and self._waiting[digest][0].rows[digest][0] > self._stop_row
            )

    def _open_runtime(self, taps: tuple[Tap, ...]) -> Runtime:
        recipe, stream = self._stream.recipe, self._stream
        execution = Execution(recipe.backbone, taps, recipe.plan, stream.stores.graphs)
        try:
            runtime = execution.open(stream.threads)
            runtime.prepare(runtime.calls_at_a_time(self._n_left()) if stream.num_workers else 1)
        except Exception as error:  # each library has exceptions of its own
            raise _RuntimeUnavailableError(execution.replace_plan(error)) from error
        return runtime

    def _decode(self, digest: bytes) -> torch.Tensor:
        """Return the pixels of an image, from whichever of its rows still has it."""
        recipe = self._stream.recipe
        first, *others = [(p, row) for p in self._waiting[digest] for row in p.rows[digest]]
        source = describe_item(first[0].item(first[1]))
        try:
            content = self._contents.take(first[1], first[0].item(first[1]), digest)
        except ImageDecodeError:
            for parcel, row in others:
                with suppress(ImageDecodeError):
                    content = self._contents.take(row, parcel.item(row), digest)
                    break
            else:
                raise
        pixels = decode_content(content, source, recipe.limits)
        return recipe.backbone.preprocessing.views(pixels, recipe.views, source)

    def _check_finite(self, digests: list[bytes], vectors: list[NDArray[np.float32]]) -> None:
        for tap, of_tap in zip(self._taps, vectors, strict=True):
            is_finite = np.isfinite(of_tap).all(axis=1)
            if not is_finite.all():
                digest = digests[int(np.flatnonzero(~is_finite)[0])]
                parcel = self._waiting[digest][0]
                source = describe_item(parcel.item(parcel.rows[digest][0]))
                raise WeightsError(
                    f"{self._stream.recipe.backbone.name} puts out NaN or infinity at "
                    f"{tap.layer!r} for {source}; check its weights and its preprocessing"
                )
