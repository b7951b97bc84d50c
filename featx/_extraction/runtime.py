"""Execution: where and by what a network runs, and what takes its place where it cannot be built.

A runtime maps images to embeddings in batches of one fixed shape, the last one padded, so that the
same kernels run for every batch and a row does not depend on how many others came with it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch

from featx._checks import check_choice, check_whole_number
from featx._errors import InputError, RuntimeFallbackWarning
from featx._extraction.onnx_runtime import OnnxRuntime, find_graph
from featx._files import lock_of_process
from featx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._store.graphs import GraphStore


RUNTIMES = ("auto", "onnx", "torch", "compile")

PRECISIONS = ("float32", "bfloat16")

# What a runtime that cannot be built is replaced by.
_NEXT_RUNTIME = {"onnx": "torch", "compile": "torch"}

# Measured on CPUs (benchmarks/README.md): activations of one image stay in the processor's caches,
# which larger batches overflow; torch pays more for each call, which a few images share.
_BATCH_ON_CPU = {"onnx": 1, "torch": 4, "compile": 4}

# Images of 224 pixels a forward on a GPU, by its memory in GiB: enough to occupy it, while the
# activations, some 50 MB an image in the largest networks, fill no more than half of it.
_BATCH_ON_GPU = ((40, 256), (16, 128), (8, 64), (0, 32))


@dataclass(frozen=True)
class ExecutionPlan:
    """How a network is executed: everything decided, nothing built yet.

    Attributes
    ----------
    runtime : {"onnx", "torch", "compile"}
        What executes it.
    device : str
        A torch device, such as ``"cpu"`` or ``"cuda:0"``.
    batch_size : int
        Images a forward.
    precision : {"float32", "bfloat16"}
        The arithmetic of the network.
    may_shrink : bool
        Whether a batch that does not fit into the memory of the device is halved.
    """

    runtime: str
    device: str
    batch_size: int
    precision: str = "float32"
    may_shrink: bool = False

    @property
    def device_type(self) -> str:
        """The kind of device, without its number."""
        return torch.device(self.device).type

    @property
    def description(self) -> str:
        """What computes, on what kind of device, and in which arithmetic unless in float32."""
        arithmetic = "" if self.precision == "float32" else f" in {self.precision}"
        return f"{self.runtime} on {self.device_type}{arithmetic}"

    def for_images_of(self, side: int) -> ExecutionPlan:
        """Return the plan with smaller batches of larger images, where it may choose them.

        Examples
        --------
        >>> ExecutionPlan("torch", "cuda", 128, may_shrink=True).for_images_of(448).batch_size
        32
        """
        if not self.may_shrink or self.device_type == "cpu":
            return self
        # Powers of two only, so that few shapes are ever compiled.
        halvings = max(0, round(math.log2((side / 224) ** 2)))
        return replace(self, batch_size=max(1, self.batch_size >> halvings))

    @property
    def fallback(self) -> ExecutionPlan | None:
        """The plan to take where this one cannot be built; None where there is none."""
        following = _NEXT_RUNTIME.get(self.runtime)
        if following is None:
            return None
        size = self.batch_size
        if self.may_shrink and self.device_type == "cpu":
            size = _BATCH_ON_CPU[following]
        return replace(self, runtime=following, batch_size=size)


def plan_execution(
    runtime: str = "auto",
    device: str = "auto",
    batch_size: int | str = "auto",
    precision: str = "float32",
) -> ExecutionPlan:
    """Decide where and how a network runs, without building anything.

    Parameters are those of `featx.ImageEmbedder`, and so are the errors.

    Examples
    --------
    >>> plan_execution(device="cpu").description
    'onnx on cpu'
    >>> plan_execution(device="cpu", precision="bfloat16").description
    'torch on cpu in bfloat16'
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    chosen_device = _choose_device(device)
    on_cpu = chosen_device.type == "cpu"
    if runtime == "onnx" and not on_cpu:
        raise InputError(
            f"Got runtime='onnx' with device={device!r} but ONNX Runtime is used on the CPU only; "
            "choose runtime='torch' or device='cpu'"
        )
    if runtime == "onnx" and precision != "float32":
        raise InputError(
            f"Got runtime='onnx' with precision={precision!r} but ONNX Runtime computes in float32 "
            "on a CPU; choose runtime='torch' or 'compile'"
        )
    if runtime == "auto":
        runtime = "onnx" if on_cpu and precision == "float32" else "torch"
    is_auto = isinstance(batch_size, str) and batch_size == "auto"
    check_whole_number("batch_size", batch_size, 1, also=["auto"])
    size = _choose_batch_size(runtime, chosen_device) if is_auto else int(batch_size)
    return ExecutionPlan(runtime, str(chosen_device), size, precision, may_shrink=is_auto)


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
            f"Got device={device!r} but torch sees {torch.cuda.device_count()} CUDA devices here; "
            "choose device='cpu' or 'auto'"
        )
    return chosen


def _choose_batch_size(runtime: str, device: torch.device) -> int:
    """Return the same number for the same machine, whatever else runs there: no free memory."""
    if device.type == "cpu":
        return _BATCH_ON_CPU[runtime]
    gibibytes = 0.0
    if device.type == "cuda":
        gibibytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return next(size for least, size in _BATCH_ON_GPU if gibibytes >= least)


