"""What the cache promises about the rows it stores and serves, in one process."""

from __future__ import annotations

import contextlib
import errno
import gc
import inspect
import os
import pickle
import random
import re
import resource
import shutil
import stat
import tempfile
import time
import warnings
from pathlib import Path

import filelock
import numpy as np
import platformdirs
import pytest
import sklearn.base
from hypothesis import given, settings
from hypothesis import strategies as st

import featx._store
from featx._errors import CacheWarning, InputError
from featx._store import shards as shards_module
from featx._store import table as table_module
from featx._store.cache import EmbeddingCache, EmbeddingTable, open_cache
from featx._store.session import Session

DIMENSION = 5


def digest_of(number: int) -> bytes:
    return number.to_bytes(16, "little")


def digests_of(count: int) -> list[bytes]:
    return [digest_of(number) for number in range(count)]


def vectors_of(digests: list[bytes] | tuple[bytes, ...], dimension: int = DIMENSION) -> np.ndarray:
    """Vectors of any bits at all, among them infinities and many kinds of NaN."""
    seeds = [int.from_bytes(digest, "little") for digest in digests]
    bits = [np.random.default_rng(seed).integers(0, 2**32, dimension, np.uint32) for seed in seeds]
    return np.array(bits, np.uint32).reshape(len(digests), dimension).view(np.float32)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def store(table: EmbeddingTable, digests: list[bytes], limit: int = 256) -> None:
    with Session([table], digests) as session:
        while claim := session.claim(limit):
            claim.store(0, claim.digests, vectors_of(claim.digests, table.dimension))
            claim.release()


def run(table: EmbeddingTable, digests: list[bytes], limit: int = 2) -> tuple[dict, list[bytes]]:
    """Do what an embedder does; return the vectors and what was computed, in this order."""
    embeddings: dict[bytes, np.ndarray] = {}
    computed: list[bytes] = []
    with Session([table], digests) as session:
        while True:
            for _, served, vectors in session.collect():
                embeddings.update(zip(served, vectors, strict=True))
            if not session.remaining:
                return embeddings, computed
            while claim := session.claim(limit):
                with claim:
                    vectors = vectors_of(claim.digests, table.dimension)
                    claim.store(0, claim.digests, vectors)
                    embeddings.update(zip(claim.digests, vectors, strict=True))
                    computed.extend(claim.digests)
            session.wait()


def shard_of(table: EmbeddingTable) -> Path:
    (path,) = table.folder.glob("*.arrow")
    return path


def assert_right(embeddings: dict, digests: list[bytes]) -> None:
    assert embeddings.keys() == set(digests)
    assert all(same_bits(embeddings[d][None], vectors_of([d])) for d in digests)


@pytest.fixture
def table() -> EmbeddingTable:
    return EmbeddingCache().table("a1b2", DIMENSION)


# The object itself


def test_making_a_cache_or_a_table_touches_no_disk(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    EmbeddingCache(folder).table("a1b2", 3)
    assert not folder.exists()


def test_looking_up_makes_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    found, vectors = EmbeddingCache(folder).table("a1b2", 3).lookup(digests_of(2))
    assert not found.any()
    assert vectors.shape == (0, 3)
    assert not folder.exists()


def test_a_cache_is_its_parameters() -> None:
    cache = EmbeddingCache(Path("/some/where"), max_bytes=1000)
    assert vars(cache) == {"directory": "/some/where", "max_bytes": 1000}
    assert cache == EmbeddingCache("/some/where", max_bytes=1000)
    for copied in (pickle.loads(pickle.dumps(cache)), sklearn.base.clone(cache, safe=False)):
        assert copied == cache
        assert hash(copied) == hash(cache)
    assert pickle.loads(pickle.dumps(cache)).directory == "/some/where"
    assert cache != EmbeddingCache("/else/where", max_bytes=1000)
    assert cache != EmbeddingCache("/some/where")
    assert cache != EmbeddingCache("/some/where", max_bytes=None)
    assert cache != "/some/where"
    assert repr(cache) == "EmbeddingCache('/some/where', max_bytes=1000)"
    assert repr(EmbeddingCache()) == "EmbeddingCache()"
    assert EmbeddingCache().max_bytes == 20_000_000_000


OFF = ["off", "none", "None", "OFF"]
DEFAULT = ["auto", "", "AUTO"]


@pytest.mark.parametrize("variable", [None, *OFF, *DEFAULT, "./off", "/some/where"])
@pytest.mark.parametrize("named", [None, False, *OFF, *DEFAULT, "./off", Path("off"), "offline"])
def test_a_cache_is_named_alike_by_the_parameter_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None, variable: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATX_CACHE", raising=False)
    if variable is not None:
        monkeypatch.setenv("FEATX_CACHE", variable)
    cache = open_cache(named)
    if named in (None, False, *OFF) or (named in DEFAULT and variable in OFF):
        assert cache is None
    elif named not in DEFAULT:
        assert cache == EmbeddingCache(named)
        assert cache.folder == Path(named)
    else:
        assert cache == EmbeddingCache()
        user = platformdirs.user_cache_path("featx")
        assert cache.folder == (user if variable in (None, *DEFAULT) else Path(variable))
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_an_object_is_not_the_environments_to_turn_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEATX_CACHE", "off")
    assert open_cache(EmbeddingCache("/some/where")) == EmbeddingCache("/some/where")
    assert EmbeddingCache().folder == platformdirs.user_cache_path("featx")


@pytest.mark.parametrize("wrong", [3, True, b"off"])
def test_what_is_no_cache_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match=f"Got cache={wrong!r} but expected 'auto', 'off', a fo"):
        open_cache(wrong)
    with pytest.raises(InputError, match="Got max_bytes=0, expected at least 1, or None"):
        EmbeddingCache(max_bytes=0).table("a1b2", 3)


