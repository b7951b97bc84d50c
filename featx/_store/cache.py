"""The cache: embeddings by the content of their image, computed once and kept on the disk.

A cache is a folder, and in it each fingerprint (all that can change a vector) has a folder, its
table, of immutable shards. Readers map shards without locks; writers add shards and never touch
those of others. Who computes what is settled by claims.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from featx._checks import refuse
from featx._errors import InputError, did_you_mean
from featx._public import public
from featx._store.layout import is_fingerprint, table_folders
from featx._store.management import (
    CacheInfo,
    RemovalReport,
    VerifyReport,
    clear_cache,
    describe_cache,
    prune_cache,
    verify_cache,
)
from featx._store.shards import FORMAT_VERSION
from featx._store.table import EmbeddingTable as EmbeddingTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DEFAULT_MAX_BYTES = 20_000_000_000

# Words, in any case, that are no folder wherever a cache is named: in the parameter, in FEATX_CACHE
# and in --cache. A folder of such a name is written with its path, as ./off, or as a Path.
_OFF = ("none", "off")
_DEFAULT = ("auto", "")


@public
class EmbeddingCache:
    """A folder in which embeddings are kept, by the content of their image.

    Making the object does nothing to the disk, and it holds nothing but its parameters, so it can
    be cloned, pickled and sent to workers.

    Parameters
    ----------
    directory : str or path-like, optional
        The folder; ``~`` is the home folder. By default it is what the environment variable
        ``FEATX_CACHE`` names when the cache is used, else the user's cache folder for featx.
    max_bytes : int or None, default=20_000_000_000
        What embeddings and exported networks may take on the disk. Above it, the files that have
        not been used for the longest time are dropped, and what was in them is computed again
        when it is asked for. The memo of the files' digests comes on top, some 100 bytes a file.
        Each process that writes looks after a twentieth of it what others have written, so that
        several at a time may go that much beyond. None is no limit.

    Examples
    --------
    >>> EmbeddingCache("~/embeddings")
    EmbeddingCache('~/embeddings')
    >>> EmbeddingCache("~/embeddings") == EmbeddingCache("~/embeddings")
    True
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        # A string, so that a saved model needs no further type to be trusted by who loads it.
        self.directory = None if directory is None else os.fspath(directory)
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        parts = [] if self.directory is None else [repr(self.directory)]
        if self.max_bytes != DEFAULT_MAX_BYTES:
            parts.append(f"max_bytes={self.max_bytes!r}")
        return f"EmbeddingCache({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingCache):
            return NotImplemented
        return self._parameters() == other._parameters()

    def __hash__(self) -> int:
        return hash(self._parameters())

    def _parameters(self) -> tuple[str | None, int | None]:
        return self.directory, self.max_bytes

    @property
    def folder(self) -> Path:
        """The folder that is used now, which need not exist yet.

        Raises
        ------
        InputError
            The folder begins with ``~`` and there is no such home folder.
        """
        named = self.directory or _folder_of_environment()
        folder = Path(named) if named else platformdirs.user_cache_path("featx", appauthor=False)
        try:
            return folder.expanduser()
        except RuntimeError as error:
            raise InputError(f"The cache folder {named!r} cannot be found: {error}") from None

    def is_writable(self) -> bool:
        """Return whether embeddings can be kept here; the folder is made if it is absent."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.folder, os.W_OK | os.X_OK)

    def table(
        self, fingerprint: str, dimension: int, recipe: Mapping[str, Any] | None = None
    ) -> EmbeddingTable:
        """Return the embeddings that one fingerprint stands for.

        Parameters
        ----------
        fingerprint : str
            Everything that can change a vector, as letters, digits, ``-`` and ``_``.
        dimension : int
            The length of an embedding.
        recipe : mapping, optional
            What the fingerprint stands for, as JSON types; it is kept beside the embeddings, so
            that `info` can tell what they are.

        Returns
        -------
        EmbeddingTable
            Which need not exist on the disk yet.

        Raises
        ------
        InputError
            The fingerprint cannot name a folder, or the dimension or the limit is not positive.
        """
        if not is_fingerprint(fingerprint):
            raise InputError(
                f"Got the fingerprint {fingerprint!r}, expected 1 to 200 letters, digits, '-', '_'"
            )
        if dimension < 1:
            raise InputError(f"Got the dimension {dimension}, expected at least 1")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise InputError(f"Got max_bytes={self.max_bytes!r}, expected at least 1, or None")
        # Tables of another format lie beside each other, so that versions can share a cache.
        folder = self.folder / f"v{FORMAT_VERSION}" / fingerprint
        return EmbeddingTable(folder, fingerprint, dimension, recipe, self.max_bytes)

    def info(self) -> CacheInfo:
        """Return what the cache holds: each fingerprint, its rows, its bytes and its last use.

        Returns
        -------
        CacheInfo

        Raises
        ------
        OSError
            The folder cannot be read; one that is absent holds nothing.

        Examples
        --------
        >>> EmbeddingCache("no-such-folder").info().n_bytes
        0
        """
        return describe_cache(self.folder, self.max_bytes)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every row, and compare it with what was stored.

        Without this nothing wrong is served either: each row is verified whenever it is read.

        Parameters
        ----------
        repair : bool, default=False
            Remove damaged rows and shards, and what killed processes have left behind.

        Returns
        -------
        VerifyReport

        Raises
        ------
        OSError
            The folder cannot be read, or not be repaired.
        """
        return verify_cache(self.folder, repair=repair)

    def prune(
        self, max_bytes: int | None = None, unused_days: float | None = None
    ) -> RemovalReport:
        """Remove shards that were not used for long, and what killed processes have left behind.

        Parameters
        ----------
        max_bytes : int, optional
            What may be left on the disk; by default the limit of the cache.
        unused_days : float, optional
            Remove also what was not used for so many days.

        Returns
        -------
        RemovalReport

        Raises
        ------
        InputError
            A number is negative.
        OSError
            The folder cannot be read or written.
        """
        if min(max_bytes or 0, unused_days or 0) < 0:
            raise InputError(
                f"Got max_bytes={max_bytes!r} and unused_days={unused_days!r}, "
                "expected None or numbers of at least 0"
            )
        limit = self.max_bytes if max_bytes is None else max_bytes
        return prune_cache(self.folder, max_bytes=limit, unused_days=unused_days)

    def clear(self, fingerprint: str | None = None) -> RemovalReport:
        """Remove all embeddings, or those of one fingerprint; nothing that is not the cache's own.

        Parameters
        ----------
        fingerprint : str, optional
            Which ones; by default all, and the memo of the files' digests.

        Returns
        -------
        RemovalReport

        Raises
        ------
        InputError
            Nothing is stored under this fingerprint.
        OSError
            The folder cannot be read or written.
        """
        known = sorted({folder.name for _, folder in table_folders(self.folder)})
        if fingerprint is not None and fingerprint not in known:
            raise InputError(
                f"Got the fingerprint {fingerprint!r}, of which nothing is stored in "
                f"{self.folder}{did_you_mean(fingerprint, known)}"
            )
        return clear_cache(self.folder, fingerprint=fingerprint)


