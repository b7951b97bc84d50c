"""Normalization: the last step of a network's recipe for images, which runs on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from featx._images.preprocess import Preprocessing


class Normalization(nn.Module):
    """What a network's recipe does to pixels after the crop, on the network's device.

    It belongs to the network rather than to the images: a batch of uint8 is a quarter of the bytes
    to keep, to queue and to move to a device.

    Parameters
    ----------
    preprocessing : Preprocessing
        The recipe.

    Examples
    --------
    >>> from featx import Preprocessing
    >>> recipe = Preprocessing(2, 2, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> Normalization(recipe)(white).unique()
    tensor([1.])
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        self._scales_to_one = preprocessing.pixel_scale == 1
        self._swaps_channels = preprocessing.channel_order == "bgr"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, side, side) in RGB to what the network itself takes, in float32."""
        values = pixels.to(self.pixel_mean.dtype)
        if self._swaps_channels:
            values = values.flip(1)
        # The order of the operations is that of the reference recipes: scale, centre, divide.
        if self._scales_to_one:
            values = values / 255
        return (values - self.pixel_mean) / self.pixel_std
