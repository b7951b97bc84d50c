"""A training that was killed goes on, and ends as one that never was."""

from __future__ import annotations

import functools
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import NAMED, OWN, make_images, tensors_of
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torchvision.transforms import v2
from training_trial import run_trial

from featx._errors import InputError, SchemaError
from featx._finetuning import training
from featx._finetuning.checkpoints import Checkpoint, TrainingState, identify
from featx._finetuning.classifier import FineTunedClassifier

TRIAL = Path(__file__).with_name("training_trial.py")


def epochs_done(checkpoint: Path) -> int:
    for file in checkpoint.glob("*/training.pt"):
        return len(torch.load(file, weights_only=True)["history"])
    return 0


def kill_after(checkpoint: Path, epochs: int, seed: int | None, wait: float) -> int:
    """Kill a training some time after it has done some epochs, and return how many it had done."""
    process = subprocess.Popen(
        [sys.executable, TRIAL, checkpoint, "0.01", json.dumps(seed)], stdout=subprocess.PIPE
    )
    while epochs_done(checkpoint) < epochs and process.poll() is None:
        time.sleep(0.01)
    time.sleep(wait)
    process.kill()
    printed, _ = process.communicate()
    assert (process.returncode, printed) == (-signal.SIGKILL, b"")
    return epochs_done(checkpoint)


def test_killed_and_resumed_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    undisturbed = run_trial(tmp_path / "undisturbed", 0, 3)
    done = kill_after(tmp_path / "killed", 2, 3, wait=random.uniform(0, 0.3))
    assert 2 <= done < 12
    assert run_trial(tmp_path / "killed", 0, 3) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_killed_again_and_again_it_ends_as_if_undisturbed(tmp_path: Path, attempt: int) -> None:
    undisturbed = run_trial(tmp_path / "undisturbed", 0, attempt)
    for epochs in (1, 4, 7):
        done = kill_after(tmp_path / "killed", epochs, attempt, random.uniform(0, 0.4))
        assert epochs <= done < 12
    assert run_trial(tmp_path / "killed", 0, attempt) == undisturbed


class StoppedError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let the checkpoint's writer stop the training, as a kill would, at the end of an epoch."""
    save = Checkpoint.save

    def save_and_stop(checkpoint: Checkpoint, state: TrainingState) -> None:
        save(checkpoint, state)
        if len(state.history) == epochs:
            raise StoppedError

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)


