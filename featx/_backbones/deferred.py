"""A network of known weights, built when its arithmetic is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx._backbones.copying import copy_frozen
from featx._backbones.frozen import FrozenBackbone
from featx._backbones.inspecting import inspecting
from featx._backbones.taps import PENULTIMATE, Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from featx._backbones.network import EmbeddingNetwork
    from featx._backbones.reference import BackboneReference
    from featx._images.preprocess import Preprocessing

_PENULTIMATE = Tap(PENULTIMATE, "avg")


class DeferredBackbone(FrozenBackbone):
    """A frozen backbone of which all is known that a fingerprint needs.

    Where its graph or its embeddings are kept it is never built, and a fresh process saves the time
    to import timm and to build it: half a second, for each worker of a search too.

    Parameters
    ----------
    build : callable
        Returns the module.
    preprocessing : Preprocessing
        From decoded pixels to what the network takes.
    name : str
        Its name in the catalogue.
    dimension : int
        Length of its penultimate vector.
    weights, weights_sha256 : str
        What the weights are, in words, and their digest.
    reference : BackboneReference
        What it can be loaded by again.
    """

    def __init__(  # instead of the other, which takes a module
        self,
        build: Callable[[], nn.Module],
        preprocessing: Preprocessing,
        *,
        name: str,
        dimension: int,
        weights: str,
        weights_sha256: str,
        reference: BackboneReference,
    ) -> None:
        self._build: Callable[[], nn.Module] | None = build
        self.preprocessing = preprocessing
        self.name = name
        self._dimension = dimension
        self.weights = weights
        self.weights_sha256 = weights_sha256
        self.reference = reference
        self._given_penultimate = None
        self._networks: dict[tuple[Tap, ...], EmbeddingNetwork] = {}

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode, without gradients, on the CPU, in float32."""
        with inspecting():
            if self._build is not None:
                self._module = copy_frozen(self._build())
                self._build = None
            return self._module

    def taps(
        self, layers: str | Sequence[str] = PENULTIMATE, pooling: str | Sequence[str] = "avg"
    ) -> tuple[Tap, ...]:
        """Return one tap per layer, checked against the network; see `FrozenBackbone.taps`."""
        if isinstance(layers, str) and (layers, pooling) == (PENULTIMATE, "avg"):
            return (_PENULTIMATE,)
        return super().taps(layers, pooling)

    def dimension(self, tap: Tap) -> int:
        """Return the length of a tap's vector."""
        return self._dimension if tap == _PENULTIMATE else super().dimension(tap)

    def _count_cells(self, tap: Tap) -> tuple[int, int]:
        return (1, 1) if tap == _PENULTIMATE else super()._count_cells(tap)
