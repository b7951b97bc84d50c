"""What an export promises: it streams, refuses by name, and its rows are its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from export_trial import BROKEN, DIMENSION, HashEmbedder, vector_of, write_images
from pyarrow import parquet as pq
from small_networks import TINY

from featx import ImageEmbedder, export_embeddings, read_embeddings
from featx._errors import ImageDecodeError, InputError
from featx._files import LockedFile
from featx._images.digest import digest_content
from featx._parquet import files as parquet_files

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 3 rows, parts of 24 rows; parcels have 4 images."""
    monkeypatch.setattr(parquet_files, "_ROW_GROUP_BYTES", 3 * 4 * DIMENSION)
    monkeypatch.setattr(HashEmbedder, "computed", [])


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_images(tmp_path / "photos", [b"image %d" % number for number in range(30)])


@pytest.fixture(params=["out.parquet", "out"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def vectors_of(paths: list[str]) -> np.ndarray:
    return np.stack([vector_of(digest_content(Path(path).read_bytes())) for path in paths])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Rows and columns


def test_row_i_is_image_i_with_all_its_columns(photos: list[str], out: Path) -> None:
    labels = [f"class {number % 3}" for number in range(30)]
    further = {"price": list(range(30)), "note": [None] * 29 + ["last"]}
    summary = export_embeddings(
        photos, out, embedder=HashEmbedder(), labels=labels, further=further
    )
    read = read_embeddings(out)
    assert read.data.tobytes() == vectors_of(photos).tobytes()
    assert read.paths.tolist() == photos
    assert read.target.tolist() == labels
    assert read.further == further
    assert read.digests.tolist() == [digest_content(Path(p).read_bytes()) for p in photos]
    assert read.errors.tolist() == [None] * 30
    assert (summary.rows, summary.new, summary.kept, summary.replaced) == (30, 30, 0, 0)
    assert summary.dimension == DIMENSION
    assert list(summary.files) == ([out] if out.is_file() else sorted(out.iterdir()))


def test_transform_and_the_export_agree_bit_for_bit(
    make_image_folder: Callable[..., Path], out: Path
) -> None:
    folder = make_image_folder({"red": 4, "green": 3})
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    embedder = ImageEmbedder(**TINY, cache=None)
    export_embeddings(paths, out, embedder=embedder)
    assert read_embeddings(out).data.tobytes() == embedder.transform(paths).tobytes()


def test_row_groups_and_parts_have_their_sizes(photos: list[str], tmp_path: Path) -> None:
    export_embeddings(photos, tmp_path / "out.parquet", embedder=HashEmbedder())
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(group).num_rows for group in range(10)] == [3] * 10
    summary = export_embeddings(photos, tmp_path / "out", embedder=HashEmbedder())
    assert [path.name for path in summary.files] == ["part-00000.parquet", "part-00001.parquet"]
    assert [pq.read_metadata(path).num_rows for path in summary.files] == [24, 6]
    for path in summary.files:
        part = read_embeddings(path)
        assert part.provenance == {"backbone": "hash", "recipe": HashEmbedder.recipe}


class MadeOnDemand:
    """A sequence that makes an image when it is taken, and remembers how many are alive."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive = 0
        self.most = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        owner = self

        class Image(np.ndarray):
            def __del__(self) -> None:
                if self.base is None:
                    owner.alive -= 1

        self.alive += 1
        self.most = max(self.most, self.alive)
        image = Image((2, 2, 3), np.uint8)
        image[:] = row
        return image


def test_images_that_are_made_when_taken_are_never_all_there(out: Path) -> None:
    images = MadeOnDemand(60)
    export_embeddings(images, out, embedder=HashEmbedder())
    assert len(read_embeddings(out).data) == 60
    assert images.most <= 8  # a parcel, and the one before it
    assert read_embeddings(out).paths.tolist() == [None] * 60


def test_labels_and_columns_that_are_made_when_taken_are_taken_once_each(
    photos: list[str], out: Path
) -> None:
    taken: list[int] = []

    class Numbers:
        """Of 30 values; it would make more for whoever goes on asking."""

        def __len__(self) -> int:
            return 30

        def __getitem__(self, row: int) -> int:
            assert row < 30
            taken.append(row)
            return row

    export_embeddings(
        photos, out, embedder=HashEmbedder(), labels=Numbers(), further={"number": Numbers()}
    )
    read = read_embeddings(out)
    assert read.target.tolist() == read.further["number"] == list(range(30))
    assert sorted(taken) == sorted([*range(30)] * 2)


@pytest.mark.parametrize(
    "kind", [tuple, np.array, pd.Series, lambda paths: [Path(p) for p in paths]]
)
def test_images_come_in_any_sequence(kind: Any, photos: list[str], out: Path) -> None:
    export_embeddings(kind(photos), out, embedder=HashEmbedder(), labels=pd.Series(range(30)))
    assert read_embeddings(out).data.tobytes() == vectors_of(photos).tobytes()
    assert read_embeddings(out).target.tolist() == list(range(30))
    assert read_embeddings(out).paths.tolist() == photos


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None] * 10 + [1] * 20, pa.int64()),
        ([1] * 10 + [1.5] * 20, pa.float64()),
        ([None] * 30, pa.string()),
        (pd.Series(["a", "b", None] * 10, dtype="category"), pa.string()),
        (np.arange(30, dtype=np.int8), pa.int8()),
        ([[]] * 15 + [["tag"]] * 15, pa.list_(pa.string())),
    ],
)
def test_a_column_has_one_type_whatever_its_first_rows_hold(
    values: Any, kind: pa.DataType, photos: list[str], out: Path
) -> None:
    export_embeddings(photos, out, embedder=HashEmbedder(), further={"extra": values})
    table = pq.read_table(out)
    assert table.schema.field("extra").type == kind
    assert table["extra"].to_pylist() == [None if v is np.nan else v for v in list(values)]


# Images that cannot be read


def test_unreadable_images_are_null_rows_even_a_parcel_of_nothing_else(
    tmp_path: Path, out: Path
) -> None:
    contents = [BROKEN if 3 <= number < 13 else b"image %d" % number for number in range(20)]
    paths = write_images(tmp_path / "photos", contents)
    paths[5] = str(tmp_path / "absent.jpg")
    summary = export_embeddings(paths, out, embedder=HashEmbedder(on_error="nan"))
    assert [failure.row for failure in summary.failures] == list(range(3, 13))
    assert summary.failures[2].source == paths[5]
    read = read_embeddings(out)
    assert np.isnan(read.data).all(axis=1).tolist() == [3 <= row < 13 for row in range(20)]
    reasons = ["broken"] * 2 + ["no such file"] + ["broken"] * 7
    assert read.errors.tolist() == [None] * 3 + reasons + [None] * 7
    assert read.digests[5] is None
    assert pq.read_table(out)["embedding"].null_count == 10


def test_none_of_all_images_is_an_error_that_leaves_nothing(tmp_path: Path, out: Path) -> None:
    paths = write_images(tmp_path / "photos", [BROKEN] * 40)
    with pytest.raises(ImageDecodeError, match="none of the 40 images could be read"):
        export_embeddings(paths, out, embedder=HashEmbedder(on_error="nan"))
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_unreadable_image_is_named_by_its_row_and_the_old_output_stays(
    photos: list[str], out: Path
) -> None:
    export_embeddings(photos[:6], out, embedder=HashEmbedder())
    before = snapshot(out.parent)
    Path(photos[17]).write_bytes(BROKEN)
    with pytest.raises(ImageDecodeError, match="broken") as caught:
        export_embeddings(photos, out, embedder=HashEmbedder())
    assert caught.value.row == 17
    after = snapshot(out.parent)
    assert {name: after[name] for name in before if name != photos[17]} == {
        name: content for name, content in before.items() if name != photos[17]
    }
    assert not any(name.endswith((".tmp", ".lock")) for name in after)


# float16


def test_float16_is_the_rounded_float32(photos: list[str], out: Path) -> None:
    export_embeddings(photos, out, embedder=HashEmbedder(), precision_out="float16")
    kind = pq.read_schema(out if out.is_file() else out / "part-00000.parquet").field("embedding")
    assert kind.type.value_type == pa.float16()
    data = read_embeddings(out).data
    assert data.dtype == np.float32
    assert np.array_equal(data, vectors_of(photos).astype(np.float16).astype(np.float32))


def test_a_number_beyond_float16_is_refused_and_names_the_image(
    photos: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HashEmbedder, "scale", 1e6)
    with pytest.raises(InputError, match=r"0000\.jpg, but float16 ends at 65504; store"):
        export_embeddings(photos, out, embedder=HashEmbedder(), precision_out="float16")
    assert not out.exists()


# Refusals


def refuse(out: Path, photos: list[str], match: str, **parameters: Any) -> None:
    before = snapshot(out.parent)
    with pytest.raises(InputError, match=match):
        export_embeddings(photos, out, embedder=HashEmbedder(), **parameters)
    assert HashEmbedder.computed == []
    assert snapshot(out.parent) == before


def test_another_recipe_is_refused_by_both_names(
    photos: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_embeddings(photos, out, embedder=HashEmbedder())
    HashEmbedder.computed.clear()
    monkeypatch.setattr(HashEmbedder, "recipe", "ef56" * 8)
    refuse(
        out,
        photos,
        r"holds embeddings of hash \(recipe ab12cd34…\), got hash \(recipe ef56ef56…\); "
        r"name another output or pass overwrite=True / --overwrite",
    )
    summary = export_embeddings(photos, out, embedder=HashEmbedder(), overwrite=True)
    assert (summary.rows, summary.new) == (30, 30)
    assert read_embeddings(out).provenance["recipe"] == "ef56" * 8


def test_another_precision_is_refused(photos: list[str], out: Path) -> None:
    export_embeddings(photos, out, embedder=HashEmbedder())
    HashEmbedder.computed.clear()
    refuse(out, photos, "in float32, got float16; name another", precision_out="float16")


def test_other_columns_of_a_dataset_are_refused_and_a_file_gets_them(
    photos: list[str], tmp_path: Path
) -> None:
    for name in ("out", "out.parquet"):
        export_embeddings(photos, tmp_path / name, embedder=HashEmbedder(), labels=[1] * 30)
    HashEmbedder.computed.clear()
    refuse(tmp_path / "out", photos, r"Got the columns \[\] but the output has \['label'\]")
    refuse(
        tmp_path / "out",
        photos,
        "'label' of type string but in the output it is of int64",
        labels=["a"] * 30,
    )
    summary = export_embeddings(
        photos, tmp_path / "out.parquet", embedder=HashEmbedder(), labels=["a"] * 30
    )
    assert (summary.kept, summary.replaced) == (0, 30)
    assert read_embeddings(tmp_path / "out.parquet").target.tolist() == ["a"] * 30


def test_what_featx_did_not_write_is_never_overwritten_unasked(
    photos: list[str], tmp_path: Path
) -> None:
    file, folder = tmp_path / "data.parquet", tmp_path / "data"
    pd.DataFrame({"a": [1, 2]}).to_parquet(file)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    refuse(file, photos, r"data\.parquet.*it has no column|was not written by featx; name another")
    refuse(folder, photos, r"holds 'notes\.txt', which is no part of an export; name another")
    for out in (file, folder):
        export_embeddings(photos, out, embedder=HashEmbedder(), overwrite=True)
        assert len(read_embeddings(out).data) == 30
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_damaged_output_is_refused_and_named(photos: list[str], out: Path) -> None:
    summary = export_embeddings(photos, out, embedder=HashEmbedder())
    HashEmbedder.computed.clear()
    os.truncate(summary.files[0], 100)
    refuse(out, photos, rf"{summary.files[0].name}.*cannot be read as embeddings")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"labels": ["a"]}, "Got 1 labels for 30 images"),
        ({"further": {"price": [1]}}, "Got 1 values of 'price' for 30 images"),
        ({"further": {"digest": [1] * 30}}, "one of featx's own"),
        ({"labels": ["a"] * 29 + [1]}, "labels that are not all text or all numbers"),
        ({"further": {"price": [1] * 29 + ["b"]}}, "column 'price' that Arrow cannot hold"),
        ({"precision_out": "float8"}, "Got precision_out='float8' but expected 'float32'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    parameters: dict[str, Any], message: str, photos: list[str], out: Path
) -> None:
    refuse(out, photos, message, **parameters)


def test_images_that_are_none_are_refused_before_the_work(photos: list[str], out: Path) -> None:
    refuse(out, [*photos, 3], "Row 30 is <int>, not an image")
    refuse(out, np.array([*photos, 3], object), "Row 30 is <int>, not an image")
    refuse(out, photos[0], "Got a single image")
    refuse(out, (path for path in photos), "which can be read only once")
    refuse(out, [], "Got 0 images")


@pytest.mark.parametrize("name", ["absent/out", "absent/out.parquet", "out.csv", "notes.parquet/"])
def test_a_place_that_cannot_be_one_is_refused(
    name: str, photos: list[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"does not exist|ends in \.parquet|but it is a file"):
        export_embeddings(photos, f"{tmp_path}/{name}", embedder=HashEmbedder())
    assert HashEmbedder.computed == []


def test_a_slash_or_a_folder_that_exists_makes_a_dataset(photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "b.parquet").mkdir()
    for name in ("a.v2/", "b.parquet"):
        export_embeddings(photos, f"{tmp_path}/{name}", embedder=HashEmbedder())
        assert (tmp_path / name / "part-00001.parquet").is_file()


# One export at a time


def test_two_exports_to_one_place_are_refused_and_a_dead_one_leaves_nothing(
    photos: list[str], out: Path
) -> None:
    export_embeddings(photos[:3], out, embedder=HashEmbedder())
    lock = out / ".featx.lock" if out.is_dir() else out.with_name(".out.parquet.lock")
    part = out / "part-00001.parquet" if out.is_dir() else out
    leftover = part.with_name(f".{part.name}.tmp")
    leftover.write_bytes(b"half of it")
    HashEmbedder.computed.clear()
    with LockedFile(lock, create=True) as other:
        assert other.try_lock()
        refuse(out, photos, "another export is writing it now; wait until it has ended")
    assert lock.exists()
    export_embeddings(photos, out, embedder=HashEmbedder())
    assert len(read_embeddings(out).data) == 30
    assert not lock.exists()
    assert not leftover.exists()


def test_an_export_goes_on_where_the_file_system_knows_no_locks(
    photos: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.lock_descriptor", fail)
    export_embeddings(photos, out, embedder=HashEmbedder())
    assert len(read_embeddings(out).data) == 30
    assert not list(out.parent.rglob(".*"))
