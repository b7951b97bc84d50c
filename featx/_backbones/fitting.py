"""Fitting tensors of a file to a network: all of them, or all but its classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx._backbones.weights import without_parallel_prefix
from featx._errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from featx._backbones.weights import StateDict

_SHOWN = 5

# BatchNorm counts its training steps; nothing that is computed in eval mode depends on them.
_COUNTER = "num_batches_tracked"


def load_tensors(
    module: nn.Module, tensors: StateDict, classifier: Sequence[str], source: str
) -> tuple[str, ...]:
    """Copy the tensors of a file into a network, which is unchanged if they do not fit.

    Tensors of the ``classifier``, the modules that only features do not need, may be missing,
    unexpected or of another number of classes, and are then left as they are; their names are
    returned. A ``module.`` before every name is left out.

    Raises
    ------
    WeightsError
        When other tensors are missing, unexpected or of another shape: with their numbers and the
        first names.
    """
    tensors = without_parallel_prefix(tensors)
    wanted = module.state_dict()
    misfits = _compare(tensors, wanted)
    serious = {
        kind: [shown for name, shown in names.items() if not _is_inside(name, classifier)]
        for kind, names in misfits.items()
    }
    if any(serious.values()):
        counted = (f"{len(n)} {kind} ({_first(n)})" for kind, n in serious.items() if n)
        raise WeightsError(
            f"The tensors of {source} do not fit the network ({len(wanted)} tensors): "
            f"{'; '.join(counted)}; give the weights of this very architecture, with its names"
        )
    ignored = [name for names in misfits.values() for name in names]
    module.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name not in ignored}, strict=False
    )
    return tuple(ignored)


def check_finite(module: nn.Module, classifier: Sequence[str], source: str) -> None:
    """Raise WeightsError for a network that could only compute NaN.

    A tensor outside its ``classifier`` holds it: its training broke down, or its file did.
    """
    broken = [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
        and not _is_inside(name, classifier)
        and bool(tensor.isnan().any())
    ]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors of {source} hold NaN ({_first(broken)}), so every embedding "
            "would be NaN; give the weights of a training that did not diverge"
        )


def _compare(tensors: StateDict, wanted: StateDict) -> dict[str, dict[str, str]]:
    """Return the names that do not fit, and how to show them, by what is the matter with them."""
    missing = {name: name for name in wanted if name not in tensors}
    unexpected = {name: name for name in sorted(tensors) if name not in wanted}
    mismatched = {
        name: f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    for names in (missing, unexpected):
        for name in [name for name in names if name.endswith(_COUNTER)]:
            del names[name]
    return {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
