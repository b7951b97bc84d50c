"""Weights: read from disk without running anything, checked, and fitted to a network."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from torch import nn

from featx._errors import InputError, WeightsError

StateDict = dict[str, torch.Tensor]

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# Under which key training scripts keep the tensors of a network among other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DATA_PARALLEL = "module."

_SHOWN = 5

# BatchNorm counts its training steps; nothing that is computed in eval mode depends on them.
_COUNTER = "num_batches_tracked"

_PINNED = re.compile(r"(?P<path>.+)#sha256=(?P<sha256>[^#]*)", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file of one's own: its absolute path, and the digest it must have, if given."""

    path: Path
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> WeightsFile | None:
        """Read ``"file.safetensors"``, or with ``"#sha256=<64 digits>"`` behind it; else None.

        Examples
        --------
        >>> WeightsFile.parse("/models/net.pth#sha256=" + "0a" * 32).path.name
        'net.pth'
        >>> WeightsFile.parse("default") is None
        True
        """
        pinned = _PINNED.fullmatch(text)
        path = Path(text if pinned is None else pinned["path"]).expanduser()
        if path.suffix.lower() not in WEIGHTS_SUFFIXES:
            return None
        if pinned is None:
            return cls(path.absolute())
        sha256 = pinned["sha256"].lower()
        if not _SHA256.fullmatch(sha256):
            raise InputError(
                f"Got weights={text!r}, expected 64 hexadecimal digits after '#sha256='; "
                f"sha256sum {path} prints them"
            )
        return cls(path.absolute(), sha256)


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, and its sha256; in the file's order where ``torch.save`` wrote it."""

    tensors: StateDict
    sha256: str


def tensors_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors: their names, dtypes, shapes and bytes, in order."""
    total = hashlib.sha256()
    for name, tensor in state.items():
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_checked(path: Path, sha256: str | None, *, advice: str) -> tuple[bytes, str]:
    """Return the content of a file and its sha256, which must begin with ``sha256``."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(f"The weights file {path} does not exist; {advice}") from error
    except OSError as error:
        raise WeightsError(f"The weights file {path} cannot be read: {error}; {advice}") from error
    got = hashlib.sha256(content).hexdigest()
    if sha256 is not None and not got.startswith(sha256):
        raise WeightsError(
            f"The weights file {path} has sha256 {got}, expected {sha256}; it is damaged or was "
            f"changed: {advice}"
        )
    return content, got


def read_weights(path: Path, sha256: str | None = None, *, advice: str) -> Weights:
    """Read a file of tensors, after checking that it is the file it should be.

    It is a ``.safetensors`` file, or one that ``torch.save`` wrote (``.pth``, ``.pt``, ``.bin``).
    What is checked and what is parsed are the same bytes, so that nobody can change the file in
    between. Nothing in the file is ever run. ``advice`` says what to do about a file that is
    absent, damaged or another.

    Raises
    ------
    WeightsError
        When the file is absent, has another digest, or holds anything but tensors.
    """
    content, got = read_checked(path, sha256, advice=advice)
    try:
        if path.suffix.lower() == ".safetensors":
            tensors = parse_safetensors(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            tensors = _unwrap(loaded)
    except SafetensorError as error:
        raise WeightsError(
            f"The weights file {path} is not a whole safetensors file: {error}; {advice}"
        ) from error
    except Exception as error:  # a damaged or hostile pickle fails in any way its bytes choose
        # torch advises to load such a file all the same, which is what an attacker hopes for.
        is_refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors" if is_refused else _first_line(error)
        raise WeightsError(
            f"The weights file {path} is not a file of tensors alone: {reason}; {advice}"
        ) from error
    return Weights(tensors, got)


def trained_image_size(path: Path) -> int | None:
    """Return the side of the images that a file of `FineTunedClassifier` says it was trained at."""
    try:
        with safe_open(path, framework="pt") as opened:
            described = json.loads((opened.metadata() or {})["featx"])
        return int(described["network"]["image_size"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # reading it will say so
        return None


def _unwrap(loaded: Any) -> StateDict:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise TypeError(f"it holds {type(loaded).__name__}, expected a dictionary of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name!r} is {type(tensor).__name__}, expected a tensor; save only "
                "network.state_dict()"
            )
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise TypeError(f"{name!r} is not a plain tensor but {tensor.layout}, {tensor.device}")
    return dict(loaded)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def load_tensors(
    module: nn.Module, tensors: StateDict, classifier: Sequence[str], source: str
) -> tuple[str, ...]:
    """Copy the tensors of a file into a network, which is unchanged if they do not fit.

    Tensors of the ``classifier``, the modules that only features do not need, may be missing,
    unexpected or of another number of classes, and are then left as they are; their names are
    returned. A ``module.`` before every name is left out.

    Raises
    ------
    WeightsError
        When other tensors are missing, unexpected or of another shape: with their numbers and the
        first names.
    """
    if all(name.startswith(_DATA_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_DATA_PARALLEL): tensor for name, tensor in tensors.items()}
    wanted = module.state_dict()
    misfits = _compare(tensors, wanted)
    serious = {
        kind: [shown for name, shown in names.items() if not _is_inside(name, classifier)]
        for kind, names in misfits.items()
    }
    if any(serious.values()):
        counted = (f"{len(n)} {kind} ({_first(n)})" for kind, n in serious.items() if n)
        raise WeightsError(
            f"The tensors of {source} do not fit the network ({len(wanted)} tensors): "
            f"{'; '.join(counted)}; give the weights of this very architecture, with its names"
        )
    ignored = [name for names in misfits.values() for name in names]
    module.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name not in ignored}, strict=False
    )
    return tuple(ignored)


def check_finite(module: nn.Module, classifier: Sequence[str], source: str) -> None:
    """Raise WeightsError for a network that could only compute NaN.

    A tensor outside its ``classifier`` holds it: its training broke down, or its file did.
    """
    broken = [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
        and not _is_inside(name, classifier)
        and bool(tensor.isnan().any())
    ]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors of {source} hold NaN ({_first(broken)}), so every embedding "
            "would be NaN; give the weights of a training that did not diverge"
        )


def _compare(tensors: StateDict, wanted: StateDict) -> dict[str, dict[str, str]]:
    """Return the names that do not fit, and how to show them, by what is the matter with them."""
    missing = {name: name for name in wanted if name not in tensors}
    unexpected = {name: name for name in sorted(tensors) if name not in wanted}
    mismatched = {
        name: f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    for names in (missing, unexpected):
        for name in [name for name in names if name.endswith(_COUNTER)]:
            del names[name]
    return {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
