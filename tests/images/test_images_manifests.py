"""A manifest gives each row's path and label as written, or says which line is wrong."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx._errors import InputError
from featx._images.manifests import load_manifest

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_text(content, encoding=encoding, newline="")
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.tab", "m.parquet", "M.CSV", "m.pq"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame(
        {
            "label": ["007", "NA", "7"],
            "weight": [1.0, 2.0, 3.0],
            "path": ["a.jpg", "sub/b, c.jpg", "/elsewhere/d.jpg"],
        }
    )
    file = tmp_path / name
    if file.suffix in (".parquet", ".pq"):
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="," if file.suffix.lower() == ".csv" else "\t")
    manifest = load_manifest(file)
    assert manifest.paths.tolist() == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "sub/b, c.jpg"),
        "/elsewhere/d.jpg",
    ]
    assert manifest.target.tolist() == ["007", "NA", "7"]
    assert manifest.target_names == ["007", "7", "NA"]
    assert manifest.data is manifest.paths
    X, y = load_manifest(file, return_X_y=True)
    assert X.tolist() == manifest.paths.tolist()
    assert y.tolist() == manifest.target.tolist()


texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8
).filter(str.strip)


@given(labels=st.lists(texts, min_size=1, max_size=6), suffix=st.sampled_from(["csv", "tsv", "pq"]))
@settings(max_examples=60, deadline=None)
def test_every_label_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], suffix: str
) -> None:
    file = tmp_path_factory.mktemp("labels") / f"manifest.{suffix}"
    table = pd.DataFrame({"path": ["a.jpg"] * len(labels), "label": labels})
    if suffix == "pq":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="," if suffix == "csv" else "\t")
    assert load_manifest(file).target.tolist() == labels


def test_columns_may_have_other_names_and_labels_may_be_absent(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "file,species\na.jpg,owl\n")
    assert load_manifest(file, path_column="file", label_column="species").target.tolist() == [
        "owl"
    ]
    unlabelled = load_manifest(file, path_column="file", label_column=None)
    assert unlabelled.target is None
    assert unlabelled.target_names is None
    assert load_manifest(file, path_column="file", label_column=None, return_X_y=True)[1] is None


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    content = "path,label\r\n\r\na.jpg,x\r\n\r\n"
    file = write(tmp_path / "m.csv", content, encoding="utf-8-sig")
    assert load_manifest(file).target.tolist() == ["x"]


def test_typed_columns_of_parquet_are_read_as_text(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    columns = {
        "path": pa.array(["a.jpg", "a.jpg", "b.jpg"]).dictionary_encode(),
        "label": pa.array([7, 8, 7]),
    }
    pyarrow.parquet.write_table(pa.table(columns), file)
    assert load_manifest(file).target.tolist() == ["7", "8", "7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has no column 'path'; its columns are \[\]"),
        ("path,label\n", "got a table without rows"),
        (
            "path,lable\na.jpg,x\n",
            r"no column 'label'; its columns are \['path', 'lable'\]; did you",
        ),
        ("path,label,a,a\na.jpg,x,1,2\n", "several columns 'a', expected one"),
        ("path,path,label\na,b,c\n", "several columns 'path'"),
        ("path,label\na.jpg,x\n\nb.jpg,\n", "line 4: no value in column 'label'"),
        ("path,label\na.jpg,x\n  ,y\n", "line 3: no value in column 'path'"),
        ("path,label\na.jpg,x\nb.jpg\n", "line 3: got 1 values, expected 2"),
        ("path,label\na.jpg,x\nb.jpg,y,z\n", "line 3: got 3 values, expected 2"),
        ('path,label\n"a.jpg,x\n', "Cannot read"),
        ('path,label\n"two\nlines.jpg",x\nb.jpg,\n', "line 4: no value in column 'label'"),
    ],
    ids=range(11),
)
def test_a_wrong_text_file_is_refused_in_one_line_with_its_place(
    tmp_path: Path, content: str, message: str
) -> None:
    file = write(tmp_path / "m.csv", content)
    with pytest.raises(InputError, match=message) as failure:
        load_manifest(file)
    assert str(file) in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.jpg", None], "label": ["x", "y"]}, "row 2: no value in column 'path'"),
        ({"path": ["a.jpg"], "label": [float("nan")]}, "row 1: no value in column 'label'"),
        ({"path": ["a.jpg"]}, r"no column 'label'; its columns are \['path'\]"),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "without rows"),
    ],
    ids=range(4),
)
def test_a_wrong_parquet_file_is_refused_in_one_line_with_its_place(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    file = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(pa.table(columns), file)
    with pytest.raises(InputError, match=message):
        load_manifest(file)


def test_a_file_that_is_no_manifest_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "latin.csv").write_bytes("path,label\nä.jpg,ü\n".encode("latin-1"))
    for name, content, message in [
        ("absent.csv", None, "No such file: "),
        ("folder.csv", None, "Expected a file, got "),
        ("m.xlsx", "", r"ending, expected one of \.csv, \.tsv, \.tab, \.parquet"),
        ("text.parquet", "path,label\n", "Cannot read "),
        ("latin.csv", None, "Cannot read .*utf-8"),
    ]:
        file = tmp_path / name
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=message) as failure:
            load_manifest(file)
        assert name in str(failure.value)
        assert "\n" not in str(failure.value)


# What people bring ------------------------------------------------------------------------------


def write_parquet(file: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_delimiter_is_the_one_of_the_header(
    delimiter: str, suffix: str, tmp_path: Path
) -> None:
    content = "path,label\na.jpg,cat\n".replace(",", delimiter)
    manifest = load_manifest(write(tmp_path / f"m{suffix}", content))
    assert (manifest.paths.tolist(), manifest.target.tolist()) == (
        [str(tmp_path / "a.jpg")],
        ["cat"],
    )


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-16", "UTF-16"), ("cp1252", "another encoding than utf-8")]
)
def test_another_encoding_is_called_by_its_name(encoding: str, name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "path,label\nä.jpg,ü\n", encoding)
    with pytest.raises(InputError, match=f"it is {name}.*; save it as CSV UTF-8"):
        load_manifest(file)


def test_labels_of_any_plain_type_are_text_and_of_another_are_refused(tmp_path: Path) -> None:
    plain = {
        "cat": b"cat", "7": 7, "0.5": 0.5, "True": True, "1.50": Decimal("1.50"),
        "2026-11-25": datetime.date(2026, 11, 25), "3": 3.0,
    }  # fmt: skip
    for text, label in plain.items():
        file = write_parquet(tmp_path / "m.parquet", path=["a.jpg"], label=[label])
        assert load_manifest(file).target.tolist() == [text]
    for label in (["cat"], {"name": "cat"}, b"\xff"):
        file = write_parquet(tmp_path / "m.parquet", path=["a.jpg"], label=[label])
        with pytest.raises(InputError, match=r"row 1: .* in column 'label'") as failure:
            load_manifest(file)
        assert len(str(failure.value)) < 300


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_pictures_in_cells_are_images(form: str, tmp_path: Path) -> None:
    content = b"an encoded image" * 10_000
    cell: Any = {
        "bytes": content,
        "struct": {"bytes": content, "path": "a.jpg"},
        "path": {"bytes": None, "path": "a.jpg"},
    }[form]
    file = write_parquet(tmp_path / "hub.parquet", image=[cell], label=[1])
    with pytest.warns(UserWarning, match="no column 'path': its column 'image' is taken"):
        manifest = load_manifest(file)
    assert manifest.data.tolist() == [str(tmp_path / "a.jpg") if form == "path" else content]


def test_columns_of_usual_names_are_taken_with_a_word(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "Filename,Class\na.jpg,cat\n")
    with pytest.warns(UserWarning, match="is taken") as said:
        assert load_manifest(file).target.tolist() == ["cat"]
    assert len(said) == 2
    with pytest.raises(InputError, match="no column 'photo'"):
        load_manifest(file, path_column="photo")


def test_ids_become_files_by_a_root_and_a_suffix(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "path,label\n0042,cat\n")
    manifest = load_manifest(file, root=tmp_path / "train", suffix=".jpg")
    assert manifest.paths.tolist() == [str(tmp_path / "train" / "0042.jpg")]


def test_paths_start_where_the_first_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "a.jpg").touch()
    file = write(tmp_path / "run" / "predictions.csv", "path,label\na.jpg,cat\nb.jpg,dog\n")
    assert load_manifest(file).paths.tolist() == ["a.jpg", "b.jpg"]
    (tmp_path / "run" / "a.jpg").touch()
    assert load_manifest(file).paths.tolist() == [
        str(tmp_path / "run" / "a.jpg"), str(tmp_path / "run" / "b.jpg"),
    ]  # fmt: skip


def test_further_columns_stay_what_they_are(tmp_path: Path) -> None:
    content = "path,price,count,code,note\na.jpg,1.5,3,007,x\nb.jpg,,4,008,\n"
    further = load_manifest(write(tmp_path / "m.csv", content), label_column=None).further
    assert further == {
        "price": [1.5, None], "count": [3, 4], "code": ["007", "008"], "note": ["x", ""],
    }  # fmt: skip
    content = "path,zero,id,phone\na.jpg,0,12345678901234567890,+49301234\n"
    further = load_manifest(write(tmp_path / "m.csv", content), label_column=None).further
    assert further == {"zero": [0], "id": ["12345678901234567890"], "phone": ["+49301234"]}
    columns = {
        "big": pa.array([2**64 - 1], pa.uint64()),
        "money": pa.array([Decimal("1.10")], pa.decimal128(9, 2)),
        "tags": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    further = load_manifest(
        write_parquet(tmp_path / "m.parquet", path=["a.jpg"], **columns), label_column=None
    ).further
    assert {name: column.type for name, column in further.items()} == {
        name: column.type for name, column in columns.items()
    }
