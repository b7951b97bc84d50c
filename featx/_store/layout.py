"""How a cache lies on the disk: ``v<format version>/<fingerprint>/``, and in it the shards.

Beside the shards (``*.arrow``) a table has its recipe (``recipe.json``), the claims (``claims/``)
and the temporary files of those that are writing (``*.tmp``). ``memo/`` has the digests of files,
and ``graphs/`` exported networks.
What has another name, or lies in another place, is not the cache's own and is never removed by it.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from featx._store.shards import FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECIPE_NAME = "recipe.json"
RECIPE_TEMPORARY_NAME = "recipe.tmp"
CLAIMS_NAME = "claims"
GRAPHS_NAME = "graphs"
MEMO_NAME = "memo"

SHARDS = re.compile(r"[0-9]{20}-[0-9a-f]{32}\.arrow")
TEMPORARY_FILES = re.compile(r"[0-9a-f]{32}\.tmp|recipe\.tmp")
TABLE_FILES = re.compile(rf"{SHARDS.pattern}|{TEMPORARY_FILES.pattern}|recipe\.json")
CLAIMS = re.compile(r"[0-9a-f]{32}\.claim")
GRAPHS = re.compile(r"[0-9a-f]{32}\.graph")
GRAPH_TEMPORARY_FILES = re.compile(r"\.[0-9a-f]{32}\.tmp")
CLAIM_FILES = re.compile(rf"{CLAIMS.pattern}|lock")

_VERSIONS = re.compile(r"v([0-9]{1,9})")
_FINGERPRINTS = re.compile(r"[A-Za-z0-9_-]{1,200}")
# Those of 0.1 were *.memo and are read no longer.
_MEMO_FILES = re.compile(r"[0-9a-f]{16}\.sqlite(-journal)?|[0-9a-z-]+\.v[0-9]+\.(memo|tmp)")


def is_fingerprint(name: str) -> bool:
    """Return whether a name can be a fingerprint: 1 to 200 letters, digits, ``-`` and ``_``."""
    return _FINGERPRINTS.fullmatch(name) is not None


def table_folders(root: Path) -> Iterator[tuple[int, Path]]:
    """Yield the format version and the folder of each table of a cache; an absent one has none.

    Folders that look like it but have neither shards nor claims are somebody else's.
    """
    for version in _folders(root):
        match = _VERSIONS.fullmatch(version.name)
        if match:
            for folder in _folders(version):
                if is_fingerprint(folder.name) and (
                    files_of(folder / CLAIMS_NAME, CLAIM_FILES) or files_of(folder)
                ):
                    yield int(match[1]), folder


def files_of(folder: Path, names: re.Pattern[str] = SHARDS) -> dict[str, os.stat_result]:
    """Return the files of a folder with names of a kind, links left out; none if it is absent."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # it was removed in this moment
                    found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def evictable_files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what the limit of a cache is about: the shards of all tables, and the graphs."""
    for _, folder in table_folders(root):
        for name, status in files_of(folder).items():
            yield folder / name, status
    for name, status in files_of(root / GRAPHS_NAME, GRAPHS).items():
        yield root / GRAPHS_NAME / name, status


def files_beside(root: Path) -> dict[Path, os.stat_result]:
    """Return what the limit is not about: the files of the memo, temporary files of graphs."""
    kinds = ((root / MEMO_NAME, _MEMO_FILES), (root / GRAPHS_NAME, GRAPH_TEMPORARY_FILES))
    return {
        folder / name: status
        for folder, names in kinds
        for name, status in files_of(folder, names).items()
    }


def foreign_files(folder: Path) -> list[Path]:
    """Return what lies in the folder of a table and is not the cache's own."""
    claims = folder / CLAIMS_NAME
    own = {*(folder / name for name in files_of(folder, TABLE_FILES)), claims}
    own.update(claims / name for name in files_of(claims, CLAIM_FILES))
    present = list(folder.iterdir())
    if claims.is_dir():
        present += claims.iterdir()
    return sorted(path for path in present if path not in own)


def upkeep_lock(root: Path) -> Path:
    """Return the file that is locked by whoever merges or removes shards of a cache."""
    return root / f"v{FORMAT_VERSION}" / "upkeep.lock"


def _folders(parent: Path) -> list[Path]:
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
        names += (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return [parent / name for name in sorted(names)]
