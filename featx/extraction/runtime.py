"""Runtimes: how a frozen network is executed on a device.

Each runtime maps a batch of one fixed shape to embeddings. The shape never changes, so that the
same kernels run for every batch and a row does not depend on how many others came with it.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import threading
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from featx._version import __version__
from featx.errors import InputError, did_you_mean
from featx.images.silence import warnings_silenced

if TYPE_CHECKING:
    from torch import nn

    from featx.backbones.frozen import FrozenBackbone
    from featx.backbones.taps import Tap
    from featx.store.graphs import GraphStore

# What turns a network into a graph; another version may make another one.
_PACKAGES_OF_A_GRAPH = ("torch", "timm", "torchvision", "onnx", "onnxscript")

RUNTIMES = ("auto", "onnx", "torch")


class Runtime(Protocol):
    """Executes a network on batches of one shape."""

    def run(self, pixels: torch.Tensor) -> list[np.ndarray]:
        """Map uint8 (rows, 3, side, side) to float32 (rows, dimension) for each tap."""
        ...


@dataclass(frozen=True)
class ExecutionPlan:
    """A runtime, a device and a batch size: everything decided, nothing built yet."""

    runtime: str
    device: str
    batch_size: int

    @property
    def device_type(self) -> str:
        """The kind of device, without its number."""
        return torch.device(self.device).type

    @property
    def description(self) -> str:
        """What computes, and on what kind of device."""
        return f"{self.runtime} on {self.device_type}"


def plan_execution(
    runtime: str = "auto", device: str = "auto", batch_size: int | str = "auto"
) -> ExecutionPlan:
    """Decide where and how a network runs, without building anything.

    Parameters
    ----------
    runtime : {"auto", "onnx", "torch"}
        ``"auto"`` is ONNX Runtime on a CPU, the fastest there, and torch elsewhere.
    device : str
        ``"auto"`` is the first GPU where there is one and the CPU elsewhere; otherwise a torch
        device such as ``"cpu"`` or ``"cuda:1"``.
    batch_size : int or "auto"
        Images per forward.

    Returns
    -------
    ExecutionPlan
        The decision.

    Raises
    ------
    InputError
        When a value is not one of these, the device is absent, or the two do not go together.
    """
    chosen_device = _choose_device(device)
    if runtime not in RUNTIMES:
        expected = ", ".join(map(repr, RUNTIMES))
        hint = did_you_mean(str(runtime), RUNTIMES)
        raise InputError(f"Got runtime={runtime!r} but expected one of {expected}{hint}")
    on_cpu = chosen_device.type == "cpu"
    if runtime == "onnx" and not on_cpu:
        raise InputError(
            f"Got runtime='onnx' with device={device!r} but ONNX Runtime is used on the CPU only; "
            "choose runtime='torch' or device='cpu'"
        )
    chosen_runtime = ("onnx" if on_cpu else "torch") if runtime == "auto" else runtime
    return ExecutionPlan(chosen_runtime, str(chosen_device), _choose_batch_size(batch_size, on_cpu))


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"Got device={device!r} but expected 'auto', 'cpu', 'cuda' or another torch device"
        ) from error
    if chosen.type == "meta":
        raise InputError(f"Got device={device!r}, which holds no numbers; expected 'auto' or 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"Got device={device!r} but torch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return chosen


def _choose_batch_size(batch_size: int | str, on_cpu: bool) -> int:
    if batch_size == "auto":
        return 32 if on_cpu else 128
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(
            f"Got batch_size={batch_size!r} but expected 'auto' or a whole number of at least 1"
        )
    return int(batch_size)


def open_runtime(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    rows: int,
    graphs: GraphStore | None = None,
) -> Runtime:
    """Build what executes a backbone; the same object for the same arguments.

    Parameters
    ----------
    backbone : FrozenBackbone
        What to execute.
    taps : tuple of Tap
        What to take from it.
    plan : ExecutionPlan
        How and where.
    rows : int
        How many images a batch has.
    graphs : GraphStore, optional
        Where exported networks are kept.

    Returns
    -------
    Runtime
        Ready to run batches of that many images.
    """
    with _building:
        threads = torch.get_num_threads()
        return _open_runtime(backbone, taps, plan, rows, graphs, threads, os.getpid())


# torch's exporter is not made for several threads at once, and one runtime is enough for all.
_building = threading.Lock()


def _after_fork_in_child() -> None:
    """Make the network usable in a forked child, where the parent's threads do not exist.

    OpenMP would wait for them for ever, so torch computes in the only thread that there is; and a
    lock that another thread of the parent held would never be released.
    """
    global _building
    _building = threading.Lock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# Threads and process are part of the key: a session of ONNX Runtime keeps the number of threads it
# was opened with, while a worker of joblib may lower it later, and a forked child has none of them.
@functools.lru_cache(maxsize=4)
def _open_runtime(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    rows: int,
    graphs: GraphStore | None,
    threads: int,
    _process: int,
) -> Runtime:
    if plan.runtime == "onnx":
        return OnnxRuntime(_find_or_export(backbone, taps, rows, graphs), threads)
    return TorchRuntime(backbone.network(taps), plan.device)


def _find_or_export(
    backbone: FrozenBackbone, taps: tuple[Tap, ...], rows: int, graphs: GraphStore | None
) -> bytes:
    # A network without a name is known by less than all of its code: its graph is not kept.
    if backbone.reference is None:
        graphs = None
    key = "" if graphs is None else _graph_key(backbone, taps, rows)
    graph = None if graphs is None else graphs.find(key)
    if graph is None:
        side = backbone.preprocessing.image_size
        graph = export_onnx(backbone.network(taps), rows, side, backbone.name)
        if graphs is not None:
            graphs.keep(key, graph)
    return graph


def _graph_key(backbone: FrozenBackbone, taps: tuple[Tap, ...], rows: int) -> str:
    fingerprints = [backbone.fingerprint(tap, runtime="onnx", device_type="cpu") for tap in taps]
    versions = [__version__, *map(version, _PACKAGES_OF_A_GRAPH)]
    return hashlib.sha256(repr((fingerprints, rows, versions)).encode()).hexdigest()[:32]


class TorchRuntime:
    """The network itself, in torch: the reference that every other runtime is measured against.

    Its rows are equal to a rounding step, about one part in a million, and not always bit for bit:
    torch shares out its sums by the threads and the memory that it finds.
    """

    def __init__(self, network: nn.Module, device: str) -> None:
        self._device = torch.device(device)
        # A copy, because the layout is changed and the backbone is shared.
        moved = copy.deepcopy(network).to(self._device)
        self._network = moved.to(memory_format=torch.channels_last)

    def run(self, pixels: torch.Tensor) -> list[np.ndarray]:
        """Map uint8 (n, 3, side, side) to float32 (n, dimension) for each tap."""
        batch = pixels.to(self._device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            embeddings = self._network(batch)
        return [of_tap.float().cpu().numpy() for of_tap in embeddings]


class OnnxRuntime:
    """The network as an ONNX graph in ONNX Runtime, on the CPU."""

    def __init__(self, graph: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: its warnings are about graph shapes, not for users
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, pixels: torch.Tensor) -> list[np.ndarray]:
        """Map uint8 (rows, 3, side, side) to float32 (rows, dimension) for each tap."""
        outputs = self._session.run(None, {self._input: pixels.numpy()})
        return [np.asarray(of_tap, dtype=np.float32) for of_tap in outputs]


def export_onnx(network: nn.Module, rows: int, side: int, name: str) -> bytes:
    """Return a network as a serialised ONNX graph for one batch shape.

    Parameters
    ----------
    network : Module
        Maps uint8 (rows, 3, side, side) to a tuple of tensors.
    rows, side : int
        How many images a batch has, and their side in pixels.
    name : str
        What to call the network in an error.

    Raises
    ------
    InputError
        When the network cannot be exported, or not at this size of images.
    """
    example = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    # What torch says to itself while it exports is nothing that a user could act on.
    try:
        with warnings_silenced():
            program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f"{name} with image_size={side} cannot be exported to ONNX; choose "
            "runtime='torch', or another image_size"
        ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph: bytes = program.model_proto.SerializeToString()
    return graph
