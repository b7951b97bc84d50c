"""What a further export promises: nothing computed twice or lost, the same rows at the end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from export_trial import BROKEN, DIMENSION, HashEmbedder, vector_of, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from featx import export_embeddings, read_embeddings
from featx._errors import ImageDecodeError
from featx._export.stored_rows import StoredRows
from featx._images.digest import digest_content
from featx._parquet import files as parquet_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featx._export import ExportSummary


@pytest.fixture(autouse=True)
def small_row_groups() -> Iterator[None]:
    """Row groups of 3 rows, parts of 24 rows; parcels have 4 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "_ROW_GROUP_BYTES", 3 * 4 * DIMENSION)
        patch.setattr(HashEmbedder, "computed", [])
        yield


def run(images: Any, out: Path, **parameters: Any) -> ExportSummary:
    HashEmbedder.computed.clear()
    return export_embeddings(images, out, embedder=HashEmbedder(on_error="nan"), **parameters)


def counts(summary: ExportSummary) -> tuple[int, int, int]:
    assert summary.rows == summary.new + summary.kept + summary.replaced
    return summary.new, summary.kept, summary.replaced


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_images(tmp_path / "photos", [b"image %d" % number for number in range(30)])


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_the_same_export_again_computes_nothing_and_changes_no_row(
    name: str, photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / name
    labels = list(range(30))
    run(photos, out, labels=labels)
    before = pq.read_table(out)
    summary = run(photos, out, labels=labels)
    assert name == "out.parquet" or HashEmbedder.computed == []
    assert counts(summary) == (0, 30, 0)
    assert pq.read_table(out).equals(before)


def test_a_folder_that_has_grown_adds_parts_and_touches_no_old_one(
    photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(photos[::2], out)
    old = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    summary = run(photos, out)
    assert counts(summary) == (15, 15, 0)
    assert len(HashEmbedder.computed) == 15
    assert {path: path.stat().st_mtime_ns for path in old} == old
    assert read_embeddings(out).paths.tolist() == photos[::2] + photos[1::2]


def test_rows_that_nobody_asked_about_are_kept(photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos[:20], out)
    assert counts(run(photos[15:], out)) == (10, 20, 0)
    assert sorted(read_embeddings(out).paths) == photos


@pytest.mark.parametrize("change", ["content", "label", "further"])
def test_an_image_that_changed_is_replaced(change: str, photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels, notes = ["a"] * 30, ["x"] * 30
    run(photos, out, labels=labels, further={"note": notes})
    if change == "content":
        Path(photos[7]).write_bytes(b"another")
    elif change == "label":
        labels[7] = "b"
    else:
        notes[7] = "y"
    summary = run(photos, out, labels=labels, further={"note": notes})
    assert counts(summary) == (0, 29, 1)
    assert len(HashEmbedder.computed) == 1
    read = read_embeddings(out)
    row = read.paths.tolist().index(photos[7])
    assert sorted(read.paths) == photos
    assert (read.target[row], read.further["note"][row]) == (labels[7], notes[7])
    expected = vector_of(digest_content(Path(photos[7]).read_bytes()))
    assert read.data[row].tobytes() == expected.tobytes()


@pytest.mark.parametrize("is_relative_first", [True, False])
def test_a_path_that_is_spelt_otherwise_is_of_the_same_image(
    is_relative_first: bool, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "photos")
    relative = [f"../photos/./{Path(photo).name}" for photo in photos]
    first, second = (relative, photos) if is_relative_first else (photos, relative)
    run(first[:20], out)
    assert counts(run(second, out)) == (10, 20, 0)
    assert len(HashEmbedder.computed) == 10
    # What was written is what was given.
    assert read_embeddings(out).paths.tolist() == first[:20] + second[20:]
    Path(photos[7]).write_bytes(b"another")
    assert counts(run(first, out)) == (0, 29, 1)


def test_a_stream_that_asks_anew_for_some_rows_is_told_the_same(
    photos: list[str], tmp_path: Path
) -> None:
    # As it does when a memo was mistaken, with parcels of another size.
    run(photos[:4], tmp_path / "out")
    digests = [digest_content(Path(path).read_bytes()) for path in photos[:4]]
    rows = {
        "path": pa.array([*photos[:4], photos[0]]),
        "digest": pa.array([*digests, digests[0]], pa.binary(16)),
        "error": pa.nulls(5, pa.string()),
    }
    table = pa.table(rows)
    stored = StoredRows([tmp_path / "out" / "part-00000.parquet"])
    for step in (2, 3, 5):
        found = [stored.reserve(start, table.slice(start, step)) for start in range(0, 5, step)]
        assert np.concatenate(found).tolist() == [True] * 4 + [False]  # one row serves one request
    assert stored.settle(0, table).tolist() == [True] * 4 + [False]
    assert not stored.outdated().any()


def test_images_without_paths_are_told_by_content_and_counted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    images = [b"one", b"two", b"one", b"three"]
    assert counts(run(images, out)) == (4, 0, 0)
    assert counts(run(images, out)) == (0, 4, 0)
    assert counts(run([*images, b"one", b"four"], out)) == (2, 4, 0)
    assert counts(run([b"one"], out)) == (0, 6, 0)
    assert read_embeddings(out).digests.tolist().count(digest_content(b"one")) == 3


def test_one_path_may_stand_there_with_several_labels(photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pair = [photos[0], photos[0]]
    assert counts(run(pair, out, labels=["cat", "pet"])) == (2, 0, 0)
    assert counts(run(pair, out, labels=["cat", "pet"])) == (0, 2, 0)
    assert counts(run(pair, out, labels=["cat", "dog"])) == (0, 1, 1)
    assert sorted(read_embeddings(out).target) == ["cat", "dog"]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_images_that_could_not_be_read_are_tried_again(
    name: str, photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / name
    content = Path(photos[3]).read_bytes()
    Path(photos[3]).write_bytes(BROKEN)
    photos.append(str(tmp_path / "photos" / "absent.jpg"))
    run(photos, out)
    before = pq.read_table(out)
    summary = run(photos, out)
    assert counts(summary) == (0, 31, 0)
    assert [failure.row for failure in summary.failures] == [3, 30]
    assert name == "out.parquet" or HashEmbedder.computed == []
    assert pq.read_table(out).equals(before)
    Path(photos[3]).write_bytes(content)
    summary = run(photos, out)
    assert counts(summary) == (0, 30, 1)
    assert [failure.row for failure in summary.failures] == [30]
    read = read_embeddings(out)
    assert not np.isnan(read.data[read.paths.tolist().index(photos[3])]).any()


def test_a_file_holds_the_images_asked_for_in_their_order(
    photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    run(photos[:20], out)
    shuffled = photos[10:]
    random.Random(0).shuffle(shuffled)
    summary = run(shuffled, out)
    assert counts(summary) == (10, 10, 0)
    read = read_embeddings(out)
    assert read.paths.tolist() == shuffled
    fresh = tmp_path / "fresh.parquet"
    run(shuffled, fresh)
    assert pq.read_table(out).equals(pq.read_table(fresh))


def test_a_dataset_that_was_cut_short_goes_on_to_the_same_parts(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx._export.output._GROUPS_OF_A_PART", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        assert len(run(photos, out).files) == 5
    for path in sorted(cut.iterdir())[2:]:
        path.unlink()
    (cut / ".part-00002.parquet.tmp").write_bytes(b"half of it")
    run(photos, cut)
    assert len(HashEmbedder.computed) == 18
    names = [path.name for path in sorted(whole.iterdir())]
    assert [path.name for path in sorted(cut.iterdir())] == names
    for name in names:
        assert pq.read_table(cut / name).equals(pq.read_table(whole / name))


def test_a_part_of_which_all_rows_went_stays_as_an_empty_one(
    photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(photos[:5], out, labels=["a"] * 5)
    assert counts(run(photos, out, labels=["b"] * 30)) == (25, 0, 5)
    assert pq.read_metadata(out / "part-00000.parquet").num_rows == 0
    assert read_embeddings(out).paths.tolist() == photos
    assert counts(run(photos, out, labels=["b"] * 30)) == (0, 30, 0)


requests = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c"]), st.sampled_from(["cat", "dog"])),
    min_size=1,
    max_size=30,
    unique_by=lambda image: image[0],
)


@settings(deadline=None, max_examples=40)
@given(history=st.lists(requests, min_size=1, max_size=4))
def test_after_any_history_a_dataset_has_the_last_word_on_every_image(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[list[tuple[int, str, str]]],
) -> None:
    folder = tmp_path_factory.mktemp("history")
    last: dict[str, tuple[str, str]] = {}
    for request in history:
        for number, content, label in request:
            (folder / f"{number}.jpg").write_text(f"{number} {content}")
            last[str(folder / f"{number}.jpg")] = (f"{number} {content}", label)
        paths = [str(folder / f"{number}.jpg") for number, _, _ in request]
        summary = run(paths, folder / "out", labels=[label for _, _, label in request])
        assert summary.rows == len(last)
    read = read_embeddings(folder / "out")
    assert len(set(read.paths)) == len(read.paths)
    for row, path in enumerate(read.paths):
        content, label = last.pop(path)
        assert read.target[row] == label
        assert read.digests[row] == digest_content(content.encode())
        assert read.data[row].tobytes() == vector_of(read.digests[row]).tobytes()
    assert not last


def test_the_columns_of_a_growing_dataset_keep_their_types(
    photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(photos[:10], out, further={"size": [1.5] * 10, "note": [None] * 10})
    run(photos, out, further={"size": list(range(30)), "note": ["text"] * 30})
    for path in out.iterdir():
        schema = pq.read_schema(path)
        assert schema.field("size").type == pa.float64()
        assert schema.field("note").type == pa.string()
    assert sorted(read_embeddings(out).further["size"]) == list(range(30))


def test_an_overwrite_that_can_read_nothing_keeps_the_old_dataset(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "photos", [b"image %d" % number for number in range(3)])
    export_embeddings(paths, tmp_path / "out", embedder=HashEmbedder())
    before = read_embeddings(tmp_path / "out")
    broken = write_images(tmp_path / "broken", [BROKEN + b"%d" % number for number in range(3)])
    with pytest.raises(ImageDecodeError, match="so nothing was written"):
        export_embeddings(
            broken, tmp_path / "out", embedder=HashEmbedder(on_error="nan"), overwrite=True
        )
    after = read_embeddings(tmp_path / "out")
    assert after.data.tobytes() == before.data.tobytes()
    assert after.paths.tolist() == before.paths.tolist()
