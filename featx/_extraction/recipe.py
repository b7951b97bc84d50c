"""The recipe of an embedding: everything that decides a vector, and where such vectors are kept."""

from __future__ import annotations

import functools
import hashlib
import itertools
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from featx._backbones.frozen import FrozenBackbone
from featx._backbones.providers import load_backbone
from featx._backbones.taps import choices_of_layers
from featx._errors import InputError
from featx._extraction.runtime import Execution, in_one_order
from featx._images.archives import split_archive_path
from featx._images.limits import DEFAULT_LIMITS, Limits
from featx._store.graphs import GraphStore
from featx._store.memo import StatMemo
from featx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from featx._backbones.taps import Tap
    from featx._extraction.runtime import ExecutionPlan
    from featx._store.cache import EmbeddingCache
    from featx._store.table import EmbeddingTable

# The packages whose version can move a vector by a rounding step; named in every export.
_PACKAGES_OF_A_VECTOR = ("torch", "torchvision", "timm", "pillow", "onnxruntime")


@dataclass(frozen=True)
class Stores:
    """Where the vectors of each tap are kept, the digests of files, and exported networks."""

    tables: Sequence[EmbeddingTable] = ()
    further_tables: Sequence[EmbeddingTable] = ()
    memo: StatMemo | None = None
    graphs: GraphStore | None = None


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
    limits : Limits
        The largest image that is read, and what is black and white.
    """

    backbone: FrozenBackbone
    taps: tuple[Tap, ...]
    further_taps: tuple[Tap, ...]
    views: str
    plan: ExecutionPlan
    limits: Limits = DEFAULT_LIMITS

    @functools.cached_property
    def name(self) -> str:
        """32 hexadecimal digits that name what decides a vector up to rounding."""
        precision = self.plan.precision
        return _joined(
            self._with_range(self.backbone.recipe(tap, views=self.views, precision=precision))
            for tap in self.taps
        )

    @functools.cached_property
    def cache_key(self) -> str:
        """32 hexadecimal digits that name everything that can change a vector."""
        return _joined(self._cache_key_of(tap, self.plan) for tap in self.taps)

    def is_of_version_0_1(self, fingerprint: str, execution: str) -> bool:
        """Return whether featx 0.1 gave this fingerprint to the recipe, on whatever device."""
        runtime, _, device = execution.removesuffix(f" in {self.plan.precision}").partition(" on ")
        plan = replace(self.plan, runtime=runtime, device=device or "cpu")
        return fingerprint == _joined(self._cache_key_of(tap, plan) for tap in self.taps)

    @property
    def all_taps(self) -> tuple[Tap, ...]:
        """The taps, and those that are stored beside them."""
        return (*self.taps, *self.further_taps)

    @functools.cached_property
    def columns(self) -> list[slice]:
        """Where the vectors of each tap stand in an embedding."""
        ends = list(itertools.accumulate(map(self.backbone.dimension, self.taps)))
        return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]

    @functools.cached_property
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
            "pixel_range": self.limits.pixel_range,
            "precision": self.plan.precision,
            "runtime": self.plan.runtime,
            "device_type": self.plan.device_type,
            "recipe": self.name,
            "fingerprint": self.cache_key,
            "versions": {"featx": __version__, **_versions()},
        }

    def with_runtime(self, cache: EmbeddingCache | None) -> EmbeddingRecipe:
        """Return the recipe as it can be executed here, or by what takes its runtime's place."""
        # Without a cache there is nowhere to keep what was not asked for.
        taps = in_one_order(self.taps if cache is None else self.all_taps)
        execution = Execution(self.backbone, taps, self.plan, _open_graphs(cache))
        return replace(self, plan=execution.choose_plan())

    def open_stores(self, cache: EmbeddingCache | None, *, use_tables: bool = True) -> Stores:
        """Return the tables of a cache that keep these vectors, its memo and its graphs."""
        if cache is None:
            return Stores()
        graphs = _open_graphs(cache)
        if not use_tables:
            return Stores(graphs=graphs)
        return Stores(
            self._tables(cache, self.taps),
            self._tables(cache, self.further_taps),
            _open_memo(cache.folder / "memo"),
            graphs,
        )

    def _tables(self, cache: EmbeddingCache, taps: Sequence[Tap]) -> list[EmbeddingTable]:
        tables = []
        for tap in taps:
            key = self._cache_key_of(tap, self.plan)
            table = cache.table(key, self.backbone.dimension(tap))
            if not table.has_recipe:  # people read it; the first who writes to a table leaves it
                table.recipe = replace(self, taps=(tap,), further_taps=()).describe()
            tables.append(table)
        return tables

    def _cache_key_of(self, tap: Tap, plan: ExecutionPlan) -> str:
        return self._with_range(
            self.backbone.cache_key(
                tap,
                views=self.views,
                runtime=plan.runtime,
                device_type=plan.device_type,
                precision=plan.precision,
            )
        )

    def _with_range(self, name: str) -> str:
        """Return a name that the range is part of, where it is not that of the type."""
        pixel_range = self.limits.pixel_range
        return name if pixel_range == "type" else _joined([name, str(pixel_range)])


def _joined(names: Iterable[str]) -> str:
    """Return one name for several, and one for itself."""
    first, *others = names
    if not others:
        return first
    return hashlib.sha256("+".join((first, *others)).encode()).hexdigest()[:32]


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES_OF_A_VECTOR}


def _open_graphs(cache: EmbeddingCache | None) -> GraphStore | None:
    return None if cache is None else GraphStore(cache.folder / "graphs")


# Kept open, as a search asks it twice a fold; it sees what others write all the same.
@functools.lru_cache(maxsize=4)
def _open_memo(folder: Path) -> StatMemo:
    return StatMemo(folder, split_archive_path)


def choose_backbone(backbone: Any, weights: Any, image_size: int | None) -> FrozenBackbone:
    """Return the network of a name, or the one that is given; errors as of `ImageEmbedder`."""
    if not isinstance(backbone, FrozenBackbone):
        return load_backbone(backbone, weights=weights, image_size=image_size)
    if weights != "default" or image_size is not None:
        raise InputError(
            f"Got weights={weights!r} and image_size={image_size!r} beside {backbone!r}, which "
            "has its own; leave both at their defaults"
        )
    return backbone


def choose_further_taps(
    backbone: FrozenBackbone, also_cache: Any, taps: Sequence[Tap]
) -> tuple[Tap, ...]:
    """Return the taps that are stored beside those that are asked for, each once."""
    further: dict[Tap, None] = {}
    for layers, pooling in choices_of_layers("also_cache", also_cache):
        further |= dict.fromkeys(backbone.taps(layers, pooling))
    return tuple(tap for tap in further if tap not in taps)
