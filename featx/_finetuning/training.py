"""Training: epoch by epoch, to the best weights, and on from where it was killed."""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from featx._errors import InputError
from featx._finetuning.checkpoints import TrainingState
from featx._finetuning.network import copy_tensors, restore_tensors
from featx._finetuning.samples import REGULARIZATION, derive_seed
from featx._progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from featx._finetuning.checkpoints import Checkpoint
    from featx._finetuning.samples import Portion

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}
"""The learning rate's factor, by the share of the training that is done.

Cosine: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
without restarts.
"""


class DivergedError(Exception):
    """The loss or the weights are not finite numbers."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained; ``patience=None`` never ends early."""

    epochs: int
    optimizer: str
    learning_rate: float
    backbone_learning_rate: float
    schedule: str
    weight_decay: float
    label_smoothing: float
    class_weights: torch.Tensor | None
    patience: int | None
    precision: str
    device: str
    seed: int
    progress: bool | str


class Training:
    """The training of a network, in which `is_head` tells parameters of the head by their name.

    Raises
    ------
    InputError
        If the loss is not finite before one epoch is done.

    Warns
    -----
    ConvergenceWarning
        If it comes to be so later: the training is stopped, and the weights of the best epoch kept.
    """

    def __init__(
        self,
        module: nn.Module,
        is_head: Callable[[str], bool],
        training: Portion,
        validation: Portion | None,
        plan: TrainingPlan,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.module = module.to(plan.device)
        self.training = training
        self.validation = validation
        self.plan = plan
        self.checkpoint = checkpoint
        self.device = torch.device(plan.device)
        self.history: list[dict[str, Any]] = []
        self.best_epoch = -1
        self.best: dict[str, torch.Tensor] = {}
        kind, settings = OPTIMIZERS[plan.optimizer]
        self.optimizer = kind(group_parameters(module, is_head, plan), **settings)
        # Without it small gradients in float16 would be 0.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "float16")
        self.criterion = nn.CrossEntropyLoss(
            weight=plan.class_weights, label_smoothing=plan.label_smoothing
        ).to(self.device)

    def run(self) -> tuple[list[dict[str, Any]], int]:
        """Train, and return the losses of each epoch, and the number of the one that is kept.

        Afterwards the network is in eval mode, on the CPU, and has the weights of the epoch with
        the lowest validation loss or, without a validation portion, of the last one.
        """
        cudnn = torch.backends.cudnn
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            # cuDNN measures which of its algorithms is fastest, and some add up in any order.
            cudnn.flags(
                cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32
            ),
        ):
            try:
                self._run_epochs()
                keeps_best = self.validation is not None
            except DivergedError:
                self._say_that_it_diverged()
                keeps_best = True
            finally:
                self.module.to("cpu").eval()
        if keeps_best:
            restore_tensors(self.module, self.best)
            self.module.eval()
        return self.history, self.best_epoch if keeps_best else len(self.history) - 1

    def _run_epochs(self) -> None:
        size = len(self.training)
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is not None:
            restore_tensors(self.module, state.model)
            self.optimizer.load_state_dict(state.optimizer)
            self.scaler.load_state_dict(state.scaler)
            self.history = state.history
            self.best_epoch, self.best = state.best_epoch, state.best
        with progress_bar("fine-tuning", self.plan.epochs * size, self.plan.progress) as advance:
            advance(len(self.history) * size)
            while not self._is_done():
                self._run_epoch(advance)

    def _is_done(self) -> bool:
        done, patience = len(self.history), self.plan.patience
        if done >= self.plan.epochs:
            return True
        return patience is not None and done > 0 and done - 1 - self.best_epoch >= patience

    def _run_epoch(self, advance: Callable[[int], None]) -> None:
        epoch = len(self.history)
        torch.manual_seed(derive_seed(self.plan.seed, REGULARIZATION, epoch))
        row = {"epoch": epoch + 1, "train_loss": self._learn(epoch, advance)} | self._validate()
        tensors = copy_tensors(self.module)
        if not math.isfinite(self._monitored(row)) or not _are_finite(tensors):
            raise DivergedError
        self.history.append(row)
        if self.best_epoch < 0 or self._monitored(row) < self._monitored(
            self.history[self.best_epoch]
        ):
            self.best_epoch, self.best = epoch, tensors
        if self.checkpoint is not None:
            state = TrainingState(
                model=tensors,
                optimizer=self.optimizer.state_dict(),
                scaler=self.scaler.state_dict(),
                history=self.history,
                seed=self.plan.seed,
                best_epoch=self.best_epoch,
                best=self.best,
            )
            self.checkpoint.save(state)

    def _learn(self, epoch: int, advance: Callable[[int], None]) -> float:
        """Take the steps of an epoch, and return its mean loss."""
        self.training.epoch = epoch
        first = epoch * self.training.n_batches
        total = self.plan.epochs * self.training.n_batches
        losses: list[float] = []
        sizes: list[int] = []
        for step, (values, labels) in enumerate(self.training, first):
            # A function of the step alone, so that a resumed training needs no state of it.
            factor = SCHEDULES[self.plan.schedule](step / total)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            losses.append(self._step(values, labels))
            sizes.append(len(values))
            advance(len(values))
        return float(np.average(losses, weights=sizes))

    def _step(self, values: torch.Tensor, labels: torch.Tensor) -> float:
        self.module.train()
        self.optimizer.zero_grad()
        loss = self._loss(self._logits(values), labels)
        if not torch.isfinite(loss):
            raise DivergedError
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    def _validate(self) -> dict[str, float]:
        """Return the mean loss and the accuracy on what is held out."""
        if self.validation is None:
            return {}
        self.module.eval()
        losses: list[float] = []
        sizes: list[int] = []
        right = 0
        with torch.no_grad():
            for values, labels in self.validation:
                logits = self._logits(values)
                losses.append(self._loss(logits, labels).item())
                sizes.append(len(values))
                right += int((logits.argmax(1).cpu() == labels).sum())
        return {
            "valid_loss": float(np.average(losses, weights=sizes)),
            "valid_accuracy": right / sum(sizes),
        }

    def _logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch, float32, computed in the chosen precision."""
        dtype = PRECISIONS[self.plan.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits: torch.Tensor = self.module(values.to(self.device, non_blocking=True))
        return logits.float()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.criterion(logits, labels.to(self.device))
        return loss

    def _monitored(self, row: dict[str, Any]) -> float:
        loss: float = row["train_loss" if self.validation is None else "valid_loss"]
        return loss

    def _say_that_it_diverged(self) -> None:
        epoch = len(self.history) + 1
        advice = f"lower the learning rate ({self.plan.learning_rate:g})"
        if self.best_epoch < 0:
            raise InputError(
                f"The loss became NaN or infinite in epoch {epoch}, before any epoch was done; "
                f"expected a finite loss; {advice}, or look for NaN in the input"
            ) from None
        warnings.warn(
            f"The loss became NaN or infinite in epoch {epoch} of {self.plan.epochs}: the training "
            f"was stopped and the weights of epoch {self.best_epoch + 1}, the best one, are kept; "
            f"{advice}",
            ConvergenceWarning,
            stacklevel=_count_own_frames(),
        )


def _count_own_frames() -> int:
    """Return how many calls within featx, this one included, lie above the one from outside."""
    frame, count = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("featx."):
        frame, count = frame.f_back, count + 1
    return count


def _are_finite(tensors: dict[str, torch.Tensor]) -> bool:
    # The last step of an epoch can break the weights, and no loss is computed with them.
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def group_parameters(
    module: nn.Module, is_head: Callable[[str], bool], plan: TrainingPlan
) -> list[dict[str, Any]]:
    """Return the parameters that are trained, in groups by learning rate and weight decay.

    Biases and the scales of normalising layers are not decayed, as is usual (He et al., "Bag of
    tricks for image classification with convolutional neural networks", CVPR 2019, section 3.1).
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            of_head, is_decayed = is_head(name), parameter.ndim > 1
            rate = plan.learning_rate if of_head else plan.backbone_learning_rate
            decay = plan.weight_decay if is_decayed else 0.0
            new = {"params": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
            groups.setdefault((of_head, is_decayed), new)["params"].append(parameter)
    return list(groups.values())
