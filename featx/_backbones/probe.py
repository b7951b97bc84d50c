"""Probing: a forward of a blank image tells what each layer puts out, and where a tap is read."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._backbones.embedding_network import (
    TapPlan,
    find_classifier,
    first_tensor,
    has_features_and_head,
)
from featx._backbones.modules import share_tensors
from featx._backbones.pooling import check_pooling, find_layout
from featx._backbones.taps import PENULTIMATE, Tap, unknown_layer
from featx._errors import InputError

if TYPE_CHECKING:
    from featx._backbones.pooling import Layout

Shape = tuple[int, ...]


@dataclass
class Probe:
    """What the layers put out for one image.

    Attributes
    ----------
    outputs : dict of str to tuple of int
        The shape of each module's output, the axis of the images included, in the order in which
        the modules end; only modules that ran and put out a tensor.
    penultimate : tuple of int or None
        The shape of what the classifier takes.
    features : tuple of int or None
        The shape of the last map, or sequence of tokens, before the network's own pooling.
    features_module : str or None
        The module that puts it out; None where the network's own ``forward_features`` does.
    """

    outputs: dict[str, Shape] = field(default_factory=dict)
    penultimate: Shape | None = None
    features: Shape | None = None
    features_module: str | None = None

    def note_output(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Note what a module put out; a forward hook when its name is given."""
        tensor = first_tensor(output)
        if tensor is not None:
            # Taken out first: a module that runs again stands where it ended last.
            self.outputs.pop(name, None)
            self.outputs[name] = tuple(tensor.shape)

    def note_input_of_classifier(self, _module: nn.Module, inputs: Any) -> None:
        """Note what the classifier takes, and the last map that came before."""
        self.penultimate = tuple(inputs[0].shape)
        for name, shape in reversed(self.outputs.items()):
            if len(shape) == 3 or (len(shape) == 4 and max(shape[2:]) > 1):
                self.features, self.features_module = shape, name
                return


def probe_network(
    module: nn.Module, image_size: int, classifier: str | None, backbone: str
) -> Probe:
    """Run a network, which is not changed, on one blank image, and note the shapes.

    ``classifier`` is the module whose input is the penultimate vector; with None the network itself
    is asked. InputError when the network cannot take such an image.
    """
    # Whoever reached for the module may have left it in another mode.
    network: Any = share_tensors(module).eval()
    probe = Probe()
    for name, part in network.named_modules():
        if name:
            part.register_forward_hook(functools.partial(probe.note_output, name))
        if name and name == classifier:
            part.register_forward_pre_hook(probe.note_input_of_classifier)
    image = torch.zeros(1, 3, image_size, image_size)
    try:
        with torch.inference_mode():
            if classifier is not None or not has_features_and_head(network):
                network(image)
                return probe
            features = network.forward_features(image)
            probe.penultimate = tuple(network.forward_head(features, pre_logits=True).shape)
    except Exception as error:
        raise InputError(
            f"{backbone} cannot take one image of 3 x {image_size} x {image_size} numbers; "
            f"expected a network for images, and the image_size it was made for: {error}"
        ) from error
    if isinstance(features, torch.Tensor):
        probe.features = tuple(features.shape)
    return probe


_PROBABILITIES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)


class TapLocator:
    """Finds where the taps of a network are read, from one forward of a blank image.

    ``penultimate`` is the module whose input is the penultimate vector, where it is given.
    InputError when the network cannot take such an image.

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
        self._name = name
        self._classifier = penultimate
        if penultimate is None and not has_features_and_head(module):
            self._classifier = find_classifier(module)
        # A Sequential without one has had its head cut off: its output is the vector.
        self._last = None
        if isinstance(module, nn.Sequential) and len(module):
            name, last = list(module.named_children())[-1]
            self._last = None if isinstance(last, _PROBABILITIES) else name
        self._prefix_tokens, self._has_class_token = _tokens_of(module)
        self.probe = probe_network(module, image_size, self._classifier, name)

    def list_layers(self) -> dict[str, Shape]:
        """Return the layers that can be tapped, with the shape of their output for one image."""
        outputs = self.probe.outputs
        return {name: shape[1:] for name, shape in outputs.items() if self._layout(shape)}

    def plan(self, tap: Tap) -> tuple[TapPlan, Shape]:
        """Return where a tap is read, and the shape of what is there."""
        source, module, shape = self._locate(tap)
        layout = self._layout(shape)
        if layout is None:
            raise InputError(
                f"Got layers={tap.layer!r}, whose output for one image has the shape {shape}; "
                "expected a vector, a map or a sequence of tokens per image"
            )
        check_pooling(tap.pooling, layout, shape, tap.layer)
        return TapPlan(source, module, tap.pooling, layout), shape

    def _layout(self, shape: Shape) -> Layout | None:
        return find_layout(
            shape, prefix_tokens=self._prefix_tokens, class_token=self._has_class_token
        )

    def _locate(self, tap: Tap) -> tuple[str, str, Shape]:
        probe = self.probe
        if tap.layer != PENULTIMATE:
            if tap.layer not in probe.outputs:
                raise unknown_layer(tap.layer, self.list_layers(), self._name)
            return "output", tap.layer, probe.outputs[tap.layer]
        if probe.penultimate is None and self._last is not None:
            return "output", self._last, probe.outputs[self._last]
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


def _tokens_of(module: nn.Module) -> tuple[int | None, bool]:
    """Return how many tokens stand before the patches, and whether one is of the class."""
    for part in module.modules():
        for name in ("cls_token", "class_token"):
            if isinstance(getattr(part, name, None), torch.Tensor):
                return getattr(part, "num_prefix_tokens", 1), True
    return getattr(module, "num_prefix_tokens", None), False
