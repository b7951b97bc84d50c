"""Weights files: a trained network and the names of its classes, in safetensors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from featx._checks import brief
from featx._errors import InputError, SchemaError
from featx._files import output_file, write_atomically

if TYPE_CHECKING:
    import os

    import torch

FILE_VERSION = 1

_KINDS = "OUbiuf"


def write_labelled_weights(
    file: str | os.PathLike[str],
    tensors: dict[str, torch.Tensor],
    classes: np.ndarray,
    network: dict[str, Any],
) -> None:
    """Write tensors and classes; the file is whole or absent.

    Parameters
    ----------
    file : path
        Ends in ``.safetensors``.
    tensors : dict of str to Tensor
        Of the network.
    classes : ndarray
        Of strings, numbers or booleans.
    network : dict
        What a classifier that loads them must share, as plain JSON types.

    Raises
    ------
    InputError
        If it cannot be a file, or the classes are of another kind.
    """
    path = output_file(file)
    if path.suffix != ".safetensors":
        raise InputError(f"Got {path} but expected a name that ends in .safetensors")
    labels = classes.tolist()
    if classes.dtype.kind not in _KINDS or not all(_is_plain(label) for label in labels):
        raise InputError(
            f"Got labels of the type {type(labels[0]).__name__}, which a weights file cannot hold; "
            "expected strings, numbers or booleans"
        )
    described = {
        "version": FILE_VERSION,
        "classes": labels,
        "network": network,
        "dtype": "object" if classes.dtype == object else classes.dtype.str,
    }
    content = save(
        # Copies, as tensors that share their memory cannot be written.
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        {"featx": json.dumps(described)},
    )
    with write_atomically(path) as stream:
        stream.write(content)


def read_labelled_weights(
    file: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], np.ndarray, dict[str, Any]]:
    """Return what `write_labelled_weights` wrote: tensors, classes and description of the network.

    Raises
    ------
    InputError
        If there is no such file.
    SchemaError
        If it is another, or damaged.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"There is no weights file {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            described = json.loads((opened.metadata() or {})["featx"])
            if described["version"] != FILE_VERSION:
                raise KeyError("version")
            dtype = np.dtype(described["dtype"])
            classes = np.array(described["classes"], dtype=dtype)
            if dtype.kind not in _KINDS or classes.ndim != 1 or len(classes) < 2:
                raise ValueError("classes")
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
            return tensors, classes, dict(described.get("network", {}))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{path} was not written by save_weights of this version of featx, or is damaged; "
            "write it anew"
        ) from error


def check_same_network(
    file: str | os.PathLike[str], written: dict[str, Any], own: dict[str, Any]
) -> None:
    """Raise SchemaError where a file's weights are of another network than the one they go into."""
    if not written:
        warnings.warn(
            f"{file} was written by featx 0.1 and does not say which backbone, image size and "
            "preprocessing its weights go with; see that they are the same, and write it anew",
            UserWarning,
            stacklevel=3,
        )
    for name, value in written.items():
        if own.get(name) != value:
            had, has = _difference(value, own.get(name))
            raise SchemaError(
                f"Got {file}, written by a classifier with {name} {had}, but this one has {has}; "
                "give it the same backbone, image_size, preprocessing and hidden_layer_sizes"
            )


def _difference(written: Any, own: Any) -> tuple[str, str]:
    if isinstance(written, dict) and isinstance(own, dict):
        differing = sorted(key for key in written | own if written.get(key) != own.get(key))
        written = {key: written.get(key) for key in differing}
        own = {key: own.get(key) for key in differing}
    return brief(written), brief(own)


def _is_plain(label: Any) -> bool:
    return isinstance(label, str | int | float | bool)
