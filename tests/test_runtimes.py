"""Runtimes: which one runs, what takes its place, what they cost and what they never change."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

from featx import FrozenBackbone, ImageEmbedder, Preprocessing, load_backbone
from featx._errors import InputError, PrecisionWarning, RuntimeFallbackWarning
from featx._extraction import runtime as runtimes
from featx._extraction import torch_runtime
from featx._extraction.folding import fold_batch_norms
from featx._extraction.runtime import Execution, ExecutionPlan, plan_execution
from featx._extraction.torch_runtime import draw_pictures, least_cosine

if TYPE_CHECKING:
    from pathlib import Path

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "device": "cpu"}
SMALL = Preprocessing(32, 36, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 40, 40, 3), dtype=np.uint8)


class Branching(nn.Module):
    """What depends on the numbers cannot be written down as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        vectors = self.convolution(values).mean(dim=(2, 3))
        if vectors.sum().item() > 0:
            vectors = vectors * 2
        result: torch.Tensor = self.head(vectors)
        return result


class Limited(nn.Module):
    """A network with room for so many images, as a GPU has."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)
        self.most = most
        self.batches: list[int] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(values))
        if len(values) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        result: torch.Tensor = self.head(self.convolution(values).mean(dim=(2, 3)))
        return result


def frozen(module: nn.Module, **params: Any) -> FrozenBackbone:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return FrozenBackbone(module, SMALL, **params)


def counted(backbone: FrozenBackbone, plan: ExecutionPlan) -> list[int]:
    """The batches of the copy of the module that the runtime runs."""
    runtime: Any = Execution(backbone, backbone.taps(), plan).open()
    batches: list[int] = runtime._network.module.batches
    return batches


# Falling back


def test_the_reason_of_a_fallback_is_what_it_was_raised_from(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(64, 2)
    )
    embedder = ImageEmbedder(FrozenBackbone(module), device="cpu", cache=tmp_path)
    with pytest.warns(RuntimeFallbackWarning) as caught:
        embedder.fit([np.zeros((32, 32, 3), np.uint8)])
    message = str(caught[0].message)
    assert "aten.adaptive_max_pool2d" in message
    assert "\x1b" not in message


def test_a_network_that_cannot_be_exported_runs_in_torch_with_one_warning(
    images: np.ndarray, tmp_path: Path
) -> None:
    backbone = frozen(Branching())
    embedder = ImageEmbedder(backbone, device="cpu", cache=tmp_path)
    with pytest.warns(
        RuntimeFallbackWarning, match="onnx on cpu here, so it runs as torch"
    ) as caught:
        embedder.fit(images)
    assert len([one for one in caught if one.category is RuntimeFallbackWarning]) == 1
    assert embedder.execution_ == "torch on cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = embedder.transform(images)
        again = ImageEmbedder(backbone, device="cpu", cache=tmp_path).fit_transform(images)
    np.testing.assert_array_equal(again, rows)
    in_torch = ImageEmbedder(backbone, device="cpu", cache=tmp_path, runtime="torch").fit(images)
    assert in_torch.recipe_ == embedder.recipe_
    labels = ["a", "b"] * 5 + ["a"]
    pipeline = make_pipeline(embedder, LogisticRegression()).fit(images, labels)
    assert pickle.loads(pickle.dumps(pipeline)).predict(images).shape == (11,)


def test_without_a_compiler_the_compiled_runtime_becomes_torch(tmp_path: Path) -> None:
    code = f"""
