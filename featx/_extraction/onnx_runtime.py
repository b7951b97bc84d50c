"""The network as an ONNX graph in ONNX Runtime, on the CPU."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch

from featx._images.faults import no_warnings

if TYPE_CHECKING:
    from torch import nn

    from featx._extraction.runtime import Execution


class OnnxRuntime:
    """A graph, run by as many calls at a time as there are threads.

    Of many images each thread computes its own: threads that need not wait for one another waste
    nothing. A few images are computed one after the other by all threads. The rows are the same.

    ``rows`` is the number of images of a batch, as in the graph.
    """

    def __init__(self, graph: bytes, rows: int, threads: int) -> None:
        self._graph = graph
        self._threads = threads
        self._opening = threading.Lock()
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        self._rows = rows

    def prepare(self, calls: int = 1) -> None:
        """Open a session, which shows whether the graph can be run."""
        self._session(calls)

    def calls_at_a_time(self, n_images: int) -> int:
        """Return how many calls of `run` are best under way at a time."""
        return self._threads if n_images >= 2 * self._threads else 1

    def run(self, pixels: torch.Tensor, calls: int = 1) -> list[np.ndarray]:
        """Map uint8 (n, 3, side, side) to float32 (n, dimension) for each tap."""
        n_images = len(pixels)
        if n_images % self._rows:
            padding = pixels.new_zeros(-n_images % self._rows, *pixels.shape[1:])
            pixels = torch.cat([pixels, padding])
        session = self._session(calls)
        name = session.get_inputs()[0].name
        outputs = [
            session.run(None, {name: batch.numpy()}) for batch in torch.split(pixels, self._rows)
        ]
        return [
            np.concatenate(of_tap).astype(np.float32, copy=False)[:n_images]
            for of_tap in zip(*outputs, strict=True)
        ]

    def _session(self, calls: int) -> onnxruntime.InferenceSession:
        threads = max(1, self._threads // calls)
        with self._opening:
            if threads not in self._sessions:
                self._sessions[threads] = self._open(threads)
            return self._sessions[threads]

    def _open(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: its warnings are about graph shapes, not for users
        return onnxruntime.InferenceSession(
            self._graph, options, providers=["CPUExecutionProvider"]
        )


def find_graph(execution: Execution) -> bytes:
    """Return the graph of a network for one size of batch, kept or exported."""
    # A network without a name is known by less than all of its code: its graph is not kept.
    graphs = None if execution.backbone.reference is None else execution.graphs
    graph = None if graphs is None else graphs.find(execution.key)
    if graph is None:
        network = execution.backbone.network(execution.taps)
        side = execution.backbone.preprocessing.image_size
        graph = export_onnx(network, execution.plan.batch_size, side)
        if graphs is not None:
            graphs.keep(execution.key, graph)
    return graph


def export_onnx(network: nn.Module, rows: int, side: int) -> bytes:
    """Return a network as a serialised ONNX graph for one batch: uint8 (rows, 3, side, side).

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
