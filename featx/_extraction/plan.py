"""Plans: on which device a network runs, what executes it, and in which arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from featx._checks import check_choice, check_whole_number
from featx._errors import InputError

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

    Parameters
    ----------
    runtime : {"auto", "onnx", "torch", "compile"}
        ``"auto"`` is ONNX Runtime on a CPU in float32, the fastest there, and torch elsewhere.
    device : str
        ``"auto"`` is the first GPU where there is one and the CPU elsewhere; otherwise a torch
        device such as ``"cpu"`` or ``"cuda:1"``.
    batch_size : int or "auto"
        Images per forward; ``"auto"`` goes by the runtime on a CPU and by the memory of a GPU.
    precision : {"float32", "bfloat16"}
        The arithmetic of the network.

    Returns
    -------
    ExecutionPlan
        The decision.

    Raises
    ------
    InputError
        When a value is not one of these, the device is absent, or the values do not go together.

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