def open_cache(cache: Any) -> EmbeddingCache | None:
    """Return the cache that a parameter names.

    Parameters
    ----------
    cache : "auto", "off", path, EmbeddingCache or None
        ``"auto"``, or an empty text, is the folder that the environment variable ``FEATX_CACHE``
        names, else the user's cache folder; the variable turns it off by the same words as the
        parameter. ``"off"``, ``"none"``, None and False are no cache. These words count in any
        case; a folder that is called so is written as a path, as ``"./off"``.

    Returns
    -------
    EmbeddingCache or None
        None where there is no cache.

    Raises
    ------
    InputError
        It is something else.

    Examples
    --------
    >>> open_cache("embeddings")
    EmbeddingCache('embeddings')
    >>> open_cache("./off"), open_cache("off")
    (EmbeddingCache('./off'), None)
    """
    if isinstance(cache, EmbeddingCache):
        return cache
    if cache is None or cache is False:
        return None
    if not isinstance(cache, str | os.PathLike):
        raise refuse("cache", cache, "'auto', 'off', a folder, an EmbeddingCache or None")
    if not isinstance(cache, str) or not _is_word(cache):
        return EmbeddingCache(cache)
    named = os.environ.get("FEATX_CACHE", "") if cache.lower() in _DEFAULT else cache
    return None if named.lower() in _OFF else EmbeddingCache()


def _is_word(named: str) -> bool:
    return named.lower() in (*_OFF, *_DEFAULT)


def _folder_of_environment() -> str | None:
    named = os.environ.get("FEATX_CACHE", "")
    return None if _is_word(named) else named
