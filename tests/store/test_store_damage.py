"""What the cache promises when its files are damaged, foreign, or cannot be written any longer."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc
from store_trials import DIMENSION, digests_of, open_table, run, vectors_of

from featx._errors import CacheWarning
from featx._files import LockedFile
from featx._store.cache import EmbeddingCache
from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable


def shard_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.arrow")
    return path


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_in_any_file_serves_a_wrong_vector(private_cache: Path, flips: int) -> None:
    cache = EmbeddingCache(private_cache)
    digests = digests_of(range(30))
    for number in range(3):
        table = cache.table(f"a{number}", 7 + number, recipe={"backbone": "a net", "tap": number})
        run(table, digests, limit=10)
    files = [path for path in private_cache.rglob("*") if path.is_file() and path.stat().st_size]
    assert {path.suffix for path in files} == {".arrow", ".json"}
    chance = random.Random(0)
    n_partly = 0
    for _ in range(flips):
        path = chance.choice(files)
        sound = path.read_bytes()
        bit = chance.randrange(8 * len(sound))
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(3):
                dimension = 7 + number
                found, vectors = cache.table(f"a{number}", dimension).lookup(digests)
                assert np.array_equal(vectors, vectors_of(digests, dimension)[found]), (path, bit)
                n_partly += 0 < found.sum() < len(digests)
        assert [warning.category for warning in caught] in ([], [CacheWarning])
        report = cache.verify()
        assert len(caught) <= (not report.is_sound), (path, bit)
        assert len(cache.info().tables) == 3
        path.write_bytes(sound)
    assert n_partly > flips / 4
    assert cache.verify().is_sound


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[bytes, bytes]], None]) -> None:
    """Write a shard anew as another program would, with changed columns or metadata."""
    with pa.OSFile(os.fspath(path)) as file:
        table = ipc.open_file(file).read_all()
    columns, metadata = table.to_pydict(), dict(table.schema.metadata)
    change(columns, metadata)
    elements = len(columns["embedding"][0])
    schema = table.schema.with_metadata(metadata)
    if elements != table.schema.field("embedding").type.list_size:
        item = pa.field("item", pa.float32(), nullable=False)
        field = pa.field("embedding", pa.list_(item, elements), nullable=False)
        schema = schema.set(schema.get_field_index("embedding"), field)
    batch = pa.RecordBatch.from_pydict(columns, schema=schema)
    with pa.OSFile(os.fspath(path), "wb") as file, ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)


def swap_rows(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    columns["embedding"][:2] = reversed(columns["embedding"][:2])


def zero_a_row(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    columns["embedding"][0] = [0.0] * DIMENSION


def make_a_row_nan(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    columns["embedding"][0] = [float("nan")] * DIMENSION


def swap_digests(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    columns["digest"][:2] = reversed(columns["digest"][:2])


def shorten_rows(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    columns["embedding"] = [row[:-1] for row in columns["embedding"]]
    metadata[b"featx.dimension"] = str(DIMENSION - 1).encode()


def make_older(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    metadata[b"featx.format_version"] = b"0"


def make_newer(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    metadata[b"featx.format_version"] = b"2"


def take_another_fingerprint(columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    metadata[b"featx.fingerprint"] = b"c3d4"


@pytest.mark.parametrize(
    ("change", "n_lost"),
    [
        (swap_rows, 2),
        (swap_digests, 2),
        (zero_a_row, 1),
        (make_a_row_nan, 1),
        (shorten_rows, 10),
        (make_older, 10),
        (make_newer, 10),
        (take_another_fingerprint, 10),
    ],
)
def test_what_was_changed_on_the_disk_is_computed_again(
    private_cache: Path,
    change: Callable[[dict[str, Any], dict[bytes, bytes]], None],
    n_lost: int,
) -> None:
    digests = digests_of(range(1, 11))
    run(open_table(private_cache), digests)
    rewrite(shard_of(private_cache), change)
    with pytest.warns(CacheWarning) as caught:
        computed = run(open_table(private_cache), digests)  # which checks each vector
    assert len(caught) == 1
    assert len(computed) == n_lost
    if n_lost < 10:
        assert EmbeddingCache(private_cache).verify().n_damaged_rows == n_lost


def test_a_shard_written_anew_without_a_change_is_served(private_cache: Path) -> None:
    """That is, the test above sees what was changed, and not that it was rewritten."""
    digests = digests_of(range(1, 11))
    run(open_table(private_cache), digests)
    rewrite(shard_of(private_cache), lambda columns, metadata: None)
    assert run(open_table(private_cache), digests) == []


def test_a_row_that_was_nan_when_it_was_stored_is_served_as_it_was(private_cache: Path) -> None:
    table, digests = open_table(private_cache), digests_of([1])
    with Session([table], digests) as session:
        claim = session.claim()
        assert claim is not None
        claim.store(0, digests, np.full((1, DIMENSION), np.nan, np.float32))
    assert np.isnan(open_table(private_cache).lookup(digests)[1]).all()


def test_tables_of_other_format_versions_lie_untouched_beside(private_cache: Path) -> None:
    digests = digests_of(range(10))
    run(open_table(private_cache), digests)
    for version in ("v0", "v2"):
        shutil.copytree(private_cache / "v1", private_cache / version)
        rewrite(next((private_cache / version).rglob("*.arrow")), make_newer)
    assert run(open_table(private_cache), digests) == []
    report = EmbeddingCache(private_cache).verify(repair=True)
    assert report.is_sound
    assert len(report.unchecked_tables) == 2
    assert {table.format_version for table in EmbeddingCache(private_cache).info().tables} == {
        0,
        1,
        2,
    }


# A disk that fills up, a folder that goes away


class FillingDisk:
    """Refuses every write from the k-th on, whoever writes and wherever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sound_writes: int) -> None:
        self.left = sound_writes
        disk = self
        original_write = LockedFile.write

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                disk.count()
                return super().write(content)

        def open_file(path: Path, mode: str) -> File:
            assert mode == "xb"
            return File(path, mode)

        def write(file: LockedFile, content: bytes) -> None:
            disk.count()
            original_write(file, content)

        monkeypatch.setattr(Path, "open", open_file)
        monkeypatch.setattr(LockedFile, "write", write)

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def run_joint(folder: Path, digests: list[bytes]) -> int:
    """Embed with two taps and one further table, check each row, return how many were computed."""
    cache = EmbeddingCache(folder)
    tables = [cache.table(f"a{n}", 5 + n, recipe={"tap": n}) for n in range(3)]
    rows: list[dict[bytes, np.ndarray]] = [{}, {}]
    n_computed = 0
    with Session(tables[:2], digests, tables[2:]) as session:
        while True:
            for number, served, vectors in session.collect():
                rows[number].update(zip(served, vectors, strict=True))
            if not session.remaining:
                break
            while claim := session.claim(5):
                with claim:
                    n_computed += len(claim.digests)
                    for number, table in enumerate(tables):
                        vectors = vectors_of(claim.digests, table.dimension)
                        claim.store(number, claim.digests, vectors)
                        if number < 2:
                            rows[number].update(zip(claim.digests, vectors, strict=True))
            session.wait()
    for number in range(2):
        stored = np.array([rows[number][digest] for digest in digests])
        assert np.array_equal(stored, vectors_of(digests, tables[number].dimension))
    return n_computed


