"""`FineTunedClassifier` learns, and keeps the conventions of scikit-learn."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMED, OWN, SIDE, TinyCNN, make_images, tensors_of
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import nn
from torchvision.transforms import v2

from featx import FrozenBackbone, ImageDecodeError, load_image_folder
from featx._errors import InputError
from featx._finetuning import samples
from featx._finetuning.classifier import FineTunedClassifier


def fit(count: int = 12, **parameters: Any) -> FineTunedClassifier:
    return FineTunedClassifier(**OWN | {"epochs": 2} | parameters).fit(*make_images(count))


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


@pytest.mark.parametrize("unfreeze", ["all", 2])
def test_it_learns_what_can_be_learnt(unfreeze: Any) -> None:
    classifier = fit(60, unfreeze=unfreeze, epochs=15)
    images, labels = make_images(30, seed=1)
    assert classifier.score(images, labels) == 1
    losses = [row["train_loss"] for row in classifier.history_]
    assert losses[-1] < losses[0] / 2


LABELS = [
    st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=4, unique=True),
    st.just([False, True]),
    st.just([np.float64(0), np.float64(3)]),
]


@settings(max_examples=12, deadline=None)
@given(labels=st.one_of(LABELS), form=st.sampled_from([list, np.array, pd.Series]))
def test_labels_of_any_type_come_out_as_they_went_in(labels: list[Any], form: Any) -> None:
    images, y = make_images(8, labels)
    classifier = FineTunedClassifier(**OWN, epochs=1).fit(images, form(y.tolist()))
    assert classifier.classes_.tolist() == np.unique(y).tolist()
    predicted = classifier.predict(images)
    assert predicted.dtype == classifier.classes_.dtype
    assert set(predicted.tolist()) <= set(y.tolist())
    probabilities = classifier.predict_proba(images)
    assert probabilities.shape == (8, len(labels))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classifier.classes_[probabilities.argmax(1)], predicted)
    assert classifier.score(images, y) == np.mean(predicted == y)


def test_the_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    varied = {"augment": "light", "dropout": 0.3, "hidden_layer_sizes": (6,)}
    once, again = fit(**varied), fit(**varied)
    assert same_tensors(once.network_, again.network_)
    assert once.history_ == again.history_
    assert not same_tensors(once.network_, fit(**varied, random_state=1).network_)


@pytest.mark.parametrize("setting", [{"num_workers": 3}, {"pixel_memory": 0}, {"progress": True}])
def test_what_only_speeds_it_up_changes_no_bit(setting: dict[str, Any]) -> None:
    assert same_tensors(fit(augment="light").network_, fit(augment="light", **setting).network_)


def test_the_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    fit(dropout=0.5, augment="light")
    np.testing.assert_array_equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_parameters_are_stored_as_they_are_and_cloned() -> None:
    classifier = FineTunedClassifier(
        **OWN | {"unfreeze": ["8"], "class_weight": {"blue": 2}, "epochs": 1}
    )
    before = classifier.get_params()
    copied = clone(classifier)
    assert copied.get_params() == before
    classifier.fit(*make_images(6))
    assert classifier.get_params() == before
    assert not hasattr(clone(classifier), "network_")
    assert is_classifier(classifier)


def test_a_fitted_classifier_is_pickled_and_copied() -> None:
    images, _ = make_images(6)
    classifier = fit()
    expected = classifier.predict_proba(images)
    for same in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert same.predict_proba(images).tobytes() == expected.tobytes()


def test_a_row_does_not_depend_on_the_others() -> None:
    classifier = fit()
    images, _ = make_images(13)
    expected = classifier.predict_proba(images)
    order = np.random.default_rng(0).permutation(13)
    shuffled = classifier.predict_proba([images[row] for row in order])
    assert shuffled.tobytes() == expected[order].tobytes()
    assert classifier.predict_proba(images[4:5]).tobytes() == expected[4:5].tobytes()


def test_a_search_over_what_is_unfrozen_and_how_fast() -> None:
    images, labels = make_images(18)
    grid = {"unfreeze": ["head", 1, "all"], "learning_rate": [1e-3, 1e-1]}
    search = GridSearchCV(FineTunedClassifier(**NAMED, epochs=1), grid, cv=2, error_score="raise")
    search.fit(images, labels)
    assert len(search.cv_results_["params"]) == 6
    assert search.best_estimator_.predict(images).shape == (18,)
    again = clone(search).fit(images, labels)
    np.testing.assert_array_equal(
        again.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from torch import nn
from sklearn.model_selection import GridSearchCV
from networks import OWN, make_images
from featx._finetuning.classifier import FineTunedClassifier

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(4, 2)

    def forward(self, values):
        return self.last(self.pool(self.first(values).relu()).flatten(1))

if __name__ == "__main__":
    classifier = FineTunedClassifier(**OWN | {{"epochs": 1}})
    images, labels = make_images(12)
    grid = {{"backbone": [Mine, Mine()]}}
    search = GridSearchCV(classifier, grid, cv=2, n_jobs=2, error_score="raise")
    scores = search.fit(images, labels).cv_results_["mean_test_score"]
    alone = search.set_params(n_jobs=None).fit(images, labels)
    print(scores == alone.cv_results_["mean_test_score"])
"""


