"""The extractor: digest every image, look it up, compute what is missing, store that."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import DecodeFailure, ImageDecodeError
from featx.extraction.runtime import ExecutionPlan, open_runtime
from featx.extraction.stream import load_in_order, stream_batches
from featx.images.decode import decode_content
from featx.images.digest import digest_content
from featx.images.sources import describe_item, read_content
from featx.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from typing import Any

    import torch

    from featx.backbones.frozen import FrozenBackbone
    from featx.images.limits import Limits
    from featx.store.cache import EmbeddingTable
    from featx.store.session import Claim, Session

# How many images may be read and hashed ahead of the one that is waited for.
DIGESTS_AHEAD = 256


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


class Extractor:
    """Computes each distinct image among some items once, through a cache where there is one.

    Parameters
    ----------
    backbone : FrozenBackbone
        The network and its recipe.
    plan : ExecutionPlan
        How and where it runs.
    table : EmbeddingTable or None
        Where embeddings of this network are kept; None keeps nothing.
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
        plan: ExecutionPlan,
        *,
        table: EmbeddingTable | None,
        num_workers: int,
        stop_at_failure: bool,
        limits: Limits,
        progress: bool | str,
    ) -> None:
        self._backbone = backbone
        self._plan = plan
        self._table = table
        self._num_workers = num_workers
        self._stop_at_failure = stop_at_failure
        self._limits = limits
        self._progress = progress

    def extract(self, items: Sequence[Any]) -> Extraction:
        """Embed the items.

        Parameters
        ----------
        items : sequence
            Paths, bytes, PIL images, arrays or tensors.

        Returns
        -------
        Extraction
            One row for each item.

        Raises
        ------
        ImageDecodeError
            With the path and the row of the first unreadable image, when ``stop_at_failure``.
        """
        digests, unreadable = self._digest(items)
        work = _Work(items, digests, self._backbone.dimension)
        if self._table is None:
            with (
                progress_bar("Embedding", len(work.missing), self._progress) as advance,
                closing(self._forward(list(work.missing), work)) as computed,
            ):
                for keys, _ in computed:
                    advance(len(keys))
        else:
            self._fill_through(self._table, work)
        reasons = unreadable | work.failed_rows(digests)
        failures = tuple(
            DecodeFailure(row, describe_item(items[row]), reasons[row]) for row in sorted(reasons)
        )
        return Extraction(work.vectors_of(digests), digests, failures)

    def _digest(self, items: Sequence[Any]) -> tuple[list[bytes | None], dict[int, str]]:
        """Return the digest of each item, and why the others could not be read, by row."""

        def digest(row: int) -> bytes:
            return digest_content(read_content(items[row], self._limits))

        digests: list[bytes | None] = []
        unreadable: dict[int, str] = {}
        rows = range(len(items))
        with closing(
            load_in_order(rows, digest, num_workers=self._num_workers, ahead=DIGESTS_AHEAD)
        ) as outcomes:
            for row, outcome in outcomes:
                if not isinstance(outcome, ImageDecodeError):
                    digests.append(outcome)
                    continue
                if self._stop_at_failure:
                    raise ImageDecodeError(outcome.source, outcome.reason, row) from outcome
                unreadable[row] = outcome.reason
                digests.append(None)
        return digests, unreadable

    def _fill_through(self, table: EmbeddingTable, work: _Work) -> None:
        """Fill the work from the cache, computing what is missing and no one else computes."""
        with table.session(work.missing) as session:
            _collect(session, work)
            with progress_bar("Embedding", len(work.missing), self._progress) as advance:
                while work.missing:
                    with (
                        _OpenClaims(session) as claims,
                        closing(self._forward(claims.digests(), work)) as computed,
                    ):
                        for keys, vectors in computed:
                            claims.finish(keys, vectors)
                            advance(len(keys))
                    # What is left is being computed by others: theirs to compute, ours to await.
                    session.wait()
                    advance(_collect(session, work))

    def _forward(
        self, digests: Iterable[bytes], work: _Work
    ) -> Generator[tuple[list[bytes], np.ndarray]]:
        """Run the network over the images of some digests and place the vectors.

        What is yielded, batch by batch, are the digests that are done and the vectors of those
        that could be decoded, which come first.
        """

        def load(digest: bytes) -> torch.Tensor:
            item = work.item(digest)
            source = describe_item(item)
            content = read_content(item, self._limits)
            if digest_content(content) != digest:
                raise ImageDecodeError(source, "it changed while it was being read")
            pixels = decode_content(content, source, self._limits)
            return self._backbone.preprocessing.apply(pixels, source)

        batches = stream_batches(
            digests,
            load,
            batch_size=self._plan.batch_size,
            image_size=self._backbone.preprocessing.image_size,
            num_workers=self._num_workers,
        )
        # Closed at once when something goes wrong: an exception that somebody keeps would otherwise
        # keep the decoding threads.
        with closing(batches):
            for batch in batches:
                for digest, error in batch.failures:
                    if self._stop_at_failure:
                        row = work.row(digest)
                        raise ImageDecodeError(error.source, error.reason, row) from error
                    work.fail(digest, error.reason)
                # Built at the first batch, so that nothing is built where all is in the cache.
                runtime = open_runtime(self._backbone, self._plan)
                vectors = runtime.run(batch.pixels)[: len(batch.keys)]
                work.place(batch.keys, vectors)
                yield batch.keys + [digest for digest, _ in batch.failures], vectors


