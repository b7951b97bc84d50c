"""The ceilings: the parts that featx is made of, bare."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from peers import BATCH_SIZE, LeftOut, Normalise, Setting
from torch import nn

from featx._images.decode import decode_content
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from peers import Embed

    from featx._images.preprocess import Preprocessing


def batch_size_of(setting: Setting) -> int:
    """Return how many images featx and the bare network take at a time."""
    return BATCH_SIZE if setting.device == "cpu" else 128


def decode(paths: list[str], recipe: Preprocessing) -> list[torch.Tensor]:
    """Return the pixels of each file, uint8 (1, 3, side, side), by as many threads as torch has."""

    def decode_one(path: str) -> torch.Tensor:
        return recipe.views(decode_content(read_content(path), path))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(decode_one, paths))


def build_bare_decoding(setting: Setting, _paths: list[str]) -> Embed:
    def embed(paths: list[str]) -> None:
        # In pieces, so that pixels are dropped as they are when a network has taken them.
        for start in range(0, len(paths), 1024):
            decode(paths[start : start + 1024], setting.backbone.preprocessing)

    return embed


class Ready:
    """Images that wait decoded, on the device."""

    def __init__(self, setting: Setting, paths: list[str]) -> None:
        self.rows = {path: row for row, path in enumerate(paths)}
        pixels = torch.cat(decode(paths, setting.backbone.preprocessing))
        self.pixels = pixels.to(setting.device)

    def batches(self, paths: list[str], batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the images of the paths; the last batch is not padded."""
        for start in range(0, len(paths), batch_size):
            yield self.pixels[[self.rows[path] for path in paths[start : start + batch_size]]]


def build_bare_network(setting: Setting, paths: list[str]) -> Embed:
    """ONNX Runtime with all threads in float32 on a CPU, the compiled network elsewhere."""
    ready, batch_size = Ready(setting, paths), batch_size_of(setting)
    # A last batch that is not full has a network of its own, for nothing is computed in vain here.
    sizes = {min(batch_size, len(paths)), len(paths) % batch_size} - {0}
    if setting.device == "cpu" and setting.precision == "float32":
        run_by_size = {rows: open_session(setting, rows, torch.get_num_threads()) for rows in sizes}
    else:
        run = compile_network(setting)
        run_by_size = dict.fromkeys(sizes, run)
        for rows in [*sizes] * 3:  # a CUDA graph is recorded at its second run
            run(ready.pixels[:rows])

    def embed(paths: list[str]) -> np.ndarray:
        batches = ready.batches(paths, batch_size)
        vectors = [run_by_size[len(batch)](batch) for batch in batches]
        return torch.cat(vectors).cpu().numpy()

    return embed


def build_bare_network_in_threads(setting: Setting, paths: list[str]) -> Embed:
    """One image at a time in each of as many threads, none of which waits for another."""
    if setting.device != "cpu" or setting.precision != "float32":
        raise LeftOut("it is ONNX Runtime in float32 on a CPU")
    ready, run = Ready(setting, paths), open_session(setting, rows=1, threads=1)

    def embed(paths: list[str]) -> np.ndarray:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.cat(list(pool.map(run, ready.batches(paths, 1)))).numpy()

    return embed


def open_session(
    setting: Setting, rows: int, threads: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    side = setting.backbone.preprocessing.image_size
    example = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    network = _FromPixels(setting).eval()
    program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])


class _FromPixels(nn.Module):
    """The bare network behind the normalisation of uint8 pixels."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.dtype = getattr(torch, setting.precision)
        self.network = setting.network().to(self.dtype)
        self.normalise = Normalise(setting.backbone.preprocessing).to(setting.device)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalise(pixels.float() / 255).to(self.dtype))


def compile_network(setting: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile for each shape, in channels_last, in the precision asked for."""
    import torch._inductor.config

    torch.backends.cudnn.allow_tf32 = False  # float32 is what is asked for, where it is
    network = _FromPixels(setting).eval().to(setting.device)
    network = network.to(memory_format=torch.channels_last)
    is_cuda = setting.device == "cuda"
    torch._inductor.config.freezing = not is_cuda  # the weights are constants
    mode = "reduce-overhead" if is_cuda else "default"
    compiled = torch.compile(network, mode=mode, dynamic=False)

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            vectors = compiled(pixels.contiguous(memory_format=torch.channels_last))
        # A CUDA graph writes every batch to the same place.
        return vectors.float().clone()

    return run
