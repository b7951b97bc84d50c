"""featx: images become the embeddings of a frozen, pretrained CNN, inside scikit-learn.

The public names are listed here and loaded when first used, so that ``import featx`` costs
nothing: neither torch nor pandas nor scikit-learn is imported by it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from typing import TYPE_CHECKING, Any

from featx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featx.backbones.catalog import list_backbones as list_backbones
    from featx.backbones.frozen import FrozenBackbone as FrozenBackbone
    from featx.backbones.providers import load_backbone as load_backbone
    from featx.comparison.compare import compare_strategies as compare_strategies
    from featx.embedder import ImageEmbedder as ImageEmbedder
    from featx.errors import FeatxError as FeatxError
    from featx.errors import ImageDecodeError as ImageDecodeError
    from featx.errors import ImageDecodeWarning as ImageDecodeWarning
    from featx.export import export_embeddings as export_embeddings
    from featx.finetuning.classifier import FineTunedClassifier as FineTunedClassifier
    from featx.finetuning.linear_head import LinearHeadClassifier as LinearHeadClassifier
    from featx.images.preprocess import Preprocessing as Preprocessing
    from featx.images.sources import load_image_folder as load_image_folder
    from featx.images.sources import load_manifest as load_manifest
    from featx.persistence import load_model as load_model
    from featx.persistence import save_model as save_model
    from featx.selection.ranking import rank_backbones as rank_backbones
    from featx.selection.search import head_search as head_search
    from featx.store.cache import EmbeddingCache as EmbeddingCache
    from featx.store.parquet import read_embeddings as read_embeddings
    from featx.store.parquet import write_embeddings as write_embeddings

_ROOMS = {
    "EmbeddingCache": "featx.store.cache",
    "FeatxError": "featx.errors",
    "FineTunedClassifier": "featx.finetuning.classifier",
    "FrozenBackbone": "featx.backbones.frozen",
    "ImageDecodeError": "featx.errors",
    "ImageDecodeWarning": "featx.errors",
    "ImageEmbedder": "featx.embedder",
    "LinearHeadClassifier": "featx.finetuning.linear_head",
    "Preprocessing": "featx.images.preprocess",
    "compare_strategies": "featx.comparison.compare",
    "export_embeddings": "featx.export",
    "head_search": "featx.selection.search",
    "list_backbones": "featx.backbones.catalog",
    "load_backbone": "featx.backbones.providers",
    "load_image_folder": "featx.images.sources",
    "load_manifest": "featx.images.sources",
    "load_model": "featx.persistence",
    "rank_backbones": "featx.selection.ranking",
    "read_embeddings": "featx.store.parquet",
    "save_model": "featx.persistence",
    "write_embeddings": "featx.store.parquet",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    with _collector_paused():
        value = getattr(importlib.import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Import without looking for garbage among what torch, scipy and pandas make to stay.

    The collector walks through all of it again and again: 1 s of the 3.4 s that it takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
