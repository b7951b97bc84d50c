"""Sessions: images that are served from the cache or computed, here or by other processes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featx._errors import InputError
from featx._store.shards import check_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from featx._store.claims import ClaimFile
    from featx._store.table import EmbeddingTable

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02

# How long another process may hold a claim that is waited for until it is named, and how long it
# may show no heartbeat until its images are computed here.
SECONDS_UNTIL_NAMED = 30.0
SECONDS_UNTIL_STOPPED = 600.0

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
    """Images that this session computes, and no other, in the order asked for; of `Session.claim`.

    It may be stored and released by another thread than the one that made it. Leaving it as a
    context manager releases it.
    """

    def __init__(self, digests: tuple[bytes, ...], shares: Sequence[_Share]) -> None:
        self.digests = digests
        self._shares = tuple(shares)
        self._unfinished = len(digests)
        self._computed: list[bytes] = []
        self._vectors: list[list[NDArray[np.float32]]] = [[] for _ in self._shares]

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def store(self, table: int, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep embeddings in one table; they are on the disk when this returns.

        Rows that are not this claim's in that table, because they are stored or claimed by others,
        are left to those. A full disk or a lost folder is no error: it issues one `CacheWarning`,
        and the images will be computed again when they are next asked for.
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

    def finish(self, digest: bytes, vectors: Sequence[NDArray[np.float32]] | None) -> None:
        """Take one image's vectors, a table each, or None where it could not be decoded."""
        self._unfinished -= 1
        if vectors is not None:
            self._computed.append(digest)
            for of_table, vector in zip(self._vectors, vectors, strict=False):
                of_table.append(vector)
        if self._unfinished == 0:
            self.close()

    def close(self) -> None:
        """Store what was computed and let go of the rest."""
        try:
            if self._computed:
                for table, vectors in enumerate(self._vectors):
                    self.store(table, self._computed, np.stack(vectors))
        finally:
            self.release()

    def release(self) -> None:
        """End the claim, so that others may take what was not stored; twice does no harm."""
        for share in self._shares:
            if share.file is not None:
                share.file.remove()


