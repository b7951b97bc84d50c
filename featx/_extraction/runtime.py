"""Runtimes: what executes a frozen network, and what takes its place where it cannot be built.

Each maps images to embeddings in batches of one fixed shape, the last one padded, so that the same
kernels run for every batch and a row does not depend on how many others came with it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch

from featx._errors import RuntimeFallbackWarning
from featx._locks import lock_of_process
from featx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.plan import ExecutionPlan
    from featx._store.graphs import GraphStore


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
        from featx._extraction.onnx_runtime import OnnxRuntime, find_graph

        return OnnxRuntime(find_graph(execution), plan.batch_size, threads)
    from featx._extraction.torch_runtime import CompiledRuntime, TorchRuntime, check_precision

    build = CompiledRuntime if plan.runtime == "compile" else TorchRuntime
    runtime = build(backbone.network(taps), plan, backbone.preprocessing.image_size)
    if plan.precision != "float32":
        check_precision(backbone, taps, plan, runtime)
    return runtime