import numpy as np
from featx import ImageEmbedder
images = np.zeros((2, 40, 40, 3), np.uint8)
embedder = ImageEmbedder(**{TINY!r}, runtime="compile", cache=None)
rows = embedder.fit_transform(images)
other = ImageEmbedder(**{TINY!r}, runtime="torch", cache=None)
assert (rows == other.fit_transform(images)).all()
assert other.recipe_ == embedder.recipe_
print(embedder.execution_)
"""
    environment = os.environ | {
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "nothing-compiled-yet"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.stdout == "torch on cpu\n", done.stderr
    assert done.stderr.count("RuntimeFallbackWarning") == 1


# Out of memory


def test_a_batch_that_does_not_fit_is_halved_for_good(
    images: np.ndarray, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runtimes._BATCH_ON_CPU, "torch", 8)
    backbone = frozen(Limited(most=3))
    embedder = ImageEmbedder(backbone, device="cpu", runtime="torch", cache=None)
    with caplog.at_level(logging.WARNING, logger="featx"):
        rows = embedder.transform(images)
    assert [record.getMessage() for record in caplog.records] == [
        "A batch of 8 images does not fit into the memory of cpu; going on with 4",
        "A batch of 4 images does not fit into the memory of cpu; going on with 2",
    ]
    expected = ImageEmbedder(backbone, device="cpu", runtime="torch", batch_size=2, cache=None)
    np.testing.assert_allclose(rows, expected.transform(images), rtol=1e-5, atol=1e-7)
    batches = counted(backbone, plan_execution("torch", "cpu"))
    batches.clear()
    embedder.transform(images)
    assert set(batches) == {2}
    # A runtime that is built anew knows it too.
    torch_runtime.TorchRuntime(
        backbone.network(backbone.taps()), plan_execution("torch", "cpu"), 32
    ).run(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("most", "batch_size", "advice"),
    [(3, 4, "choose a smaller batch_size"), (0, "auto", "a smaller image_size or network")],
)
def test_what_cannot_be_halved_says_what_to_do(
    images: np.ndarray, most: int, batch_size: Any, advice: str
) -> None:
    network = Limited(most=8)  # while it is looked at
    backbone = frozen(network)
    embedder = ImageEmbedder(
        backbone, device="cpu", runtime="torch", batch_size=batch_size, cache=None
    )
    runtime: Any = Execution(
        backbone, backbone.taps(), plan_execution("torch", "cpu", batch_size)
    ).open()
    runtime._network.module.most = most
    with pytest.raises(torch.OutOfMemoryError) as caught:
        embedder.transform(images)
    assert advice in caught.value.__notes__[0]


def test_another_error_of_the_device_is_not_tried_again(images: np.ndarray) -> None:
    backbone = frozen(Limited(most=8))
    runtime: Any = Execution(backbone, backbone.taps(), plan_execution("torch", "cpu")).open()
    calls: list[int] = []

    def broken(values: torch.Tensor) -> torch.Tensor:
        calls.append(len(values))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runtime._network.module.forward = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ImageEmbedder(backbone, device="cpu", runtime="torch", cache=None).transform(images)
    assert len(calls) == 1


# Precision


def test_bfloat16_that_moves_the_vectors_is_warned_about(images: np.ndarray) -> None:
    exact = ImageEmbedder(device="cpu", runtime="torch", cache=None)
    embedder = ImageEmbedder(device="cpu", precision="bfloat16", cache=None)
    with pytest.warns(PrecisionWarning, match=r"efficientnet_lite0 at 'penultimate': .* 0\.99"):
        rows = embedder.fit_transform(images)
    assert embedder.execution_ == "torch on cpu in bfloat16"
    assert embedder.get_provenance()["precision"] == "bfloat16"
    assert embedder.recipe_ != exact.fit(images).recipe_
    assert rows.dtype == np.float32
    assert 0.98 < least_cosine(rows, exact.transform(images)) < 0.9999


def test_bfloat16_that_moves_nothing_is_not_warned_about(images: np.ndarray) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2)
    )
    backbone = frozen(
        nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    )
    embedder = ImageEmbedder(backbone, device="cpu", precision="bfloat16", cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = embedder.fit_transform(images)
    exact = ImageEmbedder(backbone, device="cpu", cache=None).transform(images)
    assert least_cosine(rows, exact) > 0.999
    assert not np.array_equal(rows, exact), "it did compute in another arithmetic"


class Cancelling(nn.Module):
    """1 / ((x + 1000.5) - 1000): finite, unless the half is lost to rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        pooled = values.mean(dim=(2, 3)) * 1e-6
        result: torch.Tensor = self.head(1 / ((pooled + 1000.5) - 1000))
        return result