class _Holders:
    """Other processes that hold claims, for as long as they are waited for.

    Whether one is alive is told by its heartbeat, a value that it changes every few seconds: by
    change and not by clock, for the clocks of two machines may differ. A process that is stopped
    (Ctrl-Z) has none; one that computes slowly has.

    Attributes
    ----------
    waited_for : set of (int, str)
        Table and name of the claims that stand in the way.
    stopped : set of str
        The names of claims whose holders have stopped: they count no longer.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        self._tables = tables
        self._seen: dict[str, tuple[object, float, float]] = {}
        self._announced: set[str] = set()
        self.waited_for: set[tuple[int, str]] = set()
        self.stopped: set[str] = set()

    def all_hold(self) -> bool:
        """Return whether there are claims that are waited for, and each is still there."""
        numbers = {number for number, _ in self.waited_for}
        names = {(n, name) for n in numbers for name in self._tables[n].claims.names()}
        return bool(self.waited_for) and self.waited_for <= names

    def judge(self) -> None:
        """Name whoever is waited for for long, and give up on those whose heartbeat has ended."""
        now = time.monotonic()
        for number, name in self.waited_for:
            claims = self._tables[number].claims
            heartbeat = claims.heartbeat(name)
            before, since, first = self._seen.get(name, (heartbeat, now, now))
            if heartbeat != before:
                since = now
            self._seen[name] = heartbeat, since, first
            if now - since >= SECONDS_UNTIL_STOPPED:
                self.stopped.add(name)
            elif now - first >= SECONDS_UNTIL_NAMED and name not in self._announced:
                self._announced.add(name)
                _log.warning(
                    "Waiting for %s, which has claimed some of these images; where it shows no "
                    "sign of life for %.0f minutes, they are computed here",
                    claims.holder(name),
                    SECONDS_UNTIL_STOPPED / 60,
                )


class Session:
    """The work on images whose embeddings are wanted in one or several tables.

    A network forward yields a row for all tables. What is stored is served by `collect`, table by
    table; an image that some table lacks is handed out once by `claim`, to be computed here, and
    with this it is done in all tables, for its forward yields what the others hold too. A session
    is used by one thread at a time. Leaving it as a context manager stores what was computed and
    releases the claims that are still open, so that an error keeps nobody waiting.

    A folder that cannot be used, or that lies on a file system without locks, is no error: it
    issues one `CacheWarning`, and claims are handed out without regard to other processes.

    Parameters
    ----------
    tables : sequence of EmbeddingTable
        Where each image is wanted; without tables nothing is stored, and all is computed here.
    digests : iterable of bytes, default=()
        Images that are wanted in each table, 16 bytes each; repeats are dropped. `want` adds more.
    further_tables : sequence of EmbeddingTable, default=()
        Tables that are only filled: they cause no forward, and where one happens anyhow, its rows
        are kept there too. Their numbers follow those of the tables.

    Attributes
    ----------
    candidates : OrderedDict of bytes to None
        The images that may be claimed, as far as is known, in the order of their asking.
    deferred : dict of bytes to None
        The images that were stored or claimed by others since the last `collect`.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from featx._store.cache import EmbeddingCache
    >>> digests = [bytes([i]) * 16 for i in range(5)]
    >>> embeddings = {}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tables = [EmbeddingCache(folder).table(name, dimension=1) for name in ("a1b2", "c3d4")]
    ...     with Session(tables, digests) as session:
    ...         while session.remaining:
    ...             while (claim := session.claim(limit=2)) is not None:
    ...                 vectors = np.ones((len(claim.digests), 1), np.float32)
    ...                 session.finish(claim.digests, [vectors, vectors])  # a network with two taps
    ...                 embeddings.update(zip(claim.digests, vectors))
    ...             session.wait()
    ...             for number, served, vectors in session.collect():
    ...                 embeddings.update(zip(served, vectors))
    >>> len(embeddings)
    5
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        digests: Iterable[bytes] = (),
        further_tables: Sequence[EmbeddingTable] = (),
    ) -> None:
        self._tables = tuple(tables)
        self._all_tables = (*tables, *further_tables)
        if len({table.folder for table in self._all_tables}) < len(self._all_tables):
            raise InputError("Got a table twice, expected tables of different fingerprints")
        for table in self._all_tables[1:]:
            table.warn_together(self._all_tables[0])
        self.candidates: OrderedDict[bytes, None] = OrderedDict()
        self.deferred: dict[bytes, None] = {}
        self._wanted: list[dict[bytes, None]] = [{} for _ in self._tables]
        self._open_claims: dict[bytes, Claim] = {}
        self._holders = _Holders(self._tables)
        unique = dict.fromkeys(digests)
        check_digests(unique)
        self.want([unique] * len(self._tables))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for claim in dict.fromkeys(self._open_claims.values()):
            claim.close()

    @property
    def remaining(self) -> int:
        """How many images lack a row of some table, and have not been claimed here."""
        return len(self.candidates) + len(self.deferred)

    def want(self, digests: Sequence[Iterable[bytes]]) -> None:
        """Add images, for each table those that it is known to lack; without tables one list."""
        for of_table in digests:
            self.candidates.update(dict.fromkeys(of_table))
        for wanted, of_table in zip(self._wanted, digests, strict=False):
            wanted.update(dict.fromkeys(of_table))

    def forget(self, digests: Iterable[bytes]) -> None:
        """Give up on images that were not handed out yet."""
        for digest in digests:
            for known in (self.candidates, self.deferred, *self._wanted):
                known.pop(digest, None)

    def collect(self) -> Iterator[tuple[int, list[bytes], NDArray[np.float32]]]:
        """Yield what of the remaining images is stored by now: table number, digests and vectors.

        In parts and in no set order; in this table they are not wanted any longer.
        """
        # Those that were put off come first: they were asked for first.
        self.candidates = OrderedDict.fromkeys((*self.deferred, *self.candidates))
        self.deferred.clear()
        self._holders.waited_for.clear()
        for number, table in enumerate(self._tables):
            wanted = list(self._wanted[number])
            for positions, vectors in table.serve(wanted) if wanted else ():
                digests = [wanted[position] for position in positions.tolist()]
                for digest in digests:
                    self._wanted[number].pop(digest, None)
                    if not any(digest in wanted for wanted in self._wanted):
                        self.candidates.pop(digest, None)
                yield number, digests, vectors

    def claim(self, limit: int = 256) -> Claim | None:
        """Claim the next images to be computed here; this never waits for others to compute.

        These are at most ``limit`` images that at least one of the tables lacks and nobody computes
        for it. They are claimed in each table, and each further table, that lacks them and where no
        other has claimed them. An image that is handed out is not handed out again, nor served, by
        this session. None when all that remains was stored or claimed by others since the last
        `collect`.
        """
        if not self.candidates:
            return None
        with contextlib.ExitStack() as locks:
            claimed = self._read_claims(locks)
            for table in self._all_tables:
                table.refresh()
            chosen = self._choose(limit, claimed)
            if not chosen:
                return None
            claim = Claim(tuple(chosen), list(self._take_shares(chosen, claimed)))
        self._open_claims.update(dict.fromkeys(chosen, claim))
        return claim

    def finish(self, digests: Sequence[bytes], vectors: Sequence[NDArray[np.float32]]) -> None:
        """Take what was computed, one array a table; a claim is stored when its last image is done.

        An image beyond the rows of the arrays could not be decoded.
        """
        for row, digest in enumerate(digests):
            claim = self._open_claims.pop(digest)
            is_decoded = row < len(vectors[0])
            claim.finish(digest, [of_table[row] for of_table in vectors] if is_decoded else None)

    def wait(self, seconds: float = 0.5) -> None:
        """Wait until one of the claims of others that stood in the way ends, or a time has passed.

        A process that dies leaves its claim behind, which only `collect` and `claim` find out, so
        the time should be short. A process that holds a claim for long is named; one that has
        stopped is not waited for any longer, and its images are computed here.
        """
        deadline = time.monotonic() + seconds
        while self._holders.all_hold():
            if time.monotonic() >= deadline:
                self._holders.judge()
                return
            time.sleep(_POLL_SECONDS)

    def _read_claims(self, locks: contextlib.ExitStack) -> list[dict[bytes, str] | None]:
        """Lock all tables, and return what others have claimed in each; None without locks."""
        claimed: list[dict[bytes, str] | None] = [None] * len(self._all_tables)
        # All take the locks in one order, so that no two wait for each other.
        for number, table in sorted(enumerate(self._all_tables), key=lambda pair: pair[1].folder):
            try:
                table.make()
                locks.enter_context(table.claims.locked())
                claimed[number] = table.claims.live(self._holders.stopped)
                table.note_recipe()
            except OSError as error:
                self._warn_unshared(table, error)
        return claimed

    def _choose(self, limit: int, claimed: list[dict[bytes, str] | None]) -> list[bytes]:
        """Take up to `limit` images that are to be computed here, and put off those before them."""
        chosen: list[bytes] = []
        while self.candidates and len(chosen) < limit:
            images = list(itertools.islice(self.candidates, max(limit, _IMAGES_AT_ONCE)))
            stored = [table.contains(images).tolist() for table in self._tables]
            for position, digest in enumerate(images):
                if len(chosen) == limit:
                    break
                del self.candidates[digest]
                lacking = [
                    number
                    for number, wanted in enumerate(self._wanted)
                    if digest in wanted and not stored[number][position]
                ]
                claims = [(claimed[number] or {}).get(digest) for number in lacking]
                if None in claims or not self._tables:
                    chosen.append(digest)
                else:
                    self.deferred[digest] = None
                    self._holders.waited_for.update(
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
