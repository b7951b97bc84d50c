"""Unfreezing: which modules of a network are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import nn

from featx._checks import refuse

if TYPE_CHECKING:
    from featx._backbones.probe import Shape

HEAD = "head"
ALL = "all"


def modules_to_train(
    module: nn.Module,
    unfreeze: Any,
    classifier: str,
    outputs: Mapping[str, Shape],
    backbone: str,
) -> frozenset[str]:
    """Return the names of the modules that a choice of ``unfreeze`` trains.

    The classifier is always one of them. `outputs` has the shape of each module's output, in the
    order in which they end, as `featx._backbones.probe.probe_network` finds them.

    Raises
    ------
    InputError
        If there is no such module, or there are fewer stages.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> outputs = {"0": (1, 4, 2, 2), "1": (1, 4, 2, 2), "2": (1, 16), "3": (1, 2)}
    >>> sorted(modules_to_train(network, ["0"], "3", outputs, "tiny"))
    ['0', '3']
    """
    names = [name for name, _ in module.named_modules()]
    head = {name for name in names if _is_inside(name, classifier)}
    if isinstance(unfreeze, str) and unfreeze == ALL:
        return frozenset(names)
    if isinstance(unfreeze, str) and unfreeze == HEAD:
        chosen: set[str] = set()
    elif isinstance(unfreeze, Integral) and not isinstance(unfreeze, bool):
        stages = list_stages(module, classifier, outputs)
        count, most = int(unfreeze), len(stages)
        if abs(count) > most:
            expected = f"0 to {most}, -1 to -{most} for all but the first ones, or 'all'"
            raise refuse("unfreeze", count, f"{expected}: {backbone} has {most} stages")
        last = stages[most - count :] if count >= 0 else stages[-count:]
        chosen = {name for stage in last for name in stage}
    else:
        layers = _checked_names(unfreeze, names, backbone)
        chosen = {name for name in names for layer in layers if _is_inside(name, layer)}
    return _with_containers(module, chosen | head)


def _checked_names(unfreeze: Any, names: Sequence[str], backbone: str) -> list[str]:
    layers = [unfreeze] if isinstance(unfreeze, str) else unfreeze
    is_sequence = isinstance(layers, Sequence) and not isinstance(layers, bytes)
    if not is_sequence or not layers or not all(isinstance(name, str) for name in layers):
        expected = "'head', 'all', a number of stages, the name of a layer, or a list of names"
        raise refuse("unfreeze", unfreeze, expected)
    for layer in layers:
        if layer not in names or not layer:
            expected = f"a layer that named_modules() of {backbone} lists"
            raise refuse("unfreeze", layer, expected, [HEAD, ALL, *filter(None, names)])
    return list(layers)


def list_stages(
    module: nn.Module, classifier: str, outputs: Mapping[str, Shape]
) -> list[list[str]]:
    """Return the stages of a network, each as the names of its modules, the first stage first.

    A stage is what runs up to the end of one that the network lists (``feature_info`` in timm), or
    else what runs at one resolution, or, where the resolution never changes (transformers), one
    block of the longest sequence of blocks. What runs behind the last stage belongs to it, what is
    never called to the module around it. The classifier is in none of them; a stage without
    parameters belongs to the one before it.
    """
    order = {name: number for number, name in enumerate(outputs)}
    ends = sorted(order[name] for name in _stage_ends(module, classifier, outputs))
    stages: list[list[str]] = [[] for _ in ends] or [[]]
    for name, part in module.named_modules():
        if _is_inside(name, classifier) or not _has_own_work(part):
            continue
        position = _position(name, order)
        number = sum(end < position for end in ends)
        stages[min(number, len(stages) - 1)].append(name)
    merged: list[list[str]] = []
    for stage in stages:
        if merged and not any(_has_parameters(module.get_submodule(name)) for name in stage):
            merged[-1] += stage
        else:
            merged.append(stage)
    return merged


def _stage_ends(module: nn.Module, classifier: str, outputs: Mapping[str, Shape]) -> list[str]:
    listed = getattr(module, "feature_info", None)
    if isinstance(listed, list):
        ends = [entry["module"] for entry in listed if entry.get("module") in outputs]
        if len(ends) > 1:
            return ends
    last_at: dict[int, str] = {}
    for name, shape in outputs.items():
        is_map = len(shape) == 4 and shape[2] == shape[3] > 1
        if is_map and name.count(".") <= 1 and not _is_inside(name, classifier):
            last_at[shape[2]] = name
    return list(last_at.values()) if len(last_at) > 1 else _longest_sequence(module, outputs)


def _longest_sequence(module: nn.Module, outputs: Mapping[str, Shape]) -> list[str]:
    longest: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            at = f"{name}." if name else ""
            inside = {at + child: block for child, block in part.named_children()}
            blocks = [
                child
                for child, block in inside.items()
                if child in outputs and any(True for _ in block.parameters())
            ]
            longest = max(longest, blocks, key=len)
    return longest


def _position(name: str, order: Mapping[str, int]) -> int:
    """Return when a module works: where the first that is inside it ends, or itself."""
    inside = [number for other, number in order.items() if _is_inside(other, name)]
    while not inside and name:
        name = name.rpartition(".")[0]
        inside = [order[name]] if name in order else []
    return min(inside, default=0)


def _with_containers(module: nn.Module, chosen: set[str]) -> frozenset[str]:
    """Add the modules of which all parts are chosen."""
    working = [name for name, part in module.named_modules() if _has_own_work(part)]
    return frozenset(
        name
        for name, _ in module.named_modules()
        if name in chosen or all(other in chosen for other in working if _is_inside(other, name))
    )


def _has_own_work(part: nn.Module) -> bool:
    """Whether a module does more than call those inside it, as far as can be told."""
    return not any(True for _ in part.children()) or _has_parameters(part)


def _has_parameters(part: nn.Module) -> bool:
    return any(True for _ in part.parameters(recurse=False))


def _is_inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