@pytest.mark.parametrize(
    "parameters",
    [
        OWN,
        OWN | {"optimizer": "sgd", "precision": "bfloat16", "random_state": None},
        OWN | {"unfreeze": 1, "augment": "light", "dropout": 0.5},
        NAMED | {"unfreeze": "head", "hidden_layer_sizes": (5,), "dropout": 0.5},
        NAMED | {"unfreeze": 2, "head_epochs": 3, "dropout": 0.5, "batch_norm": "keep"},
        NAMED | {"unfreeze": 1, "early_stopping": True, "patience": 2, "validation_fraction": 0.3},
    ],
    ids=["all", "sgd", "stage", "vectors", "head first", "stopping"],
)
def test_stopped_after_any_epoch_it_ends_as_if_undisturbed(
    parameters: dict[str, Any], tmp_path: Path
) -> None:
    images, labels = make_images(14)
    random_state = parameters.get("random_state", 0)
    for epochs in (1, 2, 3):
        folder = tmp_path / str(epochs)
        classifier = FineTunedClassifier(**parameters | {"epochs": 4, "checkpoint": folder})
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, epochs)
            with pytest.raises(StoppedError):
                classifier.fit(images, labels)
        classifier.fit(images, labels)
        if random_state is None:  # the seed that was drawn is in the checkpoint
            (file,) = folder.glob("*/training.pt")
            random_state = torch.load(file, weights_only=True)["seed"]
        undisturbed = FineTunedClassifier(
            **parameters | {"epochs": 4, "random_state": random_state}
        ).fit(images, labels)
        random_state = parameters.get("random_state", 0)
        assert classifier.history_ == undisturbed.history_
        expected = tensors_of(undisturbed.network_)
        for name, tensor in tensors_of(classifier.network_).items():
            assert tensor.tobytes() == expected[name].tobytes(), name


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = make_images(12)
    parameters = OWN | {"epochs": 2, "checkpoint": tmp_path}
    grid = {"learning_rate": np.logspace(-2, -1, 2)}  # of numpy's own type
    search = GridSearchCV(FineTunedClassifier(**parameters), grid, cv=2).fit(images, labels)
    expected = search.predict_proba(images)
    # Two candidates in two folds, and the best one on all images: a folder each.
    assert len(list(tmp_path.iterdir())) == 5
    steps: list[int] = []
    step = training.Training._step
    monkeypatch.setattr(
        training.Training, "_step", lambda *given: (steps.append(1), step(*given))[1]
    )
    search.fit(images, labels)
    assert steps == []
    np.testing.assert_array_equal(search.predict_proba(images), expected)
    search.set_params(estimator__epochs=3).fit(images, labels)
    assert steps


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"learning_rate": 0.02}, True),
        ({"augment": "light"}, True),
        ({"random_state": 1}, True),
        ({"image_size": 12}, True),
        ({"num_workers": 2}, False),
        ({"progress": True}, False),
        ({"pixel_memory": 0}, False),
    ],
)
def test_another_training_has_another_folder(
    change: dict[str, Any], is_other: bool, tmp_path: Path
) -> None:
    images, labels = make_images(6)
    for parameters in ({}, change):
        FineTunedClassifier(**OWN | {"epochs": 1, "checkpoint": tmp_path} | parameters).fit(
            images, labels
        )
    assert len(list(tmp_path.iterdir())) == 1 + is_other


class Brighter:
    """A transform with a state and no repr of its own."""

    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() + self.by).clamp(0, 255).to(pixels.dtype)


def test_transforms_of_other_states_are_other_trainings(tmp_path: Path) -> None:
    images, labels = make_images(12)
    parameters = OWN | {"epochs": 1, "checkpoint": tmp_path}
    together = {}
    for by in (0, 200):
        alone = FineTunedClassifier(**OWN, epochs=1, augment=Brighter(by)).fit(images, labels)
        both = FineTunedClassifier(**parameters, augment=Brighter(by)).fit(images, labels)
        assert both.history_ == alone.history_
        together[by] = both.history_
    assert together[0] != together[200]
    methods = [Brighter(1).__call__, Brighter(2).__call__]
    assert identify(methods[0], "augment") != identify(methods[1], "augment")
    assert identify(methods[0], "augment") == identify(Brighter(1).__call__, "augment")


def closure(by: int) -> Any:
    def brighter(pixels: torch.Tensor) -> torch.Tensor:
        return pixels + by

    return brighter


@pytest.mark.parametrize(
    "value",
    [
        lambda pixels: pixels,
        closure(1),
        np.random.RandomState(1),
        np.random.default_rng(1),
        iter([1]),
        (number for number in range(3)),
        [1, {"a": lambda pixels: pixels}],
        functools.partial(print, closure(1)),
        Brighter(lambda pixels: pixels),
        Brighter(lambda pixels: pixels).__call__,
        v2.Compose([v2.Lambda(lambda pixels: pixels)]),
        LogisticRegression(random_state=np.random.RandomState(1)),
        threading.Lock(),
    ],
    ids=lambda thing: re.sub(r" at 0x\w+", "", repr(thing), flags=re.IGNORECASE),
)
@pytest.mark.parametrize("name", ["augment", "random_state"])
def test_what_cannot_be_told_from_others_is_refused_by_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    if name == "random_state" and not isinstance(value, np.random.RandomState):
        with pytest.raises(InputError, match=f"Got {name}=.* expected beside checkpoint what can"):
            identify(value, name)
        return
    if not callable(value) and name == "augment":
        with pytest.raises(InputError, match=f"Got {name}="):
            identify(value, name)
        return
    classifier = FineTunedClassifier(**OWN | {"checkpoint": tmp_path, name: value})
    with pytest.raises(InputError, match=f"Got {name}=.* expected beside checkpoint what can"):
        classifier.fit(*make_images(6))
    assert list(tmp_path.iterdir()) == []


