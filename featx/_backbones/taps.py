"""Taps: which layers of a network are read, and how each is pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featx._backbones.pooling import POOLINGS
from featx._checks import brief, check_choice, refuse
from featx._errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PENULTIMATE = "penultimate"

MULTILEVEL = "multilevel"
"""The preset of `layers`: the penultimate vector and two late stages, each on a 2 x 2 grid."""

# Measured on clothing, waste, textures and hands: the last stage at a stride of 16 and the one
# after it, not the very last, which is half way to the penultimate vector.
_MULTILEVEL_OF_LITE_NETS = ("blocks.4", "blocks.5")


@dataclass(frozen=True)
class Tap:
    """One layer of a network and how its output becomes a vector.

    Attributes
    ----------
    layer : str
        ``"penultimate"``, or a dotted name of ``named_modules()``.
    pooling : str
        One of `featx._backbones.pooling.POOLINGS`.

    Examples
    --------
    >>> Tap("blocks.5", "grid2")
    Tap(layer='blocks.5', pooling='grid2')
    """

    layer: str
    pooling: str


def parse_layers(layers: Any) -> tuple[str, ...]:
    """Return the names in ``layers``, which is one name or several."""
    names = (layers,) if isinstance(layers, str) else layers
    is_sequence = isinstance(names, Sequence) or hasattr(names, "__array__")
    if not is_sequence or len(names) == 0 or not all(isinstance(name, str) for name in names):
        expected = f"'{PENULTIMATE}', '{MULTILEVEL}', the name of a layer, or a list of names"
        raise refuse("layers", layers, expected)
    return tuple(str(name) for name in names)


def parse_poolings(pooling: Any, count: int) -> tuple[str, ...]:
    """Return the pooling of each of ``count`` layers from one for all, or one each."""
    names = (pooling,) * count if isinstance(pooling, str) else pooling
    is_sequence = isinstance(names, Sequence) or hasattr(names, "__array__")
    if not is_sequence or len(names) != count:
        expected = f"one pooling for all {count} layers, or a list of one for each"
        raise refuse("pooling", pooling, expected)
    for name in names:
        check_choice("pooling", name, POOLINGS)
    return tuple(str(name) for name in names)


def unknown_layer(name: str, known: Iterable[str], backbone: str) -> InputError:
    """Return the error for a layer that a network does not have, with the names near to it."""
    hint = did_you_mean(name, [PENULTIMATE, MULTILEVEL, *known])
    return InputError(
        f"Got layers={brief(name)} but {backbone} has no such layer{hint}{'' if hint else ';'} "
        "list_layers() of the loaded backbone lists all"
    )


def multilevel_stages(name: str, module: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the two late stages that the preset ``"multilevel"`` taps, the earlier one first.

    For the EfficientNet-Lite networks ``blocks.4`` and ``blocks.5``. For other networks that list
    their stages (``feature_info`` in timm), the last two of them. For the rest, among the modules
    at most two levels deep: the last module at each of the two coarsest resolutions. ``shapes`` are
    those of each module's output for one image, in the order in which they end. InputError if two
    stages cannot be told.
    """
    if "efficientnet_lite" in name and all(stage in shapes for stage in _MULTILEVEL_OF_LITE_NETS):
        return list(_MULTILEVEL_OF_LITE_NETS)
    listed = getattr(module, "feature_info", None)
    if isinstance(listed, list):
        stages = [entry["module"] for entry in listed if entry.get("module") in shapes]
    else:
        last_at: dict[int, str] = {}
        for layer, shape in shapes.items():
            is_map = len(shape) == 4 and shape[2] == shape[3] > 1
            if is_map and layer.count(".") <= 1:
                last_at[shape[2]] = layer
        stages = [last_at[side] for side in sorted(last_at, reverse=True)]
    if len(stages) < 2:
        raise InputError(
            f"Got layers='{MULTILEVEL}' but the stages of {name} cannot be told; name the layers: "
            "list_layers() of the loaded backbone lists all"
        )
    return stages[-2:]


def choices_of_layers(name: str, choices: Any) -> list[tuple[Any, Any]]:
    """Return layers and pooling of each choice.

    A string or a list is layers, pooled by ``"avg"``; a tuple is a pair of layers and pooling.
    """
    expected = "a sequence of layers, or of pairs of layers and pooling, (layers, pooling)"
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise refuse(name, choices, expected)
    pairs = [(choice, "avg") if isinstance(choice, str | list) else choice for choice in choices]
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"Got {brief(pair)} in {name} but expected {expected}")
    return [(layers, pooling) for layers, pooling in pairs]
