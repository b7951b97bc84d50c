"""Locating: where in a network a tap is read, and how the numbers lie there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from featx._backbones.inspecting import ComputedOnce
from featx._backbones.network import TapPlan, find_classifier, has_features_and_head
from featx._backbones.pooling import check_pooling, find_layout
from featx._backbones.probe import Probe, Shape, probe_network
from featx._backbones.taps import PENULTIMATE, Tap, unknown_layer
from featx._errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from featx._backbones.pooling import Layout


class TapLocator:
    """Finds where the taps of a network are read, from one forward of a blank image.

    Parameters
    ----------
    module : torch.nn.Module
        The network; it is not changed.
    image_size : int
        Side of its input in pixels.
    penultimate : str or None
        The module whose input is the penultimate vector, where it is given.
    name : str
        What to call the network in an error.

    Examples
    --------
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ...                        nn.Linear(8, 2))
    >>> locator = TapLocator(module.eval(), 32, None, "tiny")
    >>> plan, shape = locator.plan(Tap("penultimate", "avg"))
    >>> plan.source, plan.module, shape
    ('input', '3', (1, 8))
    """

    def __init__(
        self, module: nn.Module, image_size: int, penultimate: str | None, name: str
    ) -> None:
        self._module = module
        self._image_size = image_size
        self._penultimate = penultimate
        self._name = name

    @ComputedOnce
    def probe(self) -> Probe:
        """What the layers put out for one image."""
        return probe_network(self._module, self._image_size, self._classifier, self._name)

    def list_layers(self) -> dict[str, Shape]:
        """Return the layers that can be tapped, with the shape of their output for one image."""
        outputs = self.probe.outputs
        return {name: shape[1:] for name, shape in outputs.items() if self._layout(shape)}

    def plan(self, tap: Tap) -> tuple[TapPlan, Shape]:
        """Return where a tap is read, and the shape of what is there.

        Raises
        ------
        InputError
            If there is no such layer, or the pooling cannot be had of it.
        """
        source, module, shape = self._locate(tap)
        layout = self._layout(shape)
        if layout is None:
            raise InputError(
                f"Got layers={tap.layer!r}, whose output for one image has the shape {shape}; "
                "expected a vector, a map or a sequence of tokens per image"
            )
        check_pooling(tap.pooling, layout, shape, tap.layer)
        return TapPlan(source, module, tap.pooling, layout), shape

    @ComputedOnce
    def _classifier(self) -> str | None:
        """The module whose input is the penultimate vector; None where there is none."""
        if self._penultimate is not None:
            return self._penultimate
        return None if has_features_and_head(self._module) else find_classifier(self._module)

    def _layout(self, shape: Shape) -> Layout | None:
        return find_layout(shape, prefix_tokens=self._tokens[0], class_token=self._tokens[1])

    @ComputedOnce
    def _tokens(self) -> tuple[int | None, bool]:
        """Return how many tokens stand before the patches, and whether one is of the class."""
        for part in self._module.modules():
            for name in ("cls_token", "class_token"):
                if isinstance(getattr(part, name, None), torch.Tensor):
                    return getattr(part, "num_prefix_tokens", 1), True
        return getattr(self._module, "num_prefix_tokens", None), False

    def _locate(self, tap: Tap) -> tuple[str, str, Shape]:
        probe = self.probe
        if tap.layer != PENULTIMATE:
            if tap.layer not in probe.outputs:
                raise unknown_layer(tap.layer, self.list_layers(), self._name)
            return "output", tap.layer, probe.outputs[tap.layer]
        if probe.penultimate is None:
            raise InputError(
                f"Got layers='{PENULTIMATE}' but the classifier of {self._name} cannot be told; "
                "pass penultimate= the name of the module whose input is the penultimate vector, "
                "or name the layers"
            )
        if tap.pooling == "avg":
            source = "head" if self._classifier is None else "input"
            return source, self._classifier or "", probe.penultimate
        if probe.features is None:
            raise InputError(
                f"Got layers='{PENULTIMATE}' with pooling={tap.pooling!r} but {self._name} has no "
                "map before its own pooling; expected pooling='avg', or the name of a layer"
            )
        if probe.features_module is None:
            return "features", "", probe.features
        return "output", probe.features_module, probe.features