def test_other_images_and_labels_have_another_folder(tmp_path: Path) -> None:
    images, labels = make_images(6)
    others, _ = make_images(6, seed=1)
    for X, y in ((images, labels), (others, labels), (images, labels[::-1])):
        FineTunedClassifier(**OWN, epochs=1, checkpoint=tmp_path).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 3


class Executable:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "executable", "another", "tensors"])
def test_a_damaged_checkpoint_is_said(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = make_images(6)
    classifier = FineTunedClassifier(**OWN, epochs=1, checkpoint=tmp_path).fit(images, labels)
    (file,) = tmp_path.glob("*/training.pt")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "pickle":
        file.write_bytes(pickle.dumps(Executable()))
    elif damage == "executable":
        torch.save(torch.load(file) | {"history": Executable()}, file)
    elif damage == "another":
        torch.save(torch.load(file) | {"version": 3}, file)
    else:
        save_file({"0.weight": torch.zeros(1)}, file)
    with pytest.raises(SchemaError, match=r"is not a whole checkpoint .* delete its folder"):
        classifier.fit(images, labels)
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    classifier = FineTunedClassifier(**OWN, epochs=1, checkpoint=tmp_path / "file")
    with pytest.raises(InputError, match=r"Got checkpoint=.* expected a folder that can"):
        classifier.fit(*make_images(6))


def test_a_loss_that_is_nan_ends_the_training_with_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = make_images(12)
    until = FineTunedClassifier(**OWN | {"schedule": "constant"}, epochs=3).fit(images, labels)
    measure = training.Training._loss

    def break_down(self: Any, *given: Any) -> torch.Tensor:
        loss = measure(self, *given)
        return loss * float("nan") if len(self.history) == 3 else loss

    monkeypatch.setattr(training.Training, "_loss", break_down)
    classifier = FineTunedClassifier(**OWN | {"schedule": "constant"}, epochs=6)
    with pytest.warns(ConvergenceWarning, match="became NaN or infinite in epoch 4 of 6") as caught:
        classifier.fit(images, labels)
    assert caught[0].filename == __file__
    losses = [row["train_loss"] for row in classifier.history_]
    assert classifier.kept_epoch_ == int(np.argmin(losses)) + 1
    assert classifier.history_ == until.history_
    if classifier.kept_epoch_ == 3:
        expected = tensors_of(until.network_)
        for name, tensor in tensors_of(classifier.network_).items():
            assert tensor.tobytes() == expected[name].tobytes(), name
    assert np.isfinite(classifier.predict_proba(images)).all()


@pytest.mark.parametrize("parameters", [OWN, NAMED])
def test_a_loss_that_is_nan_at_once_is_said(parameters: dict[str, Any]) -> None:
    settings = parameters | {"learning_rate": 1e30, "optimizer": "sgd", "epochs": 9}
    with pytest.raises(InputError, match=r"before any epoch was done.* learning rate \(1e\+30\)"):
        FineTunedClassifier(**settings | {"unfreeze": "all"}).fit(*make_images(30))


def test_weights_that_the_last_step_broke_are_not_kept() -> None:
    settings = OWN | {"learning_rate": 1e20, "weight_decay": 1e30, "optimizer": "sgd", "epochs": 1}
    with pytest.raises(InputError, match="before any epoch was done"):
        FineTunedClassifier(**settings).fit(*make_images(6))
