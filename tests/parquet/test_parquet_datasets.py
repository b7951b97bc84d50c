"""What reading a dataset of parts promises: every row of every part, or an error."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from featx import read_embeddings, write_embeddings
from featx._errors import InputError, SchemaError
from featx._parquet import files as parquet_files

if TYPE_CHECKING:
    from pathlib import Path

PROVENANCE = {"backbone": "efficientnet_lite0", "fingerprint": "ab12cd34" * 4}


def write_part(folder: Path, number: int, **changes: Any) -> np.ndarray:
    vectors = np.random.default_rng(number).standard_normal((5, 3), np.float32)
    parameters: dict[str, Any] = {
        "paths": [f"{number}/{row}.jpg" for row in range(5)],
        "labels": ["cat", None, "dog", "cat", "owl"],
        "errors": [None, "truncated", None, None, None],
        "further": {"price": [number, None, 1, 2, 3]},
        "provenance": PROVENANCE,
    }
    write_embeddings(folder / f"part-{number:05}.parquet", vectors, **(parameters | changes))
    vectors[1] = np.nan
    return vectors


def test_parts_follow_each_other_and_their_columns_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_ROW_GROUP_BYTES", 24)
    vectors = np.concatenate([write_part(tmp_path, number) for number in range(12)])
    (tmp_path / ".part-00012.parquet.tmp").write_bytes(b"being written")
    read = read_embeddings(tmp_path)
    assert np.array_equal(read.data, vectors, equal_nan=True)
    assert read.data.flags.c_contiguous
    assert read.data.flags.writeable
    assert read.paths.tolist() == [f"{part}/{row}.jpg" for part in range(12) for row in range(5)]
    assert read.target.tolist() == ["cat", None, "dog", "cat", "owl"] * 12
    assert read.errors.tolist() == [None, "truncated", None, None, None] * 12
    assert read.further["price"][::5] == list(range(12))
    assert read.provenance == PROVENANCE
    X, y = read_embeddings(tmp_path, return_X_y=True)
    assert (X.shape, y.shape) == ((60, 3), (60,))


def test_parts_of_two_fingerprints_are_refused_by_both_names(tmp_path: Path) -> None:
    write_part(tmp_path, 0)
    write_part(tmp_path, 1, provenance=PROVENANCE | {"fingerprint": "ef56" * 8})
    with pytest.raises(SchemaError, match=r"part-00000\.parquet.*ab12cd34….*part-00001.*ef56ef56…"):
        read_embeddings(tmp_path)


def test_versions_may_differ_where_the_fingerprint_does_not(tmp_path: Path) -> None:
    write_part(tmp_path, 0, provenance=PROVENANCE | {"versions": {"torch": "1"}})
    write_part(tmp_path, 1, provenance=PROVENANCE | {"versions": {"torch": "2"}})
    assert read_embeddings(tmp_path).provenance["versions"] == {"torch": "1"}


def test_parts_of_other_columns_or_dimensions_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, 0)
    write_part(tmp_path, 1, labels=None)
    with pytest.raises(SchemaError, match="have different columns"):
        read_embeddings(tmp_path)
    write_embeddings(tmp_path / "part-00001.parquet", np.eye(5), provenance=PROVENANCE)
    with pytest.raises(SchemaError, match="have different columns"):
        read_embeddings(tmp_path)


def test_a_missing_part_and_a_foreign_one_are_refused_by_name(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        write_part(tmp_path, number)
    (tmp_path / "part-00001.parquet").rename(tmp_path / "photos.parquet")
    with pytest.raises(SchemaError, match=r"holds 'photos\.parquet', which is no part"):
        read_embeddings(tmp_path)
    (tmp_path / "photos.parquet").unlink()
    with pytest.raises(SchemaError, match=r"has no 'part-00001\.parquet' but a 'part-00002"):
        read_embeddings(tmp_path)


def test_no_flipped_bit_in_a_part_ever_gives_other_rows(tmp_path: Path) -> None:
    vectors = np.concatenate([write_part(tmp_path, number) for number in range(2)])
    file = tmp_path / "part-00001.parquet"
    content, chance, refused = file.read_bytes(), random.Random(1), 0
    for _ in range(200):
        bit = chance.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            read = read_embeddings(tmp_path)
        except SchemaError:
            refused += 1
            continue
        assert np.array_equal(read.data, vectors, equal_nan=True)
        assert len(read.paths) == len(read.target) == len(read.further["price"]) == 10
    assert refused > 100


def test_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_embeddings(tmp_path / "absent")
    with pytest.raises(SchemaError, match="a folder without parts"):
        read_embeddings(tmp_path)