def test_the_default_folder_is_decided_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache()
    monkeypatch.setenv("FEATX_CACHE", "/first")
    assert cache.folder == Path("/first")
    monkeypatch.setenv("FEATX_CACHE", "~/second")
    assert cache.folder == Path.home() / "second"
    monkeypatch.delenv("FEATX_CACHE")
    assert cache.folder == platformdirs.user_cache_path("featx")
    assert cache.directory is None


def test_a_home_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="~no-such-user"):
        EmbeddingCache("~no-such-user/cache").table("a1b2", 3)


def test_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    old = os.umask(0)
    try:
        store(cache.table("a1b2", DIMENSION), digests_of(3))
    finally:
        os.umask(old)
    folders = [cache.folder, *(path for path in cache.folder.rglob("*") if path.is_dir())]
    assert len(folders) == 4
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


@pytest.mark.parametrize("fingerprint", ["", "../up", "a/b", "a.b", "x" * 201, "a\n"])
def test_a_fingerprint_that_cannot_name_a_folder_is_refused(fingerprint: str) -> None:
    with pytest.raises(InputError, match="fingerprint"):
        EmbeddingCache().table(fingerprint, 3)


def test_wrong_dimensions_digests_and_vectors_are_refused(table: EmbeddingTable) -> None:
    with pytest.raises(InputError, match="Got the dimension 0"):
        EmbeddingCache().table("a1b2", 0)
    with pytest.raises(InputError, match="Got a digest of 3 bytes, expected 16"):
        table.lookup([digest_of(1), b"abc"])
    with pytest.raises(InputError, match="Got a digest of 17 bytes"):
        Session([table], [b"x" * 17])
    digests = digests_of(2)
    with Session([table], digests) as session:
        claim = session.claim()
        assert claim is not None
        for wrong in (np.zeros((2, 4), np.float32), np.zeros((1, DIMENSION), np.float32)):
            with pytest.raises(InputError, match=r"expected float32 and \(2, 5\)"):
                claim.store(0, digests, wrong)
        with pytest.raises(InputError, match="Got vectors of float64"):
            claim.store(0, digests, np.zeros((2, DIMENSION)))
    assert not table.lookup(digests)[0].any()


def test_a_table_in_use_can_be_sent_to_a_worker(table: EmbeddingTable) -> None:
    store(table, digests_of(3))
    copy = pickle.loads(pickle.dumps(table))
    store(copy, digests_of(5))
    assert same_bits(table.lookup(digests_of(5))[1], vectors_of(digests_of(5)))


# Laws


