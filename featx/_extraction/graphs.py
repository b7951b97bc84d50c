"""Graphs: networks exported to ONNX, once a machine where they have a name."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from featx._images.faults import no_warnings
from featx._version import __version__

if TYPE_CHECKING:
    from torch import nn

    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.plan import ExecutionPlan
    from featx._store.graphs import GraphStore

# What turns a network into a graph; another version may make another one.
_PACKAGES_OF_A_GRAPH = ("torch", "timm", "torchvision", "onnx", "onnxscript")


def find_graph(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
) -> bytes:
    """Return the graph of some taps for one size of batch, kept or exported.

    Parameters
    ----------
    backbone : FrozenBackbone
        A network without a name is known by less than all of its code: its graph is not kept.
    taps : tuple of Tap
        What is taken from it.
    plan : ExecutionPlan
        How it is executed.
    graphs : GraphStore or None
        Where exported networks are kept.

    Raises
    ------
    torch.onnx.OnnxExporterError
        When the network cannot be exported.
    """
    if graphs is None or backbone.reference is None:
        return _export(backbone, taps, plan)
    key = _key(backbone, taps, plan)
    graph = graphs.find(key)
    if graph is None:
        graph = _export(backbone, taps, plan)
        graphs.keep(key, graph)
    return graph


def is_proven(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
) -> bool:
    """Return whether this runtime was built on this machine before; nothing is read but a name."""
    return graphs is not None and graphs.holds(_key(backbone, taps, plan))


def note_proof(
    backbone: FrozenBackbone,
    taps: tuple[Tap, ...],
    plan: ExecutionPlan,
    graphs: GraphStore | None,
) -> None:
    """Note that this runtime can be built here, where no graph is kept that says it."""
    if graphs is not None and not is_proven(backbone, taps, plan, graphs):
        graphs.keep(_key(backbone, taps, plan), b"")


def _key(backbone: FrozenBackbone, taps: tuple[Tap, ...], plan: ExecutionPlan) -> str:
    fingerprints = [
        backbone.cache_key(
            tap, runtime=plan.runtime, device_type=plan.device_type, precision=plan.precision
        )
        for tap in taps
    ]
    versions = [__version__, *map(version, _PACKAGES_OF_A_GRAPH)]
    return hashlib.sha256(repr((fingerprints, plan.batch_size, versions)).encode()).hexdigest()[:32]


def _export(backbone: FrozenBackbone, taps: tuple[Tap, ...], plan: ExecutionPlan) -> bytes:
    side = backbone.preprocessing.image_size
    return export_onnx(backbone.network(taps), plan.batch_size, side)


def export_onnx(network: nn.Module, rows: int, side: int) -> bytes:
    """Return a network as a serialised ONNX graph for one batch shape.

    Parameters
    ----------
    network : Module
        Maps uint8 (rows, 3, side, side) to a tuple of tensors.
    rows, side : int
        How many images a batch has, and their side in pixels.

    Raises
    ------
    torch.onnx.OnnxExporterError
        When the network cannot be exported, or not at this size of images.
    """
    example = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    # What torch says to itself while it exports is nothing that a user could act on.
    with no_warnings:
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph: bytes = program.model_proto.SerializeToString()
    return graph
