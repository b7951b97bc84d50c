"""What Parquet files of embeddings promise: exact, whole or absent, and open to other tools."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet as pq

from featx._errors import FeatxError, InputError, SchemaError
from featx._parquet import files as parquet_files
from featx._parquet.embeddings import read_embeddings, write_embeddings

# Everything but lone surrogates, which are no text: they have a test of their own.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.tuples(st.integers(0, 20), st.integers(1, 20))


def random_vectors(rows: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dimension), np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "photos.parquet"


def write_sample(file: Path) -> np.ndarray:
    vectors = random_vectors(6, 4)
    write_embeddings(
        file,
        vectors,
        paths=[f"photos/{row}.jpg" for row in range(6)],
        labels=["cat", "dog", "cat", "owl", "dog", "cat"],
        digests=[bytes([row]) * 16 for row in range(6)],
        provenance={"backbone": "efficientnet_lite0", "layers": ["penultimate"]},
    )
    return vectors


# Round trips


@settings(deadline=None, max_examples=150)
@given(data=st.data(), bits=hnp.arrays(np.uint32, shapes), group_bytes=st.integers(1, 2000))
def test_what_is_written_is_read_bit_for_bit(
    data: st.DataObject, bits: np.ndarray, group_bytes: int
) -> None:
    vectors = bits.view(np.float32)  # infinities and all kinds of NaN among them
    rows = len(vectors)
    columns = {
        "paths": st.one_of(st.none(), texts),
        "labels": data.draw(
            st.sampled_from(
                [st.one_of(st.none(), texts), st.integers(-(2**63), 2**63 - 1), st.booleans()]
            )
        ),
        "digests": st.one_of(st.none(), st.binary(min_size=16, max_size=16)),
        "errors": st.one_of(st.none(), texts),
    }
    given_columns = {
        name: data.draw(st.one_of(st.none(), st.lists(values, min_size=rows, max_size=rows)))
        for name, values in columns.items()
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "_ROW_GROUP_BYTES", group_bytes)
        file = Path(folder, "a.parquet")
        write_embeddings(file, vectors, **given_columns)
        read = read_embeddings(file)
    is_right = np.array([error is None for error in given_columns["errors"] or [None] * rows], bool)
    assert read.data.dtype == np.float32
    assert read.data.shape == vectors.shape
    assert read.data[is_right].tobytes() == vectors[is_right].tobytes()
    assert np.isnan(read.data[~is_right]).all()
    for name, key in [("paths",) * 2, ("labels", "target"), ("digests",) * 2, ("errors",) * 2]:
        values = given_columns[name]
        assert read[key] is None if values is None else read[key].tolist() == values


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (["a", None, "b"], object),
        (np.array(["a", "b", "c"]), object),
        (pd.Series(["a", "b", "c"], dtype="category"), object),
        (np.array([1, 2, 3], np.int16), np.int64),
        ([1, None, 2**60 + 1], object),
        ([1.5, 2.0, float("inf")], np.float64),
        ([True, False, True], np.bool_),
        ([None, None, None], object),
    ],
)
def test_labels_keep_their_kind(file: Path, labels: object, dtype: type) -> None:
    write_embeddings(file, random_vectors(3, 2), labels=labels)
    data, target = read_embeddings(file, return_X_y=True)
    assert data.shape == (3, 2)
    assert target.dtype == dtype
    assert target.tolist() == list(labels)


def test_a_row_with_an_error_has_a_null_embedding_and_other_nan_stay_nan(file: Path) -> None:
    vectors = random_vectors(4, 3)
    vectors[1:3] = np.nan
    write_embeddings(file, vectors, errors=[None, "truncated", None, None])
    column = pq.read_table(file).column("embedding")
    assert column.is_valid().to_pylist() == [True, False, True, True]
    read = read_embeddings(file)
    assert np.array_equal(read.data, vectors, equal_nan=True)
    assert read.errors.tolist() == [None, "truncated", None, None]


def test_the_result_may_be_changed_and_is_contiguous(file: Path) -> None:
    write_sample(file)
    data = read_embeddings(file).data
    assert data.flags.writeable
    assert data.flags.c_contiguous


def test_provenance_is_kept(file: Path) -> None:
    provenance = {"backbone": "réseau", "layers": ["a", "b"], "size": [224, 224], "views": None}
    write_embeddings(file, random_vectors(2, 2), provenance=provenance)
    assert read_embeddings(file).provenance == provenance
    assert json.loads(pq.read_schema(file).metadata[b"featx.provenance"]) == provenance
    write_embeddings(file, random_vectors(2, 2))
    assert read_embeddings(file).provenance == {}


def test_file_names_that_are_no_text_are_written_as_escapes(file: Path) -> None:
    names = [Path(os.fsdecode(b"caf\xe9.jpg")), "a\ud800b.jpg", "café.jpg"]
    write_embeddings(file, random_vectors(3, 2), paths=names, labels=["\udcff", "b", "c"])
    read = read_embeddings(file)
    assert read.paths.tolist() == ["caf\\udce9.jpg", "a\\ud800b.jpg", "café.jpg"]
    assert read.target.tolist() == ["\\udcff", "b", "c"]


def test_other_floats_are_stored_as_float32(file: Path) -> None:
    vectors = random_vectors(3, 4)
    for given_vectors in (
        vectors.astype(np.float64),
        pd.DataFrame(vectors),
        np.asfortranarray(vectors),
    ):
        write_embeddings(file, given_vectors)
        assert read_embeddings(file).data.tobytes() == vectors.tobytes()


# Other tools


def test_the_schema_is_the_one_that_reads_fast(file: Path) -> None:
    write_sample(file)
    schema = pq.read_schema(file)
    assert schema.names == ["path", "label", "embedding", "digest"]
    kind = schema.field("embedding").type
    assert pa.types.is_fixed_size_list(kind)
    assert kind.list_size == 4
    assert kind.value_type == pa.float32()
    assert not kind.value_field.nullable


def test_pandas_opens_it(file: Path) -> None:
    vectors = write_sample(file)
    frame = pd.read_parquet(file)
    assert frame["label"].tolist() == ["cat", "dog", "cat", "owl", "dog", "cat"]
    assert np.array_equal(np.stack(frame["embedding"]), vectors)
    assert frame["digest"][1] == b"\x01" * 16


def test_polars_opens_it(file: Path) -> None:
    vectors = write_sample(file)
    frame = pl.read_parquet(file)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 4)
    assert np.array_equal(frame["embedding"].to_numpy(), vectors)
    assert frame.filter(pl.col("label") == "owl")["path"].to_list() == ["photos/3.jpg"]


def test_duckdb_finds_the_nearest_images_by_cosine(file: Path) -> None:
    vectors = write_sample(file)
    with duckdb.connect() as connection:
        # DuckDB reads the column as a list, and its similarity wants an array of known length.
        rows = connection.execute(
            """
            SELECT path, array_cosine_similarity(embedding::FLOAT[4], $query::FLOAT[4]) AS cosine
            FROM read_parquet($file) ORDER BY cosine DESC
            """,
            {"query": vectors[2].tolist(), "file": os.fspath(file)},
        ).fetchall()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[2]
    order = np.argsort(-cosine)
    assert [path for path, _ in rows] == [f"photos/{row}.jpg" for row in order]
    assert np.allclose([value for _, value in rows], cosine[order], atol=1e-6)


def test_null_embeddings_are_null_elsewhere(file: Path) -> None:
    write_embeddings(file, random_vectors(3, 2), errors=[None, "truncated", None])
    assert pd.read_parquet(file)["embedding"].isna().tolist() == [False, True, False]
    assert pl.read_parquet(file)["embedding"].is_null().to_list() == [False, True, False]
    with duckdb.connect() as connection:
        query = "SELECT error FROM read_parquet(?) WHERE embedding IS NULL"
        assert connection.execute(query, [os.fspath(file)]).fetchall() == [("truncated",)]


# Whole or absent


def test_a_failure_leaves_the_old_file_and_no_other(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(file)
    before = file.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for target in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.raises(OSError, match="No space"):
                write_embeddings(file, random_vectors(3, 2))
        assert file.read_bytes() == before
        assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("old", [True, False])
def test_a_kill_while_writing_leaves_the_old_file_or_the_new_one(
    file: Path, old: bool, call: int
) -> None:
    if old:
        write_sample(file)
    before = file.read_bytes() if old else None
    code = (
        "import os, signal, sys\n"
        "import numpy as np, pathlib\n"
        "from featx._parquet.embeddings import write_embeddings\n"
        "calls = []\n"
        "def kill_at_last(*arguments):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) == int(sys.argv[2]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original[len(arguments)](*arguments)\n"
        "original = {1: os.fsync, 2: pathlib.Path.replace}\n"
        "os.fsync = pathlib.Path.replace = kill_at_last\n"
        "write_embeddings(sys.argv[1], np.ones((3, 2)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, os.fspath(file), str(call)], check=False)
    assert ended.returncode == -signal.SIGKILL
    if call == 3:  # after the renaming
        assert np.array_equal(read_embeddings(file).data, np.ones((3, 2)))
    else:
        assert (file.read_bytes() if file.exists() else None) == before


def test_the_file_is_on_the_disk_before_it_gets_its_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    original = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(file.exists()), original(number))
    )
    write_embeddings(file, random_vectors(3, 2))
    assert synced == [False, True]


# Bad input


@pytest.mark.parametrize("name", ["paths", "labels", "digests", "errors"])
def test_lengths_that_differ_are_both_named(file: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"Got 2 {name} for 3 embeddings"):
        write_embeddings(file, random_vectors(3, 2), **{name: [None, None]})
    assert not file.exists()


@pytest.mark.parametrize(
    "embeddings",
    [np.zeros(3), np.zeros((2, 2, 2)), np.zeros((2, 3), int), [["a", "b"]], np.zeros((3, 0)), 3.0],
)
def test_what_is_no_matrix_of_floats_is_refused(file: Path, embeddings: object) -> None:
    with pytest.raises(InputError, match=r"Got embeddings of .* expected floats and the shape"):
        write_embeddings(file, embeddings)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"paths": ["a", 3]}, "Got 3 in row 1 of paths"),
        ({"errors": [None, np.nan]}, "Got nan in row 1 of errors"),
        ({"digests": [None, b"short"]}, "Got b'short' in row 1 of digests, expected 16 bytes"),
        ({"digests": ["0" * 16, None]}, "in row 0 of digests"),
        ({"labels": ["a", 1]}, "Got labels that are not all text or all numbers"),
        ({"labels": [1, 2**70]}, "Got labels that are not all"),
        ({"labels": [[1], [2]]}, "Got labels of the type list"),
        ({"provenance": {"a": {1, 2}}}, "Got a provenance that JSON cannot hold"),
        ({"provenance": {"a": float("nan")}}, "Got a provenance that JSON cannot hold"),
    ],
)
def test_values_that_cannot_be_stored_are_named(
    file: Path, column: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_embeddings(file, random_vectors(2, 2), **column)
    assert not file.exists()


def test_a_folder_that_is_missing_or_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/a\.parquet.*its folder does not exist"):
        write_embeddings(tmp_path / "absent" / "a.parquet", random_vectors(2, 2))
    with pytest.raises(InputError, match="it is a folder"):
        write_embeddings(tmp_path, random_vectors(2, 2))
    with pytest.raises(InputError, match=r"Cannot read .*absent\.parquet.*No such file"):
        read_embeddings(tmp_path / "absent.parquet")
    with pytest.raises(SchemaError, match="a folder without parts of a dataset"):
        read_embeddings(tmp_path)


def test_labels_that_are_asked_for_and_absent_are_an_error(file: Path) -> None:
    write_embeddings(file, random_vectors(2, 2))
    with pytest.raises(InputError, match="has no labels"):
        read_embeddings(file, return_X_y=True)


# Damaged and foreign files


def assert_schema_error(file: Path, match: str | None = None) -> None:
    with pytest.raises(SchemaError, match=match) as caught:
        read_embeddings(file)
    assert isinstance(caught.value, FeatxError)
    assert os.fspath(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"path,label\na.jpg,cat\n" * 99])
def test_a_file_that_is_not_parquet_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert_schema_error(file, "cannot be read as embeddings")


def test_parquet_of_others_is_refused(file: Path) -> None:
    pd.DataFrame({"embedding": [[1.0, 2.0]], "label": ["a"]}).to_parquet(file)
    assert_schema_error(file, "not written by featx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"featx.format_version": "2"}, "format version 2, this featx reads 1"),
        ({"featx.provenance": "{"}, "Expecting"),
    ],
)
def test_another_version_is_refused(file: Path, change: dict[str, str], message: str) -> None:
    write_sample(file)
    table = pq.read_table(file)
    metadata = {key.decode(): value for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata({**metadata, **change}), file)
    assert_schema_error(file, message)


def test_further_columns_come_back_as_they_were(file: Path) -> None:
    further = {
        "price": [1.5, None],
        "taken": [date(2026, 1, 2), date(2025, 3, 4)],
        "tags": [["a"], []],
    }
    write_embeddings(file, random_vectors(2, 3), paths=["a.jpg", "b.jpg"], further=further)
    assert read_embeddings(file).further == further
    assert pq.read_table(file).column_names == ["path", "embedding", *further]
    write_embeddings(file, random_vectors(2, 3))
    assert read_embeddings(file).further == {}


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"digest": [1, 2]}, "one of featx's own"),
        ({"price": [1]}, "Got 1 values of 'price' for 2 embeddings"),
        ({"price": [1, "two"]}, "column 'price' that Arrow cannot hold"),
    ],
)
def test_further_columns_that_cannot_stand_there_are_named(
    file: Path, further: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_embeddings(file, random_vectors(2, 3), further=further)
    assert not file.exists()


def test_columns_of_another_type_are_refused(file: Path) -> None:
    write_sample(file)
    table = pq.read_table(file)
    lists = table.column("embedding").cast(pa.list_(pa.float32()))
    for changed, message in [
        (table.drop_columns("embedding"), "no column 'embedding'"),
        (table.set_column(0, "path", table["digest"]), "column 'path' is of fixed_size_binary"),
        (table.set_column(2, "embedding", lists), "its embeddings are list"),
    ]:
        pq.write_table(changed, file)
        assert_schema_error(file, message)


def test_a_truncated_file_never_gives_fewer_rows(file: Path) -> None:
    write_sample(file)
    content = file.read_bytes()
    for size in np.linspace(0, len(content) - 1, 60).astype(int):
        file.write_bytes(content[:size])
        assert_schema_error(file)


def test_no_flipped_bit_ever_gives_another_vector_or_label(file: Path) -> None:
    vectors = write_sample(file)
    content, chance, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(400):
        bit = chance.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            read = read_embeddings(file)
        except SchemaError:
            refused += 1
            continue
        assert read.data.tobytes() == vectors.tobytes()
        assert read.target.tolist() == ["cat", "dog", "cat", "owl", "dog", "cat"]
        assert read.paths.tolist() == [f"photos/{row}.jpg" for row in range(6)]
    assert refused > 200


def test_a_file_that_is_given_as_text_is_read_and_written(file: Path) -> None:
    write_embeddings(str(file), random_vectors(2, 2))
    assert read_embeddings(str(file)).data.shape == (2, 2)