@settings(deadline=None, max_examples=60)
@given(
    stored=st.sets(st.integers(0, 40)),
    request=st.lists(st.integers(0, 40), max_size=60),
    limit=st.integers(1, 50),
    dimension=st.integers(1, 70),
)
def test_lookup_returns_exactly_what_was_stored_in_the_order_of_the_request(
    stored: set[int], request: list[int], limit: int, dimension: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(folder)
        table = cache.table("a1b2", dimension)
        store(table, [digest_of(number) for number in stored], limit)
        for reader in (table, cache.table("a1b2", dimension)):
            found, vectors = reader.lookup([digest_of(number) for number in request])
            assert found.tolist() == [number in stored for number in request]
            hits = [digest_of(number) for number in request if number in stored]
            assert same_bits(vectors, vectors_of(hits, dimension))


@settings(deadline=None, max_examples=40)
@given(
    before=st.sets(st.integers(0, 30)),
    request=st.lists(st.integers(0, 30), max_size=50),
    limit=st.integers(1, 20),
)
def test_a_session_computes_each_missing_image_once_and_in_the_order_given(
    before: set[int], request: list[int], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(folder)
        store(cache.table("a1b2", DIMENSION), [digest_of(number) for number in before])
        digests = [digest_of(number) for number in request]
        embeddings, computed = run(cache.table("a1b2", DIMENSION), digests, limit)
        assert_right(embeddings, digests)
        assert computed == [digest_of(n) for n in dict.fromkeys(request) if n not in before]
        assert run(cache.table("a1b2", DIMENSION), digests, limit)[1] == []


def test_large_shards_are_served_in_pieces(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "ROWS_AT_ONCE", 7)
    digests = digests_of(100)
    store(table, digests)
    pieces = list(Session([table], digests).collect())
    assert max(len(served) for _, served, _ in pieces) == 7
    assert_right({d: v for _, ds, vs in pieces for d, v in zip(ds, vs, strict=True)}, digests)


def test_served_vectors_are_copies_that_may_be_changed(table: EmbeddingTable) -> None:
    digests = digests_of(3)
    store(table, digests)
    table.lookup(digests)[1][:] = 0
    assert same_bits(table.lookup(digests)[1], vectors_of(digests))


def test_fingerprints_never_mix() -> None:
    cache, digests = EmbeddingCache(), digests_of(4)
    one, other = cache.table("a1b2", DIMENSION), cache.table("c3d4", DIMENSION)
    store(one, digests)
    assert not other.lookup(digests)[0].any()
    # Not even when a file strays into the folder of another fingerprint.
    other.folder.mkdir()
    shutil.copy(shard_of(one), other.folder)
    with pytest.warns(CacheWarning, match="its schema is another one"):
        found, _ = other.lookup(digests)
    assert not found.any()


def test_another_dimension_is_never_served(table: EmbeddingTable) -> None:
    digests = digests_of(4)
    store(table, digests)
    with pytest.warns(CacheWarning, match="schema"):
        found, vectors = EmbeddingCache().table("a1b2", DIMENSION + 1).lookup(digests)
    assert not found.any()
    assert vectors.shape == (0, DIMENSION + 1)


def test_an_open_table_sees_what_another_stores(table: EmbeddingTable) -> None:
    digests = digests_of(4)
    assert not table.lookup(digests)[0].any()
    store(EmbeddingCache().table("a1b2", DIMENSION), digests[:3])
    assert table.lookup(digests)[0].tolist() == [True, True, True, False]


def test_a_shard_is_opened_once(table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    class CountedShard(table_module.Shard):
        def __init__(self, path: Path, schema: object) -> None:
            opened.append(path)
            super().__init__(path, schema)

    monkeypatch.setattr(table_module, "Shard", CountedShard)
    digests = digests_of(100)
    run(table, digests, limit=10)
    run(table, digests, limit=10)
    table.lookup(digests)
    assert len(opened) == len(set(opened)) == 10


def test_open_shards_and_released_claims_hold_no_descriptors(table: EmbeddingTable) -> None:
    digests = digests_of(300)
    gc.collect()  # what an earlier test has left open
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(table, digests, limit=1)
    assert table.lookup(digests)[0].all()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Claims, as far as one process shows them


def test_an_image_is_handed_out_once_although_it_was_not_stored(table: EmbeddingTable) -> None:
    digests = digests_of(4)
    with Session([table], digests) as session:
        claim = session.claim()
        assert claim is not None
        claim.store(0, digests[:2], vectors_of(digests[:2]))
        claim.release()
        assert session.claim() is None
        assert session.remaining == 0
    # A later session asks for what had failed, and for nothing else.
    assert run(table, digests)[1] == digests[2:]


def test_claims_exclude_each_other_until_they_are_released(table: EmbeddingTable) -> None:
    digests = digests_of(5)
    with Session([table], digests) as mine, Session([table], digests) as yours:
        first = mine.claim(2)
        second = yours.claim(2)
        third = mine.claim(2)
        assert first is not None
        assert second is not None
        assert third is not None
        handed_out = [first.digests, second.digests, third.digests]
        assert handed_out == [tuple(digests[:2]), tuple(digests[2:4]), (digests[4],)]
        assert yours.claim() is None
        assert yours.remaining == 3
        first.release()
        third.store(0, third.digests, vectors_of(third.digests))
        third.release()
        third.release()
        served = [digest for _, piece, _ in yours.collect() for digest in piece]
        assert served == [digests[4]]
        again = yours.claim()
        assert again is not None
        assert again.digests == tuple(digests[:2])


def test_leaving_a_session_by_an_error_releases_its_claims(table: EmbeddingTable) -> None:
    digests = digests_of(4)
    with contextlib.suppress(KeyboardInterrupt), Session([table], digests) as session:
        assert session.claim(1) is not None
        assert session.claim(1) is not None
        raise KeyboardInterrupt
    assert run(table, digests)[1] == digests


def test_what_ends_between_the_two_readings_is_not_computed_twice(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = digests_of(4)
    with Session([table], digests) as theirs, Session([table], digests) as mine:
        their_claim = theirs.claim()
        assert their_claim is not None
        read_claims = table.claims.live

        def finish_then_read(ignored: frozenset[str]) -> dict[bytes, str]:
            their_claim.store(0, digests, vectors_of(digests))
            their_claim.release()
            return read_claims(*ignored)

        monkeypatch.setattr(table.claims, "live", finish_then_read)
        assert mine.claim() is None
        assert mine.remaining == 4


def test_waiting_ends_at_once_where_nothing_is_in_the_way(table: EmbeddingTable) -> None:
    with Session([table], digests_of(2)) as session:
        start = time.monotonic()
        session.wait(seconds=60)
        assert time.monotonic() - start < 30


# Damage


def test_no_flipped_bit_ever_serves_a_wrong_vector(table: EmbeddingTable) -> None:
    digests = digests_of(30)
    store(table, digests)
    path = shard_of(table)
    sound = path.read_bytes()
    chance = random.Random(0)
    partly = 0
    for _ in range(200):
        bit = chance.randrange(8 * len(sound))
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found, vectors = EmbeddingCache().table("a1b2", DIMENSION).lookup(digests)
        hits = [digest for digest, hit in zip(digests, found, strict=True) if hit]
        assert same_bits(vectors, vectors_of(hits)), f"bit {bit}"
        assert [warning.category for warning in caught] in ([], [CacheWarning])
        partly += 0 < len(hits) < len(digests)
    assert partly > 50


def test_vectors_that_changed_places_are_not_served(table: EmbeddingTable) -> None:
    digests = digests_of(3)
    store(table, digests)
    path = shard_of(table)
    first, second = (vectors_of([digest]).tobytes() for digest in digests[:2])
    content = path.read_bytes()
    path.write_bytes(content.replace(first + second, second + first))
    assert path.read_bytes() != content
    with pytest.warns(CacheWarning, match="Damaged rows"):
        found, vectors = table.lookup(digests)
    assert found.tolist() == [False, False, True]
    assert same_bits(vectors, vectors_of(digests[2:]))


def test_a_damaged_row_is_computed_again_and_then_served_in_peace(table: EmbeddingTable) -> None:
    digests = digests_of(3)
    store(table, digests)
    path = shard_of(table)
    content = bytearray(path.read_bytes())
    content[content.find(vectors_of([digests[1]]).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.warns(CacheWarning, match="Damaged rows") as caught:
        embeddings, computed = run(table, digests)
    assert len(caught) == 1
    assert computed == [digests[1]]
    assert_right(embeddings, digests)
    found, vectors = EmbeddingCache().table("a1b2", DIMENSION).lookup(digests)
    assert found.all()
    assert same_bits(vectors, vectors_of(digests))


def test_what_was_not_served_for_damage_can_be_claimed_at_once(table: EmbeddingTable) -> None:
    digests = digests_of(3)
    store(table, digests)
    path = shard_of(table)
    path.write_bytes(path.read_bytes().replace(vectors_of(digests[:1]).tobytes(), bytes(20)))
    with Session([table], digests) as session:
        with pytest.warns(CacheWarning, match="Damaged rows"):
            assert [piece for _, piece, _ in session.collect()] == [digests[1:]]
        claim = session.claim()
        assert claim is not None
        assert claim.digests == (digests[0],)


@pytest.mark.parametrize("damage", ["empty", "short", "text", "folder"])
def test_a_damaged_shard_is_passed_over_with_one_warning(
    table: EmbeddingTable, damage: str
) -> None:
    digests = digests_of(3)
    store(table, digests)
    path = shard_of(table)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "short": content[:-9], "text": b"<html>" * 99}[damage])
    reader = EmbeddingCache().table("a1b2", DIMENSION)
    with pytest.warns(CacheWarning, match=re.escape(os.fspath(path))) as caught:
        embeddings, computed = run(reader, digests)
    assert not reader.lookup([digest_of(9)])[0].any()
    assert len(caught) == 1
    assert computed == digests
    assert_right(embeddings, digests)


def test_a_shard_that_vanishes_before_it_is_opened_is_no_damage(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(table, digests_of(3))
    vanished = table.folder / "00000000000000000000-gone.arrow"
    vanished.symlink_to("nowhere")
    assert table.lookup(digests_of(3))[0].all()


# Trouble with the folder: one warning, and the work goes on


def test_a_file_in_place_of_the_folder_costs_a_warning_and_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    table = EmbeddingCache(blocked).table("a1b2", DIMENSION)
    digests = digests_of(7)
    with pytest.warns(CacheWarning) as caught:
        embeddings, computed = run(table, digests)
    assert_right(embeddings, digests)
    assert computed == digests
    assert len(caught) == 1
    assert os.fspath(blocked) in str(caught[0].message)
    assert blocked.read_text() == "not a folder"


def test_a_folder_that_is_deleted_meanwhile_does_no_harm(table: EmbeddingTable) -> None:
    digests = digests_of(6)
    with Session([table], digests) as session:
        first, second = session.claim(2), session.claim(2)
        assert first is not None
        assert second is not None
        first.store(0, first.digests, vectors_of(first.digests))
        shutil.rmtree(EmbeddingCache().folder)
        second.store(0, second.digests, vectors_of(second.digests))
        third = session.claim()
        assert third is not None
        third.store(0, third.digests, vectors_of(third.digests))
    found, vectors = EmbeddingCache().table("a1b2", DIMENSION).lookup(digests)
    assert found.tolist() == [False] * 2 + [True] * 4
    assert same_bits(vectors, vectors_of(digests[2:]))


def test_mapped_shards_are_served_after_their_files_are_gone(table: EmbeddingTable) -> None:
    digests = digests_of(6)
    store(table, digests)
    assert table.lookup(digests[:1])[0].all()
    shutil.rmtree(EmbeddingCache().folder)
    assert same_bits(table.lookup(digests)[1], vectors_of(digests))


@contextlib.contextmanager
def files_limited_to(size: int) -> None:
    """Make the system refuse to let files grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 1000, 5000])
def test_a_full_disk_costs_one_warning_and_leaves_nothing_behind(size: int) -> None:
    table = EmbeddingCache().table("a1b2", 400)
    digests = digests_of(20)
    with pytest.warns(CacheWarning) as caught, files_limited_to(size):
        embeddings, computed = run(table, digests, limit=10)
    assert len(caught) == 1
    assert computed == digests
    assert list(embeddings) == digests
    assert {path.name for path in table.folder.iterdir()} == {"claims"}
    assert {path.name for path in (table.folder / "claims").iterdir()} == {"lock"}
    # With space again, all is as if nothing had been.
    assert run(table, digests, limit=10)[1] == digests
    assert run(table, digests, limit=10)[1] == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_cache_still_stores_and_serves(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    digests = digests_of(7)
    with pytest.warns(CacheWarning, match="cannot be shared") as caught:
        _, computed = run(table, digests)
    assert len(caught) == 1
    assert computed == digests
    assert run(EmbeddingCache().table("a1b2", DIMENSION), digests)[1] == []


def test_warnings_turned_into_errors_leave_no_claim_behind(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = digests_of(4)
    with pytest.raises(CacheWarning), files_limited_to(100):
        run(table, digests)
    assert run(table, digests)[1] == digests


# What is on the disk


def test_shards_are_arrow_files_and_nothing_is_pickled(table: EmbeddingTable) -> None:
    store(table, digests_of(3))
    assert shard_of(table).read_bytes().startswith(b"ARROW1")
    for path in Path(inspect.getfile(featx._store)).parent.glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text()))
        assert not words & {"pickle", "marshal", "dill", "joblib", "eval", "exec", "allow_pickle"}
