"""Exports of one test run: a named network is exported once, however many caches the tests have.

An export takes two seconds even of a small network, and nearly every test has a cache of its own.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

# What lies in these packages is known by name, numbers and tensors. Of a network that a test has
# written the code counts too, so it is exported anew.
_KNOWN = ("torch.", "timm.", "torchvision.", "featx.")


def remember_exports(
    export: Callable[[nn.Module, int, int], bytes], folder: Path
) -> Callable[[nn.Module, int, int], bytes]:
    """Return the exporter with a memory.

    Parameters
    ----------
    export : callable
        Maps a network, the images of a batch and their side to a graph.
    folder : Path
        Where graphs lie; the workers of a test run share it.
    """

    def remembered(network: nn.Module, rows: int, side: int) -> bytes:
        if not all(type(part).__module__.startswith(_KNOWN) for part in network.modules()):
            return export(network, rows, side)
        file = folder / f"{_digest(network, rows, side)}.onnx"
        if not file.exists():
            graph = export(network, rows, side)
            draft = file.with_suffix(f".{os.getpid()}")
            draft.write_bytes(graph)
            draft.replace(file)
        return file.read_bytes()

    return remembered


def _digest(network: Any, rows: int, side: int) -> str:
    digest = hashlib.sha256(repr((rows, side, network, network.plans)).encode())
    for name, part in network.named_modules():
        plain = {key: value for key, value in vars(part).items() if isinstance(value, _PLAIN)}
        digest.update(repr((name, type(part), sorted(plain.items()))).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


_PLAIN = (bool, int, float, str, tuple)
