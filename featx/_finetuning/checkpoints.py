"""Checkpoints: where a training was at the end of an epoch, so that it goes on after a kill.

A training has a folder of its own, named by the digest of everything that decides its result. In
it are two files of safetensors, which can hold no code: ``last.safetensors`` with the tensors that
training changes, the optimizer's, and the rest as JSON; and ``best-<epoch>.safetensors``, which the
last one names. Each is whole or absent, and the one that is named is written first, so the two
belong together whenever the process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from featx._checks import brief
from featx._errors import InputError, SchemaError
from featx._files import output_file, write_atomically

if TYPE_CHECKING:
    import os


CHECKPOINT_VERSION = 1

_MODEL = "model."
_OPTIMIZER = "optimizer."


@dataclass
class TrainingState:
    """What there is to know of a training between two epochs."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    history: list[dict[str, Any]]
    seed: int
    best_epoch: int
    best: dict[str, torch.Tensor]


class Checkpoint:
    """The checkpoint of one training.

    Raises
    ------
    InputError
        If the folder cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoint(folder, {"epochs": 3}).load() is None
    True
    """

    def __init__(self, folder: str | os.PathLike[str], description: dict[str, Any]) -> None:
        canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()
        self.folder = Path(folder) / self.digest[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Got checkpoint={str(folder)!r} but it cannot be made a folder "
                f"({error.strerror}); name one that can be written"
            ) from error
        self._best_written: int | None = None

    @property
    def last(self) -> Path:
        """The file of the last epoch."""
        return self.folder / "last.safetensors"

    def find_seed(self) -> int | None:
        """Return the seed of the training that was begun; None where none was."""
        state = self.load()
        return None if state is None else state.seed

    def save(self, state: TrainingState) -> None:
        """Write a state; the one before it is there until this one is whole."""
        best = self._best(state.best_epoch)
        if self._best_written != state.best_epoch:
            _write(best, state.best, {"epoch": str(state.best_epoch)})
            self._best_written = state.best_epoch
        optimizer, scalars = _separate(state.optimizer)
        tensors = {_MODEL + name: tensor for name, tensor in state.model.items()}
        tensors |= {_OPTIMIZER + name: tensor for name, tensor in optimizer.items()}
        described = {
            "version": CHECKPOINT_VERSION,
            "training": self.digest,
            "optimizer": scalars,
            "scaler": state.scaler,
            "history": state.history,
            "seed": state.seed,
            "best_epoch": state.best_epoch,
        }
        _write(self.last, tensors, {"featx": json.dumps(described)})
        for path in self.folder.glob("best-*.safetensors"):
            if path != best:
                with contextlib.suppress(OSError):
                    path.unlink()

    def load(self) -> TrainingState | None:
        """Return the state of the last epoch that was done; None where there is none.

        Raises
        ------
        SchemaError
            If a file is damaged or is no such checkpoint.
        """
        if not self.last.exists():
            return None
        tensors, metadata = _read(self.last)
        try:
            described = json.loads(metadata["featx"])
            if (described["version"], described["training"]) != (CHECKPOINT_VERSION, self.digest):
                raise KeyError("version")
            best_epoch = int(described["best_epoch"])
            best, _ = _read(self._best(best_epoch))
            self._best_written = best_epoch
            return TrainingState(
                model=_inside(tensors, _MODEL),
                optimizer=_join(_inside(tensors, _OPTIMIZER), described["optimizer"]),
                scaler=described["scaler"],
                history=described["history"],
                seed=int(described["seed"]),
                best_epoch=best_epoch,
                best=best,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.last) from error

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04}.safetensors"


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with write_atomically(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> SchemaError:
    return SchemaError(
        f"{path} is not a whole checkpoint of this version of featx; delete its folder to train "
        "from the beginning"
    )


def _inside(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _separate(optimizer: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Part the state of an optimizer in tensors and plain values."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer["state"].items():
        plain[str(parameter)] = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}.{name}"] = value.detach().cpu()
            else:
                plain[str(parameter)][name] = value
    return tensors, {"state": plain, "param_groups": optimizer["param_groups"]}


def _join(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {
        int(parameter): dict(values) for parameter, values in plain["state"].items()
    }
    for key, tensor in tensors.items():
        parameter, _, name = key.partition(".")
        state[int(parameter)][name] = tensor
    return {"state": state, "param_groups": plain["param_groups"]}


FILE_VERSION = 1

_KINDS = "OUbiuf"


def write_labelled_weights(
    file: str | os.PathLike[str],
    tensors: dict[str, torch.Tensor],
    classes: np.ndarray,
    network: dict[str, Any],
) -> None:
    """Write tensors and classes; the file is whole or absent.

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
