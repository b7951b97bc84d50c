"""Training: epoch by epoch, to the best weights, and on from where it was killed."""

from __future__ import annotations

import inspect
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.exceptions import ConvergenceWarning

from featx._errors import InputError
from featx._finetuning.checkpoints import TrainingState
from featx._finetuning.engine import (
    OPTIMIZERS,
    SCHEDULES,
    DivergedError,
    LearningRateSchedule,
    ProgressReport,
    TrainingNet,
    group_parameters,
)
from featx._finetuning.network import changing_tensors, copy_tensors, restore_tensors
from featx._finetuning.seeding import REGULARIZATION, derive_seed, generators_kept
from featx._progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from featx._finetuning.checkpoints import Checkpoint
    from featx._finetuning.samples import Portion


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained.

    Attributes
    ----------
    epochs : int
        At most so many.
    optimizer : str
        One of `OPTIMIZERS`.
    learning_rate, backbone_learning_rate : float
        Of the head, and of the rest.
    schedule : str
        One of `SCHEDULES`.
    weight_decay, label_smoothing : float
    class_weights : Tensor or None
        Weight of each class in the loss.
    patience : int or None
        Epochs without a better validation loss after which it ends; None ends never early.
    precision : str
        What is computed in.
    device : str
        Where.
    seed : int
        Of all that is random.
    progress : bool or "auto"
        Whether a bar shows how far it has come.
    """

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


@dataclass(frozen=True)
class Outcome:
    """What came of a training: the losses of each epoch, and the one whose weights are kept."""

    history: list[dict[str, Any]]
    kept_epoch: int


def train(
    module: nn.Module,
    is_head: Callable[[str], bool],
    training: Portion,
    validation: Portion | None,
    plan: TrainingPlan,
    checkpoint: Checkpoint | None = None,
) -> Outcome:
    """Train a network.

    Parameters
    ----------
    module : torch.nn.Module
        The network; it has the kept weights afterwards, is in eval mode and on the CPU.
    is_head : callable
        Whether a parameter, by its name, is of the head.
    training : Portion
        What it learns from.
    validation : Portion or None
        What tells the best epoch.
    plan : TrainingPlan
        How.
    checkpoint : Checkpoint, optional
        Where its state is written after each epoch, and found again.

    Returns
    -------
    Outcome
        With a validation portion the weights of the epoch with the lowest validation loss are
        kept, else those of the last one.

    Raises
    ------
    InputError
        If the loss is not finite before one epoch is done.

    Warns
    -----
    ConvergenceWarning
        If it comes to be so later: the training is stopped, and the weights of the best epoch kept.
    """
    with generators_kept(torch.device(plan.device)), _repeatable():
        return _Training(module, is_head, training, validation, plan, checkpoint).run()


@contextmanager
def _repeatable() -> Iterator[None]:
    # cuDNN measures which of its algorithms is fastest, and some add up in any order.
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=False,
        deterministic=True,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    ):
        yield


class _Training:
    def __init__(
        self,
        module: nn.Module,
        is_head: Callable[[str], bool],
        training: Portion,
        validation: Portion | None,
        plan: TrainingPlan,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.module = module
        self.training = training
        self.validation = validation
        self.plan = plan
        self.checkpoint = checkpoint
        self.history: list[dict[str, Any]] = []
        self.best_epoch = -1
        self.best: dict[str, torch.Tensor] = {}
        self.schedule = LearningRateSchedule(
            SCHEDULES[plan.schedule], plan.epochs * training.n_batches
        )
        kind, settings = OPTIMIZERS[plan.optimizer]
        module.to(plan.device)
        weights = plan.class_weights
        self.net = TrainingNet(
            module,
            parameter_groups=group_parameters(
                module.named_parameters(),
                is_head,
                plan.learning_rate,
                plan.backbone_learning_rate,
                plan.weight_decay,
            ),
            precision=plan.precision,
            device=plan.device,
            optimizer=kind,
            criterion__weight=weights,
            criterion__label_smoothing=plan.label_smoothing,
            **{f"optimizer__{name}": value for name, value in settings.items()},
        )

    def run(self) -> Outcome:
        samples = len(self.training)
        total = self.plan.epochs * samples
        try:
            with progress_bar("fine-tuning", total, self.plan.progress) as advance:
                report = ProgressReport(advance)
                self.net.set_params(callbacks=[("rate", self.schedule), ("report", report)])
                self.net.initialize()
                self._resume()
                advance(len(self.history) * samples)
                while not self._is_done():
                    self._run_epoch()
        except DivergedError:
            self._say_that_it_diverged()
            keeps_best = True
        else:
            keeps_best = self.validation is not None
        finally:
            self.module.to("cpu").eval()
        if keeps_best:
            restore_tensors(self.module, self.best)
            self.module.eval()
        kept = self.best_epoch if keeps_best else len(self.history) - 1
        return Outcome(self.history, kept)

    def _is_done(self) -> bool:
        done, patience = len(self.history), self.plan.patience
        if done == 0 or done >= self.plan.epochs or patience is None:
            return done >= self.plan.epochs
        return done - 1 - self.best_epoch >= patience

    def _run_epoch(self) -> None:
        epoch = len(self.history)
        torch.manual_seed(derive_seed(self.plan.seed, REGULARIZATION, epoch))
        self.training.epoch = epoch
        self.schedule.step = epoch * self.training.n_batches
        self.net.fit_loop((self.training, self.validation), epochs=1)
        row = self._measured(epoch)
        tensors = copy_tensors(changing_tensors(self.module))
        if not math.isfinite(self._monitored(row)) or not _are_finite(tensors):
            raise DivergedError
        self.history.append(row)
        if self.best_epoch < 0 or self._monitored(row) < self._monitored(
            self.history[self.best_epoch]
        ):
            self.best_epoch, self.best = epoch, tensors
        if self.checkpoint is not None:
            self.checkpoint.save(self._state(tensors))

    def _measured(self, epoch: int) -> dict[str, Any]:
        measured = self.net.history[-1]
        row = {"epoch": epoch + 1, "train_loss": float(measured["train_loss"])}
        if self.validation is not None:
            right = sum(
                batch["valid_right"] for batch in measured["batches"] if "valid_right" in batch
            )
            row["valid_loss"] = float(measured["valid_loss"])
            row["valid_accuracy"] = right / len(self.validation)
        return row

    def _monitored(self, row: dict[str, Any]) -> float:
        loss: float = row["train_loss" if self.validation is None else "valid_loss"]
        return loss

    def _state(self, tensors: dict[str, torch.Tensor]) -> TrainingState:
        return TrainingState(
            model=tensors,
            optimizer=self.net.optimizer_.state_dict(),
            scaler=self.net.scaler_.state_dict(),
            history=self.history,
            seed=self.plan.seed,
            best_epoch=self.best_epoch,
            best=self.best,
        )

    def _resume(self) -> None:
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is None:
            return
        restore_tensors(self.module, state.model)
        self.net.optimizer_.load_state_dict(state.optimizer)
        self.net.scaler_.load_state_dict(state.scaler)
        self.history = state.history
        self.best_epoch, self.best = state.best_epoch, state.best

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
