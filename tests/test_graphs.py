"""Exported networks are kept beside the cache: the export is paid once a machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch import nn

from featx import EmbeddingCache, FrozenBackbone, ImageEmbedder
from featx._extraction import onnx_runtime, runtime
from featx._store.graphs import GraphStore
from featx._store.session import Session

if TYPE_CHECKING:
    from pathlib import Path

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of what was exported; what runs is forgotten first, as in a new process."""
    exported: list[int] = []
    export = onnx_runtime.export_onnx

    def counted(network: nn.Module, rows: int, side: int) -> bytes:
        exported.append(rows)
        return export(network, rows, side)

    monkeypatch.setattr(onnx_runtime, "export_onnx", counted)
    forget_what_was_built()
    return exported


def forget_what_was_built() -> None:
    runtime._open_runtime.cache_clear()
    runtime._chosen.clear()


def test_the_second_process_exports_nothing_and_gives_the_same_rows(
    images: np.ndarray, exports: list[int]
) -> None:
    first = ImageEmbedder(**TINY).transform(images[:3])
    assert exports == [4]
    forget_what_was_built()
    rows = ImageEmbedder(**TINY).transform(images)
    assert exports == [4]
    np.testing.assert_array_equal(rows[:3], first)
    np.testing.assert_array_equal(rows, ImageEmbedder(**TINY, cache=None).transform(images))
    assert exports == [4, 4], "without a cache there is nowhere to keep it"


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"layers": "blocks.2"}, {"image_size": 64}])
def test_another_network_is_another_graph(
    images: np.ndarray, exports: list[int], change: dict[str, object]
) -> None:
    ImageEmbedder(**TINY).transform(images)
    forget_what_was_built()
    changed = ImageEmbedder(**TINY | change)
    np.testing.assert_array_equal(
        changed.transform(images[::-1]),
        ImageEmbedder(**TINY | change, cache=None).transform(images[::-1]),
    )


def test_a_damaged_graph_is_exported_anew(
    images: np.ndarray, private_cache: Path, exports: list[int]
) -> None:
    expected = ImageEmbedder(**TINY, cache=None).transform(images)
    ImageEmbedder(**TINY).transform(images[:1])
    (graph,) = (private_cache / "graphs").iterdir()
    content = bytearray(graph.read_bytes())
    for change in (
        lambda: content[:100],
        lambda: content[:500] + b"x" + content[501:],
        lambda: b"",
    ):
        graph.write_bytes(change())
        forget_what_was_built()
        exports.clear()
        cache = EmbeddingCache(private_cache)
        cache.clear(ImageEmbedder(**TINY).get_provenance()["fingerprint"])
        rows = ImageEmbedder(**TINY, cache=cache).transform(images)
        assert exports == [4]
        np.testing.assert_array_equal(rows, expected)


def test_of_a_network_of_ones_own_only_that_it_can_be_exported_is_kept(
    images: np.ndarray, private_cache: Path, exports: list[int]
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    embedder = ImageEmbedder(FrozenBackbone(module), device="cpu")
    rows = embedder.transform(images)
    (kept,) = (private_cache / "graphs").iterdir()
    assert len(kept.read_bytes()) == 16, "no graph, only the checksum of nothing"
    forget_what_was_built()
    np.testing.assert_array_equal(embedder.transform(images), rows)
    assert exports == [1], "what is in the cache needs no runtime"
    embedder.transform(255 - images)
    assert exports == [1, 1]


def test_graphs_and_embeddings_have_one_limit_and_one_order_of_eviction(tmp_path: Path) -> None:
    cache, graphs = EmbeddingCache(tmp_path, max_bytes=100_000), GraphStore(tmp_path / "graphs")
    keys = [f"{number:032x}" for number in range(5)]
    for number, key in enumerate(keys):
        graphs.keep(key, bytes(30_000))
        os.utime(tmp_path / "graphs" / f"{key}.graph", (number, number))
    graphs.find(keys[0])
    digests, vectors = [bytes([n] * 16) for n in range(10)], np.ones((10, 100), np.float32)
    table = cache.table("a1b2", 100)
    with Session([table], digests) as session, session.claim() as claim:
        claim.store(0, digests, vectors)
    assert table.lookup(digests)[0].all(), "what was used last stays"
    assert [graphs.find(key) is not None for key in keys] == [True, False, False, False, True]
    assert cache.info().n_bytes <= 90_000
    report = cache.prune(max_bytes=40_000)
    assert (report.n_shards, report.n_bytes_left) == (1, 30_016)
    cache.clear()
    assert not any(graphs.find(key) for key in keys)


def test_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    cache, folder = EmbeddingCache(tmp_path), tmp_path / "graphs"
    folder.mkdir()
    old, young = folder / f".{'0a' * 16}.tmp", folder / f".{'0b' * 16}.tmp"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    assert cache.info().n_temporary_files == 1
    assert cache.prune().n_temporary_files == 1
    assert (old.exists(), young.exists()) == (False, True)
    cache.clear()
    assert not young.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "graphs").write_text("where the folder should be")
    graphs = GraphStore(tmp_path / "graphs")
    graphs.keep("0a" * 16, b"a graph")
    assert graphs.find("0a" * 16) is None
