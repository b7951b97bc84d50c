"""Golden vectors: no change of a recipe or of a library passes silently."""

from __future__ import annotations

import json

import numpy as np
import pytest
from make_golden import GOLDEN, NUMBERS, embed, golden_images

from featx import list_backbones

ENTRIES = {entry.name: entry for entry in list_backbones()}
CONTENT = json.loads(GOLDEN.read_text())


def golden(name: str) -> np.ndarray:
    rows = CONTENT["vectors"][name]
    assert list(rows) == list(golden_images())
    return np.array(list(rows.values()))


def skip_unless_installed(name: str) -> None:
    if not ENTRIES[name].installed:
        pytest.skip(f"its weights are an extra: {ENTRIES[name].install_command}")


def test_every_packaged_backbone_has_golden_vectors() -> None:
    assert set(CONTENT["vectors"]) == set(ENTRIES)
    for name in ENTRIES:
        assert golden(name).shape == (5, NUMBERS)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        *((name, "torch") for name in ENTRIES),
        ("efficientnet_lite0", "onnx"),
        pytest.param("efficientnet_lite1", "onnx", marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", "onnx", marks=pytest.mark.slow),
    ],
)
def test_the_embedding_is_the_golden_one(name: str, runtime: str) -> None:
    skip_unless_installed(name)
    np.testing.assert_allclose(
        embed(name, runtime=runtime), golden(name), rtol=0, atol=CONTENT["tolerance"]
    )


@pytest.mark.parametrize("setting", [{"image_size": 192}, {"views": "flip"}, {"weights": None}])
def test_another_recipe_is_farther_away_than_the_tolerance(setting: dict[str, object]) -> None:
    difference = np.abs(embed("efficientnet_lite0", **setting) - golden("efficientnet_lite0"))
    assert (difference.max(axis=1) > 10 * CONTENT["tolerance"]).all()