class Runtime(Protocol):
    """Executes a network."""

    def prepare(self, calls: int = 1, /) -> None:
        """Build what would be built at the first of so many calls at a time."""
        ...

    def calls_at_a_time(self, n_images: int, /) -> int:
        """Return how many calls of `run` are best under way at a time."""
        ...

    def run(self, pixels: torch.Tensor, calls: int = 1, /) -> list[np.ndarray]:
        """Map uint8 (n, 3, side, side) to float32 (n, dimension) for each tap."""
        ...


def in_one_order(taps: Iterable[Tap]) -> tuple[Tap, ...]:
    """Return taps in the order in which a runtime gives them.

    It is the same whichever of them is asked for and which are only kept for later, so that a
    search over layers builds one runtime for all its choices.
    """
    return tuple(sorted(taps, key=lambda tap: (tap.layer, tap.pooling)))


@dataclass(frozen=True)
class Execution:
    """A network, what is taken from it, and how it is executed; nothing is built yet.

    Attributes
    ----------
    backbone : FrozenBackbone
        What to execute.
    taps : tuple of Tap
        What to take from it.
    plan : ExecutionPlan
        How and where.
    graphs : GraphStore or None
        Where exported networks are kept.
    """

    backbone: FrozenBackbone
    taps: tuple[Tap, ...]
    plan: ExecutionPlan
    graphs: GraphStore | None = None

    @property
    def key(self) -> str:
        """What names the graph of a network, and the proof that a runtime can be built."""
        plan = self.plan
        cache_keys = [
            self.backbone.cache_key(
                tap, runtime=plan.runtime, device_type=plan.device_type, precision=plan.precision
            )
            for tap in self.taps
        ]
        versions = [__version__, *map(version, _PACKAGES_OF_A_GRAPH)]
        named = repr((cache_keys, plan.batch_size, versions))
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    def choose_plan(self) -> ExecutionPlan:
        """Return the plan, or what takes its place where it cannot be built here.

        What decides a vector must be known before it is looked up, and the runtime is part of that.
        So a runtime is built at the first call, unless it was built for this cache before.

        Warns
        -----
        RuntimeFallbackWarning
            Once in a process, when it is another one.
        """
        if self.plan.fallback is None:
            return self.plan
        chosen = _chosen.setdefault(self.backbone, {})
        if (self.taps, self.plan) not in chosen:
            if self.graphs is None or not self.graphs.holds(self.key):
                try:
                    self.open().prepare()
                except Exception as error:  # each library has exceptions of its own
                    return self.replace_plan(error)
                # A graph that was kept meanwhile is a proof, too.
                if self.graphs is not None and not self.graphs.holds(self.key):
                    self.graphs.keep(self.key, b"")
            chosen[self.taps, self.plan] = self.plan
        return chosen[self.taps, self.plan]

    def replace_plan(self, error: Exception) -> ExecutionPlan:
        """Return what takes the place of the plan in this process, or raise why it cannot be built.

        Warns
        -----
        RuntimeFallbackWarning
            With the reason.
        """
        if self.plan.fallback is None:
            raise error
        instead = replace(self, plan=self.plan.fallback).choose_plan()
        _chosen.setdefault(self.backbone, {})[self.taps, self.plan] = instead
        # What an exporter raises tells how to report it; what it was raised from tells why.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        warnings.warn(
            f"{self.backbone.name} cannot be run as {self.plan.description} here, so it runs as "
            f"{instead.description}, whose embeddings are kept apart; the reason: "
            f"{reason[:_LONGEST_REASON]}",
            RuntimeFallbackWarning,
            stacklevel=2,
        )
        return instead

    def open(self, threads: int | None = None) -> Runtime:
        """Build what executes the network; the same object for the same arguments.

        By default it computes with `computing_threads`. Whatever a library raises that cannot
        build it is raised; see `choose_plan`.

        Warns
        -----
        PrecisionWarning
            When bfloat16 moves the vectors of this network.
        """
        threads = computing_threads() if threads is None else threads
        with lock_of_process("network"), torch_threads(threads):
            return _open_runtime(self, threads, os.getpid())


# What turns a network into a graph; another version may make another one.
_PACKAGES_OF_A_GRAPH = ("torch", "timm", "torchvision", "onnx", "onnxscript")

_LONGEST_REASON = 300

# By network, and only for as long as somebody else holds it.
_chosen: WeakKeyDictionary[
    FrozenBackbone, dict[tuple[tuple[Tap, ...], ExecutionPlan], ExecutionPlan]
] = WeakKeyDictionary()


_HOME_PROCESS = os.getpid()


def computing_threads() -> int:
    """Return how many threads compute: as many as torch uses, but one in a forked child.

    There OpenMP would wait for ever for the threads of the parent. joblib lowers this number in
    its workers, so that they do not crowd each other.
    """
    return torch.get_num_threads() if os.getpid() == _HOME_PROCESS else 1


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads: a new thread does not know what others chose."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Threads and process are part of the key: a session of ONNX Runtime keeps the number of threads it
# was opened with, while a worker of joblib may lower it later, and a forked child has none of them.
@functools.lru_cache(maxsize=4)
def _open_runtime(execution: Execution, threads: int, _process: int) -> Runtime:
    backbone, taps, plan = execution.backbone, execution.taps, execution.plan
    if plan.runtime == "onnx":
        return OnnxRuntime(find_graph(execution), plan.batch_size, threads)
    from featx._extraction.torch_runtime import CompiledRuntime, TorchRuntime, check_precision

    build = CompiledRuntime if plan.runtime == "compile" else TorchRuntime
    runtime = build(backbone.network(taps), plan, backbone.preprocessing.image_size)
    if plan.precision != "float32":
        check_precision(backbone, taps, plan, runtime)
    return runtime
