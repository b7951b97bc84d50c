"""What the look-up of vectors by digest promises: the vector of that content, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from featx import write_embeddings
from featx._errors import SchemaError
from featx._parquet import embeddings as embeddings_module
from featx._parquet import files as parquet_files
from featx._parquet.embeddings import VectorsByDigest
from featx._parquet.files import list_parts

if TYPE_CHECKING:
    from pathlib import Path

DIMENSION = 3


def digests_of(count: int) -> list[bytes]:
    # Zeros at the end, which numpy's strings of bytes would drop.
    return [number.to_bytes(8, "big") + bytes(8) for number in range(count)]


def write_dataset(folder: Path, count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, DIMENSION), np.float32)
    for part, start in enumerate(range(0, count, 20)):
        rows = slice(start, start + 20)
        write_embeddings(
            folder / f"part-{part:05}.parquet", vectors[rows], digests=digests_of(count)[rows]
        )
    return vectors


@pytest.mark.parametrize("n_at_hand", [1, 16])
def test_every_stored_image_is_found_in_any_order_and_no_other(
    n_at_hand: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_ROW_GROUP_BYTES", 4 * 4 * DIMENSION)
    monkeypatch.setattr(embeddings_module, "_GROUPS_AT_HAND", n_at_hand)
    vectors = write_dataset(tmp_path, 50)
    stored = VectorsByDigest(list_parts(tmp_path))
    order = np.random.default_rng(1).permutation(70)
    wanted: list[bytes | None] = [digests_of(70)[number] for number in order]
    found, is_found = stored.look_up([*wanted, None, wanted[0]])
    assert is_found.tolist() == [*(order < 50).tolist(), False, bool(order[0] < 50)]
    assert found[is_found][: (order < 50).sum()].tobytes() == vectors[order[order < 50]].tobytes()
    assert np.isnan(found[~is_found]).all()
    assert stored.look_up([])[0].shape == (0, DIMENSION)


def test_rows_without_a_vector_and_files_without_digests_have_none(tmp_path: Path) -> None:
    file = tmp_path / "photos.parquet"
    first, second = digests_of(2)
    write_embeddings(file, np.eye(2), digests=[first, second], errors=["truncated", None])
    assert VectorsByDigest([file]).look_up([first, second])[1].tolist() == [False, True]
    write_embeddings(file, np.eye(2), digests=[first, None])
    assert VectorsByDigest([file]).look_up([second, first])[1].tolist() == [False, True]
    write_embeddings(file, np.eye(2))
    assert VectorsByDigest([file]).look_up([first])[1].tolist() == [False]


def test_parts_of_two_recipes_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_embeddings(
            tmp_path / f"part-{number:05}.parquet",
            np.eye(2),
            provenance={"recipe": f"{number}" * 32},
        )
    with pytest.raises(SchemaError, match=r"recipe 00000000….*recipe 11111111…"):
        VectorsByDigest(list_parts(tmp_path))
