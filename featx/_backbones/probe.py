"""One forward of a blank image, to learn what every layer of a network puts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from featx._backbones.copying import share_tensors
from featx._backbones.network import first_tensor, has_features_and_head
from featx._errors import InputError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
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

    outputs: dict[str, Shape]
    penultimate: Shape | None
    features: Shape | None
    features_module: str | None


def probe_network(
    module: nn.Module, image_size: int, classifier: str | None, backbone: str
) -> Probe:
    """Run a network on one blank image.

    Parameters
    ----------
    module : torch.nn.Module
        Frozen; it is not changed.
    image_size : int
        Side of the image.
    classifier : str or None
        The module whose input is the penultimate vector; None to ask the network itself.
    backbone : str
        What to call the network in an error.

    Returns
    -------
    Probe
        The shapes.

    Raises
    ------
    InputError
        When the network cannot take such an image.
    """
    # Whoever reached for the module may have left it in another mode.
    network = share_tensors(module).eval()
    recorder = _Recorder()
    for name, part in network.named_modules():
        if name:
            part.register_forward_hook(recorder.output_hook(name))
        if name and name == classifier:
            part.register_forward_pre_hook(recorder.classifier_hook)
    try:
        with torch.inference_mode():
            recorder.run(network, torch.zeros(1, 3, image_size, image_size), classifier)
    except Exception as error:
        raise InputError(
            f"{backbone} cannot take one image of 3 x {image_size} x {image_size} numbers; "
            f"expected a network for images, and the image_size it was made for: {error}"
        ) from error
    return Probe(
        recorder.outputs, recorder.penultimate, recorder.features, recorder.features_module
    )


class _Recorder:
    def __init__(self) -> None:
        self.outputs: dict[str, Shape] = {}
        self.penultimate: Shape | None = None
        self.features: Shape | None = None
        self.features_module: str | None = None

    def run(self, network: Any, image: torch.Tensor, classifier: str | None) -> None:
        if classifier is not None or not has_features_and_head(network):
            network(image)
            return
        features = network.forward_features(image)
        if isinstance(features, torch.Tensor):
            self.features = tuple(features.shape)
        self.penultimate = tuple(network.forward_head(features, pre_logits=True).shape)

    def output_hook(self, name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                # Taken out first: a module that runs again stands where it ended last.
                self.outputs.pop(name, None)
                self.outputs[name] = tuple(tensor.shape)

        return record

    def classifier_hook(self, _module: nn.Module, inputs: Any) -> None:
        self.penultimate = tuple(inputs[0].shape)
        for name, shape in reversed(self.outputs.items()):
            if len(shape) == 3 or (len(shape) == 4 and max(shape[2:]) > 1):
                self.features, self.features_module = shape, name
                return
