"""What the classifiers that are trained by gradient descent have in common."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featx._checks import check_choice, check_flag, check_number, check_whole_number, refuse
from featx._extraction.runtime import computing_threads, plan_execution, torch_threads
from featx._finetuning.samples import Portion, VectorSamples, split_rows
from featx._finetuning.training import OPTIMIZERS, SCHEDULES, Training, TrainingPlan
from featx._labels import check_lengths, list_labels, match_classes, weigh_classes
from featx._progress import check_progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn

    from featx._finetuning.checkpoints import Checkpoint
    from featx._finetuning.samples import Augmentation, Samples


class TrainedClassifier(ClassifierMixin, BaseEstimator, ABC):
    """A classifier whose `fit` trains a network; the parameters of training are attributes."""

    precision = "float32"  # unless a classifier has a parameter of this name

    @abstractmethod
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for each sample.

        Parameters
        ----------
        X : sequence of images, or array of vectors
            As `fit` takes it.

        Returns
        -------
        ndarray of float32, shape (n_samples, n_classes)
            The columns stand in the order of ``classes_``.
        """

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each sample.

        Parameters
        ----------
        X : sequence of images, or array of vectors
            As `fit` takes it.

        Returns
        -------
        ndarray of shape (n_samples,)
            Of the labels' own type.
        """
        probabilities = self.predict_proba(X)
        predicted: np.ndarray = self.classes_[probabilities.argmax(axis=1)]
        return predicted

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of samples whose class is predicted right.

        Parameters
        ----------
        X : sequence of images, or array of vectors
            As `fit` takes it.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each sample.

        Returns
        -------
        float

        Warns
        -----
        UserWarning
            If a label was not there at fit, which counts as predicted wrong.
        """
        check_is_fitted(self)
        codes = match_classes(y, self.classes_)
        probabilities = self.predict_proba(X)
        check_lengths(len(probabilities), len(codes))
        unknown = np.flatnonzero(codes < 0)
        if len(unknown):
            labels = list(dict.fromkeys(np.asarray(y)[unknown].tolist()))
            warnings.warn(
                f"{len(unknown)} of {len(codes)} samples have a label that was not there at fit "
                f"({list_labels(labels)}); they count as predicted wrong",
                UserWarning,
                stacklevel=2,
            )
        return float(np.average(codes == probabilities.argmax(axis=1), weights=sample_weight))

    def _check_parameters(self) -> None:
        sizes = self.hidden_layer_sizes
        if not isinstance(sizes, Sequence) or isinstance(sizes, str):
            expected = "a sequence of numbers of units, such as (256,), or ()"
            raise refuse("hidden_layer_sizes", sizes, expected)
        for size in sizes:
            check_whole_number("hidden_layer_sizes", size, 1)
        for name in ("epochs", "batch_size", "patience"):
            check_whole_number(name, getattr(self, name), 1)
        for name in ("dropout", "label_smoothing"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("learning_rate", self.learning_rate, 0, open_ends=True)
        check_number("weight_decay", self.weight_decay, 0)
        check_number("validation_fraction", self.validation_fraction, 0, 1, open_ends=True)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_flag("early_stopping", self.early_stopping)
        check_progress(self.progress)
        if self.precision == "float16" and self._choose_device() == "cpu":
            expected = "'float32' or 'bfloat16', as training in float16 needs a GPU"
            raise refuse("precision", self.precision, expected)

    def _choose_device(self) -> str:
        return plan_execution("torch", self.device, self.batch_size).device

    def _plan(self, codes: np.ndarray, seed: int, backbone_learning_rate: float) -> TrainingPlan:
        weights = weigh_classes(self.class_weight, self.classes_, codes)
        return TrainingPlan(
            epochs=self.epochs,
            optimizer=self.optimizer,
            learning_rate=float(self.learning_rate),
            backbone_learning_rate=float(backbone_learning_rate),
            schedule=self.schedule,
            weight_decay=float(self.weight_decay),
            label_smoothing=self.label_smoothing,
            class_weights=None if weights is None else torch.from_numpy(weights),
            patience=self.patience if self.early_stopping else None,
            precision=self.precision,
            device=self._choose_device(),
            seed=seed,
            progress=self.progress,
        )

    def _train(
        self,
        module: nn.Module,
        is_head: Callable[[str], bool],
        samples: Samples,
        codes: np.ndarray,
        plan: TrainingPlan,
        augmentation: Augmentation | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Train a network on all samples but those that early stopping holds out."""
        rows, validation = np.arange(len(codes)), None
        if self.early_stopping:
            rows, held_out = split_rows(codes, self.classes_, self.validation_fraction, plan.seed)
            validation = Portion(samples, codes, held_out, batch_size=self.batch_size)
        training = Portion(
            samples,
            codes,
            rows,
            batch_size=self.batch_size,
            seed=plan.seed,
            augmentation=augmentation,
        )
        started = Training(module, is_head, training, validation, plan, checkpoint)
        self.history_, kept = started.run()
        self.n_epochs_ = len(self.history_)
        self.kept_epoch_ = kept + 1

    def _train_head(
        self,
        head: nn.Module,
        vectors: torch.Tensor,
        codes: np.ndarray,
        plan: TrainingPlan,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Train a head on the vectors that it takes."""
        with fitting_threads(head):
            samples = VectorSamples(vectors)
            self._train(head, lambda _: True, samples, codes, plan, checkpoint=checkpoint)


# A step of so many weights takes about as long as handing it to another thread.
_SMALL = 10**6


def fitting_threads(head: nn.Module) -> AbstractContextManager[None]:
    """Compute in one thread while a small head is trained on vectors.

    Its products are too small to share: several threads make nothing faster, and where other
    processes want the cores they wait for each other at every step.

    Examples
    --------
    >>> import torch
    >>> with fitting_threads(torch.nn.Linear(1280, 10)):
    ...     torch.get_num_threads()
    1
    """
    size = sum(parameter.numel() for parameter in head.parameters())
    return torch_threads(1 if size < _SMALL else computing_threads())
