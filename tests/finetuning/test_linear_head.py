"""`LinearHeadClassifier` is a scikit-learn classifier like any other, and the head of a network."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import skops.io
from networks import NAMED, make_images
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from featx import ImageEmbedder
from featx._errors import InputError
from featx._finetuning.classifier import FineTunedClassifier
from featx._finetuning.linear_head import LinearHeadClassifier


@parametrize_with_checks(
    [
        LinearHeadClassifier(device="cpu", learning_rate=0.05),
        LinearHeadClassifier(
            device="cpu", learning_rate=0.02, hidden_layer_sizes=(8,), early_stopping=True
        ),
    ]
)
def test_it_is_a_classifier_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_comes_as_far_as_logistic_regression() -> None:
    X, y = load_digits(return_X_y=True)
    X, names = X[:600], np.array([f"digit {digit}" for digit in range(10)])[y[:600]]
    head = make_pipeline(StandardScaler(), LinearHeadClassifier(device="cpu", learning_rate=0.01))
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = [cross_val_score(model, X, names, cv=3).mean() for model in (head, reference)]
    assert scores[0] > scores[1] - 0.02


def test_behind_the_embedder_it_is_the_head_of_the_network() -> None:
    images, labels = make_images(20)
    training = {"epochs": 5, "batch_size": 4, "device": "cpu", "progress": False}
    training |= {"hidden_layer_sizes": (6,), "dropout": 0.2, "learning_rate": 0.01}
    whole = FineTunedClassifier(**NAMED | training, unfreeze="head").fit(images, labels)
    pipeline = make_pipeline(
        ImageEmbedder(
            NAMED["backbone"], weights=None, image_size=32, device="cpu", runtime="torch"
        ),
        LinearHeadClassifier(**training),
    ).fit(images, labels)
    layers = [layer for layer in whole.network_.head if isinstance(layer, nn.Linear)]
    for layer, coefs, intercepts in zip(
        layers, pipeline[-1].coefs_, pipeline[-1].intercepts_, strict=True
    ):
        np.testing.assert_allclose(coefs.T, layer.weight.detach(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(intercepts, layer.bias.detach(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        pipeline.predict_proba(images), whole.predict_proba(images), atol=1e-3
    )


def test_the_same_seed_gives_the_same_head() -> None:
    X, y = load_digits(return_X_y=True)
    parameters: dict[str, Any] = {"epochs": 2, "dropout": 0.2, "device": "cpu"}
    once, again, other = (
        LinearHeadClassifier(**parameters, random_state=seed).fit(X, y).predict_proba(X)
        for seed in (0, 0, 1)
    )
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != other.tobytes()


def test_a_fitted_head_is_pickled() -> None:
    X, y = load_digits(return_X_y=True)
    head = LinearHeadClassifier(epochs=1, device="cpu").fit(X, y)
    same = pickle.loads(pickle.dumps(head))
    assert same.predict_proba(X).tobytes() == head.predict_proba(X).tobytes()


def test_it_is_written_to_a_model_file_without_code() -> None:
    X, y = load_digits(return_X_y=True)
    head = LinearHeadClassifier(epochs=1, device="cpu", hidden_layer_sizes=(5,)).fit(X, y)
    data = skops.io.dumps(head)
    own = "featx.LinearHeadClassifier"
    assert skops.io.get_untrusted_types(data=data) == [own]
    same = skops.io.loads(data, trusted=[own])
    assert same.predict_proba(X).tobytes() == head.predict_proba(X).tobytes()


def test_wrong_parameters_and_labels_are_said() -> None:
    X, y = load_digits(return_X_y=True)
    with pytest.raises(InputError, match="Got epochs=-1 but expected a whole number"):
        LinearHeadClassifier(epochs=-1).fit(X, y)
    with pytest.raises(InputError, match="Got device='cuda:99'"):
        LinearHeadClassifier(device="cuda:99").fit(X, y)
    head = LinearHeadClassifier(epochs=1, device="cpu").fit(X[y < 9], y[y < 9])
    with pytest.warns(UserWarning, match=r"180 of 1797 samples .* \(9\); they count as .* wrong"):
        score = head.score(X, y)
    assert score == accuracy_score(y, head.predict(X))
    with pytest.raises(InputError, match="before any epoch was done"):
        LinearHeadClassifier(learning_rate=1e30, optimizer="sgd", device="cpu").fit(X * 1e30, y)


def test_a_loss_that_becomes_nan_keeps_the_best_weights_and_is_said_to_the_caller() -> None:
    X, y = load_digits(return_X_y=True)
    head = LinearHeadClassifier(
        learning_rate=1e10, optimizer="sgd", schedule="constant", batch_size=2000, device="cpu"
    )
    with pytest.warns(ConvergenceWarning, match="the best one, are kept; lower the") as caught:
        head.fit(X, y)
    assert caught[0].filename == __file__
    assert head.n_epochs_ == len(head.history_) < 30
    losses = [row["train_loss"] for row in head.history_]
    assert losses[head.kept_epoch_ - 1] == min(losses)
    assert np.isfinite(head.predict_proba(X)).all()