@pytest.mark.parametrize("kind", [pytest.param("script", marks=pytest.mark.slow), "notebook"])
def test_a_module_of_a_script_or_notebook_goes_through_two_processes(
    kind: str, tmp_path: Path
) -> None:
    text = SCRIPT.format(folder=os.fspath(Path(__file__).parent))
    script = tmp_path / "script.py"
    script.write_text(text)
    # Like a notebook's, a class that is typed in has no file to be imported or read from.
    arguments, typed = ([script], None) if kind == "script" else (["-"], text)
    done = subprocess.run(
        [sys.executable, *arguments],
        input=typed, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout == "[ True  True]\n", done.stderr


class Uncopyable(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_module_that_cannot_be_copied_is_refused_before_the_first_fold() -> None:
    classifier = FineTunedClassifier(**OWN | {"backbone": Uncopyable()})
    search = GridSearchCV(classifier, {"unfreeze": ["head"]}, cv=2, n_jobs=2)
    with pytest.raises(InputError, match="Got backbone=Uncopyable, which cannot be copied"):
        search.fit(*make_images(6))


def test_the_head_alone_costs_one_forward_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    forwards: list[int] = []

    def count_decoded(content: Any, source: str, limits: Any) -> Any:
        decoded.append(source)
        return decode(content, source, limits)

    def count_forwards(network: nn.Module, pixels: torch.Tensor) -> Any:
        if pixels.any():
            forwards.append(len(pixels))
        return forward(network, pixels)

    decode = samples.decode_content
    monkeypatch.setattr(samples, "decode_content", count_decoded)
    from featx._finetuning.network import FineTuningNetwork

    forward = FineTuningNetwork.forward
    monkeypatch.setattr(FineTuningNetwork, "forward", count_forwards)
    images, labels = make_images(12)
    parameters = NAMED | {"epochs": 4, "unfreeze": "head"}
    FineTunedClassifier(**parameters).fit(images, labels)
    assert (len(decoded), sum(forwards)) == (12, 12)
    decoded.clear(), forwards.clear()
    FineTunedClassifier(**parameters | {"augment": "light"}).fit(images, labels)
    assert (len(decoded), sum(forwards)) == (12, 4 * 12)


def test_images_are_decoded_again_where_memory_does_not_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[str] = []

    def count(content: Any, source: str, limits: Any) -> Any:
        decoded.append(source)
        return decode(content, source, limits)

    decode = samples.decode_content
    monkeypatch.setattr(samples, "decode_content", count)
    fit(12, epochs=3, pixel_memory=5 * 3 * SIDE * SIDE)
    assert len(decoded) == 12 + 7 + 7


@pytest.mark.parametrize("backbone", ["torchvision/squeezenet1_1", "timm/vit_tiny_patch16_224"])
def test_classifiers_of_other_kinds_are_replaced(backbone: str) -> None:
    size = {"image_size": 224} if "vit" in backbone else {"image_size": 48}
    images, labels = make_images(4, ["a", "b"])
    parameters = NAMED | {"backbone": backbone, "epochs": 1} | size
    for hidden in ((), (5,)):
        classifier = FineTunedClassifier(**parameters, hidden_layer_sizes=hidden)
        assert classifier.fit(images, labels).predict_proba(images).shape == (4, 2)


def test_a_hidden_layer_stands_before_the_output() -> None:
    head = fit(hidden_layer_sizes=(7, 6), dropout=0.5).network_.head
    kinds = [type(layer).__name__ for layer in head.children()]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [7, 6, 3]


def test_early_stopping_keeps_the_best_epoch_and_ends() -> None:
    classifier = fit(
        30, epochs=40, early_stopping=True, validation_fraction=0.3, patience=2,
        learning_rate=0.05, schedule="constant",
    )  # fmt: skip
    losses = [row["valid_loss"] for row in classifier.history_]
    best = int(np.argmin(losses))
    assert classifier.kept_epoch_ == best + 1
    assert classifier.n_epochs_ == len(losses) == min(40, best + 3)
    # The weights are those of that epoch: a training that ends there has them too.
    until = fit(
        30, epochs=best + 1, early_stopping=True, validation_fraction=0.3, patience=2,
        learning_rate=0.05, schedule="constant",
    )  # fmt: skip
    assert same_tensors(until.network_, classifier.network_)


def test_the_learning_rates_and_the_schedule_are_those_asked_for() -> None:
    with_nothing = fit(unfreeze="all", backbone_learning_rate=1e-30, weight_decay=0.0)
    begun = FineTunedClassifier(**OWN | {"epochs": 2, "learning_rate": 1e-30}).fit(*make_images(12))
    for name, tensor in with_nothing.network_.module.named_parameters():
        start = begun.network_.module.get_parameter(name)
        moved = (tensor - start).abs().max().item()
        assert moved > 1e-4 if name.startswith("14.") else moved < 1e-6, name


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_schedule_and_optimizer_learns(schedule: str, optimizer: str) -> None:
    classifier = fit(30, schedule=schedule, optimizer=optimizer, epochs=4)
    losses = [row["train_loss"] for row in classifier.history_]
    assert losses[-1] < losses[0]


def test_weights_of_classes_and_smoothed_labels_move_the_probabilities() -> None:
    images, _ = make_images(30)
    plain = fit(30, epochs=4).predict_proba(images)
    heavy = fit(30, epochs=4, class_weight={"red": 20.0}).predict_proba(images)
    assert heavy[:, 2].mean() > plain[:, 2].mean()
    smooth = fit(30, epochs=4, label_smoothing=0.9).predict_proba(images)
    assert smooth.max(axis=1).mean() < plain.max(axis=1).mean()
    assert not same_tensors(fit(14, class_weight="balanced").network_, fit(14).network_)


def test_mixed_precision_gives_about_the_same() -> None:
    images, labels = make_images(30)
    parameters = OWN | {"epochs": 12}
    half = FineTunedClassifier(**parameters, precision="bfloat16").fit(images, labels)
    assert half.score(images, labels) == 1
    assert not same_tensors(half.network_, fit(30, epochs=12).network_)
    assert half.network_.module[0].weight.dtype == torch.float32


def test_augmentation_takes_transforms_of_torchvision() -> None:
    seen: list[torch.Tensor] = []

    def spy(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.clone())
        return v2.RandomHorizontalFlip()(pixels)

    fit(12, augment=spy, epochs=3)
    assert len(seen) == 36
    assert {(pixels.dtype, tuple(pixels.shape)) for pixels in seen} == {
        (torch.uint8, (3, SIDE, SIDE))
    }


def test_a_transform_that_works_in_place_spoils_nothing() -> None:
    def blacken(pixels: torch.Tensor) -> torch.Tensor:
        totals.append(int(pixels.sum()))
        return pixels.zero_()

    totals: list[int] = []
    fit(12, augment=blacken, epochs=2)
    assert sorted(totals[:12]) == sorted(totals[12:])
    assert min(totals) > 0


def test_photographs_of_the_sample(sample_folder: Path) -> None:
    photos = load_image_folder(sample_folder / "train")
    rows = np.arange(0, len(photos.paths), len(photos.paths) // 60)
    paths, labels = [photos.paths[row] for row in rows], np.asarray(photos.target)[rows]
    parameters = NAMED | {"num_workers": 2, "epochs": 1, "unfreeze": 1}
    scores = cross_val_score(FineTunedClassifier(**parameters), paths, labels, cv=2)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 0}, "Got epochs=0 but expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "Got batch_size=2.5"),
        ({"learning_rate": -1}, "Got learning_rate=-1 but expected a number above 0"),
        ({"learning_rate": float("nan")}, "Got learning_rate=nan"),
        ({"backbone_learning_rate": 0}, "Got backbone_learning_rate=0"),
        ({"optimizer": "adamm"}, "Got optimizer='adamm'.*did you mean 'adamw'"),
        ({"schedule": None}, "Got schedule=None"),
        ({"dropout": 1}, "Got dropout=1"),
        ({"label_smoothing": 1.0}, "Got label_smoothing=1.0"),
        (
            {"hidden_layer_sizes": (0,)},
            "Got hidden_layer_sizes=0 but expected a whole number of at least 1",
        ),
        ({"hidden_layer_sizes": 8}, "Got hidden_layer_sizes=8"),
        ({"validation_fraction": 1.0}, "Got validation_fraction=1.0"),
        ({"early_stopping": 1}, "Got early_stopping=1 but expected True or False"),
        ({"precision": "float64"}, "Got precision='float64'"),
        ({"precision": "float16"}, "Got precision='float16' but expected .* needs a GPU"),
        ({"augment": "hard"}, "Got augment='hard'"),
        ({"class_weight": "equal"}, "Got class_weight='equal'"),
        ({"class_weight": {"pink": 2}}, "'pink'"),
        ({"num_workers": -1}, "Got num_workers=-1"),
        ({"progress": "yes"}, "Got progress='yes'"),
        ({"backbone": 5}, r"Got backbone=5 \(.*\) but expected the name of a network"),
        ({"backbone": dict}, "Got a dict from"),
        ({"backbone": nn.Linear}, "expected the name of a network, a FrozenBackbone"),
        ({"backbone": nn.Conv2d(3, 3, 3)}, "FrozenBackbone.module, penultimate="),
        ({"weights": None}, "Got weights beside backbone=<class .*which has its own; leave it out"),
        ({"backbone": FrozenBackbone(TinyCNN())}, "Got image_size beside backbone=FrozenBackbone"),
        ({"device": "cuda:99"}, "Got device='cuda:99' but torch sees"),
        ({"augment": lambda pixels: pixels.float()}, "Got float32 of shape .* from augment"),
        ({"augment": v2.Resize([4, 4])}, r"Got uint8 of shape \(3, 4, 4\) from augment"),
    ],
)
def test_a_wrong_parameter_is_said_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FineTunedClassifier(**OWN | {"epochs": 1} | parameters).fit(*make_images(6))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match="Got device='cuda' but torch sees 0 CUDA devices here"):
        fit(device="cuda")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed"),
        (["a"] * 5, "Got 6 rows and 5 labels"),
        (["a"] * 6, "Got one class, 'a'"),
        (["a", "b", None] * 2, "labels that are missing"),
        ([0.0, 1.0, np.nan] * 2, "NaN"),
        ([0.5, 1.5, 2.5] * 2, "continuous"),
        (np.array(["a", 1, "b"] * 2, dtype=object), "Got labels of the types int, str"),
    ],
)
def test_wrong_labels_are_said(y: Any, message: str) -> None:
    labels = np.array(y, dtype=object) if isinstance(y, list) and None in y else y
    with pytest.raises(ValueError, match=message):
        FineTunedClassifier(**OWN, epochs=1).fit(make_images(6)[0], labels)


