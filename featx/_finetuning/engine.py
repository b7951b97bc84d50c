"""The engine: skorch's net, with learning rates for head and backbone and mixed precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featx._finetuning.requirements import package_required

with package_required("skorch", "finetune", "Fine-tuning"):
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
    """The loss is not a finite number; no step was taken with it."""


class TrainingNet(NeuralNetClassifier):
    """skorch's net over a network that is given, in batches that are given.

    Parameters
    ----------
    module : torch.nn.Module
        The network; it is trained itself, not a copy.
    parameter_groups : list of dict
        As the optimizers of torch take them.
    precision : str
        One of `PRECISIONS`: what autocast computes in.
    **settings : dict
        Further ones of skorch's net.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        parameter_groups: list[dict[str, Any]] | None = None,
        precision: str = "float32",
        **settings: Any,
    ) -> None:
        super().__init__(
            module,
            criterion=nn.CrossEntropyLoss,
            train_split=None,
            callbacks__valid_acc=None,
            callbacks__print_log=None,
            verbose=0,
            **settings,
        )
        self.parameter_groups = parameter_groups
        self.precision = precision

    def check_data(self, X: Any, y: Any = None) -> None:
        """Accept what the training made."""

    def get_split_datasets(
        self, X: tuple[Portion, Portion | None], y: Any = None, **_: Any
    ) -> tuple[Portion, Portion | None]:
        """Return the two portions that are passed as X."""
        return X

    def get_iterator(self, dataset: Portion, training: bool = False) -> Portion:
        """Return a portion, which yields its batches itself."""
        return dataset

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> TrainingNet:
        """Make the optimizer of the parameter groups, and the scaler of float16 gradients."""
        kind = self.optimizer
        _, settings = self.get_params_for_optimizer("optimizer", ())
        self.optimizer_ = kind(self.parameter_groups, **settings)
        return self

    def initialize(self) -> TrainingNet:
        """Initialize, and make the scaler without which small float16 gradients would be 0."""
        super().initialize()
        kind = torch.device(self.device).type
        self.scaler_ = torch.amp.GradScaler(kind, enabled=self.precision == "float16")
        return self

    def infer(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the logits of a batch, float32, computed in the chosen precision."""
        device = torch.device(self.device)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits: torch.Tensor = self.module_(x.to(device, non_blocking=True))
        return logits.float()

    def train_step(self, batch: tuple[torch.Tensor, torch.Tensor], **_: Any) -> dict[str, Any]:
        """Take one step of the optimizer.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        self._set_training(True)
        values, labels = batch
        self.optimizer_.zero_grad()
        logits = self.infer(values)
        loss = self.get_loss(logits, labels, training=True)
        if not torch.isfinite(loss):
            raise DivergedError
        self.scaler_.scale(loss).backward()
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        return {"loss": loss, "y_pred": logits}

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], **_: Any) -> dict[str, Any]:
        """Measure the loss of a batch that is held out, and how much of it is right."""
        step: dict[str, Any] = super().validation_step(batch)
        right = int((step["y_pred"].argmax(1).cpu() == batch[1]).sum())
        self.history.record_batch("valid_right", right)
        return step


class LearningRateSchedule(Callback):
    """Sets the learning rate of each step: its own group's, times a factor of the schedule.

    It is a function of the step alone, so a resumed training needs no state of it.
    """

    def __init__(self, factor: Callable[[float], float], n_steps: int) -> None:
        self.factor = factor
        self.n_steps = n_steps
        self.step = 0

    def on_batch_begin(
        self, net: TrainingNet, batch: Any = None, training: bool = False, **_: Any
    ) -> None:
        """Set it for the step that follows."""
        if training:
            factor = self.factor(self.step / self.n_steps)
            for group in net.optimizer_.param_groups:
                group["lr"] = group["base_lr"] * factor
            self.step += 1


class ProgressReport(Callback):
    """Says how many samples were trained on."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_batch_end(
        self, net: TrainingNet, batch: Any = None, training: bool = False, **_: Any
    ) -> None:
        """Advance by a batch."""
        if training:
            self.advance(len(batch[0]))


def group_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    is_head: Callable[[str], bool],
    learning_rate: float,
    backbone_learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return the parameters that are trained, in groups by learning rate and weight decay.

    Biases and the scales of normalising layers are not decayed, as is usual (He et al., "Bag of
    tricks for image classification with convolutional neural networks", CVPR 2019, section 3.1).

    Parameters
    ----------
    named_parameters : iterable of (str, Parameter)
        Of the network; frozen ones are left out.
    is_head : callable
        Whether a parameter, by its name, is of the head.
    learning_rate, backbone_learning_rate : float
        Of the head, and of the rest.
    weight_decay : float
        Of the tensors that are decayed.

    Returns
    -------
    list of dict
        Without empty groups.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups.setdefault((is_head(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate if of_head else backbone_learning_rate,
            "base_lr": learning_rate if of_head else backbone_learning_rate,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (of_head, decayed), parameters in groups.items()
    ]