@pytest.mark.parametrize("sound_writes", range(50))
def test_a_disk_that_fills_up_at_any_write_costs_one_warning(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch, sound_writes: int
) -> None:
    digests = digests_of(range(40))
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disk = FillingDisk(patch, sound_writes)
        assert run_joint(private_cache, digests) == 40
    assert disk.left < 0
    assert [warning.category for warning in caught] == [CacheWarning]
    # With space again, all is as if nothing had been, and nothing is left behind.
    assert run_joint(private_cache, digests) <= 40
    assert run_joint(private_cache, digests) == 0
    info = EmbeddingCache(private_cache).info()
    assert (info.n_void_claims, info.n_foreign_files) == (0, 0)
    assert not list(private_cache.rglob("*.tmp"))


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize("trouble", ["deleted", "read-only"])
def test_a_folder_that_goes_away_midway_costs_one_warning_at_most(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, moment: int
) -> None:
    digests = digests_of(range(40))
    run_joint(private_cache, digests[:10])
    calls = 0
    original_open, original_path_open = os.open, Path.open
    is_read_only = False

    def refuse_writing(path: Any, flags: int, *others: Any, **options: Any) -> int:
        if is_read_only and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return original_open(path, flags, *others, **options)

    def refuse_files(path: Path, mode: str) -> Any:
        if is_read_only:
            raise OSError(errno.EROFS, "Read-only file system")
        return original_path_open(path, mode)

    def trouble_then_vectors(table: Any, *arguments: Any) -> None:
        nonlocal calls, is_read_only
        calls += 1
        if calls == moment + 1 and trouble == "deleted":
            shutil.rmtree(private_cache)
        is_read_only = trouble == "read-only" and calls > moment
        original_write(table, *arguments)

    table_kind = type(open_table(private_cache))
    original_write = table_kind.write
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Permissions would not stop a test that runs as root.
        patch.setattr(os, "open", refuse_writing)
        patch.setattr(Path, "open", refuse_files)
        patch.setattr(table_kind, "write", trouble_then_vectors)
        assert run_joint(private_cache, digests) == 30
    assert calls > moment
    assert [warning.category for warning in caught] in ([], [CacheWarning])
    assert trouble == "deleted" or caught
    run_joint(private_cache, digests)
    assert run_joint(private_cache, digests) == 0
