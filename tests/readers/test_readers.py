"""Other people's readers open an export as it is: a file and a dataset, in both precisions."""

from __future__ import annotations

import os
import re
import runpy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyarrow import compute as pc
from pyarrow import parquet as pq

from featx import ImageEmbedder, export_embeddings, read_embeddings

if TYPE_CHECKING:
    from types import ModuleType

    from sklearn.utils import Bunch

EXTRA = "a reader of exports; pip install 'featx[test]'"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    paths = [str(folder / f"{row:02}.png") for row in range(12)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    Path(paths[5]).write_bytes(b"no image")
    return paths


@pytest.fixture(scope="module", params=["file", "dataset"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["float32", "float16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def export(
    kind: str, precision: str, photos: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An export of 12 images, one unreadable; the dataset has grown once, so it has two parts."""
    folder = tmp_path_factory.mktemp("export")
    out = folder / ("photos.parquet" if kind == "file" else "photos")
    embedder = ImageEmbedder(cache=folder / "cache", on_error="nan")
    for count in (7, 12):
        export_embeddings(
            photos[:count],
            out,
            embedder=embedder,
            labels=[f"label {row % 3}" for row in range(count)],
            further={"price": list(range(count))},
            precision_out=precision,
        )
    assert out.is_file() if kind == "file" else len(list(out.iterdir())) == 2
    return out


@pytest.fixture(scope="module")
def expected(export: Path) -> Bunch:
    return read_embeddings(export)


def pattern(export: Path) -> str:
    return os.fspath(export if export.is_file() else export / "*.parquet")


def check_columns(expected: Bunch, paths: Any, labels: Any, prices: Any) -> None:
    assert list(paths) == expected.paths.tolist()
    assert list(labels) == expected.target.tolist()
    assert list(prices) == expected.further["price"]


def check_vectors(expected: Bunch, vectors: list[Any]) -> None:
    for row, vector in enumerate(vectors):
        if expected.errors[row] is not None:
            assert vector is None
        else:
            assert np.array_equal(np.asarray(vector, np.float32), expected.data[row])


def need(name: str) -> ModuleType:
    module: ModuleType = pytest.importorskip(name, reason=f"{name} is {EXTRA}")
    return module


def test_pandas(export: Path, expected: Bunch) -> None:
    frame = pd.read_parquet(export)
    check_columns(expected, frame["path"], frame["label"], frame["price"])
    assert frame["digest"].tolist() == expected.digests.tolist()
    assert frame["embedding"].isna().tolist() == [row == 5 for row in range(12)]
    check_vectors(expected, [v if v is not None else None for v in frame["embedding"]])


def test_polars(export: Path, expected: Bunch, precision: str) -> None:
    pl = need("polars")
    frame = pl.read_parquet(pattern(export))
    element = pl.Float32 if precision == "float32" else pl.Float16
    assert frame.schema["embedding"] == pl.Array(element, 1280)
    check_columns(expected, frame["path"], frame["label"], frame["price"])
    check_vectors(expected, frame["embedding"].cast(pl.Array(pl.Float32, 1280)).to_list())


def test_duckdb_finds_the_nearest_images_by_cosine_as_numpy_does(
    export: Path, expected: Bunch
) -> None:
    duckdb = need("duckdb")
    query = """
        SELECT path,
               array_cosine_similarity(embedding::FLOAT[1280], $query::FLOAT[1280]) AS cosine
        FROM read_parquet($files) WHERE embedding IS NOT NULL ORDER BY cosine DESC
    """
    with duckdb.connect() as connection:
        rows = connection.execute(
            query, {"query": expected.data[2].tolist(), "files": pattern(export)}
        ).fetchall()
    sound = [row for row in range(12) if row != 5]
    unit = expected.data[sound].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit[sound.index(2)]
    order = np.argsort(-cosine)
    assert [path for path, _ in rows] == [expected.paths[sound[row]] for row in order]
    assert np.allclose([value for _, value in rows], cosine[order], atol=1e-6)


def test_hugging_face_datasets(export: Path, expected: Bunch, tmp_path: Path) -> None:
    datasets = need("datasets")
    dataset = datasets.Dataset.from_parquet(
        pattern(export), cache_dir=os.fspath(tmp_path), keep_in_memory=True
    )
    check_columns(expected, dataset["path"], dataset["label"], dataset["price"])
    check_vectors(expected, list(dataset["embedding"]))
    sound = dataset.filter(lambda error: error is None, input_columns="error")
    X = sound.with_format("numpy")["embedding"]
    assert np.array_equal(np.asarray(X[:], np.float32), np.delete(expected.data, 5, axis=0))


def test_lancedb_finds_the_nearest_images_by_cosine(
    export: Path, expected: Bunch, tmp_path: Path
) -> None:
    lancedb = need("lancedb")
    # LanceDB takes no rows without a vector.
    rows = pq.read_table(export, filters=pc.field("error").is_null())
    table = lancedb.connect(tmp_path).create_table("photos", rows)
    search = table.search(expected.data[2], vector_column_name="embedding")
    found = search.distance_type("cosine").limit(12).to_list()
    assert len(found) == 11
    assert found[0]["path"] == expected.paths[2]
    row = expected.paths.tolist().index(found[1]["path"])
    a, b = expected.data[2].astype(np.float64), expected.data[row].astype(np.float64)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert np.isclose(1 - found[1]["_distance"], cosine, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of cleanlab and what it imports
def test_cleanlab_finds_the_wrong_labels(
    tmp_path: Path,
    sample_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need("cleanlab")
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "find_label_issues.py"))
    for label in example["CLASSES"]:
        (tmp_path / "train" / label).mkdir(parents=True)
        for picture in sorted((sample_folder / "train" / label).iterdir())[:40]:
            shutil.copy(picture, tmp_path / "train" / label)
    monkeypatch.setitem(example["main"].__globals__, "SAMPLE", tmp_path)
    example["main"]()
    printed = capsys.readouterr().out
    found = re.search(r"(\d+) found, (\d+) of the wrong ones", printed)
    assert found is not None, printed
    all_found, wrong_found = int(found[1]), int(found[2])
    assert wrong_found >= 4  # of 6 among 160
    assert all_found <= 30
