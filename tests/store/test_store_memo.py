"""What the stat memo promises: a digest of the present content, or none, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from featx._errors import CacheWarning, InputError
from featx._images.archives import split_archive_path
from featx._store import memo as memo_module
from featx._store.cache import EmbeddingCache
from featx._store.memo import Observation, StatMemo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Longer than a tick of the clock of any local file system, and short enough to wait for.
SHORT_MARGIN_NS = 30_000_000


@pytest.fixture
def short_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo_module, "GRANULARITY_NS", SHORT_MARGIN_NS)


@pytest.fixture
def memo(tmp_path: Path, short_margin: None) -> StatMemo:
    return StatMemo(tmp_path / "memo", split_archive_path)


def wait_out_the_margin() -> None:
    time.sleep(1.5 * SHORT_MARGIN_NS / 1e9)


def digest_of(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content)


def true_digest(path: Path) -> bytes | None:
    try:
        return digest_of(path.read_bytes())
    except OSError:
        return None


def read_files(memo: StatMemo, paths: Sequence[Path]) -> bool:
    """Read files and remember their digests, as whoever uses a memo does."""
    observed = []
    for path in paths:
        observation = memo.observe(str(path))
        observed.append((observation, digest_of(path.read_bytes())))
    return memo.remember(observed)


def make_files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(4, "little"))
    return paths


def digests_of_files(paths: Sequence[Path]) -> list[bytes]:
    return [digest_of(path.read_bytes()) for path in paths]


def names_of(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


# What may happen to files


class Files:
    """Three paths, and everything that happens to files; all contents have one size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [folder / name for name in ("a.jpg", "b.jpg", "c.jpg")]
        self.versions = itertools.count()
        self.first_times: dict[Path, int] = {}
        self.readings: dict[Path, tuple[Observation, bytes | None]] = {}
        for path in self.paths:
            self.write(path, path)

    def write(self, path: Path, _: Path) -> None:
        path.write_bytes(next(self.versions).to_bytes(8, "little"))
        self.first_times.setdefault(path, path.stat().st_mtime_ns)

    def write_and_put_time_back(self, path: Path, other: Path) -> None:
        before = path.stat().st_mtime_ns if path.exists() else self.first_times[path]
        self.write(path, other)
        os.utime(path, ns=(before, before))

    def put_time_back(self, path: Path, _: Path) -> None:
        if path.exists():
            os.utime(path, ns=(self.first_times[path],) * 2)

    def rename_over(self, path: Path, other: Path) -> None:
        if os.path.lexists(path):
            path.replace(other)
        try:
            other.stat()
        except FileNotFoundError:
            pass
        except OSError:  # links in a circle are no file any longer
            other.unlink()

    def delete(self, path: Path, _: Path) -> None:
        path.unlink(missing_ok=True)

    def link_to(self, path: Path, other: Path) -> None:
        if path != other and not other.is_symlink():
            path.unlink(missing_ok=True)
            path.symlink_to(other)

    def copy_with_times(self, path: Path, other: Path) -> None:
        if path.exists() and not (other.exists() and path.samefile(other)):
            other.unlink(missing_ok=True)
            shutil.copy2(path, other)

    def copy_into_with_times(self, path: Path, other: Path) -> None:
        if path.exists() and not (other.exists() and path.samefile(other)):
            shutil.copy2(path, other)


