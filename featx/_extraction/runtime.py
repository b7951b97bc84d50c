"""Runtimes: what executes a frozen network, and what takes its place where it cannot be built.

Each maps images to embeddings in batches of one fixed shape, the last one padded, so that the same
kernels run for every batch and a row does not depend on how many others came with it.
"""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch

from featx._errors import RuntimeFallbackWarning
from featx._extraction.graphs import find_graph, is_proven, note_proof
from featx._extraction.precision import check_precision
from featx._locks import lock_of_process

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


def choose_plan(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None = None,
) -> ExecutionPlan:
    """Return the plan, or what takes its place where it cannot be built here.

    What decides a vector must be known before it is looked up, and the runtime is part of that. So
    a runtime is built at the first call, unless it was built for this cache before.

    Parameters
    ----------
    backbone : FrozenBackbone
        What to execute.
    taps : tuple of Tap
        What to take from it.
    plan : ExecutionPlan
        How and where.
    graphs : GraphStore, optional
        Where exported networks are kept.

    Returns
    -------
    ExecutionPlan
        One that can be built.

    Warns
    -----
    RuntimeFallbackWarning
        Once in a process, when it is another one.
    """
    if plan.fallback is None:
        return plan
    chosen = _chosen.setdefault(backbone, {})
    if (taps, plan) not in chosen:
        error = _why_not(backbone, taps, plan, graphs)
        if error is not None:
            return replace_plan(backbone, taps, plan, graphs, error)
        chosen[taps, plan] = plan
    return chosen[taps, plan]


def replace_plan(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
    error: Exception,
) -> ExecutionPlan:
    """Return what takes the place of a plan that cannot be built, from now on in this process.

    Parameters
    ----------
    backbone, taps, plan, graphs
        As `choose_plan` takes them; the plan must have a fallback.
    error : Exception
        Why it cannot be built.
    """
    if plan.fallback is None:
        raise error
    instead = choose_plan(backbone, taps, plan.fallback, graphs)
    _chosen.setdefault(backbone, {})[taps, plan] = instead
    _warn_of_fallback(backbone, plan, instead, error)
    return instead


# By network, and only for as long as somebody else holds it.
_chosen: WeakKeyDictionary[
    FrozenBackbone, dict[tuple[tuple[Tap, ...], ExecutionPlan], ExecutionPlan]
] = WeakKeyDictionary()


def _why_not(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
) -> Exception | None:
    """Return what is raised when a runtime is built; None where it can be."""
    if is_proven(backbone, taps, plan, graphs):
        return None
    try:
        open_runtime(backbone, taps, plan, graphs).prepare()
    except Exception as error:  # each library has exceptions of its own
        return error
    note_proof(backbone, taps, plan, graphs)
    return None


def _warn_of_fallback(
    backbone: FrozenBackbone, plan: ExecutionPlan, instead: ExecutionPlan, error: Exception
) -> None:
    # What an exporter raises tells how to report it; what it was raised from tells why.
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    warnings.warn(
        f"{backbone.name} cannot be run as {plan.description} here, so it runs as "
        f"{instead.description}, whose embeddings are kept apart; the reason: "
        f"{reason[:_LONGEST_REASON]}",
        RuntimeFallbackWarning,
        stacklevel=2,
    )


_LONGEST_REASON = 300


class RuntimeUnavailableError(Exception):
    """A runtime cannot be opened here, although it could be when this cache was last used."""


def open_runtime(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None = None,
    threads: int | None = None,
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
    graphs : GraphStore, optional
        Where exported networks are kept.
    threads : int, optional
        How many threads compute; by default `computing_threads`.

    Returns
    -------
    Runtime
        Ready to run.

    Raises
    ------
    Exception
        Whatever a library raises that cannot build it; see `choose_plan`.

    Warns
    -----
    PrecisionWarning
        When bfloat16 moves the vectors of this network.
    """
    threads = computing_threads() if threads is None else threads
    with lock_of_process("network"), torch_threads(threads):
        return _open_runtime(backbone, taps, plan, graphs, threads, os.getpid())


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
def _open_runtime(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
    threads: int,
    _process: int,
) -> Runtime:
    if plan.runtime == "onnx":
        from featx._extraction.onnx_runtime import OnnxRuntime

        graph = find_graph(backbone, taps, plan, graphs)
        return OnnxRuntime(graph, plan.batch_size, threads)
    from featx._extraction.torch_runtime import CompiledRuntime, TorchRuntime

    build = CompiledRuntime if plan.runtime == "compile" else TorchRuntime
    network, side = backbone.network(taps), backbone.preprocessing.image_size
    runtime = build(network, plan, side)
    if plan.precision != "float32":
        check_precision(backbone, taps, plan, runtime)
    return runtime
