"""Fitting tensors of a file to a network: all of them, or all but its classifier."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Misfit:
    """How the tensors of a file differ from those of a network.

    Attributes
    ----------
    missing : tuple of str
        The network has it, the file has not.
    unexpected : tuple of str
        The file has it, the network has not.
    mismatched : tuple of str
        Both have it, in different shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that does not fit."""
        return self.missing + self.unexpected + self.mismatched

    def without(self, prefixes: Sequence[str]) -> Misfit:
        """Leave out the tensors of some modules."""

        def kept(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if not _is_inside(name, prefixes))

        return Misfit(kept(self.missing), kept(self.unexpected), kept(self.mismatched))

    def describe(self, tensors: StateDict, wanted: StateDict) -> str:
        """Return counts and first names, shapes included."""
        mismatched = [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in self.mismatched
        ]
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": mismatched,
        }
        return "; ".join(
            f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names
        )


def load_tensors(
    module: nn.Module, tensors: StateDict, classifier: Sequence[str], source: str
) -> tuple[str, ...]:
    """Copy the tensors of a file into a network, which is unchanged if they do not fit.

    Parameters
    ----------
    module : nn.Module
        The network, its classifier included.
    tensors : dict of str to Tensor
        What the file holds; a ``module.`` before every name is left out.
    classifier : sequence of str
        The modules that only features do not need: their tensors may be missing, unexpected or of
        another number of classes, and are then left as they are.
    source : str
        The file, for messages.

    Returns
    -------
    tuple of str
        The tensors of the classifier that did not fit.

    Raises
    ------
    WeightsError
        When other tensors are missing, unexpected or of another shape: with their numbers and the
        first names.
    """
    tensors = without_parallel_prefix(tensors)
    wanted = module.state_dict()
    misfit = _compare(tensors, wanted)
    serious = misfit.without(classifier)
    if serious.names:
        raise WeightsError(
            f"The tensors of {source} do not fit the network ({len(wanted)} tensors): "
            f"{serious.describe(tensors, wanted)}; give the weights of this very architecture, "
            "with its names"
        )
    ignored = set(misfit.names)
    module.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name not in ignored}, strict=False
    )
    return misfit.names


def check_finite(module: nn.Module, classifier: Sequence[str], source: str) -> None:
    """Refuse a network that could only compute NaN: its training broke down, or its file did.

    Parameters
    ----------
    module : nn.Module
        The network, loaded.
    classifier : sequence of str
        The modules that only features do not need.
    source : str
        The file, for messages.

    Raises
    ------
    WeightsError
        When a tensor of another module holds NaN.
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


def _compare(tensors: StateDict, wanted: StateDict) -> Misfit:
    return Misfit(
        missing=tuple(
            name for name in wanted if name not in tensors and not name.endswith(_COUNTER)
        ),
        unexpected=tuple(
            name for name in sorted(tensors) if name not in wanted and not name.endswith(_COUNTER)
        ),
        mismatched=tuple(
            name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape
        ),
    )


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
