"""What an export compares: the recipe of the vectors, whatever device and runtime computed them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyarrow import parquet as pq
from small_networks import TINY

from featx import ImageEmbedder, export_embeddings, read_embeddings
from featx._errors import InputError, SchemaError
from featx._parquet.files import same_recipe

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)


def make(**parameters: Any) -> ImageEmbedder:
    return ImageEmbedder(**(TINY | {"image_size": 64, "cache": None} | parameters))


def as_of_version_0_1(file: Path, **changes: Any) -> None:
    """Rewrite a file's provenance as featx 0.1 wrote it: a number, and the key of its cache."""
    table = pq.read_table(file)
    metadata = dict(table.schema.metadata)
    provenance = json.loads(metadata[b"featx.provenance"])
    provenance |= {"recipe": 2, "fingerprint": "0123" * 8, **changes}
    metadata[b"featx.provenance"] = json.dumps(provenance).encode()
    pq.write_table(table.replace_schema_metadata(metadata), file)


@pytest.mark.parametrize("is_old", [False, True])
def test_an_export_goes_on_under_another_runtime_and_each_part_names_its_own(
    is_old: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_embeddings(IMAGES[:3], out, embedder=make(runtime="torch"))
    if is_old:
        as_of_version_0_1(out / "part-00000.parquet")
    summary = export_embeddings(IMAGES, out, embedder=make(runtime="onnx"))
    assert (summary.new, summary.kept, summary.replaced) == (3, 3, 0)
    makers = [read_embeddings(path).provenance for path in summary.files]
    assert [maker["runtime"] for maker in makers] == ["torch", "onnx"]
    assert [maker["device_type"] for maker in makers] == ["cpu", "cpu"]
    expected = make(runtime="onnx").transform(IMAGES)
    assert np.allclose(read_embeddings(out).data, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"layers": "blocks.2"}, "layers"),
        ({"pooling": "max"}, "pooling"),
        ({"views": "flip"}, "views"),
        ({"image_size": 96}, "preprocessing"),
    ],
)
def test_another_recipe_is_refused_and_what_differs_is_named(
    other: dict[str, Any], named: str, is_old: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    export_embeddings(IMAGES[:1], out, embedder=make(runtime="torch"))
    if is_old:
        as_of_version_0_1(out)
    with pytest.raises(InputError, match=f"which differ in .*{named}"):
        export_embeddings(IMAGES[:1], out, embedder=make(runtime="torch", **other))


def test_parts_of_another_recipe_are_not_read_as_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_embeddings(IMAGES[:1], out, embedder=make(runtime="torch"))
    apart = tmp_path / "apart"
    export_embeddings(IMAGES[1:2], apart, embedder=make(runtime="torch", views="flip"))
    (apart / "part-00000.parquet").rename(out / "part-00001.parquet")
    with pytest.raises(SchemaError, match="expected parts of one and the same"):
        read_embeddings(out)


def test_what_others_wrote_as_a_provenance_is_compared_as_it_is() -> None:
    assert same_recipe({"by": "me"}, {"by": "me", "versions": {"numpy": "2"}})
    assert not same_recipe({"by": "me"}, {"by": "you"})
    assert not same_recipe(
        {"backbone": "a", "fingerprint": "1"}, {"backbone": "a", "fingerprint": "2"}
    )
    assert not same_recipe({}, {"recipe": "ab" * 16})
    described = {"weights_sha256": "ab", "layers": ["penultimate"], "recipe": 2}
    assert same_recipe(described | {"runtime": "onnx"}, described | {"runtime": "torch"})
    assert not same_recipe(described, described | {"weights_sha256": "cd"})
