"""Sessions: sets of images, each to be served from the cache or computed, here or elsewhere."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featx._errors import InputError
from featx._store.shards import check_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from featx._store.claims import ClaimFile
    from featx._store.table import EmbeddingTable

_POLL_SECONDS = 0.02

# How many images are compared at once with what is stored.
_IMAGES_AT_ONCE = 1024


@dataclass(frozen=True)
class _Share:
    """What a claim holds in one table, and what tells others (None where they cannot be told)."""

    table: EmbeddingTable
    digests: frozenset[bytes]
    temporary: Path
    file: ClaimFile | None


class Claim:
    """Images that this session computes, and no other; of `Session.claim`.

    It may be stored and released by another thread than the one that made it. Leaving it as a
    context manager releases it.

    Parameters
    ----------
    digests : tuple of bytes
        The images.
    shares : sequence of _Share
        What is held of them in each table.

    Attributes
    ----------
    digests : tuple of bytes
        The images to compute here and now, in the order in which they were asked for.
    """

    def __init__(self, digests: tuple[bytes, ...], shares: Sequence[_Share]) -> None:
        self.digests = digests
        self._shares = tuple(shares)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def store(self, table: int, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep embeddings in one table; they are on the disk when this returns.

        Rows that are not this claim's in that table, because they are stored or claimed by
        others, are left to those. A full disk or a lost folder is no error: it issues one
        `CacheWarning`, and the images will be computed again when they are next asked for.

        Parameters
        ----------
        table : int
            The number of the table in the session; the further tables follow the tables.
        digests : sequence of bytes
            Some or all of the claimed images: those that failed are left out.
        vectors : ndarray of float32, shape (n, dimension of the table)
            Row i belongs to digest i.

        Warns
        -----
        CacheWarning
            The embeddings could not be written.

        Raises
        ------
        InputError
            There is no such table, or the vectors are of another shape or type.
        """
        if not 0 <= table < len(self._shares):
            raise InputError(f"Got the table {table}, expected 0 to {len(self._shares) - 1}")
        share = self._shares[table]
        share.table.check(digests, vectors)
        held = [row for row, digest in enumerate(digests) if digest in share.digests]
        if len(held) < len(digests):
            digests, vectors = [digests[row] for row in held], vectors[held]
        try:
            share.table.write(digests, vectors, share.temporary)
        except OSError as error:
            share.table.warn("folder", f"Embeddings cannot be written to the cache: {error}")

    def release(self) -> None:
        """End the claim, so that others may take what was not stored; twice does no harm."""
        for share in self._shares:
            if share.file is not None:
                share.file.remove()


