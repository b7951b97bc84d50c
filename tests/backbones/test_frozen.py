"""A frozen backbone changes nothing of the caller's, and nothing of the caller's changes it."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from featx import ImageEmbedder
from featx._backbones.frozen import FrozenBackbone
from featx._backbones.taps import Tap
from featx._errors import InputError
from featx._files import lock_of_process
from featx._images.preprocess import Preprocessing

HALF = (0.5, 0.5, 0.5)
SMALL = Preprocessing(32, 32, "bilinear", HALF, HALF)
VECTOR = Tap("penultimate", "avg")


class TinyNet(nn.Module):
    """A network with all that can move: BatchNorm, dropout, a hook, work in place."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.act(self.bn(self.conv(images)))
        return self.classifier(self.dropout(features.mean((2, 3))))


def tiny(seed: int = 0, **options: int) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet(**options)


def images(count: int = 4, side: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def vectors_of(backbone: FrozenBackbone, pixels: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        (vectors,) = backbone.network(backbone.taps())(images() if pixels is None else pixels)
    return vectors


def state_of(module: nn.Module) -> list[Any]:
    """All of a module that somebody could change: numbers, places, modes, gradients, hooks."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        [(name, tensor.data_ptr(), tensor.stride(), tensor.dtype) for name, tensor in tensors],
        [tensor.detach().clone().tolist() for _, tensor in tensors],
        [(tensor.requires_grad, tensor.grad) for _, tensor in tensors],
        [part.training for part in module.modules()],
        [(list(part._forward_hooks), list(part._forward_pre_hooks)) for part in module.modules()],
    ]


def test_the_callers_module_is_left_as_it_was_in_every_respect() -> None:
    module = tiny().train().to(memory_format=torch.channels_last)
    module(torch.rand(2, 3, 32, 32)).sum().backward()
    module.conv.register_forward_hook(lambda *_: None)
    module.bn.requires_grad_(False)
    before = state_of(module)
    backbone = FrozenBackbone(module, SMALL)
    backbone.list_layers()
    vectors_of(backbone)
    pickle.dumps(backbone)
    assert state_of(module) == before


def test_training_the_module_afterwards_does_not_change_the_backbone() -> None:
    module = tiny().train()
    backbone = FrozenBackbone(module, SMALL)
    before, fingerprint = vectors_of(backbone), backbone.weights_sha256
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert torch.equal(vectors_of(backbone), before)
    assert FrozenBackbone(module, SMALL).weights_sha256 != fingerprint


def test_the_state_the_module_is_in_does_not_matter() -> None:
    expected = vectors_of(FrozenBackbone(tiny().eval(), SMALL))
    for module in (
        tiny().train(),
        tiny().requires_grad_(False),
        tiny().to(memory_format=torch.channels_last),
        tiny().double(),
        nn.DataParallel(tiny()),
        torch.compile(tiny()),
    ):
        assert torch.equal(vectors_of(FrozenBackbone(module, SMALL)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_in_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    vectors = vectors_of(FrozenBackbone(tiny().to(dtype), SMALL))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(
        vectors, vectors_of(FrozenBackbone(tiny(), SMALL)), rtol=0.05, atol=0.05
    )


def test_frozen_means_eval_mode_and_no_gradients_whatever_is_asked() -> None:
    backbone = FrozenBackbone(tiny().train(), SMALL)
    network = backbone.network(backbone.taps())
    network.train()
    nn.Sequential(network).train()
    assert not any(part.training for part in network.modules())
    (vectors,) = network(images())
    assert not vectors.requires_grad


def check_nothing_moves(module: nn.Module, count: int, side: int, batch: int = 50) -> None:
    recipe = Preprocessing(side, side, "bilinear", HALF, HALF)
    backbone = FrozenBackbone(module.train(), recipe)
    network = backbone.network(backbone.taps())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    original = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for seed in range(count // batch):
        network.train()(images(batch, side, seed))
    after = network.state_dict()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in original.items())


def test_no_statistic_and_no_weight_moves_after_many_images() -> None:
    check_nothing_moves(tiny(), count=500, side=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18"])
def test_no_statistic_and_no_weight_moves_after_ten_thousand_images(name: str) -> None:
    check_nothing_moves(timm.create_model(name), count=10_000, side=64)


def test_hooks_of_the_caller_are_neither_run_nor_copied() -> None:
    module, calls = tiny(), []
    module.conv.register_forward_hook(lambda *_: calls.append("after"))
    module.bn.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.act.register_full_backward_hook(lambda *_: calls.append("backward"))
    backbone = FrozenBackbone(module, SMALL)
    vectors_of(backbone)
    assert calls == []
    assert not any(part._forward_hooks for part in backbone.module.modules())


@pytest.mark.parametrize(
    "normalize",
    [
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
)
def test_weights_that_torch_itself_computes_are_computed_as_ever(normalize: Any) -> None:
    module = tiny().eval()
    module.conv = normalize(module.conv)
    module(torch.rand(2, 3, 32, 32))
    values = images() / 255 * 2 - 1
    with torch.inference_mode():
        expected = module.act(module.bn(module.conv(values))).mean((2, 3))
    torch.testing.assert_close(vectors_of(FrozenBackbone(module.train(), SMALL)), expected)


def test_tied_weights_stay_one_tensor() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(27, 2))
    module[1].weight = module[0].weight
    copied: Any = FrozenBackbone(module, Preprocessing(3, 3, "bilinear", HALF, HALF)).module
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not module[0].weight


def test_networks_of_several_taps_share_their_tensors() -> None:
    backbone = FrozenBackbone(tiny(), SMALL)
    first = backbone.network(backbone.taps())
    second = backbone.network(backbone.taps("conv", "grid2"))
    assert first is backbone.network(backbone.taps())
    places = {tensor.data_ptr() for tensor in backbone.module.parameters()}
    for network in (first, second):
        assert {tensor.data_ptr() for tensor in network.parameters()} == places


def test_the_default_recipe_is_that_of_imagenet() -> None:
    recipe = FrozenBackbone(tiny()).preprocessing
    assert recipe == Preprocessing(
        224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def test_pixels_reach_the_network_as_the_recipe_says() -> None:
    pixels = images(2, 8)
    values = pixels.float()
    mean = (103.939, 116.779, 123.68)
    caffe = Preprocessing(8, 8, "bilinear", mean, (1, 1, 1), "bgr", pixel_scale=255)
    expected = {
        Preprocessing(8, 8, "bilinear", HALF, HALF): values / 127.5 - 1,
        Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1), "bgr"): values.flip(1) / 255,
        caffe: values[:, [2, 1, 0]] - torch.tensor(mean).view(1, 3, 1, 1),
    }
    for recipe, fed in expected.items():
        module = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(192, 2))
        backbone = FrozenBackbone(module, recipe)
        (received,) = backbone.network(backbone.taps("0", "flatten"))(pixels)
        torch.testing.assert_close(received, fed.flatten(1))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("resnet50", "Got a str but expected a torch.nn.Module"),
        (lambda images: images, "Got a function"),
        (nn.LazyLinear(3), "no numbers yet"),
        (nn.Linear(3, 3, device="meta"), "no numbers yet"),
    ],
)
def test_what_is_no_network_with_weights_is_refused(module: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrozenBackbone(module)


def test_torchscript_is_refused_with_the_way_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(tiny().eval(), torch.rand(1, 3, 32, 32))
    with pytest.raises(InputError, match=r"expected the nn.Module"):
        FrozenBackbone(scripted)


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = tiny()
    module.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        FrozenBackbone(module)


def test_a_network_for_other_inputs_is_refused_by_name() -> None:
    backbone = FrozenBackbone(nn.Linear(10, 2), SMALL, name="table")
    with pytest.raises(InputError, match="table cannot take one image of 3 x 32 x 32"):
        backbone.taps()


def test_preprocessing_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="expected a Preprocessing"):
        FrozenBackbone(tiny(), {"image_size": 32})  # type: ignore[arg-type]  # that is the test


def test_its_representation_is_one_short_line() -> None:
    backbone = FrozenBackbone(tiny(), SMALL, name="mine", weights="epoch 3")
    assert repr(backbone) == "FrozenBackbone('mine', weights='epoch 3')"


def test_clones_and_copies_are_the_backbone_itself() -> None:
    backbone = FrozenBackbone(tiny(), SMALL)
    assert clone(backbone) is backbone
    assert copy.copy(backbone) is backbone
    assert copy.deepcopy({"of": backbone})["of"] is backbone
    assert clone(Transformer(backbone)).backbone is backbone


def test_pickled_in_one_process_it_is_the_same_object() -> None:
    backbone = FrozenBackbone(tiny(), SMALL)
    assert pickle.loads(pickle.dumps(backbone)) is backbone


def test_pickled_to_another_process_it_computes_the_same_bits_and_is_one_object() -> None:
    backbone = FrozenBackbone(timm.create_model("test_efficientnet"), SMALL, name="mine")
    expected = vectors_of(backbone)
    payload = pickle.dumps(backbone)
    [(vectors, is_one, name)] = Parallel(n_jobs=2)([delayed(unpickled_twice)(payload)])
    torch.testing.assert_close(torch.tensor(vectors), expected, rtol=1e-5, atol=1e-6)
    assert is_one
    assert name == "mine"


def unpickled_twice(payload: bytes) -> tuple[Any, bool, str]:
    first, second = pickle.loads(payload), pickle.loads(payload)
    return vectors_of(first).tolist(), first is second, first.name


def test_more_than_fifty_megabytes_are_pickled_with_one_warning() -> None:
    heavy = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3072, 4_200))
    backbone = FrozenBackbone(heavy, SMALL, name="heavy")
    with pytest.warns(UserWarning, match="pickling it carries 52 MB"):
        pickle.dumps(backbone)
    pickle.dumps(backbone)  # a second warning would be an error here
    pickle.dumps(FrozenBackbone(tiny(), SMALL))


class Transformer(BaseEstimator):
    """The least that a search needs, counting the networks that are alive where it is fitted."""

    def __init__(self, backbone: FrozenBackbone, number: int = 0) -> None:
        self.backbone = backbone
        self.number = number

    def fit(self, X: Any, y: Any = None) -> Transformer:
        return self

    def score(self, X: Any, y: Any = None) -> float:
        vectors_of(self.backbone)
        gc.collect()
        # Candidates that are done are garbage by now; what is alive is what the memory must hold.
        tensors = [
            thing
            for thing in gc.get_objects()
            if type(thing) is nn.Parameter and tuple(thing.shape) == (71, 3, 3, 3)
        ]
        return float(len({tensor.data_ptr() for tensor in tensors}))


@pytest.mark.parametrize(
    ("candidates", "n_jobs"),
    [(3, 1), (4, 2), *(pytest.param(10, jobs, marks=pytest.mark.slow) for jobs in (1, 2))],
)
def test_a_search_holds_one_copy_per_process(candidates: int, n_jobs: int) -> None:
    backbone = FrozenBackbone(tiny(width=71), SMALL)
    grid = {"number": list(range(candidates))}
    search = GridSearchCV(Transformer(backbone), grid, cv=2, n_jobs=n_jobs, error_score="raise")
    search.fit([[0], [1], [2], [3]], [0, 1, 0, 1])
    assert search.best_estimator_.backbone is backbone
    copies = search.cv_results_["mean_test_score"]
    # A task brings its own weights until they are recognised; then they are dropped.
    assert copies.max() == 1


def test_threads_that_share_a_network_get_their_own_rows() -> None:
    backbone = FrozenBackbone(tiny(), SMALL)
    network = backbone.network(backbone.taps(["penultimate", "bn"], "avg"))
    expected = [network(images(seed=seed)) for seed in range(4)]
    failures: list[int] = []

    def compute(seed: int) -> None:
        for _ in range(30):
            got = network(images(seed=seed))
            if not all(map(torch.allclose, got, expected[seed])):
                failures.append(seed)

    threads = [threading.Thread(target=compute, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_penultimate_vector_may_be_named_where_the_network_knows_it_too() -> None:
    module = timm.create_model("test_efficientnet", num_classes=3).eval()
    named = FrozenBackbone(
        module, Preprocessing(64, 64, "bilinear", (0,) * 3, (1,) * 3), penultimate="classifier"
    )
    known = FrozenBackbone(module, named.preprocessing)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        vectors = [one.network(one.taps())(pixels)[0] for one in (named, known)]
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=0)


def test_two_threads_that_look_into_networks_do_not_wait_for_each_other() -> None:
    first, second = FrozenBackbone(tiny(), SMALL), FrozenBackbone(tiny(), SMALL)
    has_lock = threading.Event()
    shapes: list[object] = []

    def look() -> None:
        has_lock.wait()
        shapes.append(first.list_layers())

    def build() -> None:
        with lock_of_process("network"):
            has_lock.set()
            time.sleep(0.2)  # the other one comes as far as it can
            shapes.append(second.network(second.taps("conv")))

    threads = [threading.Thread(target=work, daemon=True) for work in (look, build)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(shapes) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_what_a_thread_of_its_parent_holds() -> None:
    is_held, is_done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_of_process("network"):
            is_held.set()
            is_done.wait()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    is_held.wait()
    child = multiprocessing.get_context("fork").Process(target=look_into_a_network)
    child.start()
    child.join(timeout=60)
    child.kill()
    is_done.set()
    thread.join()
    assert child.exitcode == 0


def look_into_a_network() -> None:
    torch.set_num_threads(1)
    FrozenBackbone(tiny(), SMALL).taps()


# Networks as tutorials leave them -----------------------------------------------------------------


def test_a_network_of_grey_images_sees_the_luma_of_colours() -> None:
    torch.manual_seed(0)
    grey = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU())
    backbone = FrozenBackbone(grey, Preprocessing(16, 16, "bilinear", (0, 0, 0), (1, 1, 1)))
    image = torch.rand(2, 3, 16, 16)
    luma = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(backbone.module(image), grey(luma))
    assert grey[0].in_channels == 1, "the network that was given is left as it was"


def test_of_a_network_without_a_head_the_output_is_the_vector() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    headless = FrozenBackbone(body)
    whole = FrozenBackbone(nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 2)))
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    vectors = [
        ImageEmbedder(backbone, progress=False, cache=None).transform(images)
        for backbone in (headless, whole)
    ]
    np.testing.assert_allclose(*vectors, rtol=1e-6)


@pytest.mark.parametrize("size", [224, 96])
def test_transforms_of_other_libraries_are_the_recipe_that_they_are(size: int) -> None:
    preset = ImageClassification(crop_size=size, resize_size=size + 32)
    timms = timm.data.create_transform(
        (3, size, size), crop_pct=size / (size + 32), interpolation="bilinear"
    )
    composed = v2.Compose(
        [v2.Resize(size + 32), v2.CenterCrop(size), v2.ToImage(), v2.Normalize(MEAN, STD)]
    )
    pixels = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    for transform in (preset, timms, composed):
        recipe = FrozenBackbone(nn.Conv2d(3, 4, 3), transform).preprocessing
        assert (recipe.image_size, recipe.resize, recipe.interpolation) == (
            *(size, size + 32), "bilinear",
        )  # fmt: skip
        assert (recipe.mean, recipe.std) == (pytest.approx(MEAN), pytest.approx(STD))
    ours = (recipe.apply(pixels) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    torch.testing.assert_close(ours, preset(pixels), atol=0.02, rtol=0)
    with pytest.raises(InputError, match="or Resize, CenterCrop and Normalize of"):
        FrozenBackbone(nn.Conv2d(3, 4, 3), v2.Compose([v2.Grayscale(), *composed.transforms]))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
