"""Weights: read from disk without running anything, and checked against a pinned digest."""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING

import torch

from featx.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

StateDict = dict[str, torch.Tensor]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors: their names, dtypes, shapes and bytes, in order."""
    total = hashlib.sha256()
    for name, tensor in state.items():
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_pinned_weights(path: Path, sha256: str) -> StateDict:
    """Read a ``.pth`` file of tensors, after checking that it is the file it should be.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        The digest that the catalogue pins.

    Returns
    -------
    dict of str to Tensor
        The tensors, in the order of the file.

    Raises
    ------
    WeightsError
        When the file is absent, has another digest, or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"The weights file {path} is missing; install again the package it belongs to"
        )
    got = file_sha256(path)
    if got != sha256:
        raise WeightsError(
            f"The weights file {path} has sha256 {got}, expected {sha256}; it is damaged or was "
            "changed: install again the package it belongs to"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(f"The weights file {path} cannot be read: {error}") from error
    return dict(state)
