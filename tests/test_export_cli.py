"""What `featx embed` promises beyond one file: datasets, growth, precision, overwriting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from featx import _cli as cli
from featx import read_embeddings
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def embed(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, ["embed", *map(str, arguments)])
    if isinstance(result.exception, InputError):
        raise result.exception  # what main prints as one line
    return result


def test_a_folder_that_has_grown_adds_to_its_dataset(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 3})
    out = tmp_path / "photos.v2"
    first = json.loads(embed(folder, "--out", f"{out}/", "--json").stdout)
    assert first == {
        "rows": 3, "dimension": 1280, "new": 3, "kept": 0, "replaced": 0, "unreadable": 0,
        "files": [str(out / "part-00000.parquet")],
    }  # fmt: skip
    (folder / "red" / "000.png").rename(folder / "red" / "009.png")
    second = embed(folder, "--out", f"{out}/")
    assert second.stdout.startswith(
        "4 rows of 1280 columns (1 new, 3 kept, 0 replaced), 0 without an embedding, in"
    )
    assert len(read_embeddings(out).data) == 4


def test_precision_and_overwriting_are_options(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = make_image_folder({"red": 2}), tmp_path / "photos.parquet"
    embed(folder, "--out", out)
    vectors = read_embeddings(out).data
    with pytest.raises(InputError, match="in float32, got float16; name another output or pass"):
        embed(folder, "--out", out, "--precision-out", "float16")
    embed(folder, "--out", out, "--precision-out", "float16", "--overwrite")
    assert np.array_equal(read_embeddings(out).data, vectors.astype(np.float16))
