"""Claims under way: drawn as decoding goes, stored as they fill up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featx._store.session import Claim, Session


class OpenClaims:
    """The claims of one run over the stream.

    Parameters
    ----------
    session : Session
        Hands out claims.
    n_tables : int
        How many tables each image's vectors go to, one a tap.
    limit : int
        Images a claim.
    """

    def __init__(self, session: Session, n_tables: int, limit: int) -> None:
        self._session = session
        self._n_tables = n_tables
        self._limit = limit
        self._open: dict[bytes, _OpenClaim] = {}

    def __enter__(self) -> OpenClaims:
        return self

    def __exit__(self, *_: object) -> None:
        # Also when something went wrong: what was computed until then is kept.
        for claim in set(self._open.values()):
            claim.close()

    def digests(self) -> Iterator[bytes]:
        """Draw claim after claim until nothing is left that nobody computes."""
        while (claim := self._session.claim(self._limit)) is not None:
            opened = _OpenClaim(claim, self._n_tables)
            self._open.update(dict.fromkeys(claim.digests, opened))
            yield from claim.digests

    def finish(self, digests: Sequence[bytes], vectors: Sequence[np.ndarray]) -> None:
        """Store what is done: one array a tap; an image beyond its rows could not be decoded."""
        for place, digest in enumerate(digests):
            claim = self._open.pop(digest)
            is_decoded = place < len(vectors[0])
            claim.finish(digest, [of_tap[place] for of_tap in vectors] if is_decoded else None)


class _OpenClaim:
    """A claim being computed: it is written when its last image is done."""

    def __init__(self, claim: Claim, n_tables: int) -> None:
        self._claim = claim
        self._waiting = len(claim.digests)
        self._digests: list[bytes] = []
        self._vectors: list[list[np.ndarray]] = [[] for _ in range(n_tables)]

    def finish(self, digest: bytes, vectors: Sequence[np.ndarray] | None) -> None:
        """Take one image's vectors, or None where it could not be decoded."""
        self._waiting -= 1
        if vectors is not None:
            self._digests.append(digest)
            for of_table, vector in zip(self._vectors, vectors, strict=True):
                of_table.append(vector)
        if self._waiting == 0:
            self.close()

    def close(self) -> None:
        """Store what was computed and let go of the rest."""
        with self._claim as claim:
            if self._digests:
                for table, vectors in enumerate(self._vectors):
                    claim.store(table, self._digests, np.stack(vectors))
