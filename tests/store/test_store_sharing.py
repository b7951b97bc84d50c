"""What the cache promises to workers that share it: threads, processes, and those that die."""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pytest
from store_trials import (
    Scripts,
    assert_clean,
    digests_of,
    end,
    heard,
    open_table,
    run,
    vectors_of,
)

from featx._store.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def half_shared(worker: int, count: int) -> list[bytes]:
    """Half of the images are every worker's, half are its own; each has its own order."""
    own = range((worker + 1) * count, (worker + 1) * count + count // 2)
    digests = digests_of([*range(count // 2), *own])
    random.Random(worker).shuffle(digests)
    return digests


def work(folder: str, worker: int, count: int, seconds_per_image: float) -> list[bytes]:
    return run(open_table(folder), half_shared(worker, count), 16, seconds_per_image)


def work_at_the_bell(bell, answers, folder: str, digests: list[bytes], seconds: float) -> None:
    table = open_table(folder)
    bell.wait()
    answers.put(run(table, digests, 16, seconds))


def assert_once(computed: Sequence[list[bytes]], wanted: set[bytes]) -> None:
    counts = Counter(digest for part in computed for digest in part)
    assert set(counts) == wanted
    assert set(counts.values()) == {1}


# Exactly once


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_share_half_of_their_images_compute_each_once(
    tmp_path: Path, method: str
) -> None:
    with multiprocessing.get_context(method).Pool(4) as pool:
        tasks = [(os.fspath(tmp_path), worker, 300, 0.001) for worker in range(4)]
        computed = pool.starmap(work, tasks, chunksize=1)
    wanted = {digest for worker in range(4) for digest in half_shared(worker, 300)}
    assert len(wanted) == 750
    assert_once(computed, wanted)


def test_loky_workers_compute_each_image_once(tmp_path: Path) -> None:
    tasks = [joblib.delayed(work)(os.fspath(tmp_path), worker, 100, 0.0) for worker in range(4)]
    computed = joblib.Parallel(n_jobs=2, backend="loky")(tasks)
    assert_once(computed, {digest for worker in range(4) for digest in half_shared(worker, 100)})


@pytest.mark.parametrize("one_table", [True, False])
def test_threads_compute_each_image_once(tmp_path: Path, one_table: bool) -> None:
    table = open_table(tmp_path)
    tables = [table if one_table else open_table(tmp_path) for _ in range(4)]
    answers: queue.Queue[list[bytes]] = queue.Queue()
    threads = [
        threading.Thread(
            target=lambda n=n: answers.put(run(tables[n], half_shared(n, 200), 16, 0.0005))
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {digest for worker in range(4) for digest in half_shared(worker, 200)}
    assert_once([answers.get_nowait() for _ in range(4)], wanted)


def test_two_processes_with_the_same_images_are_both_busy(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    bell, answers = spawn.Barrier(2), spawn.Queue()
    digests = digests_of(range(320))
    arguments = (bell, answers, os.fspath(tmp_path), digests, 0.002)
    workers = [spawn.Process(target=work_at_the_bell, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    computed = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert_once(computed, set(digests))
    assert min(map(len, computed)) >= 64


def test_readers_meet_only_whole_rows_while_others_write(tmp_path: Path) -> None:
    digests = digests_of(range(600))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        writing = pool.apply_async(run, (open_table(tmp_path), digests, 8, 0.0))
        table, seen = open_table(tmp_path), 0
        while seen < len(digests):
            found, vectors = table.lookup(digests)
            assert found.sum() >= seen
            seen = found.sum()
            assert np.array_equal(vectors, vectors_of(digests)[found])
        assert writing.get(timeout=60) == digests


# Claims of the living and of the dead


def test_the_claim_of_a_living_process_is_respected_until_it_ends(
    tmp_path: Path, script: Scripts
) -> None:
    holder = script(
        "with Session([table], digests) as session:",
        "    claim = session.claim(10)",
        "    print('claimed', flush=True)",
        "    sys.stdin.readline()",
        "    claim.store(0, claim.digests, vectors_of(claim.digests))",
    )
    assert heard(holder) == "claimed"
    digests = digests_of(range(40))
    with Session([open_table(tmp_path)], digests[:20]) as session:
        claim = session.claim()
        assert claim is not None
        assert claim.digests == tuple(digests[10:20])
        assert session.claim() is None
        assert list(session.collect()) == []
        assert session.claim() is None
        started = time.monotonic()
        session.wait(seconds=0.2)
        assert time.monotonic() - started >= 0.2
        assert holder.stdin is not None
        holder.stdin.write("go on\n")
        holder.stdin.flush()
        session.wait(seconds=60)
        assert time.monotonic() - started < 30
        served = [digest for _, piece, _ in session.collect() for digest in piece]
        assert sorted(served) == sorted(digests[:10])
        assert session.remaining == 0
    assert end(holder) == 0


def test_the_claim_of_a_killed_process_is_void(tmp_path: Path, script: Scripts) -> None:
    holder = script(
        "with Session([table], digests) as session:",
        "    claim = session.claim(10)",
        "    claim.store(0, claim.digests[:4], vectors_of(claim.digests[:4]))",
        "    print('claimed', flush=True)",
        "    time.sleep(60)",
    )
    assert heard(holder) == "claimed"
    digests = digests_of(range(10))
    with Session([open_table(tmp_path)], digests) as session:
        served = [digest for _, piece, _ in session.collect() for digest in piece]
        assert served == digests[:4]
        assert session.claim() is None
        holder.kill()
        end(holder)
        session.wait(seconds=0.05)
        assert list(session.collect()) == []
        claim = session.claim()
        assert claim is not None
        assert claim.digests == tuple(digests[4:])


def test_a_forked_child_neither_keeps_nor_ends_the_claims_of_its_parent(
    tmp_path: Path, script: Scripts
) -> None:
    holder = script(
        "warnings.simplefilter('ignore')",  # newer Pythons warn of any fork beside threads
        "with Session([table], digests) as session:",
        "    claim = session.claim(10)",
        "    child = os.fork()",
        "    if child == 0:",
        "        claim.release()",  # which must be without effect
        "        claim = session = None",
        "        print('child', os.getpid(), flush=True)",
        "        time.sleep(60)",
        "        os._exit(0)",
        "    time.sleep(60)",
    )
    word, child = heard(holder).split()
    assert word == "child"
    digests = digests_of(range(10))
    try:
        with Session([open_table(tmp_path)], digests) as session:
            assert session.claim() is None
        holder.kill()
        holder.wait()
        with Session([open_table(tmp_path)], digests) as session:
            claim = session.claim()
            assert claim is not None
            assert claim.digests == tuple(digests)
    finally:
        os.kill(int(child), signal.SIGKILL)
        end(holder)


def test_forking_while_threads_work_leaves_the_child_able_to_work(
    tmp_path: Path, script: Scripts
) -> None:
    parent = script(
        "warnings.simplefilter('ignore')",
        "numbers = iter(range(10**9))",
        "def forever():",
        "    while True:",
        "        run(table, digests_of([next(numbers) for _ in range(8)]), 2)",
        "threads = [threading.Thread(target=forever, daemon=True) for _ in range(3)]",
        "[thread.start() for thread in threads]",
        "for n in range(15):",
        "    child = os.fork()",
        "    if child == 0:",
        "        signal.alarm(20)",
        "        computed = run(table, digests_of(range(10**6 * n, 10**6 * n + 20)), 4)",
        "        os._exit(0)",
        "    assert os.waitpid(child, 0)[1] == 0, n",
        "    time.sleep(0.01)",
        "print('done', flush=True)",
        "os._exit(0)",
    )
    assert heard(parent) == "done"
    assert end(parent) == 0


# Kill it anywhere


@pytest.mark.parametrize("moment", ["os.fsync", "Path.replace", "ClaimFile.remove"])
def test_a_kill_in_the_middle_of_storing_costs_one_flush_at_most(
    tmp_path: Path, script: Scripts, moment: str
) -> None:
    writer = script(
        "from featx._store.claims import ClaimFile",
        f"original, calls = {moment}, []",
        "def kill_in_the_end(*arguments):",
        "    calls.append(arguments)",
        "    if len(calls) == 5:",
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "    return original(*arguments)",
        f"{moment} = kill_in_the_end",
        "run(table, digests, limit=8)",
    )
    assert end(writer) == -signal.SIGKILL
    digests = digests_of(range(40))
    table = open_table(tmp_path)
    found, vectors = table.lookup(digests)
    assert np.array_equal(vectors, vectors_of(digests)[found])
    assert found.sum() in (16, 32, 40)
    assert len(run(open_table(tmp_path), digests)) == 40 - found.sum()
    assert_clean(table, digests)


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_after_any_kill_the_cache_opens_clean_and_a_rerun_ends_the_same(
    tmp_path: Path, script: Scripts, rounds: int
) -> None:
    chance = random.Random(0)
    dimension, limit, stored = 512, 16, 0
    digests = digests_of(range(100 * limit * rounds))
    for _ in range(rounds):
        writer = script(
            f"table = open_table({os.fspath(tmp_path)!r}, {dimension})",
            "original = table.write",
            "def tell(digests, *others):",
            "    original(digests, *others)",
            "    print(len(digests), flush=True)",
            "table.write = tell",
            f"run(table, digests_of(range({len(digests)})), {limit}, 0.0005)",
        )
        told = int(heard(writer))
        time.sleep(chance.uniform(0, 0.15))
        writer.kill()
        assert writer.stdout is not None
        told += sum(map(int, writer.stdout.read().split()))
        end(writer)
        found, vectors = open_table(tmp_path, dimension).lookup(digests)
        assert np.array_equal(vectors, vectors_of(digests, dimension)[found])
        # What was said to be stored is stored, and at most one flush beyond it.
        assert stored + told <= found.sum() <= stored + told + limit
        stored = found.sum()
    assert 0 < stored < len(digests)
    table = open_table(tmp_path, dimension)
    assert len(run(table, digests, 256)) == len(digests) - stored
    assert_clean(table, digests)


def log_work(folder: str, worker: int, count: int) -> list[tuple[bytes, float, float]]:
    """Embed, and return each image that was computed here, from when to when."""
    log: list[tuple[bytes, float, float]] = []
    table = open_table(folder)
    with Session([table], half_shared(worker, count)) as session:
        while session.remaining:
            while claim := session.claim(16):
                with claim:
                    started = time.time()
                    time.sleep(0.001 * len(claim.digests))
                    log += [(digest, started, time.time()) for digest in claim.digests]
                    claim.store(0, claim.digests, vectors_of(claim.digests))
            session.wait()
            for _, served, vectors in session.collect():
                assert np.array_equal(vectors, vectors_of(served))
    return log


@pytest.mark.parametrize("count", [160, pytest.param(1000, marks=pytest.mark.slow)])
def test_eight_processes_with_half_of_their_images_shared_are_busy_together(
    tmp_path: Path, count: int
) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        tasks = [(os.fspath(tmp_path), worker, count) for worker in range(8)]
        logs = pool.starmap(log_work, tasks, chunksize=1)
    assert_once(
        [[digest for digest, _, _ in log] for log in logs],
        {digest for worker in range(8) for digest in half_shared(worker, count)},
    )
    shared = set(digests_of(range(count // 2)))
    spans = [
        (start, end, worker)
        for worker, log in enumerate(logs)
        for digest, start, end in log
        if digest in shared
    ]
    assert any(
        mine != other and start < other_end and other_start < end
        for start, end, mine in spans
        for other_start, other_end, other in spans
    )
