"""The stream: parcels in order, each file read once, nothing claimed that is not being computed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from featx import ImageDecodeError, ImageEmbedder, load_image_folder
from featx._extraction import contents
from featx._extraction.onnx_runtime import OnnxRuntime
from featx._extraction.stream import EmbeddingStream

if TYPE_CHECKING:
    from collections.abc import Callable

TINY: dict[str, Any] = {"backbone": "timm/test_efficientnet", "weights": None, "device": "cpu"}


@pytest.fixture
def paths(make_image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(EmbeddingStream, "parcel_images", lambda self, n_images: 3)
    return list(load_image_folder(make_image_folder({"red": 10, "green": 10})).paths)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, pixels: Any, calls: int = 1) -> list[np.ndarray]:
        counts.append(len(pixels))
        return run(self, pixels, calls)

    monkeypatch.setattr(OnnxRuntime, "run", counted)
    return counts


def claims_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.claim"))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache", ["auto", None])
def test_parcels_come_in_order_and_are_the_rows_of_transform(
    paths: list[str], num_workers: int, cache: Any
) -> None:
    embedder = ImageEmbedder(**TINY, num_workers=num_workers, cache=cache)
    parcels = list(embedder.stream(paths))
    assert [parcel.start for parcel in parcels] == list(range(0, len(paths), 3))
    assert [item for parcel in parcels for item in parcel.items] == paths
    rows = np.concatenate([parcel.vectors for parcel in parcels])
    np.testing.assert_array_equal(rows, ImageEmbedder(**TINY, cache=None).transform(paths))


@pytest.mark.parametrize("kept", [contents._KEPT_BYTES, 1])
def test_each_file_is_read_once_whatever_the_budget(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(contents, "_KEPT_BYTES", kept)
    monkeypatch.setattr(contents, "_PARCEL_BYTES", max(kept // 8, 1))
    read: list[str] = []
    original = contents.read_content

    def counted(item: Any, *arguments: Any) -> Any:
        read.append(item)
        return original(item, *arguments)

    monkeypatch.setattr(contents, "read_content", counted)
    rows = np.concatenate([p.vectors for p in ImageEmbedder(**TINY).stream(paths)])
    assert sorted(read) == sorted(paths)
    np.testing.assert_array_equal(rows, ImageEmbedder(**TINY, cache=None).transform(paths))


def test_images_that_are_made_on_demand_are_taken_once_and_in_order(paths: list[str]) -> None:
    taken: list[int] = []

    class Made:
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> str:
            taken.append(row)
            return paths[row]

    rows = np.concatenate([p.vectors for p in ImageEmbedder(**TINY).stream(Made())])
    assert taken == list(range(len(paths)))
    np.testing.assert_array_equal(rows, ImageEmbedder(**TINY).transform(paths))


def test_whoever_pauses_between_parcels_holds_no_claim(
    paths: list[str], private_cache: Path
) -> None:
    stream = ImageEmbedder(**TINY, num_workers=2).stream(paths)
    next(stream)
    deadline = time.monotonic() + 30
    while claims_in(private_cache) and time.monotonic() < deadline:
        time.sleep(0.01)  # what is under way is computed to its end, whoever waits for what
    assert not claims_in(private_cache)
    stream.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_that_is_left_early_leaves_neither_thread_nor_claim(
    paths: list[str], private_cache: Path, num_workers: int
) -> None:
    stream = ImageEmbedder(**TINY, num_workers=num_workers).stream(paths)
    next(stream)
    stream.close()
    assert not claims_in(private_cache)
    assert not [t for t in threading.enumerate() if t.name.startswith("featx-stream")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_lowest_bad_row_raises_first_and_what_was_before_it_is_kept(
    paths: list[str], forwards: list[int], num_workers: int
) -> None:
    Path(paths[7]).write_bytes(b"\x89PNG\r\n\x1a\n and no more")  # found when it is decoded
    Path(paths[9]).unlink()  # found when it is read
    embedder = ImageEmbedder(**TINY, num_workers=num_workers)
    stream = embedder.stream(paths)
    assert [next(stream).start, next(stream).start] == [0, 3]
    with pytest.raises(ImageDecodeError) as caught:
        next(stream)
    assert caught.value.row == 7
    forwards.clear()
    embedder.transform(paths[:7])
    assert forwards == []


@pytest.mark.parametrize("cache", ["auto", None])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_comes_again_in_another_parcel_costs_one_forward(
    paths: list[str], forwards: list[int], cache: Any, num_workers: int
) -> None:
    again = [*paths, *paths[::-1], *paths[:2]]
    embedder = ImageEmbedder(**TINY, cache=cache, num_workers=num_workers)
    rows = np.concatenate([parcel.vectors for parcel in embedder.stream(again)])
    assert sum(forwards) == len(paths)
    np.testing.assert_array_equal(rows[len(paths) :][: len(paths)], rows[: len(paths)][::-1])


def test_what_is_skipped_costs_no_forward_and_stays_in_its_row(
    paths: list[str], forwards: list[int]
) -> None:
    def skip(start: int, items: Any, digests: Any) -> np.ndarray:
        return np.arange(start, start + len(items)) % 2 == 1

    rows = np.concatenate([p.vectors for p in ImageEmbedder(**TINY).stream(paths, skip=skip)])
    assert sum(forwards) == len(paths) // 2
    assert np.isnan(rows[1::2]).all()
    np.testing.assert_array_equal(rows[::2], ImageEmbedder(**TINY).transform(paths[::2]))


def test_a_stream_holds_no_parcel_that_was_handed_on(paths: list[str]) -> None:
    def skip(start: int, items: Any, digests: Any) -> np.ndarray:
        return np.arange(len(items)) > 0  # one image of each parcel is computed

    stream = ImageEmbedder(**TINY, num_workers=0).stream(paths, skip=skip)
    handed_on = [weakref.ref(next(stream).vectors) for _ in range(6)]
    gc.collect()
    # All but the last one, which the stream is about to leave.
    assert [reference() for reference in handed_on[:-1]] == [None] * 5
    stream.close()


SCRIPT = """
import sys, time
import numpy as np
from featx import ImageEmbedder
from featx._extraction.onnx_runtime import OnnxRuntime
from featx._extraction.stream import EmbeddingStream
from featx._store import claims, session

