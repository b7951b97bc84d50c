"""Poolings: from what a layer puts out, map or tokens, to one vector per image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from featx._errors import InputError

POOLINGS = ("avg", "max", "gem", "grid2", "grid3", "flatten", "cls")

# Generalised-mean pooling with the exponent that Radenović, Tolias and Chum ("Fine-tuning CNN image
# retrieval with no human annotation", TPAMI 2019) start from, and their floor under the values.
GEM_EXPONENT = 3
GEM_FLOOR = 1e-6


@dataclass(frozen=True)
class Layout:
    """How the numbers of a layer's output lie.

    Attributes
    ----------
    kind : {"map", "map_channels_last", "tokens", "vector"}
        Shapes (n, channels, height, width), (n, height, width, channels), (n, tokens, channels)
        and (n, channels).
    prefix_tokens : int
        How many tokens stand before those of the patches: class token, registers.
    class_token : bool
        Whether the first of them is the network's class token.
    """

    kind: str
    prefix_tokens: int = 0
    class_token: bool = False


def find_layout(
    shape: tuple[int, ...], *, prefix_tokens: int | None = None, class_token: bool = False
) -> Layout | None:
    """Tell the layout of an output by its shape; None where it is not one thing per image.

    Of the four axes of a map, height and width are the two that are equal, because the input is a
    square: the last two, or with channels last the two in the middle. ``prefix_tokens`` is how many
    tokens the network itself says to put before the patches.

    Examples
    --------
    >>> find_layout((1, 320, 7, 7)).kind, find_layout((1, 7, 7, 768)).kind
    ('map', 'map_channels_last')
    >>> find_layout((1, 197, 768), class_token=True)
    Layout(kind='tokens', prefix_tokens=1, class_token=True)
    """
    if not shape or shape[0] != 1 or 0 in shape:
        return None
    if len(shape) == 2:
        return Layout("vector")
    if len(shape) == 3:
        if prefix_tokens is None:
            prefix_tokens = 0 if _is_square(shape[1]) and not class_token else 1
            prefix_tokens = prefix_tokens if _is_square(shape[1] - prefix_tokens) else 0
        # Blocks that drop tokens on the way, or add them late, keep none of the prefix's count.
        if prefix_tokens >= shape[1]:
            prefix_tokens = 0
        return Layout("tokens", prefix_tokens, class_token and prefix_tokens > 0)
    if len(shape) == 4:
        channels_last = shape[1] == shape[2] and shape[2] != shape[3]
        return Layout("map_channels_last" if channels_last else "map")
    return None


def check_pooling(pooling: str, layout: Layout, shape: tuple[int, ...], layer: str) -> None:
    """Raise InputError for a pooling that the output of a layer does not allow.

    A vector has nothing left to pool, so that ``"avg"``, ``"max"``, ``"gem"`` and ``"flatten"``
    leave it as it is. Refused are a grid over a vector or over tokens that do not form a square,
    and ``"cls"`` where the network has no class token.
    """
    if pooling == "cls" and not layout.class_token:
        raise InputError(
            f"Got pooling='cls' for {layer!r}, whose output of shape {shape[1:]} has no class "
            "token; expected a transformer with one, or another pooling such as 'avg'"
        )
    if not pooling.startswith("grid"):
        return
    if layout.kind == "vector":
        raise InputError(
            f"Got pooling={pooling!r} for {layer!r}, whose output is a vector of {shape[1]} "
            "numbers with no places left; expected an earlier layer, or pooling='avg'"
        )
    if layout.kind == "tokens" and not _is_square(shape[1] - layout.prefix_tokens):
        raise InputError(
            f"Got pooling={pooling!r} for {layer!r}, whose {shape[1] - layout.prefix_tokens} patch "
            "tokens do not form a square; expected pooling='avg', 'max' or 'gem'"
        )


def pool(output: torch.Tensor, pooling: str, layout: Layout) -> torch.Tensor:
    """Reduce a layer's output, float (n, …), to float32 (n, dimension) with numbers of its own.

    Where there are several places, channel after channel and within each row after row.

    Examples
    --------
    >>> import torch
    >>> maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    >>> pool(maps, "avg", Layout("map"))
    tensor([[ 7.5000, 23.5000]])
    >>> pool(maps, "grid2", Layout("map"))
    tensor([[ 2.5000,  4.5000, 10.5000, 12.5000, 18.5000, 20.5000, 26.5000, 28.5000]])
    """
    output = output.float()
    if layout.kind == "vector":
        return output.clone()
    if pooling == "cls":
        return output[:, 0].clone()
    if pooling == "flatten":
        return to_map(output, layout).flatten(1).clone()
    # Channels stay where they are: a transposition that a graph optimiser may move or drop would
    # change the order of the sums, and so the last bit, with what else the graph computes.
    channels_last = layout.kind != "map"
    places = _as_places(output, layout)
    rows, columns = (1, 2) if channels_last else (2, 3)
    if pooling == "avg":
        return places.mean(dim=(rows, columns))
    if pooling == "max":
        return places.amax(dim=(rows, columns))
    if pooling == "gem":
        powers = places.clamp(min=GEM_FLOOR).pow(GEM_EXPONENT)
        return powers.mean(dim=(rows, columns)).pow(1 / GEM_EXPONENT)
    return _average_over_grid(places, rows, int(pooling.removeprefix("grid")))


def count_cells(pooling: str, layout: Layout, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of places that a pooling keeps."""
    if pooling.startswith("grid"):
        cells = int(pooling.removeprefix("grid"))
        return cells, cells
    if pooling == "flatten" and layout.kind != "vector":
        rows, columns = to_map(torch.empty(shape, device="meta"), layout).shape[2:]
        return rows, columns
    return 1, 1


def to_map(output: torch.Tensor, layout: Layout) -> torch.Tensor:
    """View an output as (n, channels, height, width); tokens that form no square as one column."""
    places = _as_places(output, layout)
    return places if layout.kind == "map" else places.permute(0, 3, 1, 2)


def _as_places(output: torch.Tensor, layout: Layout) -> torch.Tensor:
    """View an output with two axes of places, leaving the axis of the channels where it is."""
    if layout.kind != "tokens":
        return output
    patches = output[:, layout.prefix_tokens :]
    count = patches.shape[1]
    side = math.isqrt(count)
    rows, columns = (side, side) if _is_square(count) else (count, 1)
    return patches.reshape(patches.shape[0], rows, columns, patches.shape[2])


def _average_over_grid(places: torch.Tensor, first_axis: int, cells: int) -> torch.Tensor:
    """Average over cells x cells regions: adaptive average pooling.

    Written as slices of fixed bounds, because that is what every exporter and compiler takes for
    every size of map, also where the cells do not divide it and so overlap by one.
    """
    axes = (first_axis, first_axis + 1)
    rows, columns = (_cell_bounds(places.shape[axis], cells) for axis in axes)
    averages = [
        places.narrow(axes[0], top, height).narrow(axes[1], left, width).mean(dim=axes)
        for top, height in rows
        for left, width in columns
    ]
    return torch.stack(averages, dim=2).flatten(1)


def _cell_bounds(length: int, cells: int) -> list[tuple[int, int]]:
    """Return the start and the length of each cell."""
    starts = [cell * length // cells for cell in range(cells)]
    ends = [-(-(cell + 1) * length // cells) for cell in range(cells)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
