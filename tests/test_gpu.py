"""On a GPU: the vectors of a CPU, an out-of-memory that is real, and the laws."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from featx import ImageEmbedder, load_backbone
from featx._extraction.runtime import Execution, plan_execution
from featx._extraction.torch_runtime import draw_pictures, least_cosine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

RESNET = {"backbone": "timm/resnet50.a1_in1k", "weights": None}


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [picture.permute(1, 2, 0).numpy() for picture in draw_pictures(40, 256)]


@pytest.mark.parametrize("network", [{}, RESNET])
@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_float32_on_a_gpu_is_float32_on_a_cpu(
    pictures: list[np.ndarray], network: dict[str, Any], runtime: str
) -> None:
    expected = ImageEmbedder(**network, device="cpu", cache=None).transform(pictures)
    embedder = ImageEmbedder(**network, device="cuda", runtime=runtime, cache=None)
    assert least_cosine(embedder.fit_transform(pictures), expected) >= 0.9999
    assert embedder.execution_ == f"{runtime} on cuda"


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_bfloat16_on_a_gpu_keeps_a_resnet_where_it_is(
    pictures: list[np.ndarray], runtime: str
) -> None:
    expected = ImageEmbedder(**RESNET, device="cpu", cache=None).transform(pictures)
    embedder = ImageEmbedder(
        **RESNET, device="cuda", runtime=runtime, precision="bfloat16", cache=None
    )
    assert least_cosine(embedder.transform(pictures), expected) >= 0.999


def test_the_settings_of_the_process_are_put_back(pictures: list[np.ndarray]) -> None:
    owners: Any = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    before = [owner.fp32_precision for owner in owners]
    ImageEmbedder(device="cuda", cache=None).transform(pictures)
    assert [owner.fp32_precision for owner in owners] == before


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_rows_do_not_depend_on_their_neighbours(pictures: list[np.ndarray], runtime: str) -> None:
    embedder = ImageEmbedder(device="cuda", runtime=runtime, batch_size=8, cache=None)
    whole = embedder.transform(pictures)
    order = np.random.default_rng(0).permutation(len(pictures))
    np.testing.assert_array_equal(
        embedder.transform([pictures[row] for row in order]), whole[order]
    )
    np.testing.assert_array_equal(embedder.transform(pictures[13:14]), whole[13:14])


@pytest.fixture
def ballast() -> Iterator[None]:
    """Leave half a gibibyte of the GPU to others."""
    free, _ = torch.cuda.mem_get_info()
    taken = [torch.empty(free - 2**29, dtype=torch.uint8, device="cuda")]
    yield
    taken.clear()
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("ballast")
def test_a_real_out_of_memory_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone("timm/resnet50.a1_in1k", weights=None)
    pixels = draw_pictures(8, 224).repeat(64, 1, 1, 1)
    with caplog.at_level(logging.WARNING, logger="featx"):
        plan = plan_execution(device="cuda")
        rows = Execution(backbone, backbone.taps(), plan).open().run(pixels)[0]
    assert "does not fit into the memory" in caplog.text
    exact = plan_execution(device="cuda", batch_size=8)
    expected = Execution(backbone, backbone.taps(), exact).open().run(pixels[:8])[0]
    np.testing.assert_allclose(rows[:8], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
