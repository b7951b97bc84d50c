"""What a session over several tables promises: the taps of one network, each with its table."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from store_trials import Scripts, digests_of, end, heard, vectors_of

from featx._errors import CacheWarning, InputError
from featx._store.cache import EmbeddingCache
from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featx._store.table import EmbeddingTable


def open_tables(folder: str | os.PathLike[str], numbers: Sequence[int]) -> list[EmbeddingTable]:
    """Tables of different dimensions; their folders sort otherwise than their numbers."""
    cache = EmbeddingCache(folder)
    return [cache.table(f"tap{9 - number}", 8 + number) for number in numbers]


def tap(table: EmbeddingTable, digests: Sequence[bytes]) -> np.ndarray:
    return vectors_of(digests, table.dimension) + table.dimension


def run_joint(
    tables: Sequence[EmbeddingTable],
    digests: list[bytes],
    further_tables: Sequence[EmbeddingTable] = (),
    limit: int = 16,
) -> list[bytes]:
    """Embed as an embedder with several taps does; return the images that were forwarded."""
    embeddings: list[dict[bytes, np.ndarray]] = [{} for _ in tables]
    computed: list[bytes] = []
    with Session(tables, digests, further_tables) as session:
        while True:
            for number, served, vectors in session.collect():
                embeddings[number].update(zip(served, vectors, strict=True))
            if not session.remaining:
                break
            while claim := session.claim(limit):
                with claim:
                    computed.extend(claim.digests)
                    for number, table in enumerate((*tables, *further_tables)):
                        vectors = tap(table, claim.digests)
                        claim.store(number, claim.digests, vectors)
                        if number < len(tables):
                            embeddings[number].update(zip(claim.digests, vectors, strict=True))
            session.wait()
    for table, found in zip(tables, embeddings, strict=True):
        assert np.array_equal([found[digest] for digest in digests], tap(table, digests))
    return computed


def rows_of(table: EmbeddingTable) -> int:
    infos = {info.fingerprint: info for info in EmbeddingCache().info().tables}
    return infos[table.fingerprint].n_rows if table.fingerprint in infos else 0


def test_an_image_is_forwarded_once_for_all_tables(private_cache: Path) -> None:
    digests = digests_of(range(50))
    assert run_joint(open_tables(private_cache, range(4)), digests) == digests
    assert run_joint(open_tables(private_cache, range(4)), digests) == []
    for table in open_tables(private_cache, range(4)):
        assert run_joint([table], digests) == []


def test_an_image_that_one_table_lacks_is_computed_for_that_table_alone(
    private_cache: Path,
) -> None:
    tables, digests = open_tables(private_cache, range(3)), digests_of(range(20))
    run_joint(tables[:1], digests[:10])
    run_joint(tables[1:2], digests[:5])
    # The first five lack a row in the third table, the next five in two, the rest in all.
    assert run_joint(open_tables(private_cache, [0, 1]), digests) == digests[5:]
    assert [rows_of(table) for table in tables] == [20, 20, 0]
    assert run_joint(open_tables(private_cache, [2, 0, 1]), digests) == digests
    assert [rows_of(table) for table in tables] == [20, 20, 20]


def test_further_tables_are_filled_but_cause_no_forward(private_cache: Path) -> None:
    (first, further), digests = open_tables(private_cache, range(2)), digests_of(range(20))
    run_joint([first], digests[:10])
    assert run_joint([first], digests, [further]) == digests[10:]
    assert further.lookup(digests)[0].tolist() == [False] * 10 + [True] * 10
    assert np.array_equal(further.lookup(digests)[1], tap(further, digests[10:]))
    assert run_joint([first], digests, [further]) == []


def test_what_others_compute_for_one_table_is_left_to_them(private_cache: Path) -> None:
    digests = digests_of(range(6))
    (alone,), tables = open_tables(private_cache, [0]), open_tables(private_cache, [0, 1])
    with Session([alone], digests[:3]) as theirs, Session(tables, digests) as mine:
        their_claim = theirs.claim()
        claim = mine.claim()
        assert their_claim is not None
        assert claim is not None
        assert claim.digests == tuple(digests)  # the second table lacks them all
        for number, table in enumerate(tables):
            claim.store(number, digests, tap(table, digests))
        assert rows_of(tables[0]) == 3
        assert rows_of(tables[1]) == 6
        their_claim.store(0, digests[:3], tap(alone, digests[:3]))
    assert rows_of(tables[0]) == 6
    assert run_joint(tables, digests) == []


def test_an_image_that_is_computed_for_all_its_tables_is_waited_for(private_cache: Path) -> None:
    digests = digests_of(range(6))
    with (
        Session(open_tables(private_cache, [0, 1]), digests[:4]) as theirs,
        Session(open_tables(private_cache, [1, 0]), digests) as mine,
    ):
        their_claim = theirs.claim()
        claim = mine.claim()
        assert their_claim is not None
        assert claim is not None
        assert claim.digests == tuple(digests[4:])
        assert mine.claim() is None
        assert mine.remaining == 4
        their_claim.release()  # without having stored anything
        mine.wait(60)
        assert list(mine.collect()) == []
        again = mine.claim()
        assert again is not None
        assert again.digests == tuple(digests[:4])


def test_each_table_is_served_under_its_number(private_cache: Path) -> None:
    tables, digests = open_tables(private_cache, [2, 0]), digests_of(range(9))
    run_joint(tables[:1], digests)
    run_joint(tables[1:], digests[:4])
    with Session(open_tables(private_cache, [2, 0]), digests) as session:
        served = {(number, digest) for number, part, _ in session.collect() for digest in part}
        assert served == {(0, digest) for digest in digests} | {(1, d) for d in digests[:4]}
        assert session.remaining == 5


def test_tables_that_cannot_be_used_together_are_refused(private_cache: Path) -> None:
    table = EmbeddingCache(private_cache).table("a1b2", 3)
    with pytest.raises(InputError, match="Got a table twice"):
        Session([table], [], [EmbeddingCache(private_cache).table("a1b2", 3)])
    with Session([table], digests_of([1])) as session:
        claim = session.claim()
        assert claim is not None
        with pytest.raises(InputError, match="Got the table 1, expected 0 to 0"):
            claim.store(1, claim.digests, np.zeros((1, 3), np.float32))


def test_four_tables_in_a_folder_that_cannot_be_used_cost_one_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    digests = digests_of(range(7))
    with pytest.warns(CacheWarning, match=re.escape(os.fspath(blocked))) as caught:
        assert run_joint(open_tables(blocked, range(3)), digests, open_tables(blocked, [3])) == (
            digests
        )
    assert len(caught) == 1


def test_one_table_that_cannot_be_used_spoils_no_other(private_cache: Path) -> None:
    tables, digests = open_tables(private_cache, range(2)), digests_of(range(7))
    tables[0].folder.parent.mkdir()
    tables[0].folder.write_text("not a folder")
    with pytest.warns(CacheWarning):
        assert run_joint(tables, digests) == digests
    assert tables[1].lookup(digests)[0].all()


def work(folder: str, worker: int, numbers: list[int], count: int) -> list[bytes]:
    digests = digests_of(range(count))
    random.Random(worker).shuffle(digests)
    return run_joint(open_tables(folder, numbers), digests, limit=8)


def test_processes_that_want_the_same_tables_forward_each_image_once(private_cache: Path) -> None:
    # Each names the tables in another order: locks taken in that order would block for ever.
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        tasks = [(os.fspath(private_cache), n, order, 200) for n, order in enumerate(orders)]
        computed = pool.starmap(work, tasks, chunksize=1)
    counts = Counter(digest for part in computed for digest in part)
    assert set(counts) == set(digests_of(range(200)))
    assert set(counts.values()) == {1}


def test_processes_that_want_other_tables_store_each_row_once(private_cache: Path) -> None:
    wanted = [[0, 1], [1, 2], [2, 3], [3, 0], [0, 1], [2, 3]]
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        tasks = [(os.fspath(private_cache), n, numbers, 120) for n, numbers in enumerate(wanted)]
        computed = pool.starmap(work, tasks, chunksize=1)
    assert [rows_of(table) for table in open_tables(private_cache, range(4))] == [120] * 4
    for one, other in ((0, 4), (2, 5)):
        assert not set(computed[one]) & set(computed[other])


def test_the_joint_claims_of_a_killed_process_are_void_in_every_table(
    private_cache: Path, script: Scripts
) -> None:
    holder = script(
        "from test_store_joint import *",
        f"tables = open_tables({os.fspath(private_cache)!r}, range(4))",
        "with Session(tables[:3], digests, tables[3:]) as session:",
        "    claim = session.claim(10)",
        "    claim.store(1, claim.digests[:4], tap(tables[1], claim.digests[:4]))",
        "    print('claimed', flush=True)",
        "    time.sleep(60)",
    )
    assert heard(holder) == "claimed"
    tables, digests = open_tables(private_cache, range(4)), digests_of(range(10))
    with Session(tables, digests) as session:
        assert session.claim() is None
        holder.kill()
        end(holder)
        assert [part for _, part, _ in session.collect()] == [digests[:4]]
        claim = session.claim()
        assert claim is not None
        assert claim.digests == tuple(digests)
        assert EmbeddingCache(private_cache).info().n_void_claims == 0
