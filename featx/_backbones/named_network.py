"""What featx asks of every network it can name, whoever publishes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from featx._backbones.fitting import load_tensors

if TYPE_CHECKING:
    from torch import nn

    from featx._backbones.downloads import PublishedWeights
    from featx._backbones.weights import StateDict
    from featx._images.preprocess import Preprocessing


class NamedNetwork(ABC):
    """One network by name: how it is built, fed and given its weights.

    Attributes
    ----------
    name : str
        Its name in the catalogue, with or without a tag of weights.
    image_size : int or None
        The side of the input that was asked for, in pixels; None for the network's own.
    """

    name: str
    image_size: int | None

    @property
    @abstractmethod
    def published(self) -> PublishedWeights | None:
        """Where its weights are published; None where they are not."""

    @property
    @abstractmethod
    def tagged_name(self) -> str:
        """Its name with the tag of its published weights, which may be the default one."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with its classifier and random weights."""

    @abstractmethod
    def preprocessing(self, module: nn.Module) -> Preprocessing:
        """Return the recipe for images of the weights' own authors."""

    @abstractmethod
    def classifier(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the modules that only classifying needs."""

    def penultimate(self, module: nn.Module) -> str | None:
        """Return the module whose input is the penultimate vector; None where it is recognised."""
        return None

    def build_with(self, tensors: StateDict, source: str) -> nn.Module:
        """Return the network with its published weights, all of which must fit."""
        module = self.build()
        load_tensors(module, tensors, (), source)
        return module
