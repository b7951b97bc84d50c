"""What info, verify, prune and clear promise: they name all there is, and remove nothing else."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from store_trials import DIMENSION, Scripts, digests_of, end, heard, open_table, run, vectors_of

from featx._errors import InputError
from featx._store.cache import EmbeddingCache
from featx._store.session import Session

if TYPE_CHECKING:
    from pathlib import Path

DIGESTS = digests_of(range(1, 21))


@pytest.fixture
def cache(private_cache: Path) -> EmbeddingCache:
    """A cache with two tables, of 20 rows in two shards each."""
    cache = EmbeddingCache(private_cache)
    for name in ("a1b2", "c3d4"):
        recipe = {"backbone": f"net {name}", "layers": ["penultimate"]}
        run(cache.table(name, DIMENSION, recipe), DIGESTS, limit=10)
    return cache


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def break_row(path: Path, digest: bytes) -> None:
    content = path.read_bytes()
    broken = content.replace(vectors_of([digest]).tobytes(), bytes(4 * DIMENSION))
    assert broken != content
    path.write_bytes(broken)


def leave_as_killed(cache: EmbeddingCache, script: Scripts) -> None:
    """Kill a process that has claimed images and is writing them."""
    script.folder = cache.folder
    killed = script(
        "session = Session([table], digests_of(range(100, 110)))",
        "claim = session.claim()",
        "claim._shares[0].temporary.write_bytes(b'half of a shard')",
        "print('written', flush=True)",
        "time.sleep(60)",
    )
    assert heard(killed) == "written"
    assert cache.info().n_void_claims == cache.info().n_temporary_files == 0
    killed.kill()
    end(killed)


def test_info_names_what_is_stored(cache: EmbeddingCache, private_cache: Path) -> None:
    info = cache.info()
    assert info.folder == os.fspath(private_cache)
    assert info.max_bytes == 20_000_000_000
    assert {table.fingerprint for table in info.tables} == {"a1b2", "c3d4"}
    assert info.n_bytes == sum(path.stat().st_size for path in private_cache.rglob("*.arrow"))
    for table in info.tables:
        assert table.recipe == {"backbone": f"net {table.fingerprint}", "layers": ["penultimate"]}
        assert (table.n_rows, table.n_shards, table.dimension) == (20, 2, DIMENSION)
        assert table.last_used == pytest.approx(time.time(), abs=100)
    assert info.n_temporary_files == info.n_void_claims == info.n_foreign_files == 0


def test_the_recipe_is_written_once_and_by_whoever_stores_first(cache: EmbeddingCache) -> None:
    run(cache.table("a1b2", DIMENSION, {"backbone": "another"}), digests_of([99]))
    run(cache.table("e5f6", DIMENSION), digests_of([99]))
    recipes = {table.fingerprint: table.recipe for table in cache.info().tables}
    assert recipes["a1b2"] is not None
    assert recipes["a1b2"]["backbone"] == "net a1b2"
    assert recipes["e5f6"] is None


def test_a_recipe_that_was_half_written_is_written_by_the_next(cache: EmbeddingCache) -> None:
    folder = cache.table("e5f6", DIMENSION).folder
    folder.mkdir()
    (folder / "recipe.tmp").write_text('{"backb')
    run(cache.table("e5f6", DIMENSION, {"backbone": "whole"}), digests_of([99]))
    assert {t.fingerprint: t.recipe for t in cache.info().tables}["e5f6"] == {"backbone": "whole"}
    assert not (folder / "recipe.tmp").exists()


def test_an_absent_cache_holds_nothing_and_is_not_made(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "absent")
    assert cache.info().tables == ()
    assert cache.verify(repair=True).is_sound
    assert cache.prune(0, 0).n_shards == cache.clear().n_shards == 0
    assert not (tmp_path / "absent").exists()


def test_verify_finds_every_kind_of_damage_and_changes_nothing(
    cache: EmbeddingCache, private_cache: Path
) -> None:
    assert cache.verify().is_sound
    assert cache.verify().n_rows == 40
    first, second, third, _ = sorted(private_cache.rglob("*.arrow"))
    break_row(first, DIGESTS[3])
    second.write_bytes(second.read_bytes()[:500])
    (third.parent / "notes.txt").write_text("mine")
    before = files_below(private_cache)
    report = cache.verify()
    assert not report.is_sound
    assert (report.n_rows, report.n_shards, report.n_damaged_rows) == (29, 3, 1)
    assert report.unreadable_shards == (str(second),)
    assert report.foreign_files == (str(third.parent / "notes.txt"),)
    assert files_below(private_cache) == before


def test_repairing_removes_what_is_damaged_and_nothing_else(
    cache: EmbeddingCache, private_cache: Path
) -> None:
    first, second, third, _ = sorted(private_cache.rglob("*.arrow"))
    break_row(first, DIGESTS[3])
    second.write_bytes(second.read_bytes()[:500])
    (third.parent / "notes.txt").write_text("mine")
    assert cache.verify(repair=True).n_damaged_rows == 1
    report = cache.verify()
    assert report.is_sound
    assert report.n_rows == 29
    assert (third.parent / "notes.txt").read_text() == "mine"
    table = cache.table(first.parent.name, DIMENSION)
    assert run(table, DIGESTS) == [DIGESTS[3], *DIGESTS[10:]]


@pytest.mark.parametrize("how", ["prune", "repair", "next claim"])
def test_what_a_killed_process_leaves_is_counted_and_removed(
    cache: EmbeddingCache, script: Scripts, how: str
) -> None:
    leave_as_killed(cache, script)
    info = cache.info()
    assert (info.n_void_claims, info.n_temporary_files) == (1, 1)
    if how == "prune":
        report = cache.prune()
        assert (report.n_void_claims, report.n_temporary_files, report.n_shards) == (1, 1, 0)
    elif how == "repair":
        assert cache.verify().n_temporary_files == 1
        assert cache.verify(repair=True).n_temporary_files == 1
    else:
        run(open_table(cache.folder), digests_of([999]))
    info = cache.info()
    assert (info.n_void_claims, info.n_temporary_files) == (0, 0)
    assert not list(cache.folder.rglob("*.tmp"))


def test_temporary_files_without_a_claim_are_left_over_when_they_are_old(
    cache: EmbeddingCache,
) -> None:
    folder = cache.table("a1b2", DIMENSION).folder
    young, old = folder / f"{'0' * 32}.tmp", folder / f"{'1' * 32}.tmp"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert cache.info().n_temporary_files == 1
    cache.prune()
    assert young.exists()
    assert not old.exists()


def test_pruning_by_age_and_by_size(cache: EmbeddingCache, private_cache: Path) -> None:
    shards = sorted(private_cache.rglob("*.arrow"))
    for days, path in enumerate(shards):
        then = time.time() - days * 86_400 - 60
        os.utime(path, (then, then))
    n_bytes = cache.info().n_bytes // 4
    assert cache.prune(unused_days=3).n_shards == 1
    assert not shards[3].exists()
    assert cache.prune(max_bytes=2 * n_bytes).n_bytes == n_bytes
    assert [path.exists() for path in shards] == [True, True, False, False]
    assert EmbeddingCache(private_cache, max_bytes=n_bytes).prune().n_bytes_left == n_bytes
    assert EmbeddingCache(private_cache, max_bytes=None).prune().n_shards == 0
    with pytest.raises(InputError, match="Got max_bytes=-1"):
        cache.prune(max_bytes=-1)


def test_clearing_one_fingerprint_leaves_the_others(cache: EmbeddingCache) -> None:
    report = cache.clear("a1b2")
    assert report.n_shards == 2
    assert [table.fingerprint for table in cache.info().tables] == ["c3d4"]
    assert not cache.table("a1b2", DIMENSION).folder.exists()
    assert run(cache.table("c3d4", DIMENSION), DIGESTS) == []
    with pytest.raises(InputError, match=r"Got the fingerprint 'c3d', of which .*; did you mean"):
        cache.clear("c3d")


def test_clearing_removes_nothing_that_is_not_the_caches_own(
    cache: EmbeddingCache, private_cache: Path, tmp_path: Path
) -> None:
    table = cache.table("a1b2", DIMENSION).folder
    foreign = [
        private_cache / "thesis.doc",
        private_cache / "v1" / "thesis.doc",
        private_cache / "v1" / "project" / "recipe.json",
        private_cache / "v1" / "project" / "results.arrow",
        private_cache / "v1" / "project" / "claims" / "insurance.claim",
        private_cache / "version" / "c3d4" / "recipe.json",
        private_cache / "memo" / "shopping.memo",
        table / "thesis.doc",
        table / "results.arrow",
        table / "old.tmp",
        table / "claims" / "insurance.claim",
        tmp_path / "elsewhere" / "thesis.doc",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (private_cache / "v1" / "linked").symlink_to(tmp_path / "elsewhere")
    (table / "00000000000000000000-00000000000000000000000000000000.arrow").symlink_to(foreign[0])
    report = cache.clear()
    assert report.n_shards == 4
    assert str(table / "thesis.doc") in report.foreign_files
    assert all(path.read_text() == "mine" for path in foreign)
    own = files_below(private_cache) - {str(p.relative_to(private_cache)) for p in foreign[:-1]}
    assert {name for name in own if not name.endswith(f"{'0' * 32}.arrow")} <= {
        "v1/upkeep.lock",
        "v1/a1b2/claims/lock",
    }


def test_a_folder_that_is_no_cache_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"...")
    (tmp_path / "v1" / "src" / "claims").mkdir(parents=True)
    (tmp_path / "v1" / "src" / "recipe.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    cache = EmbeddingCache(tmp_path)
    cache.clear()
    cache.prune(0, 0)
    cache.verify(repair=True)
    assert cache.info().tables == ()
    assert sorted(tmp_path.rglob("*")) == before


def test_clearing_under_a_running_session_ends_in_the_right_rows(cache: EmbeddingCache) -> None:
    table, digests = cache.table("a1b2", DIMENSION), digests_of(range(100, 120))
    with Session([table], digests) as session:
        claim = session.claim(10)
        assert claim is not None
        cache.clear()
        claim.store(0, claim.digests, vectors_of(claim.digests))
        claim.release()
    found, vectors = table.lookup(digests)
    assert found.tolist() == [True] * 10 + [False] * 10
    assert np.array_equal(vectors, vectors_of(digests[:10]))
    shutil.rmtree(cache.folder)
