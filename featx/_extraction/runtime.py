"""Runtimes: what executes a frozen network, and what takes its place where it cannot be built.

Each maps images to embeddings in batches of one fixed shape, the last one padded, so that the same
kernels run for every batch and a row does not depend on how many others came with it.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch

from featx._errors import RuntimeFallbackWarning
from featx._extraction.graphs import find_graph, is_proven, note_proof
from featx._extraction.precision import check_precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.plan import ExecutionPlan
    from featx._store.graphs import GraphStore


class Runtime(Protocol):
    """Executes a network."""

    def prepare(self) -> None:
        """Build what would be built at the first call."""
        ...

    def lanes(self, n_images: int, /) -> int:
        """Return how many calls of `run` are best under way at a time."""
        ...

    def run(self, pixels: torch.Tensor, lanes: int = 1, /) -> list[np.ndarray]:
        """Map uint8 (n, 3, side, side) to float32 (n, dimension) for each tap."""
        ...


def in_one_order(taps: Iterable[Tap]) -> tuple[Tap, ...]:
    """Return taps in the order in which a runtime gives them.

    It is the same whichever of them is asked for and which are only kept for later, so that a
    search over layers builds one runtime for all its choices.
    """
    return tuple(sorted(taps, key=lambda tap: (tap.layer, tap.pooling)))


def settle_plan(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None = None,
) -> ExecutionPlan:
    """Return the plan, or what takes its place where it cannot be built here.

    What decides a vector must be known before it is looked up, and the runtime is part of that. So
    a runtime is built at the first call, unless it was built on this machine before.

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
    settled = _settled.setdefault(backbone, {})
    if (taps, plan) not in settled:
        error = _why_not(backbone, taps, plan, graphs)
        if error is None:
            settled[taps, plan] = plan
        else:
            settled[taps, plan] = settle_plan(backbone, taps, plan.fallback, graphs)
            _warn_of_fallback(backbone, plan, settled[taps, plan], error)
    return settled[taps, plan]


# By network, and only for as long as somebody else holds it.
_settled: WeakKeyDictionary[
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
        f"{instead.description}, whose embeddings have a fingerprint of their own; the reason: "
        f"{reason[:_LONGEST_REASON]}",
        RuntimeFallbackWarning,
        stacklevel=2,
    )


_LONGEST_REASON = 300


def open_runtime(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
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
    graphs : GraphStore, optional
        Where exported networks are kept.

    Returns
    -------
    Runtime
        Ready to run.

    Raises
    ------
    Exception
        Whatever a library raises that cannot build it; see `settle_plan`.

    Warns
    -----
    PrecisionWarning
        When bfloat16 moves the vectors of this network.
    """
    with _building:
        threads = torch.get_num_threads()
        return _open_runtime(backbone, taps, plan, graphs, threads, os.getpid())


# torch's exporter is not made for several threads at once, and one runtime is enough for all.
_building = threading.RLock()


def _after_fork_in_child() -> None:
    """Make the network usable in a forked child, where the parent's threads do not exist.

    OpenMP would wait for them for ever, so torch computes in the only thread that there is; and a
    lock that another thread of the parent held would never be released.
    """
    global _building
    _building = threading.RLock()
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
