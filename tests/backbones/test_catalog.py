"""The catalogue says what is known, invents nothing, and builds nothing to say it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from typer.testing import CliRunner
from weights_files import (
    TIMM_NAME,
    fill_hugging_face_cache,
    timm_tensors,
    write_timm_safetensors,
)

from featx import ImageEmbedder, list_backbones, load_backbone
from featx._cli.backbones import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_short_list_needs_no_torch() -> None:
    code = (
        "from featx import list_backbones; import sys; assert list_backbones()[0].installed; "
        "assert not {'torch', 'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_torchvision_classifier_is_listed_with_every_tag_and_torchvisions_figures() -> None:
    rows = {entry.name: entry for entry in list_backbones("torchvision/*")}
    expected = {
        f"torchvision/{name}.{tag.name}": tag
        for name in models.list_models(module=models)
        for tag in models.get_model_weights(name)
    }
    assert rows.keys() == expected.keys()
    assert {"torchvision/vgg16.IMAGENET1K_V1", "torchvision/resnet50.IMAGENET1K_V2"} <= rows.keys()
    for name, tag in expected.items():
        row = rows[name]
        assert (row.parameters, row.gflops) == (tag.meta["num_params"], tag.meta["_ops"])
        assert row.image_size == tag.transforms().crop_size[0]
        accuracy = tag.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert row.top1 == (accuracy if accuracy == accuracy else None)
        assert row.dimension


def test_every_timm_network_is_listed_with_every_tag() -> None:
    rows = {entry.name: entry for entry in list_backbones("timm/*")}
    assert rows.keys() == {f"timm/{name}" for name in timm.list_pretrained()}
    for name, row in rows.items():
        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        assert row.image_size == config.input_size[-1]
        assert row.licence == (None if config.license == "unknown" else config.license)
        assert row.top1 is None


def test_the_list_builds_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network was built")

    for layer in (nn.Conv2d, nn.Linear):
        monkeypatch.setattr(layer, "__init__", refuse)
    assert len(list_backbones("*")) > 1_000


def test_what_is_unknown_is_none_and_never_nan() -> None:
    rows = json.loads(run("*", "--json"), parse_constant=pytest.fail)
    features_only = next(row for row in rows if row["name"].endswith("IMAGENET1K_FEATURES"))
    assert features_only["top1"] is None


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_efficientnet.r160_in1k",
        "timm/test_resnet.r160_in1k",
        "timm/resnet10t.c3_in1k",
        "timm/mobilenetv3_small_050.lamb_in1k",
        "timm/test_vit.r160_in1k",
        "torchvision/resnet18.IMAGENET1K_V1",
        "torchvision/squeezenet1_1.IMAGENET1K_V1",
        "torchvision/googlenet.IMAGENET1K_V1",
        "torchvision/mobilenet_v3_small.IMAGENET1K_V1",
        "efficientnet_lite1",
    ],
)
def test_the_listed_figures_are_those_of_the_network(name: str) -> None:
    (entry,) = [entry for entry in list_backbones(name) if entry.name == name]
    backbone = load_backbone(name, weights=None)
    assert entry.dimension == backbone.dimension(*backbone.taps())
    assert entry.image_size == backbone.preprocessing.image_size
    if "googlenet" not in name:  # torchvision counts the heads of its training, too
        assert entry.parameters == sum(
            parameter.numel() for parameter in backbone.module.parameters()
        )


def test_a_pattern_is_a_part_of_the_name_or_has_wildcards() -> None:
    names = [entry.name for entry in list_backbones("RESNET18")]
    assert "torchvision/resnet18.IMAGENET1K_V1" in names
    assert "timm/resnet18.a1_in1k" in names
    assert [entry.name for entry in list_backbones("timm/test_efficientnet.*")] == [TIMM_NAME]
    assert list_backbones("no such network") == []


def test_installed_are_those_whose_weights_are_on_this_machine(tmp_path: Path) -> None:
    assert TIMM_NAME not in {entry.name for entry in list_backbones("*", installed=True)}
    fill_hugging_face_cache(tmp_path / "hub", write_timm_safetensors)
    names = [row["name"] for row in json.loads(run("--installed", "--json"))]
    assert TIMM_NAME in names
    assert "efficientnet_lite0" in names
    assert len(names) <= 4


def test_the_table_shows_the_figures_and_how_to_get_the_weights() -> None:
    table = run("torchvision/resnet50")
    assert "80.9 %" in table
    assert "25,557,032" in table
    assert "featx backbones download torchvision/resnet50.IMAGENET1K_V2" in table
    assert "efficientnet_lite0" in run()


def test_the_command_line_prints_the_recipe_that_embeddings_have_on_every_runtime(
    tmp_path: Path,
) -> None:
    name, printed = "timm/test_efficientnet", []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.pth"
        torch.save(timm_tensors(seed), file)
        printed.append(run("--fingerprint", name, "--weights", str(file)).strip())
    for runtime in ("onnx", "torch"):
        embedder = ImageEmbedder(name, weights=str(file), cache=None, runtime=runtime)
        assert embedder.get_provenance()["recipe"] == printed[1]
    # One name, but other weights.
    assert printed[0] != printed[1]
