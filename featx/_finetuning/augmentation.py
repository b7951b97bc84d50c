"""Augmentation: the images of a training, changed a little and anew in each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from featx._errors import InputError, did_you_mean

Augmentation = Callable[[torch.Tensor], torch.Tensor]

AUGMENTATIONS = ("light",)


def find_augmentation(augment: Any, image_size: int) -> Augmentation | None:
    """Return what changes an image, uint8 (3, side, side) to the same; None for nothing.

    ``"light"`` takes 70 to 100 % of the area, at ratios from 3:4 to 4:3, and mirrors every second
    image: a mild form of the crops of Szegedy et al. ("Going deeper with convolutions", CVPR 2015).

    Parameters
    ----------
    augment : None, "light" or callable
        A callable is a transform of torchvision v2, or anything else that maps uint8 (3, side,
        side) to the same and draws its random numbers from torch.
    image_size : int
        The side.

    Raises
    ------
    InputError
        If it is none of these.

    Examples
    --------
    >>> light = find_augmentation("light", 32)
    >>> light(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([3, 32, 32])
    """
    if augment is None or callable(augment):
        given: Augmentation | None = augment
        return given
    if augment not in AUGMENTATIONS:
        hint = did_you_mean(str(augment), AUGMENTATIONS)
        raise InputError(
            f"Got augment={augment!r} but expected None, 'light' or a transform of "
            f"torchvision.transforms.v2{hint}"
        )
    crop = v2.RandomResizedCrop(image_size, scale=(0.7, 1.0), antialias=True)
    light: Augmentation = v2.Compose([crop, v2.RandomHorizontalFlip()])
    return light


def augmented(augmentation: Augmentation, pixels: torch.Tensor) -> torch.Tensor:
    """Apply an augmentation to one image.

    Raises
    ------
    InputError
        If what it returns has another shape or dtype.
    """
    changed = augmentation(pixels)
    is_alike = isinstance(changed, torch.Tensor) and changed.dtype == torch.uint8
    if not is_alike or changed.shape != pixels.shape:
        got = (
            f"{changed.dtype} of shape {tuple(changed.shape)}".removeprefix("torch.")
            if isinstance(changed, torch.Tensor)
            else type(changed).__name__
        )
        raise InputError(
            f"Got {got} from augment but expected uint8 of shape {tuple(pixels.shape)}, as it was "
            "given; leave normalising to the network"
        )
    return changed
