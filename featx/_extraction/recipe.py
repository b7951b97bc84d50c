"""The recipe of an embedding: everything that decides a vector, and where such vectors are kept."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from featx._extraction.extractor import Stores
from featx._extraction.runtime import in_one_order, settle_plan
from featx._images.archives import split_archive_path
from featx._store.graphs import GraphStore
from featx._store.memo import StatMemo
from featx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.plan import ExecutionPlan
    from featx._store.cache import EmbeddingCache
    from featx._store.table import EmbeddingTable

# The packages whose version can move a vector by a rounding step; named in every export.
_PACKAGES_OF_A_VECTOR = ("torch", "torchvision", "timm", "pillow", "onnxruntime")


@dataclass(frozen=True)
class EmbeddingRecipe:
    """A network, what is taken from it, of which views of an image, and what executes it.

    Attributes
    ----------
    backbone : FrozenBackbone
        The network.
    taps : tuple of Tap
        What is taken from it; an embedding is their concatenation.
    further_taps : tuple of Tap
        What is stored beside whenever the network runs; it changes no vector.
    views : str
        The views of an image that are averaged.
    plan : ExecutionPlan
        What executes the network.
    """

    backbone: FrozenBackbone
    taps: tuple[Tap, ...]
    further_taps: tuple[Tap, ...]
    views: str
    plan: ExecutionPlan

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name everything that can change a vector."""
        fingerprints = [self._fingerprint_of(tap) for tap in self.taps]
        if len(fingerprints) == 1:
            return fingerprints[0]
        return hashlib.sha256("+".join(fingerprints).encode()).hexdigest()[:32]

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return sum(self.backbone.dimension(tap) for tap in self.taps)

    def feature_names(self) -> list[str]:
        """Return one name per column: the backbone, and where in it the number comes from."""
        return [
            f"{self.backbone.name}_{name}"
            for tap in self.taps
            for name in self.backbone.feature_names(tap)
        ]

    def describe(self) -> dict[str, Any]:
        """Return what makes the vectors, as plain JSON types."""
        described = self.backbone.describe(self.taps[0], self.views)
        del described["layer"]
        return described | {
            "layers": [tap.layer for tap in self.taps],
            "pooling": [tap.pooling for tap in self.taps],
            "weights": self.backbone.weights,
            "precision": self.plan.precision,
            "runtime": self.plan.runtime,
            "device_type": self.plan.device_type,
            "fingerprint": self.fingerprint,
            "versions": {"featx": __version__, **_versions()},
        }

    def settled(self, cache: EmbeddingCache | None) -> EmbeddingRecipe:
        """Return the recipe as it can be executed here, or by what takes its runtime's place."""
        # Without a cache there is nowhere to keep what was not asked for.
        taps = self.taps if cache is None else (*self.taps, *self.further_taps)
        plan = settle_plan(self.backbone, in_one_order(taps), self.plan, _open_graphs(cache))
        return replace(self, plan=plan)

    def open_stores(self, cache: EmbeddingCache | None) -> Stores | None:
        """Return the tables of a cache that keep these vectors, and its memo."""
        graphs = _open_graphs(cache)
        if cache is None or graphs is None:
            return None
        return Stores(
            self._tables(cache, self.taps),
            self._tables(cache, self.further_taps),
            _open_memo(cache.folder / "memo"),
            graphs,
        )

    def _tables(self, cache: EmbeddingCache, taps: Sequence[Tap]) -> list[EmbeddingTable]:
        return [
            cache.table(
                self._fingerprint_of(tap),
                self.backbone.dimension(tap),
                recipe=replace(self, taps=(tap,), further_taps=()).describe(),
            )
            for tap in taps
        ]

    def _fingerprint_of(self, tap: Tap) -> str:
        return self.backbone.cache_key(
            tap,
            views=self.views,
            runtime=self.plan.runtime,
            device_type=self.plan.device_type,
            precision=self.plan.precision,
        )


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES_OF_A_VECTOR}


def _open_graphs(cache: EmbeddingCache | None) -> GraphStore | None:
    return None if cache is None else GraphStore(cache.folder / "graphs")


# Kept open, as a search asks it twice a fold; it sees what others write all the same.
@functools.lru_cache(maxsize=4)
def _open_memo(folder: Path) -> StatMemo:
    return StatMemo(folder, split_archive_path)
