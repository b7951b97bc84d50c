"""Sessions: sets of images, each to be served from the cache or computed, here or elsewhere."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from featx.store.cache import EmbeddingTable
    from featx.store.claims import ClaimFile

_POLL_SECONDS = 0.02


class Claim:
    """Images that this session computes, and no other; of `Session.claim`.

    It may be stored and released by another thread than the one that made it. Leaving it as a
    context manager releases it.

    Parameters
    ----------
    table : EmbeddingTable
        Where the embeddings go.
    digests : tuple of bytes
        The images.
    temporary : Path
        Where a shard is written before it gets its name.
    file : ClaimFile or None
        What tells others, or None where they cannot be told.

    Attributes
    ----------
    digests : tuple of bytes
        The images that are claimed.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        digests: tuple[bytes, ...],
        temporary: Path,
        file: ClaimFile | None,
    ) -> None:
        self.digests = digests
        self._table = table
        self._temporary = temporary
        self._file = file

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def store(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep embeddings; they are on the disk when this returns.

        A full disk or a lost folder is no error: it issues one `CacheWarning`, and the images
        will be computed again when they are next asked for.

        Parameters
        ----------
        digests : sequence of bytes
            Some or all of the claimed images: those that failed are left out.
        vectors : ndarray of float32, shape (n, dimension)
            Row i belongs to digest i.

        Warns
        -----
        CacheWarning
            The embeddings could not be written.

        Raises
        ------
        InputError
            The vectors are of another shape or type.
        """
        try:
            self._table.write(digests, vectors, self._temporary)
        except OSError as error:
            self._table.warn("folder", f"Embeddings cannot be written to the cache: {error}")

    def release(self) -> None:
        """End the claim, so that others may take what was not stored; twice does no harm."""
        if self._file is not None:
            self._file.remove()


class Session:
    """The work on a set of images; of `EmbeddingTable.session`.

    Each image is either served by `collect`, or handed out once by `claim` to be computed here.
    A session is used by one thread at a time. Leaving it as a context manager releases the
    claims that are still open, so that an error keeps nobody waiting.

    A folder that cannot be used, or that lies on a file system without locks, is no error: it
    issues one `CacheWarning`, and claims are handed out without regard to other processes.

    Parameters
    ----------
    table : EmbeddingTable
        What is stored.
    digests : dict with bytes as keys
        The images.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from featx.store.cache import EmbeddingCache
    >>> digests = [bytes([i]) * 16 for i in range(5)]
    >>> embeddings = {}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = EmbeddingCache(folder).table("a1b2", dimension=1)
    ...     with table.session(digests) as session:
    ...         while True:
    ...             for served, vectors in session.collect():
    ...                 embeddings.update(zip(served, vectors))
    ...             if not session.remaining:
    ...                 break
    ...             while claim := session.claim(limit=2):
    ...                 with claim:
    ...                     vectors = np.ones((len(claim.digests), 1), np.float32)  # a network
    ...                     claim.store(claim.digests, vectors)
    ...                     embeddings.update(zip(claim.digests, vectors))
    ...             session.wait()
    >>> len(embeddings)
    5
    """

    def __init__(self, table: EmbeddingTable, digests: dict[bytes, None]) -> None:
        self._table = table
        # Last first: claims are taken from the end, where a dictionary gives up its keys cheaply.
        self._candidates = dict.fromkeys(reversed(digests))
        self._deferred: dict[bytes, None] = {}
        self._shards_seen = 0
        self._waited_for: set[str] = set()
        self._open_claims: list[Claim] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for claim in self._open_claims:
            claim.release()

    @property
    def remaining(self) -> int:
        """How many images have neither been served nor been claimed here."""
        return len(self._candidates) + len(self._deferred)

    def collect(self) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
        """Yield what of the remaining images is stored by now, in pieces and in no set order.

        Yields
        ------
        digests : list of bytes
            Images that are stored; they do not remain any longer.
        vectors : ndarray of float32, shape (n, dimension)
            Their embeddings.

        Warns
        -----
        CacheWarning
            Rows or shards are damaged and were passed over, or the folder cannot be read.
        """
        self._candidates.update(dict.fromkeys(reversed(self._deferred)))
        self._deferred.clear()
        self._waited_for.clear()
        for digests, vectors in self._table.serve(set(self._candidates)):
            for digest in digests:
                del self._candidates[digest]
            yield digests, vectors

    def claim(self, limit: int = 256) -> Claim | None:
        """Claim the next images to be computed here; this never waits for others to compute.

        Several claims may be open at once. An image that is handed out is not handed out again,
        nor served, by this session, whether or not its embedding is stored.

        Parameters
        ----------
        limit : int
            How many images at most.

        Returns
        -------
        Claim or None
            None when all that remains was stored or claimed by others since the last `collect`.

        Warns
        -----
        CacheWarning
            The claim cannot be told to others, because the folder cannot be used.
        """
        if not self._candidates:
            return None
        name = uuid.uuid4().hex
        chosen: list[bytes] = []
        file: ClaimFile | None = None
        claims = self._table.claims
        try:
            self._table.make()
            with claims.locked():
                claimed = claims.live()
                self._defer_stored()
                chosen = self._choose(limit, claimed)
                file = claims.add(name, chosen) if chosen else None
        except OSError as error:
            self._table.warn("folder", f"The cache cannot be shared with other workers: {error}")
            chosen = chosen or self._choose(limit, claimed={})
        if not chosen:
            return None
        claim = Claim(self._table, tuple(chosen), claims.temporary(name), file)
        self._open_claims.append(claim)
        return claim

    def wait(self, seconds: float = 0.5) -> None:
        """Wait until one of the claims of others that stood in the way ends, or a time has passed.

        Parameters
        ----------
        seconds : float
            How long at most. A process that dies leaves its claim behind, which only `collect`
            and `claim` find out, so the time should be short.
        """
        deadline = time.monotonic() + seconds
        while self._waited_for and self._waited_for <= self._table.claims.names():
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def _defer_stored(self) -> None:
        shards = self._table.shards()
        for shard in shards[self._shards_seen :]:
            for digest in shard.rows.keys() & self._candidates.keys():
                del self._candidates[digest]
                self._deferred[digest] = None
        self._shards_seen = len(shards)

    def _choose(self, limit: int, claimed: dict[bytes, str]) -> list[bytes]:
        chosen: list[bytes] = []
        while self._candidates and len(chosen) < limit:
            digest, _ = self._candidates.popitem()
            if digest in claimed:
                self._deferred[digest] = None
                self._waited_for.add(claimed[digest])
            else:
                chosen.append(digest)
        return chosen
