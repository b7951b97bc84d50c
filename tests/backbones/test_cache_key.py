"""A cache key names all that changes a vector, a recipe all that changes more than rounding."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featx._backbones import frozen
from featx._backbones.frozen import FrozenBackbone
from featx._backbones.providers import load_backbone
from featx._backbones.taps import Tap
from featx._errors import InputError
from featx._images import preprocess
from featx._images.preprocess import Preprocessing

PREPROCESSING = Preprocessing(32, 40, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TAP = Tap("penultimate", "avg")


def network(stride: int = 1) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 2),
        )  # fmt: skip


def names(
    module: nn.Module | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
    tap: Tap = TAP,
    penultimate: str | None = None,
    runtime: str = "onnx",
    device_type: str = "cpu",
    **changed: Any,
) -> tuple[str, str]:
    backbone = FrozenBackbone(
        network() if module is None else module,
        preprocessing,
        name="tiny",
        penultimate=penultimate,
    )
    key = backbone.cache_key(tap, runtime=runtime, device_type=device_type, **changed)
    return key, backbone.recipe(tap, **changed)


def with_one_bit_flipped() -> nn.Module:
    module = network()
    module[0].weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    return module


def with_another_statistic() -> nn.Module:
    module = network()
    module[1].running_mean[3] += 1e-3
    return module


CHANGES: dict[str, dict[str, Any]] = {
    "a bit of a weight": {"module": with_one_bit_flipped},
    "a statistic": {"module": with_another_statistic},
    "the structure": {"module": lambda: network(stride=2)},
    "layer": {"tap": Tap("0", "avg")},
    "pooling": {"tap": Tap("penultimate", "max")},
    "views": {"views": "flip"},
    "resize": {"preprocessing": replace(PREPROCESSING, resize=41)},
    "interpolation": {"preprocessing": replace(PREPROCESSING, interpolation="bilinear")},
    "image_size": {"preprocessing": replace(PREPROCESSING, image_size=31)},
    "mean": {"preprocessing": replace(PREPROCESSING, mean=(0.5, 0.5, 0.4))},
    "std": {"preprocessing": replace(PREPROCESSING, std=(0.5, 0.5, 0.4))},
    "channel order": {"preprocessing": replace(PREPROCESSING, channel_order="bgr")},
    "pixel scale": {"preprocessing": replace(PREPROCESSING, pixel_scale=255)},
    "precision": {"precision": "bfloat16"},
    "runtime": {"runtime": "torch"},
    "device type": {"device_type": "cuda"},
    "the classifier": {"penultimate": "0"},
}


ONLY_ROUNDING = {"runtime", "device type"}


def with_change(change: str) -> tuple[str, str]:
    changed = dict(CHANGES[change])
    if "module" in changed:
        changed["module"] = changed["module"]()
    return names(**changed)


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_gives_another_key_and_any_but_the_machinery_another_recipe(change: str) -> None:
    (key, recipe), (changed_key, changed_recipe) = names(), with_change(change)
    assert changed_key != key
    assert (changed_recipe == recipe) == (change in ONLY_ROUNDING)


def test_no_two_changes_share_a_name() -> None:
    changed = {change: with_change(change) for change in CHANGES}
    assert len({key for key, _ in changed.values()}) == len(CHANGES)
    recipes = {changed[change][1] for change in CHANGES.keys() - ONLY_ROUNDING}
    assert len(recipes) == len(CHANGES) - len(ONLY_ROUNDING)


def test_caches_of_0_1_stay_valid() -> None:
    lite0 = load_backbone("efficientnet_lite0")
    (tap,) = lite0.taps()
    key = lite0.cache_key(tap, runtime="onnx", device_type="cpu")
    assert key == "5d2fd30d4521d864adbd447c9a20731e"
    stage = lite0.taps("multilevel")[2]
    on_a_gpu = {"runtime": "torch", "device_type": "cuda", "precision": "bfloat16"}
    key = lite0.cache_key(stage, views="flip", **on_a_gpu)
    assert key == "bdf47278982d27c959d5d56504e1ccba"


@pytest.mark.parametrize(
    ("room", "name"), [(frozen, "RECIPE_VERSION"), (preprocess, "PIXELS_VERSION")]
)
def test_a_version_of_what_featx_computes_gives_another(
    room: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names()
    monkeypatch.setattr(room, name, getattr(room, name) + 1)
    assert not set(names()) & set(before)


def test_what_cannot_change_a_vector_does_not_change_it() -> None:
    trained = network().train().double()
    trained[0].register_forward_hook(lambda *_: None)
    for module in (network().eval(), trained, network().to(memory_format=torch.channels_last)):
        assert names(module) == names()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_cache_key import names
print(*names())
"""


@pytest.mark.parametrize("seeds", [("1",), pytest.param(tuple("02345"), marks=pytest.mark.slow)])
def test_process_hash_seed_and_folder_do_not_enter_it(
    seeds: tuple[str, ...], tmp_path: Path
) -> None:
    for seed in seeds:
        folder = tmp_path / seed
        folder.mkdir()
        script = folder / "print_names.py"
        script.write_text(SCRIPT.format(folder=os.fspath(Path(__file__).parent)))
        paths = os.pathsep.join(filter(None, [os.fspath(Path.cwd()), os.environ.get("PYTHONPATH")]))
        printed = subprocess.run(
            [sys.executable, os.fspath(script)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        assert tuple(printed.stdout.split()) == names()


def test_the_description_is_plain_json() -> None:
    description = FrozenBackbone(network(), PREPROCESSING, name="tiny").describe(TAP, "flip")
    assert json.loads(json.dumps(description)) == description
    assert (description["layer"], description["views"]) == ("penultimate", "flip")


def test_unknown_views_have_no_name() -> None:
    with pytest.raises(InputError, match=r"Got views='flop'.*did you mean 'flip'"):
        names(views="flop")


class Shifted(nn.Module):
    """Holds numbers that are neither parameters nor buffers, nor printed."""

    def __init__(self, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.shift = torch.tensor([shift])
        self.scales = {"out": [scale]}
        self.convolution = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(pixels).mean((2, 3)) * self.scales["out"][0] + self.shift
        return self.classifier(maps)


class ShiftedTwice(Shifted):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) + 1


def test_numbers_that_a_module_holds_beside_its_weights_are_part_of_the_key() -> None:
    torch.manual_seed(0)
    weights = Shifted().state_dict()
    prints = {}
    for name, module in {
        "plain": Shifted(),
        "shift": Shifted(shift=5.0),
        "scale": Shifted(scale=3.0),
        "code": ShiftedTwice(),
    }.items():
        module.load_state_dict(weights)
        backbone = FrozenBackbone(module, name="shifted")
        (tap,) = backbone.taps()
        prints[name] = backbone.cache_key(tap, runtime="torch", device_type="cpu")
        again = pickle.loads(pickle.dumps(backbone))
        assert float(again.module.shift) == float(module.shift)
    assert len(set(prints.values())) == 4
    repeated = Shifted()
    repeated.load_state_dict(weights)
    same = FrozenBackbone(repeated, name="shifted")
    assert prints["plain"] == same.cache_key(tap, runtime="torch", device_type="cpu")
