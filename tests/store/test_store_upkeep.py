"""What merging shards and keeping a size limit promise: no row ever seems missing, or is wrong."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from store_trials import (
    DIMENSION,
    Scripts,
    assert_clean,
    digests_of,
    end,
    heard,
    open_table,
    run,
    vectors_of,
)

from featx._errors import CacheWarning
from featx._files import LockedFile
from featx._store import upkeep
from featx._store.cache import EmbeddingCache
from featx._store.session import Session
from featx._store.upkeep import choose_to_merge, merge_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featx._store.table import EmbeddingTable

ROW_BYTES = 4 * DIMENSION + 16 + 8


def shards_of(table: EmbeddingTable) -> list[Path]:
    return sorted(table.folder.glob("*.arrow"))


def make_older(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


@pytest.fixture
def unmerged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "_MERGED_AT_ONCE", 10**6)
        yield


# Merging


def test_small_shards_become_few(private_cache: Path) -> None:
    table, digests = open_table(private_cache), digests_of(range(300))
    run(table, digests, limit=2)
    assert len(shards_of(table)) < 30
    for reader in (table, open_table(private_cache)):
        assert reader.lookup(digests)[0].all()
        assert np.array_equal(reader.lookup(digests)[1], vectors_of(digests))
    assert run(open_table(private_cache), digests) == []
    assert_clean(table, digests)


def test_single_images_in_single_sessions_are_merged_too(private_cache: Path) -> None:
    for digest in digests_of(range(50)):
        run(open_table(private_cache), [digest])
    assert len(shards_of(open_table(private_cache))) < 16


def test_a_row_is_written_again_once_for_each_step_of_size() -> None:
    sizes: dict[str, int] = {}
    rewritten = flushes = 0
    for number in range(4000):
        sizes[f"{number:06}"] = 1_300_000
        flushes += 1_300_000
        while names := choose_to_merge(sizes, 64_000_000):
            merged = sum(sizes.pop(name) for name in names)
            assert merged <= 64_000_000
            sizes[names[-1]] = merged
            rewritten += merged
    assert rewritten < 2.1 * flushes
    assert len(sizes) < flushes / 64_000_000 * 1.1 + 16


def test_merging_leaves_out_damaged_and_repeated_rows(private_cache: Path, unmerged: None) -> None:
    table, digests = open_table(private_cache), digests_of(range(20))
    run(table, digests, limit=5)
    with table.claims.locked():
        table.write(digests[:5], vectors_of(digests[:5]), table.folder / "0.tmp")
    path = shards_of(table)[1]
    path.write_bytes(path.read_bytes().replace(vectors_of(digests[7:8]).tobytes(), bytes(256)))
    assert merge_shards(table, [path.name for path in shards_of(table)]) == 1
    assert len(shards_of(table)) == 1
    assert EmbeddingCache(private_cache).info().tables[0].n_rows == 19
    assert run(open_table(private_cache), digests) == [digests[7]]


def test_a_merged_shard_was_last_used_when_its_parts_were(
    private_cache: Path, unmerged: None
) -> None:
    table, digests = open_table(private_cache), digests_of(range(20))
    run(table, digests, limit=10)
    for number, path in enumerate(shards_of(table)):
        make_older(path, days=5 + number)
    merge_shards(table, [path.name for path in shards_of(table)])
    (path,) = shards_of(table)
    assert time.time() - path.stat().st_mtime == pytest.approx(5 * 86_400, abs=60)


def test_a_reader_lets_go_of_shards_that_were_merged(private_cache: Path, unmerged: None) -> None:
    table, reader = open_table(private_cache), open_table(private_cache)
    digests = digests_of(range(20))
    run(table, digests, limit=2)
    assert reader.lookup(digests)[0].all()
    merge_shards(table, [path.name for path in shards_of(table)])
    assert np.array_equal(reader.lookup(digests)[1], vectors_of(digests))
    assert table.lookup(digests)[0].all()
    gc.collect()
    mapped = Path("/proc/self/maps").read_text().splitlines()
    of_table = [line for line in mapped if os.fspath(table.folder) in line]
    assert of_table
    assert not any(line.endswith("(deleted)") for line in of_table)


def test_a_row_never_seems_missing_while_its_shards_are_merged(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch, unmerged: None
) -> None:
    """The shards are merged after a reader has listed the folder, and before it opens them."""
    table, digests = open_table(private_cache), digests_of(range(20))
    run(table, digests, limit=2)
    reader = open_table(private_cache)
    listed = reader._list

    def list_then_merge() -> set[str] | None:
        names = listed()
        if len(shards_of(table)) > 1:
            merge_shards(table, [path.name for path in shards_of(table)])
        return names

    monkeypatch.setattr(reader, "_list", list_then_merge)
    assert reader.lookup(digests)[0].all()
    with Session([open_table(private_cache)], digests) as session:
        assert session.claim() is None


def churn(folder: str, first: int) -> None:
    """Store in the smallest flushes, so that there is always something to merge."""
    for number in range(first, first + 25):
        run(open_table(folder), digests_of(range(number * 10, number * 10 + 10)), limit=1)


def test_readers_find_every_row_while_writers_merge(private_cache: Path) -> None:
    kept = digests_of(range(10**6, 10**6 + 200))
    run(open_table(private_cache), kept, limit=3)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        writing = pool.starmap_async(churn, [(os.fspath(private_cache), n) for n in (0, 25)])
        table = open_table(private_cache)
        while not writing.ready():
            for reader in (table, open_table(private_cache)):
                found, vectors = reader.lookup(kept)
                assert found.all()
                assert np.array_equal(vectors, vectors_of(kept))
            with Session([open_table(private_cache)], kept) as session:
                assert session.claim() is None
        writing.get()
    digests = digests_of(range(500))
    assert open_table(private_cache).lookup(digests)[0].all()
    assert run(open_table(private_cache), digests) == []


@pytest.mark.parametrize("moment", ["os.fsync", "Path.replace", "os.utime", "Path.unlink"])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_kill_in_the_middle_of_merging_loses_no_row(
    private_cache: Path, script: Scripts, unmerged: None, moment: str, call: int
) -> None:
    table, digests = open_table(private_cache), digests_of(range(40))
    run(table, digests, limit=4)
    script.folder = private_cache
    merger = script(
        "from featx._store.upkeep import merge_shards",
        f"original, calls = {moment}, []",
        "def kill_in_the_end(*arguments, **options):",
        "    calls.append(arguments)",
        f"    if len(calls) == {call}:",
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "    return original(*arguments, **options)",
        f"{moment} = kill_in_the_end",
        "merge_shards(table, [path.name for path in sorted(table.folder.glob('*.arrow'))])",
    )
    assert end(merger) in (-signal.SIGKILL, 0)
    found, vectors = open_table(private_cache).lookup(digests)
    assert found.all()
    assert np.array_equal(vectors, vectors_of(digests))
    assert run(open_table(private_cache), digests) == []
    assert_clean(table, digests)


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_kills_at_random_moments_of_merging_lose_no_row(
    private_cache: Path, script: Scripts, rounds: int
) -> None:
    script.folder = private_cache
    chance, told = random.Random(0), 0
    for _ in range(rounds):
        writer = script(
            f"for number in range({told}, 10**6):",
            "    run(table, digests_of([number]))",
            "    print(number, flush=True)",
        )
        assert int(heard(writer)) == told
        time.sleep(chance.uniform(0, 0.5))
        writer.kill()
        assert writer.stdout is not None
        told += 1 + len(writer.stdout.read().split())
        end(writer)
        digests = digests_of(range(told))
        found, vectors = open_table(private_cache).lookup(digests)
        assert found.all()
        assert np.array_equal(vectors, vectors_of(digests))
    assert_clean(open_table(private_cache), digests)


# The size limit


def limited(folder: Path, max_bytes: int) -> EmbeddingTable:
    return EmbeddingCache(folder, max_bytes=max_bytes).table("a1b2", DIMENSION)


def test_the_limit_holds_after_every_write(private_cache: Path) -> None:
    max_bytes = 300 * ROW_BYTES
    table, digests = limited(private_cache, max_bytes), digests_of(range(1000))
    kept = 0
    with Session([table], digests) as session:
        while claim := session.claim(10):
            claim.store(0, claim.digests, vectors_of(claim.digests))
            n_bytes = EmbeddingCache(private_cache).info().n_bytes
            assert n_bytes <= max_bytes
            kept = max(kept, n_bytes)
    assert kept > max_bytes / 2
    found, vectors = table.lookup(digests)
    assert np.array_equal(vectors, vectors_of(digests)[found])
    assert found[-10:].all()
    assert not found[:500].any()


def test_the_limit_is_for_all_tables_together(private_cache: Path) -> None:
    cache = EmbeddingCache(private_cache, max_bytes=200 * ROW_BYTES)
    for number in range(10):
        run(cache.table(f"a{number}", DIMENSION), digests_of(range(50)), limit=10)
        assert cache.info().n_bytes <= 200 * ROW_BYTES
    assert cache.table("a9", DIMENSION).lookup(digests_of(range(50)))[0].all()


def test_what_was_used_last_is_dropped_last(private_cache: Path) -> None:
    cache = EmbeddingCache(private_cache)
    digests = digests_of(range(10))
    for name in ("old", "read", "new"):
        run(cache.table(name, DIMENSION), digests, limit=10)
    for number, name in enumerate(("old", "read", "new")):
        make_older(*shards_of(cache.table(name, DIMENSION)), days=9 - number)
    assert cache.table("read", DIMENSION).lookup(digests[:1])[0].all()
    n_bytes = cache.info().tables[0].n_bytes
    left = []
    for n_shards in (2, 1, 0):
        cache.prune(n_shards * n_bytes)
        left.append({table.fingerprint for table in cache.info().tables})
    assert left == [{"read", "new"}, {"read"}, set()]


def test_reading_where_times_cannot_be_set_is_no_trouble(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, digests = open_table(private_cache), digests_of(range(10))
    run(table, digests)
    make_older(*shards_of(table), days=9)

    def refuse(*_: object) -> None:
        raise PermissionError("a read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert open_table(private_cache).lookup(digests)[0].all()


def test_a_limit_smaller_than_one_flush_stores_nothing_and_says_so_once(
    private_cache: Path,
) -> None:
    digests = digests_of(range(100))
    for _ in range(2):
        with pytest.warns(CacheWarning, match="max_bytes=10 is too little .* raise it") as caught:
            assert run(limited(private_cache, 10), digests) == digests
        assert len(caught) == 1
    assert EmbeddingCache(private_cache).info().n_bytes == 0


def work_within_a_limit(folder: str, worker: int, max_bytes: int) -> int:
    digests = digests_of(range(400))
    random.Random(worker).shuffle(digests)
    return len(run(limited(Path(folder), max_bytes), digests, limit=8))


@pytest.mark.parametrize("rows", [20, 150])
def test_processes_that_share_too_little_room_all_end_with_the_right_rows(
    private_cache: Path, rows: int
) -> None:
    max_bytes = rows * ROW_BYTES
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        tasks = [(os.fspath(private_cache), worker, max_bytes) for worker in range(4)]
        computed = pool.starmap(work_within_a_limit, tasks, chunksize=1)
    assert sum(computed) >= 400
    run(limited(private_cache, max_bytes), digests_of([10**6]))
    assert EmbeddingCache(private_cache).info().n_bytes <= max_bytes


def test_who_finds_another_at_the_upkeep_leaves_it_to_that_one(private_cache: Path) -> None:
    table, digests = open_table(private_cache), digests_of(range(20))
    run(table, digests[:1])
    with LockedFile(private_cache / "v1" / "upkeep.lock", create=True) as lock:
        assert lock.try_lock()
        assert run(table, digests, limit=1) == digests[1:]
        assert len(shards_of(table)) == 20
    run(table, digests_of([99]))
    assert len(shards_of(table)) < 20
    assert table.lookup(digests)[0].all()


# The index


def test_digests_that_differ_in_one_half_only_are_told_apart(private_cache: Path) -> None:
    """All of these have the same sort key, or share a half."""
    half = bytes(range(8))
    digests = [half + half, bytes(8) + bytes(8), half + bytes(8), bytes(8) + half]
    digests += [bytes([n]) * 16 for n in range(1, 40)]
    table = EmbeddingCache(private_cache).table("a1b2", 1)
    vectors = np.arange(len(digests), dtype=np.float32)[:, None]
    for row, digest in enumerate(digests[:-1]):
        with Session([table], [digest]) as session:
            claim = session.claim()
            assert claim is not None
            claim.store(0, [digest], vectors[row : row + 1])
    for reader in (table, EmbeddingCache(private_cache).table("a1b2", 1)):
        found, served = reader.lookup(digests)
        assert found.tolist() == [True] * (len(digests) - 1) + [False]
        assert np.array_equal(served, vectors[:-1])
