"""The network in torch: as it is, or compiled; on a CPU or a GPU; in float32 or bfloat16."""

from __future__ import annotations

import logging
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from featx._errors import InputError, PrecisionWarning
from featx._extraction.folding import fold_batch_norms

if TYPE_CHECKING:
    from featx._backbones.embedding_network import EmbeddingNetwork
    from featx._backbones.frozen import FrozenBackbone
    from featx._backbones.taps import Tap
    from featx._extraction.runtime import ExecutionPlan

_log = logging.getLogger(__name__)

# Batches under way on a GPU: one is computed while the results of another travel back.
_CALLS_ON_A_GPU = 2


class TorchRuntime:
    """The network itself, in torch: the reference that every other runtime is measured against.

    BatchNorms are folded into their convolutions and the layout is channels last; both move a
    vector by a rounding step. On a CPU its rows are equal to about one part in a million, and not
    always bit for bit: torch shares out its sums by the threads and the memory that it finds.

    The network is copied; ``side`` is that of its images, in pixels.
    """

    def __init__(self, network: EmbeddingNetwork, plan: ExecutionPlan, side: int) -> None:
        self._plan = plan
        self._device = torch.device(plan.device)
        self._rows = _rows_that_fit.setdefault(network, {}).setdefault(plan, _Rows(plan.batch_size))
        # A copy, because tensors and layout are changed and the backbone is shared.
        own = fold_batch_norms(network, torch.zeros(1, 3, side, side, dtype=torch.uint8))
        own.compute_in(getattr(torch, plan.precision))
        self._network: Any = own.to(self._device).to(memory_format=torch.channels_last)

    def prepare(self, _calls: int = 1) -> None:
        """Nothing is left to build."""

    def calls_at_a_time(self, _n_images: int) -> int:
        """Return how many calls of `run` are best under way at a time."""
        return _CALLS_ON_A_GPU if self._device.type == "cuda" else 1

    def run(self, pixels: torch.Tensor, _calls: int = 1) -> list[np.ndarray]:
        """Map uint8 (n, 3, side, side) to float32 (n, dimension) for each tap.

        Raises
        ------
        torch.OutOfMemoryError
            When a batch does not fit into the memory of the device, and may not be halved, or is
            a single image.
        """
        parts: list[list[np.ndarray]] = []
        start = 0
        while start < len(pixels):
            rows = self._rows.value
            computed = self._try_batch(pixels[start : start + rows], rows)
            if computed is None:
                self._rows.halve(rows, self._device)
            else:
                parts.append(computed)
                start += rows
        return [np.concatenate(of_tap) for of_tap in zip(*parts, strict=True)]

    def _try_batch(self, pixels: torch.Tensor, rows: int) -> list[np.ndarray] | None:
        """Run one batch; None where it did not fit into the memory, and may be halved."""
        try:
            return self._run_batch(pixels, rows)
        except torch.OutOfMemoryError as error:
            if rows == 1 or not self._plan.may_shrink:
                choose = "a smaller batch_size" if rows > 1 else "a smaller image_size or network"
                error.add_note(
                    f"A batch of {rows} images does not fit into the memory of "
                    f"{self._device}: choose {choose}"
                )
                raise
        # Only here, where the error no longer keeps what the batch held, is there room to regain.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run_batch(self, pixels: torch.Tensor, rows: int) -> list[np.ndarray]:
        """Run one batch, padded to the one shape, so that the same kernels run for every batch."""
        n_images = len(pixels)
        if n_images < rows:
            pixels = torch.cat([pixels, pixels.new_zeros(rows - n_images, *pixels.shape[1:])])
        exact = _exact_float32 if self._device.type == "cuda" else nullcontext()
        with torch.no_grad(), exact:
            embeddings = self._forward(pixels)
        return [of_tap[:n_images].numpy() for of_tap in embeddings]

    def _forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        if self._device.type == "cuda":
            return self._forward_on_gpu(pixels)
        batch = pixels.to(self._device).contiguous(memory_format=torch.channels_last)
        return [of_tap.float().cpu() for of_tap in self._network(batch)]

    def _forward_on_gpu(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Copy, compute and copy back without waiting for anything but this batch's own result.

        The batches of all calls follow one another on the stream of the device, so that one is
        copied in and launched while the one before it is computed.
        """
        with torch.cuda.device(self._device):
            batch = pixels.pin_memory().to(self._device, non_blocking=True)
            computed = self._network(batch.contiguous(memory_format=torch.channels_last))
            results = []
            for of_tap in computed:
                vectors = of_tap.float()
                result = torch.empty(vectors.shape, pin_memory=True)
                result.copy_(vectors, non_blocking=True)
                results.append(result)
            done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no type here
            done.record()
        done.synchronize()
        return results


class _Rows:
    """Images a batch, for as long as the process lives: never more than once did not fit."""

    def __init__(self, value: int) -> None:
        self.value = value
        self._lock = threading.Lock()

    def halve(self, failed: int, device: torch.device) -> None:
        """Go on with half of the batch that failed, unless another call has said so already."""
        with self._lock:
            if self.value == failed:
                self.value = failed // 2
                _log.warning(
                    "A batch of %d images does not fit into the memory of %s; going on with %d",
                    failed,
                    device,
                    self.value,
                )


# By network, so that a runtime that is built anew does not run into the same wall.
_rows_that_fit: WeakKeyDictionary[nn.Module, dict[ExecutionPlan, _Rows]] = WeakKeyDictionary()


class CompiledRuntime(TorchRuntime):
    """The network compiled by torch, for one shape of batch and with its weights as constants.

    Compiling takes seconds to minutes at the first batch of a process; torch keeps what it made in
    a folder of its own, which makes the next process faster.

    Raises
    ------
    Exception
        Whatever compiling raises: where it has no compiler to build with, for instance.
    """

    def __init__(self, network: EmbeddingNetwork, plan: ExecutionPlan, side: int) -> None:
        super().__init__(network, plan, side)
        self._network = torch.compile(self._network, dynamic=False, options={"freezing": True})
        # At once: it proves that it can be built, and no two threads compile at a time.
        self.run(torch.zeros(plan.batch_size, 3, side, side, dtype=torch.uint8))


class _ExactFloat32:
    """Compute float32 in float32: by default GPUs round the inputs of convolutions to TF32.

    The settings are those of the process: the first call changes them, the last puts them back.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._lock = threading.Lock()
        cudnn: Any = torch.backends.cudnn
        self._owners: list[Any] = [cudnn.conv, torch.backends.cuda.matmul]
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._before = [owner.fp32_precision for owner in self._owners]
                for owner in self._owners:
                    owner.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                for owner, before in zip(self._owners, self._before, strict=True):
                    owner.fp32_precision = before


_exact_float32 = _ExactFloat32()

# What bfloat16 costs. Below this cosine a vector counts as moved: float32 runtimes agree to 0.9999.
_LEAST_COSINE = 0.999

_N_PICTURES = 8


def check_precision(
    backbone: FrozenBackbone, taps: tuple[Tap, ...], plan: ExecutionPlan, runtime: TorchRuntime
) -> None:
    """Compare what a runtime of lower precision computes with float32, on a few pictures.

    Raises
    ------
    InputError
        When the network puts out NaN or infinity in that precision, but not in float32.

    Warns
    -----
    PrecisionWarning
        When the cosine of any vector to that of float32 is below 0.999.
    """
    pictures = draw_pictures(_N_PICTURES, backbone.preprocessing.image_size)
    # On the CPU, where it leaves no room occupied that a GPU may need.
    exact_plan = replace(plan, runtime="torch", device="cpu", precision="float32", batch_size=4)
    exact = TorchRuntime(backbone.network(taps), exact_plan, backbone.preprocessing.image_size)
    for tap, expected, actual in zip(taps, exact.run(pictures), runtime.run(pictures), strict=True):
        if np.isfinite(expected).all() and not np.isfinite(actual).all():
            raise InputError(
                f"Got precision={plan.precision!r} but {backbone.name} puts out NaN or infinity at "
                f"{tap.layer!r} in it; choose precision='float32'"
            )
        cosine = least_cosine(expected, actual)
        if cosine < _LEAST_COSINE:
            warnings.warn(
                f"precision={plan.precision!r} moves the vectors of {backbone.name} at "
                f"{tap.layer!r}: their least cosine to those of float32 is {cosine:.4f} on "
                f"{_N_PICTURES} pictures, expected at least {_LEAST_COSINE}; choose "
                "precision='float32' where accuracy counts",
                PrecisionWarning,
                stacklevel=2,
            )


def least_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Return the smallest cosine between rows of two matrices; of two zero vectors it is 1.

    Examples
    --------
    >>> least_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [1.0, 1.0]]))
    0.7071067811865475
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    same = (first == second).all(axis=1)
    cosines = np.where(same, 1.0, (first * second).sum(axis=1) / np.where(norms == 0, 1.0, norms))
    return float(cosines.min())


def draw_pictures(n_pictures: int, side: int) -> torch.Tensor:
    """Return uint8 (n, 3, side, side) with the statistics of photographs, always the same.

    They are of discs that cover each other, small ones far more often than large ones (Lee, Mumford
    and Huang, "Occlusion models for natural images", IJCV 2001): flat areas, sharp edges, strong
    colours. They tell networks apart as photographs do: in bfloat16 the least cosine of the three
    packaged networks is 0.996 to 0.997 on them and 0.994 to 0.998 on photographs of clothes, that
    of a ResNet-50 0.99998 and 0.9997 (measured).

    Examples
    --------
    >>> draw_pictures(2, 32).shape
    torch.Size([2, 3, 32, 32])
    """
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    pictures = np.empty((n_pictures, 3, side, side), np.uint8)
    for picture in pictures:
        picture[:] = random.integers(0, 256, (3, 1, 1))
        # The radii follow the power law 1 / r^3 between a 40th and half of the side.
        for radius in 1 / np.sqrt(random.uniform(2**2, 40**2, _DISCS)):
            row, column = random.uniform(0, 1, 2)
            is_inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            picture[:, is_inside] = random.integers(0, 256, (3, 1))
    return torch.from_numpy(pictures)


_DISCS = 300