class Session:
    """The work on a set of images, in one or several tables; of `open_session`.

    An image is wanted in each of the tables: a network forward yields a row for all of them. What
    is stored is served by `collect`, table by table; an image that some table lacks is handed out
    once by `claim`, to be computed here, and with this it is done in all tables, for its forward
    yields what the others hold too. A session is used by one thread at a time. Leaving it as a
    context manager releases the claims that are still open, so that an error keeps nobody waiting.

    A folder that cannot be used, or that lies on a file system without locks, is no error: it
    issues one `CacheWarning`, and claims are handed out without regard to other processes.

    Parameters
    ----------
    tables : sequence of EmbeddingTable
        Where each image is wanted.
    digests : iterable of bytes
        The images, 16 bytes each; repeats are dropped.
    further_tables : sequence of EmbeddingTable, default=()
        Tables that are only filled: they cause no forward, and where one happens anyhow, its rows
        are kept there too. Their numbers follow those of the tables.

    Raises
    ------
    InputError
        A digest has not 16 bytes, there is no table, or a table is named twice.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from featx._store.cache import EmbeddingCache
    >>> digests = [bytes([i]) * 16 for i in range(5)]
    >>> embeddings = {}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tables = [EmbeddingCache(folder).table(name, dimension=1) for name in ("a1", "b2")]
    ...     with open_session(tables, digests) as session:
    ...         while True:
    ...             for number, served, vectors in session.collect():
    ...                 embeddings.update(((number, d), v) for d, v in zip(served, vectors))
    ...             if not session.remaining:
    ...                 break
    ...             while claim := session.claim(limit=2):
    ...                 with claim:
    ...                     for number in range(len(tables)):  # a network with two taps
    ...                         vectors = np.ones((len(claim.digests), 1), np.float32)
    ...                         claim.store(number, claim.digests, vectors)
    ...                         embeddings.update(((number, d), 1.0) for d in claim.digests)
    ...             session.wait()
    >>> len(embeddings)
    10
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        digests: Iterable[bytes],
        further_tables: Sequence[EmbeddingTable] = (),
    ) -> None:
        unique = dict.fromkeys(digests)
        check_digests(unique)
        if not tables:
            raise InputError("Got no table, expected at least 1")
        self._tables = tuple(tables)
        self._all_tables = (*tables, *further_tables)
        if len({table.folder for table in self._all_tables}) < len(self._all_tables):
            raise InputError("Got a table twice, expected tables of different fingerprints")
        for table in self._all_tables[1:]:
            table.warn_together(self._all_tables[0])
        # Last first: claims are taken from the end, where a dictionary gives up its keys cheaply.
        self._candidates = dict.fromkeys(reversed(unique))
        self._deferred: dict[bytes, None] = {}
        self._wanted = [dict(unique) for _ in self._tables]
        self._waited_for: set[tuple[int, str]] = set()
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
        """How many images lack a row of some table, and have not been claimed here."""
        return len(self._candidates) + len(self._deferred)

    def collect(self) -> Iterator[tuple[int, list[bytes], NDArray[np.float32]]]:
        """Yield what of the remaining images is stored by now, in pieces and in no set order.

        Yields
        ------
        table : int
            The number of the table, from 0.
        digests : list of bytes
            Images that are stored there; in this table they are not wanted any longer.
        vectors : ndarray of float32, shape (n, dimension of the table)
            Their embeddings.

        Warns
        -----
        CacheWarning
            Rows or shards are damaged and were passed over, or the folder cannot be read.
        """
        self._candidates.update(dict.fromkeys(reversed(self._deferred)))
        self._deferred.clear()
        self._waited_for.clear()
        for number, table in enumerate(self._tables):
            wanted = list(self._wanted[number])
            for positions, vectors in table.serve(wanted) if wanted else ():
                digests = [wanted[position] for position in positions.tolist()]
                self._note_served(number, digests)
                yield number, digests, vectors

    def claim(self, limit: int = 256) -> Claim | None:
        """Claim the next images to be computed here; this never waits for others to compute.

        These are images that at least one of the tables lacks and nobody computes for it. They
        are claimed in each table, and each further table, that lacks them and where no other has
        claimed them. Several claims may be open at once. An image that is handed out is not
        handed out again, nor served, by this session, whether or not its embedding is stored.

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
        with contextlib.ExitStack() as locks:
            claimed = self._read_claims(locks)
            for table in self._all_tables:
                table.refresh()
            chosen = self._choose(limit, claimed)
            if not chosen:
                return None
            claim = Claim(tuple(chosen), list(self._take_shares(chosen, claimed)))
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
        tables = {number for number, _ in self._waited_for}
        while self._waited_for:
            names = {
                (number, name) for number in tables for name in self._tables[number].claims.names()
            }
            if not self._waited_for <= names or time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def _note_served(self, number: int, digests: list[bytes]) -> None:
        for digest in digests:
            self._wanted[number].pop(digest, None)
            if not any(digest in wanted for wanted in self._wanted):
                self._candidates.pop(digest, None)

    def _read_claims(self, locks: contextlib.ExitStack) -> list[dict[bytes, str] | None]:
        """Lock all tables, and return what others have claimed in each; None without locks."""
        claimed: list[dict[bytes, str] | None] = [None] * len(self._all_tables)
        # All take the locks in one order, so that no two wait for each other.
        for number, table in sorted(enumerate(self._all_tables), key=lambda pair: pair[1].folder):
            try:
                table.make()
                locks.enter_context(table.claims.locked())
                claimed[number] = table.claims.live()
                table.note_recipe()
            except OSError as error:
                self._warn_unshared(table, error)
        return claimed

    def _choose(self, limit: int, claimed: list[dict[bytes, str] | None]) -> list[bytes]:
        """Take up to `limit` images that are to be computed here, and defer those before them."""
        chosen: list[bytes] = []
        while self._candidates and len(chosen) < limit:
            size = min(len(self._candidates), max(limit, _IMAGES_AT_ONCE))
            images = [self._candidates.popitem()[0] for _ in range(size)]
            stored = [table.contains(images).tolist() for table in self._tables]
            for position, digest in enumerate(images):
                if len(chosen) == limit:
                    self._candidates.update(dict.fromkeys(reversed(images[position:])))
                    break
                lacking = [
                    number
                    for number, wanted in enumerate(self._wanted)
                    if digest in wanted and not stored[number][position]
                ]
                claims = [(claimed[number] or {}).get(digest) for number in lacking]
                if None in claims:
                    chosen.append(digest)
                else:
                    self._deferred[digest] = None
                    self._waited_for.update(
                        (number, name)
                        for number, name in zip(lacking, claims, strict=True)
                        if name is not None
                    )
        for wanted in self._wanted:
            for digest in chosen:
                wanted.pop(digest, None)
        return chosen

    def _take_shares(
        self, chosen: list[bytes], claimed: list[dict[bytes, str] | None]
    ) -> Iterator[_Share]:
        """Claim the chosen images in each table that lacks them; its lock must be held."""
        name = uuid.uuid4().hex
        for number, table in enumerate(self._all_tables):
            others, stored = claimed[number], table.contains(chosen)
            held = [
                digest
                for digest, is_stored in zip(chosen, stored.tolist(), strict=True)
                if not is_stored and digest not in (others or ())
            ]
            file = None
            if held and others is not None:
                try:
                    file = table.claims.add(name, held)
                except OSError as error:
                    self._warn_unshared(table, error)
            yield _Share(table, frozenset(held), table.claims.temporary(name), file)

    @staticmethod
    def _warn_unshared(table: EmbeddingTable, error: OSError) -> None:
        table.warn("folder", f"The cache cannot be shared with other workers: {error}")


def open_session(
    tables: Sequence[EmbeddingTable],
    digests: Iterable[bytes],
    further_tables: Sequence[EmbeddingTable] = (),
) -> Session:
    """Return the work on a set of images in several tables.

    Parameters
    ----------
    tables : sequence of EmbeddingTable
        Where each image is wanted.
    digests : iterable of bytes
        The images, 16 bytes each; repeats are dropped.
    further_tables : sequence of EmbeddingTable, default=()
        Tables that are filled beside, but cause no forward.

    Returns
    -------
    Session

    Raises
    ------
    InputError
        A digest has not 16 bytes, there is no table, or a table is named twice.
    """
    return Session(tables, digests, further_tables)