def test_a_label_unseen_at_fit_counts_as_wrong_and_is_said_once() -> None:
    classifier = fit()
    images, labels = make_images(4)
    right = (classifier.predict(images) == labels).astype(float)
    labels[0], right[0] = "pink", 0
    with pytest.warns(UserWarning, match=r"1 of 4 .* not there at fit \('pink'\)") as caught:
        score = classifier.score(images, labels)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert score == right.mean()


def test_a_class_with_one_image_under_early_stopping_is_said() -> None:
    images, labels = make_images(7)
    labels[:] = ["red"] * 6 + ["blue"]
    classifier = FineTunedClassifier(**OWN, epochs=1, early_stopping=True)
    with pytest.raises(InputError, match="Got a single sample of 'blue' but early stopping"):
        classifier.fit(images, labels)
    assert FineTunedClassifier(**OWN, epochs=1).fit(images, labels).n_epochs_ == 1


def test_an_image_that_cannot_be_read_is_named_with_its_row() -> None:
    images, labels = make_images(6)
    images[4] = "nowhere.jpg"
    for parameters in (OWN, NAMED, OWN | {"num_workers": 2}):
        with pytest.raises(ImageDecodeError, match=r"nowhere.jpg \(row 4\): no such file"):
            FineTunedClassifier(**parameters).fit(images, labels)
    with pytest.raises(ImageDecodeError, match=r"nowhere.jpg \(row 4\)"):
        fit().predict(images)


def test_no_images_and_no_fit_are_said() -> None:
    with pytest.raises(InputError, match="Got 0 images"):
        FineTunedClassifier(**OWN).fit([], [])
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(FineTunedClassifier(**OWN), method)(make_images(2)[0])
    with pytest.raises(NotFittedError):
        FineTunedClassifier(**OWN).freeze()


def test_a_head_that_was_trained_before_is_where_the_training_begins() -> None:
    images, labels = make_images(24)
    parameters = NAMED | {"unfreeze": 1, "epochs": 1, "learning_rate": 0.01, "batch_norm": "keep"}
    head = FineTunedClassifier(**parameters | {"unfreeze": "head", "epochs": 30})
    head.fit(images, labels)
    alone = FineTunedClassifier(**parameters).fit(images, labels)
    prepared = FineTunedClassifier(**parameters, head_epochs=30).fit(images, labels)
    assert prepared.history_[0]["train_loss"] < alone.history_[0]["train_loss"]
    assert same_tensors(head.network_.module.blocks[0], prepared.network_.module.blocks[0])
    assert not same_tensors(prepared.network_.head, alone.network_.head)