HAPPENINGS = (
    Files.write,
    Files.write_and_put_time_back,
    Files.put_time_back,
    Files.rename_over,
    Files.delete,
    Files.link_to,
    Files.copy_with_times,
    Files.copy_into_with_times,
)
USES = ("observe", "read", "remember", "look up", "look up", "wait", "read whole")
STEPS = st.tuples(
    st.one_of(st.sampled_from(USES), st.sampled_from(HAPPENINGS)),
    st.integers(0, 2),
    st.integers(0, 2),
)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(STEPS, max_size=25))
def test_no_digest_but_that_of_the_present_content_is_served_whatever_happens(
    steps: list[tuple[str | Callable[[Files, Path, Path], None], int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(memo_module, "GRANULARITY_NS", SHORT_MARGIN_NS)
        memo, files = StatMemo(Path(name, "memo")), Files(Path(name))
        for step, first, second in steps:
            path, other = files.paths[first], files.paths[second]
            if callable(step):
                step(files, path, other)
            else:
                use(step, memo, files, path)
        assert_all_true(memo, files)
        # Whatever happened, files that are left alone are known in the end.
        wait_out_the_margin()
        for path in files.paths:
            use("read whole", memo, files, path)
        assert_all_true(memo, files)
        expected = [true_digest(path) for path in files.paths]
        assert memo.lookup(names_of(files.paths)) == expected


def use(step: str, memo: StatMemo, files: Files, path: Path) -> None:
    if step == "wait":
        wait_out_the_margin()
    if step in ("observe", "read whole"):
        files.readings[path] = (memo.observe(str(path)), None)
    if step in ("read", "read whole") and path in files.readings:
        files.readings[path] = (files.readings[path][0], true_digest(path))
    if step in ("remember", "read whole") and path in files.readings:
        observation, digest = files.readings[path]
        assert digest is None or memo.remember([(observation, digest)])
    if step == "look up":
        assert_all_true(memo, files)


def assert_all_true(memo: StatMemo, files: Files) -> None:
    for reader in (memo, StatMemo(memo.folder)):
        for path, digest in zip(files.paths, reader.lookup(names_of(files.paths)), strict=True):
            assert digest in (None, true_digest(path))


class SlowClockFile:
    """A file on a file system with a coarse clock that differs from ours."""

    def __init__(self, tick_ns: int, lag_ns: int) -> None:
        self.tick_ns, self.lag_ns = tick_ns, lag_ns
        self.now_ns = 1_700_000_000 * 10**9
        self.version = 0
        self.modified_ns = self.changed_ns = self._stamp() - 10**12

    def _stamp(self) -> int:
        return (self.now_ns - self.lag_ns) // self.tick_ns * self.tick_ns

    def write(self, *, keep_time: bool) -> None:
        self.version += 1
        self.changed_ns = self._stamp()
        if not keep_time:
            self.modified_ns = self.changed_ns

    def status(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(
            st_mode=0o100644,
            st_dev=1,
            st_ino=1,
            st_size=8,
            st_mtime_ns=self.modified_ns,
            st_ctime_ns=self.changed_ns,
        )


MILLISECOND, SECOND = 10**6, 10**9
# The clock's tick, and by how much it may lag behind ours (or run ahead) at that tick.
CLOCKS = st.sampled_from([1, 10 * MILLISECOND, SECOND, 2 * SECOND]).flatmap(
    lambda tick: st.tuples(st.just(tick), st.integers(-10 * SECOND, 2 * SECOND - tick))
)
MOMENTS = st.one_of(
    st.sampled_from(["write", "rewrite", "observe", "read", "remember", "look up"]),
    st.sampled_from([0, 1, MILLISECOND, SECOND, 2 * SECOND, 2 * SECOND + 1, 15 * SECOND]),
)


QUARTERS_OF_SECONDS = st.builds(
    lambda quarters, more: max(0, quarters * SECOND // 4 + more),
    st.integers(0, 12),
    st.integers(-1, 1),
)


@settings(deadline=None, max_examples=60)
@given(clock=CLOCKS, moments=st.lists(MOMENTS, max_size=25))
def test_every_order_of_write_and_read_is_safe_on_clocks_as_coarse_as_fat_and_as_skewed_as_allowed(
    clock: tuple[int, int], moments: list[str | int]
) -> None:
    assert_never_wrong(clock, moments)


@settings(deadline=None, max_examples=100)
@given(
    clock=CLOCKS,
    change=st.sampled_from(["write", "rewrite"]),
    times=st.tuples(QUARTERS_OF_SECONDS, QUARTERS_OF_SECONDS, QUARTERS_OF_SECONDS),
)
def test_a_rewrite_after_the_reading_is_safe_at_any_distance_from_the_write_before_it(
    clock: tuple[int, int], change: str, times: tuple[int, int, int]
) -> None:
    until_write, until_reading, until_rewrite = times
    assert_never_wrong(
        clock,
        [
            *(until_write, change),
            *(until_reading, "observe", "read", "remember"),
            *(until_rewrite, "rewrite"),
        ],
    )


def assert_never_wrong(clock: tuple[int, int], moments: Sequence[str | int]) -> None:
    file = SlowClockFile(*clock)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(memo_module, "_stat", file.status)
        patch.setattr(memo_module, "_clock_ns", lambda: file.now_ns)
        memo = StatMemo(Path(name))
        observation, version = memo.observe("a.jpg"), file.version
        for moment in [*moments, "look up"]:
            match moment:
                case int():
                    file.now_ns += moment
                case "write" | "rewrite":
                    file.write(keep_time=moment == "rewrite")
                case "observe":
                    observation, version = memo.observe("a.jpg"), file.version
                case "read":
                    version = file.version
                case "remember":
                    assert memo.remember([(observation, version.to_bytes(16, "little"))])
                case "look up":
                    assert memo.lookup(["a.jpg"])[0] in (None, file.version.to_bytes(16, "little"))


def test_a_file_rewritten_at_once_with_its_time_put_back_is_never_served_wrong(
    tmp_path: Path,
) -> None:
    memo, path = StatMemo(tmp_path / "memo"), tmp_path / "a.jpg"
    for number in range(60):
        path.write_bytes(number.to_bytes(8, "little"))
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        assert read_files(memo, [path])
        path.write_bytes((number + 1000).to_bytes(8, "little"))
        os.utime(path, ns=times)
        assert memo.lookup([str(path)])[0] in (None, true_digest(path))


def test_a_file_older_than_the_margin_is_served_until_it_is_rewritten_with_its_time_put_back(
    tmp_path: Path,
) -> None:
    memo, path = StatMemo(tmp_path / "memo"), tmp_path / "a.jpg"
    path.write_bytes(b"one")
    assert read_files(memo, [path])
    assert memo.lookup([str(path)]) == [None]
    time.sleep(memo_module.GRANULARITY_NS / 1e9 + 0.1)
    assert read_files(memo, [path])
    assert memo.lookup([str(path)]) == [digest_of(b"one")]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    assert memo.lookup([str(path)]) == [None]


def test_a_file_that_changes_between_reading_and_remembering_is_left_out(
    memo: StatMemo, tmp_path: Path
) -> None:
    path = make_files(tmp_path, 1)[0]
    wait_out_the_margin()
    observed = [(memo.observe(str(path)), digest_of(path.read_bytes()))]
    path.write_bytes(b"more")
    assert memo.remember(observed)
    assert not memo.path.exists()


def test_a_file_from_the_future_is_read_each_time(memo: StatMemo, tmp_path: Path) -> None:
    path = make_files(tmp_path, 1)[0]
    tomorrow = time.time_ns() + 86_400 * SECOND
    os.utime(path, ns=(tomorrow, tomorrow))
    wait_out_the_margin()
    assert read_files(memo, [path])
    assert memo.lookup([str(path)]) == [None]


def test_where_files_have_no_change_time_nothing_is_remembered(
    memo: StatMemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "_HAS_CHANGE_TIME", False)
    paths = make_files(tmp_path, 1)
    wait_out_the_margin()
    assert read_files(memo, paths)
    assert memo.lookup(names_of(paths)) == [None]


# What is found


opened: list[str] = []
watched: list[str] = []


@pytest.fixture
def opened_files(tmp_path: Path) -> Iterator[list[str]]:
    """List the files under the image folder that are opened, by whatever means."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watched and str(arguments[0]).startswith(watched[0]):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)  # which cannot be taken back, so it listens only as long as is wanted
    opened.clear()
    watched.append(str(tmp_path / "images"))
    yield opened
    watched.clear()


def test_a_second_run_opens_no_image_file(
    memo: StatMemo, tmp_path: Path, opened_files: list[str]
) -> None:
    paths = make_files(tmp_path / "images", 50)
    expected = digests_of_files(paths)
    wait_out_the_margin()
    opened_files.clear()
    assert memo.lookup(names_of(paths)) == [None] * 50
    assert read_files(memo, paths)
    assert opened_files == names_of(paths)
    opened_files.clear()
    assert StatMemo(memo.folder).lookup(names_of(paths)) == expected
    assert opened_files == []


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_entries_are_found_in_the_order_of_the_request_however_many_are_asked_for_at_once(
    memo: StatMemo, tmp_path: Path, at_once: int
) -> None:
    folders = [tmp_path / "images", tmp_path / "images" / "more", tmp_path / "other"]
    paths = [path for folder in folders for path in make_files(folder, 300)]
    wait_out_the_margin()
    for start in range(0, len(paths), 256):
        assert read_files(memo, paths[start : start + 256])
    shuffled = random.Random(0).sample(paths, len(paths))
    reader = StatMemo(memo.folder)
    for request in (paths, [*paths[:7], tmp_path / "none.jpg", *shuffled, *paths[:3]]):
        found = [
            digest
            for start in range(0, len(request), at_once)
            for digest in reader.lookup(names_of(request[start : start + at_once]))
        ]
        assert found == [true_digest(path) for path in request]


def test_the_newest_entry_of_a_path_counts(memo: StatMemo, tmp_path: Path) -> None:
    paths = make_files(tmp_path, 3)
    for number in range(3):
        paths[0].write_bytes(number.to_bytes(4, "big"))
        wait_out_the_margin()
        assert read_files(memo, paths)
        assert memo.lookup(names_of(paths)) == digests_of_files(paths)


def test_what_cannot_be_an_image_file_is_not_found_and_no_error(
    memo: StatMemo, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    wait_out_the_margin()
    names = [
        *(f"{tmp_path}/{name}" for name in ("pipe", "folder", "none.jpg", "file/1.jpg", "x.zip/1")),
        "",
        "a\0.jpg",
        "a\udcff.jpg",
        "a\ud800.jpg",
        "/dev/null",
    ]
    observed = [(memo.observe(name), b"0" * 16) for name in names]
    assert [observation.identity for observation, _ in observed] == [None] * len(names)
    assert memo.remember([*observed, (memo.observe(f"{tmp_path}/file"), b"1" * 16)])
    assert memo.lookup([*names, f"{tmp_path}/file"]) == [None] * len(names) + [b"1" * 16]
    assert memo.lookup([]) == []


def test_a_path_that_is_now_a_link_to_another_file_is_not_served_for_it(
    memo: StatMemo, tmp_path: Path
) -> None:
    first, second, link = *make_files(tmp_path, 2), tmp_path / "link.jpg"
    link.symlink_to(first)
    wait_out_the_margin()
    assert read_files(memo, [link])
    assert memo.lookup([str(link)]) == [true_digest(first)]
    link.unlink()
    link.symlink_to(second)
    assert memo.lookup([str(link)]) == [None]


def test_a_relative_path_is_the_path_from_the_current_folder(
    memo: StatMemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_files(tmp_path / "images", 1)[0]
    wait_out_the_margin()
    assert read_files(memo, [path])
    monkeypatch.chdir(path.parent)
    assert memo.lookup([path.name]) == [true_digest(path)]
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert memo.lookup([path.name]) == [None]
    gone.rmdir()
    assert memo.lookup([path.name, str(path)]) == [None, true_digest(path)]


def test_images_in_an_archive_have_the_identity_of_the_archive_which_is_looked_at_once(
    memo: StatMemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "photos.zip"
    contents = {f"cats/{number}.jpg": bytes([number]) for number in range(20)}

    def pack(contents: dict[str, bytes]) -> None:
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in contents.items():
                file.writestr(zipfile.ZipInfo(name), content)

    pack(contents)
    wait_out_the_margin()
    members = [f"{archive}/{name}" for name in contents]
    observed = [
        (memo.observe(member), digest_of(content))
        for member, content in zip(members, contents.values(), strict=True)
    ]
    assert memo.remember(observed)
    looked_at: list[str] = []

    def noting_stat(path: str) -> os.stat_result:
        looked_at.append(path)
        return Path(path).stat()

    monkeypatch.setattr(memo_module, "_stat", noting_stat)
    assert memo.lookup(members) == [digest for _, digest in observed]
    assert looked_at == [members[0], str(archive)]
    assert StatMemo(memo.folder).lookup(members) == [None] * 20  # archives are unknown to it
    times = archive.stat().st_atime_ns, archive.stat().st_mtime_ns
    pack(dict(zip(contents, reversed(contents.values()), strict=True)))
    os.utime(archive, ns=times)
    assert memo.lookup(members) == [None] * 20


def test_the_limit_of_bytes_is_for_an_image_in_an_archive_and_not_for_the_archive(
    memo: StatMemo, tmp_path: Path
) -> None:
    archive, path = tmp_path / "photos.zip", tmp_path / "a.jpg"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", bytes(100))
    with archive.open("r+b") as file:
        file.truncate(3_000_000_000)  # all of it a hole
    path.write_bytes(bytes(100))
    wait_out_the_margin()
    names = [f"{archive}/a.jpg", str(path)]
    observed = [(memo.observe(name)._replace(n_bytes=100), digest_of(bytes(100))) for name in names]
    assert memo.remember(observed)
    assert memo.lookup(names, 2**31) == memo.lookup(names, 100) == [digest_of(bytes(100))] * 2
    assert memo.lookup(names, 99) == [None, None]
    assert memo.remember([(memo.observe(str(path)), digest_of(bytes(100)))])
    assert memo.lookup(names, 99) == [None, None]


def test_a_memo_can_be_pickled_while_it_is_in_use(memo: StatMemo, tmp_path: Path) -> None:
    paths = make_files(tmp_path, 1)
    wait_out_the_margin()
    assert read_files(memo, paths)
    assert memo.lookup(names_of(paths)) == digests_of_files(paths)
    copy = pickle.loads(pickle.dumps(memo))
    assert copy.lookup(names_of(paths)) == digests_of_files(paths)


def test_a_digest_of_another_length_is_refused(memo: StatMemo, tmp_path: Path) -> None:
    path = make_files(tmp_path, 1)[0]
    with pytest.raises(InputError, match="Got a digest of 15 bytes, expected 16"):
        memo.remember([(memo.observe(str(path)), b"0" * 15)])


# Damage and trouble


def copies_with_flipped_bits(sound: bytes, bits: Sequence[int]) -> Iterator[bytes]:
    for bit in bits:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::featx.CacheWarning")
def test_no_flipped_bit_ever_gives_a_wrong_digest(
    memo: StatMemo, tmp_path: Path, step: int
) -> None:
    paths = make_files(tmp_path / "images", 60)
    expected: list[bytes | None] = list(digests_of_files(paths))
    wait_out_the_margin()
    assert read_files(memo, paths)
    sound, names, n_lost = memo.path.read_bytes(), names_of(paths), 0
    for damaged in copies_with_flipped_bits(sound, range(0, 8 * len(sound), step)):
        memo.path.unlink(missing_ok=True)
        memo.path.write_bytes(damaged)
        served = StatMemo(memo.folder).lookup(names)
        assert all(got in (None, want) for got, want in zip(served, expected, strict=True))
        n_lost += served != expected
    assert n_lost > 0


@pytest.mark.filterwarnings("ignore::featx.CacheWarning")
def test_what_is_cut_short_or_no_database_is_begun_anew(memo: StatMemo, tmp_path: Path) -> None:
    paths = make_files(tmp_path / "images", 60)
    expected, names = digests_of_files(paths), names_of(paths)
    wait_out_the_margin()
    assert read_files(memo, paths)
    sound = memo.path.read_bytes()
    cut = [sound[:length] for length in range(0, len(sound), 1500)]
    no_text = [sound.replace(b"tablememo", b"tablem\xedmo"), sound.replace(b"tablememo", b"t\xed")]
    for content in (*cut, *no_text, random.Random(0).randbytes(9000), b"?"):
        memo.path.write_bytes(content)
        served = StatMemo(memo.folder).lookup(names)
        assert all(got in (None, want) for got, want in zip(served, expected, strict=True))
        for _ in range(2):  # the first may be the one that finds the damage
            read_files(StatMemo(memo.folder), paths)
        assert StatMemo(memo.folder).lookup(names) == expected


def test_an_entry_under_the_key_of_another_path_is_not_served_for_it(
    memo: StatMemo, tmp_path: Path
) -> None:
    paths = make_files(tmp_path / "images", 2)
    paths[1].unlink()
    paths[1].hardlink_to(paths[0])  # so that nothing but the path tells the entries apart
    wait_out_the_margin()
    observed = [
        (memo.observe(str(path)), bytes([number] * 16)) for number, path in enumerate(paths)
    ]
    assert memo.remember(observed)
    with contextlib.closing(sqlite3.connect(memo.path)) as database, database:
        (first, _), (second, _) = rows = database.execute("SELECT key, entry FROM memo").fetchall()
        for key, (_, entry) in zip((second, first), rows, strict=True):
            database.execute("UPDATE memo SET entry = ? WHERE key = ?", (entry, key))
    assert StatMemo(memo.folder).lookup(names_of(paths)) == [None, None]


def test_a_folder_that_cannot_be_made_or_read_serves_nothing_and_says_that_it_kept_nothing(
    memo: StatMemo, tmp_path: Path
) -> None:
    path = make_files(tmp_path, 1)[0]
    wait_out_the_margin()
    for folder in (path, path / "below", Path("/dev/null/memo"), Path("/proc/memo")):
        memo = StatMemo(folder)
        assert not read_files(memo, [path])
        assert memo.lookup([str(path)]) == [None]


@pytest.mark.parametrize("trouble", ["busy", "full"])
def test_a_database_in_trouble_is_a_miss_and_one_warning_and_used_again_when_it_is_over(
    memo: StatMemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(memo_module, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(memo_module, "SECONDS_AFTER_TROUBLE", 0.2)
    paths = make_files(tmp_path / "images", 1000)
    wait_out_the_margin()
    assert read_files(memo, paths[:2])
    memo = StatMemo(memo.folder)
    with contextlib.closing(sqlite3.connect(memo.path, isolation_level=None)) as other:
        if trouble == "busy":
            other.execute("BEGIN EXCLUSIVE")
        else:
            open_database = memo._open

            def open_full() -> sqlite3.Connection:
                database = open_database()
                database.execute("PRAGMA max_page_count = 2")
                return database

            monkeypatch.setattr(memo, "_open", open_full)
        with pytest.warns(CacheWarning, match="memo of digests.*again; the embeddings"):
            assert not read_files(memo, paths)
        for _ in range(3):  # without another warning, which would be an error
            assert not read_files(memo, paths)
            assert memo.lookup(names_of(paths[:2])) == [None, None]
        monkeypatch.setattr(memo, "_open", StatMemo._open.__get__(memo))
        if trouble == "busy":
            other.execute("COMMIT")
    time.sleep(0.25)
    assert memo.lookup(names_of(paths[:2])) == digests_of_files(paths[:2])
    assert read_files(memo, paths)
    assert memo.lookup(names_of(paths)) == digests_of_files(paths)


def test_a_database_that_was_removed_is_made_again(memo: StatMemo, tmp_path: Path) -> None:
    paths = make_files(tmp_path / "images", 3)
    wait_out_the_margin()
    for _ in range(2):
        assert read_files(memo, paths)
        assert memo.lookup(names_of(paths)) == digests_of_files(paths)
        EmbeddingCache(tmp_path).clear()
        assert not memo.path.exists()
        assert memo.lookup(names_of(paths)) == [None] * 3


def test_a_memo_that_is_too_large_begins_anew(
    memo: StatMemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "MAX_BYTES", 40_000)
    paths = make_files(tmp_path / "images", 2000)
    wait_out_the_margin()
    for start in range(0, len(paths), 100):
        assert read_files(memo, paths[start : start + 100])
        assert None not in memo.lookup(names_of(paths[start : start + 100]))
    assert memo.path.stat().st_size < 80_000


# Several at once, and those that die


def remember_in_batches(folder: str, names: list[str], rounds: int) -> None:
    memo_module.GRANULARITY_NS = SHORT_MARGIN_NS
    memo = StatMemo(Path(folder))
    for number in range(rounds):
        chosen = names[number % 10 :: 10]
        assert read_files(memo, [Path(name) for name in chosen])
        assert None not in memo.lookup(chosen)


def test_processes_that_write_at_once_lose_nothing_and_see_nothing_wrong(
    memo: StatMemo, tmp_path: Path
) -> None:
    paths = make_files(tmp_path / "images", 120)
    expected, names = digests_of_files(paths), names_of(paths)
    wait_out_the_margin()
    context = multiprocessing.get_context("spawn")
    shares = (names[:80], names[40:])
    writers = [
        context.Process(target=remember_in_batches, args=(str(memo.folder), share, 60))
        for share in shares
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        served = memo.lookup(names)
        assert all(got in (None, want) for got, want in zip(served, expected, strict=True))
        time.sleep(0.001)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert memo.lookup(names) == expected


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_opens_the_database_itself_while_threads_of_its_parent_use_it(
    memo: StatMemo, tmp_path: Path
) -> None:
    paths = make_files(tmp_path / "images", 40)
    expected, names = digests_of_files(paths), names_of(paths)
    wait_out_the_margin()
    assert read_files(memo, paths)
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            read_files(memo, paths)
            memo.lookup(names)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:  # pragma: no cover - the parent is measured
                signal.alarm(30)
                is_right = memo.lookup(names) == expected and read_files(memo, paths)
                os._exit(0 if is_right else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        is_over.set()
        thread.join()
    assert memo.lookup(names) == expected


REMEMBERS_UNTIL_KILLED = """
import sys
from pathlib import Path
from featx._store import memo as memo_module
from featx._store.cache import EmbeddingCache

memo_module.GRANULARITY_NS = 0
memo = memo_module.StatMemo(Path(sys.argv[1]))
for number, name in enumerate(sys.argv[2:]):
    assert memo.remember([(memo.observe(name), b"%016d" % number)])
    print(number, flush=True)
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_what_was_remembered_survives_kills_at_random_moments(
    memo: StatMemo, tmp_path: Path, rounds: int
) -> None:
    names = names_of(make_files(tmp_path / "images", 400))
    wait_out_the_margin()
    chance = random.Random(0)
    for _ in range(rounds):
        shutil.rmtree(memo.folder, ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", REMEMBERS_UNTIL_KILLED, str(memo.folder), *names],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "0\n"
            time.sleep(chance.uniform(0, 0.1))
            child.kill()
            remembered = 1 + child.stdout.read().count("\n")
        served = memo.lookup(names)
        assert served[:remembered] == [b"%016d" % number for number in range(remembered)]
        for number, digest in enumerate(served[remembered:], remembered):
            assert digest in (None, b"%016d" % number)
