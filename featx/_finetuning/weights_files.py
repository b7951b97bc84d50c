"""Weights files: a trained network and the names of its classes, in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from featx._errors import InputError, SchemaError
from featx._files import output_file, write_atomically

if TYPE_CHECKING:
    import os

    import torch

FILE_VERSION = 1

_KINDS = "OUbiuf"


def write_labelled_weights(
    file: str | os.PathLike[str], tensors: dict[str, torch.Tensor], classes: np.ndarray
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
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return the tensors and classes of a file that `write_labelled_weights` wrote.

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
            return {name: opened.get_tensor(name) for name in list(opened.keys())}, classes
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{path} was not written by save_weights of this version of featx, or is damaged; "
            "write it anew"
        ) from error


def _is_plain(label: Any) -> bool:
    return isinstance(label, str | int | float | bool)