def test_bfloat16_that_gives_infinity_is_refused(images: np.ndarray) -> None:
    backbone = FrozenBackbone(Cancelling(), SMALL)
    with pytest.raises(InputError, match="NaN or infinity at 'penultimate' in it"):
        ImageEmbedder(backbone, device="cpu", precision="bfloat16", cache=None).transform(images)
    ImageEmbedder(backbone, device="cpu", runtime="torch", cache=None).transform(images)


def test_the_pictures_of_the_check_are_like_photographs_and_always_the_same() -> None:
    pictures = draw_pictures(4, 224)
    assert torch.equal(pictures, draw_pictures(4, 224))
    values = pictures.double()
    neighbours = (values[..., 1:] - values[..., :-1]).abs().mean()
    assert neighbours < 0.15 * (values - values.mean()).abs().mean(), "neighbours are alike"
    assert values.std() > 40


# Folding


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_byobnet", "test_vit"])
def test_folding_changes_a_rounding_step(name: str) -> None:
    backbone = load_backbone(f"timm/{name}", weights=None)
    pictures = draw_pictures(3, backbone.preprocessing.image_size)
    # A copy, as the loaded network is everybody's.
    network = copy.deepcopy(backbone.network(backbone.taps()))
    randomise_statistics(network)
    expected = network(pictures)[0]
    folded = fold_batch_norms(network, pictures[:1])
    assert (count_norms(folded) < count_norms(network)) == (count_norms(network) > 0)
    actual = folded(pictures)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    # The network that was given is as it was.
    torch.testing.assert_close(network(pictures)[0], expected, rtol=0, atol=0)


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def randomise_statistics(module: nn.Module) -> None:
    """What a freshly built BatchNorm does could be left out unnoticed."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.5, 0.5)


class Shared(nn.Module):
    """Convolutions that nothing may be folded into, and one that takes it."""

    def __init__(self, also_reads: bool = False) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.once = nn.Conv2d(3, 8, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 2)
        self.also_reads = also_reads

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.norms[1](self.twice(self.norms[0](self.twice(values))))
        raw = self.once(values)
        maps = self.norms[2](raw)
        if self.also_reads:
            maps = maps + raw
        result: torch.Tensor = self.head(maps.relu().mean(dim=(2, 3)))
        return result


@pytest.mark.parametrize(
    ("module", "layers", "n_folded"),
    [
        (Shared(), "penultimate", 1),
        (Shared(), ["once", "penultimate"], 0),
        (Shared(), ["norms.2", "penultimate"], 1),
        (Shared(also_reads=True), "penultimate", 0),
    ],
)
def test_what_somebody_else_reads_is_not_folded(
    module: nn.Module, layers: Any, n_folded: int
) -> None:
    randomise_statistics(module)
    backbone = FrozenBackbone(module, SMALL)
    taps = backbone.taps(layers)
    network, pictures = backbone.network(taps), draw_pictures(2, 32)
    folded = fold_batch_norms(network, pictures[:1])
    assert count_norms(network) - count_norms(folded) == n_folded
    for actual, expected in zip(folded(pictures), network(pictures), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# Lanes and batches


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    n_images=st.integers(1, 40),
    threads=st.sampled_from([1, 2, 4, 8]),
    workers=st.sampled_from([None, 0, 1, 3]),
    batch_size=st.sampled_from(["auto", 4]),
    views=st.sampled_from(["center", "flip"]),
)
def test_rows_depend_on_no_lane_no_batch_and_no_neighbour(
    n_images: int, threads: int, workers: int | None, batch_size: Any, views: str
) -> None:
    random = np.random.default_rng(n_images)
    pool = random.integers(0, 256, (40, 30, 30, 3), dtype=np.uint8)
    images = pool[:n_images]
    before = torch.get_num_threads()
    embedder = ImageEmbedder(
        **TINY, views=views, cache=None, num_workers=workers, batch_size=batch_size
    )
    try:
        torch.set_num_threads(threads)
        rows = embedder.transform(images)
        torch.set_num_threads(3)
        alone = embedder.transform(images[-1:])
        np.testing.assert_array_equal(rows, embedder.transform(images))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(rows[-1:], alone)


def test_one_bad_image_in_a_lane_of_many_leaves_its_row_alone(images: np.ndarray) -> None:
    mixed: list[Any] = [*images, *images[::-1] // 2, *images // 3]
    embedder = ImageEmbedder(**TINY, cache=None, on_error="nan")
    expected = embedder.transform(mixed)
    mixed[17] = b"no image"
    with pytest.warns(UserWarning, match="1 of 33"):
        rows = embedder.transform(mixed)
    assert np.isnan(rows[17]).all()
    others = np.arange(33) != 17
    np.testing.assert_array_equal(rows[others], expected[others])


# Plans


def test_what_does_not_go_together_is_refused() -> None:
    for arguments, message in [
        ({"runtime": "onnx", "precision": "bfloat16"}, "choose runtime='torch' or 'compile'"),
        ({"precision": "float16"}, "expected 'float32' or 'bfloat16'"),
        ({"runtime": "compiled"}, "did you mean 'compile'"),
    ]:
        with pytest.raises(InputError, match=message):
            plan_execution(device="cpu", **arguments)


@pytest.mark.parametrize(("gibibytes", "size"), [(141, 256), (24, 128), (10.5, 64), (4, 32)])
def test_the_batch_on_a_gpu_goes_by_its_memory_and_the_size_of_the_images(
    monkeypatch: pytest.MonkeyPatch, gibibytes: float, size: int
) -> None:
    class Properties:
        total_memory = int(gibibytes * 2**30)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Properties)
    plan = plan_execution(device="cuda:0")
    assert (plan.runtime, plan.batch_size) == ("torch", size)
    assert plan.for_images_of(448).batch_size == size // 4
    assert plan.for_images_of(64).batch_size == size
    assert plan_execution(device="cuda:0", batch_size=7).for_images_of(448).batch_size == 7


# Networks that are built late


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
@pytest.mark.parametrize("image_size", [None, 200])
def test_what_is_said_of_a_packaged_network_is_what_it_is(
    name: str, image_size: int | None
) -> None:
    from featx._backbones.providers import _find_network

    backbone = load_backbone(name, image_size=image_size)
    network = _find_network(name, image_size)
    assert backbone.preprocessing == network.preprocessing(backbone.module)
    same = FrozenBackbone(
        backbone.module,
        backbone.preprocessing,
        name=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        reference=backbone.reference,
    )
    assert backbone.taps() == same.taps()
    assert backbone.dimension(*backbone.taps()) == same.dimension(*same.taps())
    assert backbone.feature_names(*backbone.taps()) == same.feature_names(*same.taps())
    prints = [
        one.cache_key(*one.taps(), runtime="onnx", device_type="cpu") for one in (backbone, same)
    ]
    assert prints[0] == prints[1]


def test_with_a_kept_graph_the_network_is_never_built(tmp_path: Path) -> None:
    # Another process, this one, has exported it.
    ImageEmbedder(device="cpu", cache=tmp_path).fit_transform(np.zeros((1, 40, 40, 3), np.uint8))
    code = """
import sys
import numpy as np
from featx import ImageEmbedder
images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
embedder = ImageEmbedder(device="cpu", cache=sys.argv[1]).set_output(transform="pandas")
assert embedder.fit_transform(images).shape == (3, 1280)
print("timm" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