def _collect(session: Session, work: _Work) -> int:
    """Take what the cache has by now, and return how many embeddings that were."""
    before = len(work.missing)
    for digests, vectors in session.collect():
        work.place(digests, vectors)
    return before - len(work.missing)


class _Work:
    """The distinct images among some items: what is missing, and where each vector goes."""

    def __init__(
        self, items: Sequence[Any], digests: Sequence[bytes | None], dimension: int
    ) -> None:
        self._items = items
        self._rows: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            if digest is not None:
                self._rows.setdefault(digest, row)
        self._places = {digest: place for place, digest in enumerate(self._rows)}
        self._vectors = np.full((len(self._rows), dimension), np.nan, dtype=np.float32)
        self._reasons: dict[bytes, str] = {}
        # A dict for an ordered set: images are computed in the order they were given.
        self.missing: dict[bytes, None] = dict.fromkeys(self._rows)

    def row(self, digest: bytes) -> int:
        """Return the first row that shows the image."""
        return self._rows[digest]

    def item(self, digest: bytes) -> Any:
        """Return the first item that is the image."""
        return self._items[self._rows[digest]]

    def place(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep the vectors of some digests."""
        self._vectors[[self._places[digest] for digest in digests]] = vectors
        for digest in digests:
            self.missing.pop(digest, None)

    def fail(self, digest: bytes, reason: str) -> None:
        """Note that an image cannot be decoded."""
        self._reasons[digest] = reason
        self.missing.pop(digest, None)

    def failed_rows(self, digests: Sequence[bytes | None]) -> dict[int, str]:
        """Return the reason for each row whose image cannot be decoded."""
        return {
            row: self._reasons[digest]
            for row, digest in enumerate(digests)
            if digest is not None and digest in self._reasons
        }

    def vectors_of(self, digests: Sequence[bytes | None]) -> np.ndarray:
        """Return one row per digest; NaN for None."""
        if len(self._rows) == len(digests):
            return self._vectors
        result = np.full((len(digests), self._vectors.shape[1]), np.nan, dtype=np.float32)
        rows = [row for row, digest in enumerate(digests) if digest is not None]
        result[rows] = self._vectors[
            [self._places[digest] for digest in digests if digest is not None]
        ]
        return result


class _OpenClaims:
    """The claims of one run over the stream: drawn as decoding goes, stored as they fill up."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._open: dict[bytes, _OpenClaim] = {}

    def __enter__(self) -> _OpenClaims:
        return self

    def __exit__(self, *_: object) -> None:
        # Also when something went wrong: what was computed until then is kept.
        for claim in set(self._open.values()):
            claim.close()

    def digests(self) -> Iterator[bytes]:
        """Draw claim after claim until nothing is left that nobody computes."""
        while (claim := self._session.claim()) is not None:
            self._open.update(dict.fromkeys(claim.digests, _OpenClaim(claim)))
            yield from claim.digests

    def finish(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store what is done; the first ``len(vectors)`` digests have vectors."""
        for place, digest in enumerate(digests):
            claim = self._open.pop(digest)
            claim.finish(digest, vectors[place] if place < len(vectors) else None)


class _OpenClaim:
    """A claim being computed: it is written when its last image is done."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._waiting = len(claim.digests)
        self._digests: list[bytes] = []
        self._vectors: list[np.ndarray] = []

    def finish(self, digest: bytes, vector: np.ndarray | None) -> None:
        """Take one image's vector, or None where it could not be decoded."""
        self._waiting -= 1
        if vector is not None:
            self._digests.append(digest)
            self._vectors.append(vector)
        if self._waiting == 0:
            self.close()

    def close(self) -> None:
        """Store what was computed and let go of the rest."""
        with self._claim as claim:
            if self._digests:
                claim.store(self._digests, np.stack(self._vectors))