EmbeddingStream.parcel_images = lambda self, n_images: 3
claims.SECONDS_BETWEEN_HEARTBEATS = 0.1
session.SECONDS_UNTIL_NAMED, session.SECONDS_UNTIL_STOPPED = 1.0, 4.0
out, pause, *paths = sys.argv[1:]
run = OnnxRuntime.run

def slow(self, pixels, calls=1):
    print(len(pixels), flush=True)
    time.sleep(float(pause))
    return run(self, pixels, calls)

OnnxRuntime.run = slow
embedder = ImageEmbedder("timm/test_efficientnet", weights=None, device="cpu")
np.save(out, embedder.transform(paths))
"""


def start(out: Path, pause: float, paths: list[str]) -> subprocess.Popen[str]:
    # The graph is kept in the cache, so that no process exports it.
    ImageEmbedder(**TINY).fit(paths)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, os.fspath(out), str(pause), *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_in_opposite_orders_end_and_share_the_work(
    paths: list[str], tmp_path: Path
) -> None:
    expected = ImageEmbedder(**TINY, cache=None).transform(paths)
    one = start(tmp_path / "one.npy", 0.05, paths)
    two = start(tmp_path / "two.npy", 0.05, paths[::-1])
    counts = [sum(map(int, process.communicate(timeout=100)[0].split())) for process in (one, two)]
    assert sum(counts) == len(paths)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), expected[::-1])


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no Ctrl-Z on this system")
def test_a_stopped_holder_is_named_and_its_images_are_computed_by_who_waits(
    paths: list[str], tmp_path: Path
) -> None:
    expected = ImageEmbedder(**TINY, cache=None).transform(paths)
    holder = start(tmp_path / "holder.npy", 5, paths)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()  # it computes, and holds a claim
        holder.send_signal(signal.SIGSTOP)
        waiting = start(tmp_path / "waiting.npy", 0, paths)
        _, errors = waiting.communicate(timeout=100)
        assert f"process {holder.pid}" in errors
        np.testing.assert_array_equal(np.load(tmp_path / "waiting.npy"), expected)
    finally:
        holder.kill()
        holder.communicate()
