"""A frozen backbone: a network in eval mode, its recipe for images, and the proof of both."""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from featx._backbones.embedding_network import EmbeddingNetwork
from featx._backbones.modules import copy_frozen, named_tensors, structure_sha256
from featx._backbones.pooling import count_cells, pool
from featx._backbones.probe import TapLocator
from featx._backbones.taps import (
    MULTILEVEL,
    PENULTIMATE,
    Tap,
    multilevel_stages,
    parse_layers,
    parse_poolings,
    unknown_layer,
)
from featx._backbones.weights import tensors_sha256
from featx._errors import InputError
from featx._files import lock_of_process
from featx._images.preprocess import Preprocessing, count_views, preprocessing_of
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from featx._backbones.probe import Shape
    from featx._backbones.providers import BackboneReference

# Enters every recipe and cache key. It rises when featx comes to compute other vectors from one
# image, weights and settings, so that nothing can mix the two.
RECIPE_VERSION = 2

IMAGENET_PREPROCESSING = Preprocessing(
    224, 256, "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""224 pixels out of 256 and the statistics of ImageNet: what most networks were trained with."""

HEAVY_PICKLE_BYTES = 50_000_000
"""From this size on, pickling a network's weights is worth a warning."""

_VECTOR = Tap(PENULTIMATE, "avg")


@dataclass(frozen=True)
class UnbuiltNetwork:
    """A network of known weights that is built when something is computed with it.

    Where its graph or its embeddings are kept it is never built, and a fresh process saves the time
    to import timm and to build it: half a second, for each worker of a search too.
    """

    build: Callable[[], nn.Module]
    dimension: int


@public
class FrozenBackbone:
    """A pretrained network whose weights no longer change, with its own recipe for images.

    The module is copied once, tensors and all, and the copy is frozen: in eval mode, without
    gradients, on the CPU, in float32. The caller's module is not changed, and training it further
    does not change the backbone. Hooks of the caller are not copied.

    ``clone`` and ``copy`` return the backbone itself. Pickled, it is the reference that it was
    loaded by, or, made of a bare module, the module with its weights; equal ones are one object
    again in the process that unpickles them.

    Parameters
    ----------
    module : torch.nn.Module
        Takes float32 (n, 3, side, side). One whose first convolution takes a single channel is
        shown the luma of the colours (0.299 R + 0.587 G + 0.114 B, of ITU-R BT.601).
    preprocessing : Preprocessing or transform, optional
        From decoded pixels to what the network takes; by default 224 pixels and the statistics of
        ImageNet. The transforms of weights of torchvision, and a Compose of Resize, CenterCrop and
        Normalize, as timm makes, are taken for the recipe that they are.
    name : str, optional
        What to call it; by default the module's class.
    penultimate : str, optional
        Name of the module whose input is the penultimate vector. By default networks that say so
        themselves are asked (those of timm), and in others it is the last linear layer in the
        order of definition, or the 1 x 1 convolution that classifies.
    weights : str
        What the weights are, in words.
    weights_sha256 : str, optional
        Digest of the weights; by default that of the tensors.
    reference : BackboneReference, optional
        What it can be loaded by again.

    Raises
    ------
    InputError
        If the module cannot be copied, or has no such module as ``penultimate``.

    Examples
    --------
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ...                        nn.Linear(8, 2))
    >>> backbone = FrozenBackbone(module, name="tiny")
    >>> (tap,) = backbone.taps("0", "grid2")
    >>> backbone.dimension(tap)
    32
    >>> backbone.list_layers()["0"]
    (8, 222, 222)
    """

    def __init__(
        self,
        module: nn.Module | UnbuiltNetwork,
        preprocessing: Preprocessing | Any | None = None,
        *,
        name: str | None = None,
        penultimate: str | None = None,
        weights: str = "given as a module",
        weights_sha256: str | None = None,
        reference: BackboneReference | None = None,
    ) -> None:
        self._module = module if isinstance(module, UnbuiltNetwork) else copy_frozen(module)
        self._known_dimension = module.dimension if isinstance(module, UnbuiltNetwork) else None
        given = IMAGENET_PREPROCESSING if preprocessing is None else preprocessing
        self.preprocessing = preprocessing_of(given)
        self.name = type(self.module).__name__ if name is None else name
        self.weights = weights
        self.weights_sha256 = (
            tensors_sha256(named_tensors(self.module)) if weights_sha256 is None else weights_sha256
        )
        self.reference = reference
        self._structure = structure_sha256(self.module) if reference is None else None
        self._penultimate = penultimate
        self._lazy_locator: TapLocator | None = None
        self._networks: dict[tuple[Tap, ...], EmbeddingNetwork] = {}
        if penultimate is not None:
            layers = [name for name, _ in self.module.named_modules() if name]
            if penultimate not in layers:
                raise unknown_layer(penultimate, layers, self.name)

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode, without gradients, on the CPU, in float32."""
        with lock_of_process("network"):
            if isinstance(self._module, UnbuiltNetwork):
                self._module = copy_frozen(self._module.build())
            return self._module

    def taps(
        self, layers: str | Sequence[str] = PENULTIMATE, pooling: str | Sequence[str] = "avg"
    ) -> tuple[Tap, ...]:
        """Return one tap per layer, checked against the network.

        Parameters
        ----------
        layers : str or list of str
            ``"penultimate"``, a dotted name of ``named_modules()``, several of them, or
            ``"multilevel"``: the penultimate vector and two late stages on 2 x 2 grids, at the cost
            of one forward.
        pooling : str or list of str
            One for all layers, or one each: ``"avg"``, ``"max"``, ``"gem"`` (generalised mean),
            ``"grid2"`` and ``"grid3"`` (averages over n x n cells), ``"flatten"``, ``"cls"`` (the
            class token). ``"penultimate"`` with ``"avg"`` is the network's own pooled vector; with
            another pooling it is the last map before the network's own pooling.

        Returns
        -------
        tuple of Tap
            In the order of the layers.

        Raises
        ------
        InputError
            If there is no such layer or pooling, or the two do not go together.
        """
        is_vector = isinstance(layers, str) and (layers, pooling) == (PENULTIMATE, "avg")
        if is_vector and self._known_dimension is not None:
            return (_VECTOR,)
        names: Sequence[str] = parse_layers(layers)
        if names == (MULTILEVEL,):
            if not isinstance(pooling, str) or pooling != "avg":
                raise InputError(
                    f"Got pooling={pooling!r} with layers='{MULTILEVEL}', which sets its own "
                    "poolings; leave pooling out"
                )
            stages = multilevel_stages(self.name, self.module, self._locator.probe.outputs)
            names, poolings = (PENULTIMATE, *stages), ("avg", *["grid2"] * len(stages))
        else:
            poolings = parse_poolings(pooling, len(names))
        taps = tuple(map(Tap, names, poolings))
        if len(set(taps)) < len(taps):
            raise InputError(f"Got layers={layers!r}, which names one layer twice in one pooling")
        for tap in taps:
            self._locator.plan(tap)
        return taps

    def dimension(self, tap: Tap) -> int:
        """Return the length of a tap's vector."""
        if tap == _VECTOR and self._known_dimension is not None:
            return self._known_dimension
        plan, shape = self._locator.plan(tap)
        # The meta device computes shapes only, by the very code that computes the vectors.
        return int(pool(torch.empty(shape, device="meta"), plan.pooling, plan.layout).shape[1])

    def feature_names(self, tap: Tap) -> list[str]:
        """Return a name per column: layer, pooling, cell (row and column) and channel.

        Examples
        --------
        >>> from featx import load_backbone
        >>> backbone = load_backbone("efficientnet_lite0")
        >>> backbone.feature_names(Tap("penultimate", "avg"))[:2]
        ['0000', '0001']
        >>> backbone.feature_names(Tap("blocks.5", "grid2"))[:2]
        ['blocks.5_grid2_0_0_000', 'blocks.5_grid2_0_1_000']
        """
        rows, columns = 1, 1
        if tap != _VECTOR:
            plan, shape = self._locator.plan(tap)
            rows, columns = count_cells(plan.pooling, plan.layout, shape)
        channels = self.dimension(tap) // (rows * columns)
        width = len(str(channels - 1))
        prefix = "" if tap == _VECTOR else f"{tap.layer}_{tap.pooling}_"
        if rows * columns == 1:
            return [f"{prefix}{channel:0{width}d}" for channel in range(channels)]
        return [
            f"{prefix}{row}_{column}_{channel:0{width}d}"
            for channel in range(channels)
            for row in range(rows)
            for column in range(columns)
        ]

    def network(self, taps: Sequence[Tap]) -> EmbeddingNetwork:
        """Return the network that computes some taps in one forward.

        Parameters
        ----------
        taps : sequence of Tap
            As `taps` returns them.

        Returns
        -------
        EmbeddingNetwork
            Maps uint8 (n, 3, side, side) to a tuple of float32 (n, dimension), one per tap. The
            same object for the same taps; all share their tensors.
        """
        key = tuple(taps)
        with lock_of_process("network"):
            if key not in self._networks:
                plans = [self._locator.plan(tap)[0] for tap in key]
                self._networks[key] = EmbeddingNetwork(self.module, self.preprocessing, plans)
            return self._networks[key]

    def list_layers(self) -> dict[str, Shape]:
        """Return the layers that can be tapped, with the shape of their output for one image.

        Returns
        -------
        dict of str to tuple of int
            In the order in which they end.
        """
        return self._locator.list_layers()

    def describe(self, tap: Tap, views: str = "center") -> dict[str, Any]:
        """Return all that decides a tap's vector but the machinery, as plain JSON types."""
        count_views(views)
        description: dict[str, Any] = {
            "recipe": RECIPE_VERSION,
            "backbone": self.name,
            "weights_sha256": self.weights_sha256,
            "layer": tap.layer,
            "pooling": tap.pooling,
            "views": views,
            "preprocessing": self.preprocessing.describe(),
        }
        if self._penultimate is not None:
            description["penultimate"] = self._penultimate
        if self._structure is not None:
            description["structure"] = self._structure
        return description

    def recipe(self, tap: Tap, *, views: str = "center", precision: str = "float32") -> str:
        """Return the 32 hexadecimal digits that name what decides a vector up to rounding.

        Vectors of one recipe may be compared and mixed, whatever runtime and device computed them.

        Parameters
        ----------
        tap : Tap
            What is read of the network.
        views : str
            The views whose vectors are averaged.
        precision : str
            The arithmetic of the network.

        Returns
        -------
        str
            Two are equal exactly when tap, views, precision, network, weights and preprocessing
            are.

        See Also
        --------
        cache_key : Also names what executes the network, to the bit.

        Examples
        --------
        >>> from featx import load_backbone
        >>> backbone = load_backbone("efficientnet_lite0")
        >>> backbone.recipe(*backbone.taps())
        '56b65a7c25f5653045222a56b43de55e'
        """
        return _digest(self.describe(tap, views) | {"precision": precision})

    def cache_key(
        self,
        tap: Tap,
        *,
        views: str = "center",
        runtime: str,
        device_type: str,
        precision: str = "float32",
    ) -> str:
        """Return the 32 hexadecimal digits that name everything that can change a vector.

        Parameters
        ----------
        tap : Tap
            What is read of the network.
        views : str
            The views whose vectors are averaged.
        runtime : str
            What executes the network: ``"torch"`` or ``"onnx"``.
        device_type : str
            ``"cpu"``, ``"cuda"``, …
        precision : str
            The arithmetic of the network.

        Returns
        -------
        str
            Two are equal exactly when all of these, the network, its weights and the preprocessing
            are. A bare module is known by its weights, by what it prints, by the numbers, strings
            and tensors that its parts hold, and by the code of their ``forward``; other functions
            that this calls are not seen. Versions of packages, which can move a vector by a
            rounding step, stand in the provenance of an export.

        See Also
        --------
        recipe : The same without the runtime and the device.
        """
        machinery = {"runtime": runtime, "device_type": device_type, "precision": precision}
        return _digest(self.describe(tap, views) | machinery)

    def __repr__(self) -> str:
        return f"FrozenBackbone({self.name!r}, weights={self.weights!r})"

    def __sklearn_clone__(self) -> FrozenBackbone:
        return self

    def __copy__(self) -> FrozenBackbone:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenBackbone:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reference is not None:
            return self.reference.load, ()
        self._warn_of_its_weight()
        identity = f"{self.weights} {self.recipe(_VECTOR)}"
        _known.setdefault(identity, self)
        content = {
            "module": self.module,
            "preprocessing": self.preprocessing,
            "name": self.name,
            "penultimate": self._penultimate,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
        }
        return _unpickle, (identity, content)

    def _warn_of_its_weight(self) -> None:
        size = sum(tensor.nbytes for tensor in named_tensors(self.module).values())
        if size <= HEAVY_PICKLE_BYTES or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"{self!r} was made of a module, so that pickling it carries {size / 1e6:,.0f} MB of "
            "weights to each worker and each copy; load it by name or from a weights file with "
            "load_backbone and only the reference is carried",
            UserWarning,
            stacklevel=3,
        )

    _has_warned = False

    @property
    def _locator(self) -> TapLocator:
        with lock_of_process("network"):
            if self._lazy_locator is None:
                side = self.preprocessing.image_size
                self._lazy_locator = TapLocator(self.module, side, self._penultimate, self.name)
            return self._lazy_locator


def _digest(description: dict[str, Any]) -> str:
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


# A search sends its backbone with every task: a worker keeps the first and drops the others.
_known: weakref.WeakValueDictionary[str, FrozenBackbone] = weakref.WeakValueDictionary()


def _unpickle(identity: str, content: dict[str, Any]) -> FrozenBackbone:
    known = _known.get(identity)
    if known is None:
        known = _known.setdefault(identity, FrozenBackbone(**content))
    return known
