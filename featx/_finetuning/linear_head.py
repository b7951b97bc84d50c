"""`LinearHeadClassifier`: a new last layer, trained alone, on vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from featx._extraction.runtime import computing_threads, torch_threads
from featx._finetuning.base import TrainedClassifier
from featx._finetuning.network import build_head
from featx._finetuning.samples import INITIALIZATION, choose_seed, derive_seed, torch_seeded
from featx._labels import sort_classes
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self


@public
class LinearHeadClassifier(TrainedClassifier):
    """The last layer of a network, trained by stochastic gradient descent with cross-entropy.

    Behind an `ImageEmbedder` in a pipeline this is "replace the last layer and train it alone": it
    learns from the embeddings, each computed once and kept in the cache, not from images.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=()
        Units of hidden layers with ReLU before the output; none makes it linear.
    dropout : float, default=0.0
        Share of the inputs of each layer that are dropped in training.
    epochs : int, default=30
        Passes over the samples, at most.
    batch_size : int, default=32
        Samples per step, at most.
    optimizer : {"adamw", "sgd"}, default="adamw"
        AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019), or
        gradient descent with a Nesterov momentum of 0.9.
    learning_rate : float, default=1e-3
        At the beginning.
    schedule : {"cosine", "linear", "constant"}, default="cosine"
        How the learning rate falls, step by step, to 0 at the end of the last epoch.
    weight_decay : float, default=1e-4
        Of the weights; biases are not decayed.
    label_smoothing : float, default=0.0
        Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
    class_weight : None, "balanced" or dict, default=None
        Weight of each class in the loss, as scikit-learn takes it.
    early_stopping : bool, default=False
        Hold some samples of each class out, end when their loss no longer falls, and keep the
        weights with which it was lowest.
    validation_fraction : float, default=0.1
        Share that is held out.
    patience : int, default=5
        Epochs without a lower loss after which it ends.
    device : str, default="auto"
        As of `ImageEmbedder`.
    random_state : int, RandomState or None, default=0
        The same number gives the same classifier, on one machine with one number of threads.
    progress : {"auto"} or bool, default=False
        Whether a bar shows how far it has come.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    coefs_ : list of ndarray of float32
        Weights of each layer, of shape (n_inputs, n_outputs); of the last one, (…, n_classes).
    intercepts_ : list of ndarray of float32
        Biases of each layer.
    history_ : list of dict
        Of each epoch, from 1: ``train_loss`` and, under early stopping, ``valid_loss`` and
        ``valid_accuracy``.
    kept_epoch_ : int
        The epoch, from 1, whose weights are kept.
    n_epochs_ : int
        Epochs that were done.
    n_features_in_ : int
        Length of a vector.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from featx._finetuning.linear_head import LinearHeadClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> head = LinearHeadClassifier(epochs=50, learning_rate=0.05).fit(X, y)
    >>> head.score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        *,
        hidden_layer_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        epochs: int = 30,
        batch_size: int = 32,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        schedule: str = "cosine",
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        device: str = "auto",
        random_state: Any = 0,
        progress: bool | str = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:
        """Train the head.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Vectors, such as embeddings; computed with in float32.
        y : array-like of shape (n_samples,)
            Labels of any type that can be sorted.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If a parameter or a label is not of the expected kind, or the loss is not finite before
            one epoch is done.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, codes = sort_classes(y, len(X))
        seed = choose_seed(self.random_state)
        with torch_seeded(derive_seed(seed, INITIALIZATION)):
            head = build_head(X.shape[1], len(self.classes_), self.hidden_layer_sizes, self.dropout)
        plan = self._plan(codes, seed, self.learning_rate)
        self._train_head(head, torch.from_numpy(np.ascontiguousarray(X)), codes, plan)
        layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
        # Arrays, as scikit-learn's own networks have them: a model file can hold these.
        self.coefs_ = [layer.weight.detach().numpy().T.copy() for layer in layers]
        self.intercepts_ = [layer.bias.detach().numpy().copy() for layer in layers]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for each vector.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Vectors.

        Returns
        -------
        ndarray of float32, shape (n_samples, n_classes)
            The columns stand in the order of ``classes_``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        activations = X
        for number, (coefs, intercepts) in enumerate(
            zip(self.coefs_, self.intercepts_, strict=True)
        ):
            inputs = activations if number == 0 else np.maximum(activations, 0)
            activations = inputs @ coefs + intercepts
        with torch_threads(computing_threads()):
            probabilities: np.ndarray = torch.from_numpy(activations).softmax(dim=1).numpy()
        return probabilities
