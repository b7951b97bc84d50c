"""Weights files of one's own: what fits is loaded, what does not is named, nothing is guessed."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from weights_files import sha256, timm_tensors, torchvision_tensors

from featx import ImageEmbedder, load_backbone
from featx._errors import InputError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = "timm/test_efficientnet"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return timm_tensors()


def save(file: Path, content: Any) -> Path:
    if file.suffix == ".safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    return file


def assert_features_are(backbone: Any, tensors: dict[str, torch.Tensor]) -> None:
    state = backbone.module.state_dict()
    for name, tensor in tensors.items():
        if not name.startswith("classifier."):
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".PTH"])
def test_a_file_gives_its_tensors_and_its_digest(
    suffix: str, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = save(tmp_path / f"weights{suffix}", tensors)
    backbone = load_backbone(NETWORK, weights=os.fspath(file))
    assert_features_are(backbone, tensors)
    assert backbone.weights_sha256 == sha256(file)
    assert backbone.weights == file.name
    assert load_backbone(NETWORK, weights=file) is backbone


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}},
        lambda tensors: {"model_state_dict": tensors},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"state_dict": {f"module.{name}": t for name, t in tensors.items()}},
    ],
    ids=["state_dict", "model", "model_state_dict", "DataParallel", "both"],
)
def test_what_training_scripts_wrap_around_the_tensors_is_taken_off(
    wrap: Any, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = save(tmp_path / "weights.pth", wrap(tensors))
    assert_features_are(load_backbone(NETWORK, weights=os.fspath(file)), tensors)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "torchvision/shufflenet_v2_x0_5"])
def test_every_kind_of_network_takes_a_file(name: str, tmp_path: Path) -> None:
    if name == "efficientnet_lite0":
        tensors = {k: v.clone() for k, v in load_backbone(name).module.state_dict().items()}
    else:
        tensors = torchvision_tensors()
    file = save(tmp_path / "weights.safetensors", tensors)
    backbone = load_backbone(name, weights=os.fspath(file))
    assert_features_are(backbone, tensors)
    assert backbone.preprocessing == load_backbone(name, weights=None).preprocessing


def test_half_precision_becomes_single(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    halved = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    file = save(tmp_path / "weights.safetensors", halved)
    backbone = load_backbone(NETWORK, weights=os.fspath(file))
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}
    assert_features_are(
        backbone, {name: tensor.to(tensors[name]) for name, tensor in halved.items()}
    )


def test_batch_counters_are_not_needed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    kept = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(tensors)
    file = save(tmp_path / "weights.safetensors", kept)
    assert_features_are(load_backbone(NETWORK, weights=os.fspath(file)), kept)


def test_a_pinned_digest_is_verified(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = save(tmp_path / "weights #1.safetensors", tensors)
    digest = sha256(file)
    backbone = load_backbone(NETWORK, weights=f"{file}#sha256={digest.upper()}")
    assert backbone.weights_sha256 == digest
    other = "0" * 64
    with pytest.raises(WeightsError, match=f"has sha256 {digest}, expected {other}"):
        load_backbone(NETWORK, weights=f"{file}#sha256={other}")


@pytest.mark.parametrize("digest", ["", "12ab", "g" * 64, "0" * 63, "0" * 65])
def test_a_digest_that_is_none_is_refused(digest: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 64 hexadecimal digits"):
        load_backbone(NETWORK, weights=f"{tmp_path / 'a.pth'}#sha256={digest}")


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth does not exist"):
        load_backbone(NETWORK, weights=os.fspath(tmp_path / "absent.pth"))
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.pth cannot be read"):
        load_backbone(NETWORK, weights=os.fspath(tmp_path / "folder.pth"))


def test_tensors_that_do_not_fit_are_counted_and_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    del tensors["conv_stem.weight"]
    tensors["bn1.weight"] = torch.zeros(3)
    for number in range(7):
        tensors[f"extra.{number}"] = torch.zeros(1)
    file = save(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(WeightsError) as caught:
        load_backbone(NETWORK, weights=os.fspath(file))
    message = str(caught.value)
    assert "1 missing (conv_stem.weight)" in message
    assert "7 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, …)" in message
    assert "1 of another shape (bn1.weight (3,) instead of (24,))" in message


@pytest.mark.parametrize("name", [NETWORK, "torchvision/shufflenet_v2_x0_5"])
@pytest.mark.parametrize("change", ["other classes", "absent", "one more layer"])
def test_a_classifier_that_does_not_fit_is_left_out_and_said(
    name: str, change: str, tmp_path: Path
) -> None:
    whole = timm_tensors() if name == NETWORK else torchvision_tensors()
    classifier = "classifier" if name == NETWORK else "fc"
    features = {k: v for k, v in whole.items() if not k.startswith(f"{classifier}.")}
    width = whole[f"{classifier}.weight"].shape[1]
    heads = {
        "other classes": {
            f"{classifier}.weight": torch.zeros(7, width),
            f"{classifier}.bias": torch.zeros(7),
        },
        "absent": {},
        "one more layer": {f"{classifier}.1.weight": torch.zeros(3, 3)},
    }
    file = save(tmp_path / "weights.safetensors", features | heads[change])
    backbone = load_backbone(name, weights=os.fspath(file))
    state = backbone.module.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in features.items())
    assert f"{classifier}.bias" in backbone.weights
    assert backbone.weights.endswith("of the classifier")


def test_a_file_of_nan_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_stem.weight"][0, 0, 0, 0] = float("nan")
    file = save(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(WeightsError, match=r"hold NaN \(conv_stem.weight\)"):
        load_backbone(NETWORK, weights=os.fspath(file))


def test_a_file_of_another_network_is_refused_whole(tmp_path: Path) -> None:
    file = save(tmp_path / "weights.pth", torchvision_tensors())
    with pytest.raises(WeightsError, match="do not fit the network"):
        load_backbone(NETWORK, weights=os.fspath(file))


@pytest.mark.parametrize(
    "content",
    [{}, [], torch.zeros(3), {"a": 1}, {1: torch.zeros(1)}, {"a": torch.zeros(3).to_sparse()}],
    ids=["empty", "list", "tensor", "number", "number as name", "sparse"],
)
def test_a_file_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    file = save(tmp_path / "weights.pth", content)
    with pytest.raises(WeightsError, match="not a file of tensors alone"):
        load_backbone(NETWORK, weights=os.fspath(file))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    names = []
    for seed in (1, 2):
        save(file, timm_tensors(seed))
        assert_features_are(load_backbone(NETWORK, weights=os.fspath(file)), timm_tensors(seed))
        embedder = ImageEmbedder(NETWORK, weights=os.fspath(file), cache=None, device="cpu")
        names.append(embedder.get_provenance()["fingerprint"])
    assert names[0] != names[1]


def test_a_pickled_backbone_finds_its_file_from_any_folder(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path / "weights.safetensors", tensors)
    monkeypatch.chdir(tmp_path)
    backbone = load_backbone(NETWORK, weights=file.name)
    pickled = pickle.dumps(backbone)
    assert len(pickled) < 1_000
    monkeypatch.chdir("/")
    assert pickle.loads(pickled) is backbone
    save(file, timm_tensors(9))
    with pytest.raises(WeightsError, match="others than when the backbone was stored"):
        pickle.loads(pickled)


def test_a_real_resnet50_needs_no_new_names(shared_folder: Path) -> None:
    file = shared_folder / "weights" / "resnet50_imagenet_caffe.safetensors"
    if not file.is_file():
        pytest.skip("the real ResNet-50 is not beside this checkout")
    backbone = load_backbone("torchvision/resnet50", weights=os.fspath(file))
    assert backbone.weights == file.name
    state = backbone.module.state_dict()
    with safe_open(file, "pt") as stored:
        assert set(stored.keys()) == set(state)
        for name in ("conv1.weight", "layer4.2.bn3.running_var", "fc.weight"):
            assert torch.equal(state[name], stored.get_tensor(name).float())
