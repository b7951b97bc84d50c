"""The parts below the classifier: pixels, batches, parameter groups."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TinyCNN

from featx import FrozenBackbone, Preprocessing
from featx._finetuning.linear_head import LinearHeadClassifier
from featx._finetuning.network import assemble_network
from featx._finetuning.samples import Portion, VectorSamples, split_rows
from featx._finetuning.training import group_parameters

numbers = st.tuples(*[st.floats(0.1, 2) for _ in range(3)])


@settings(max_examples=25, deadline=None)
@given(
    mean=numbers,
    std=numbers,
    order=st.sampled_from(["rgb", "bgr"]),
    scale=st.sampled_from([1, 255]),
)
def test_pixels_are_normalised_as_the_embedder_does_it(
    mean: tuple[float, ...], std: tuple[float, ...], order: str, scale: int
) -> None:
    recipe = Preprocessing(16, 16, "bilinear", mean, std, order, scale)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8))
    backbone = FrozenBackbone(TinyCNN(), recipe)
    embeds = backbone.network(backbone.taps("0")).normalization(pixels)
    learns = assemble_network(backbone, "head", 2, (), 0.0, seed=0).normalization(pixels)
    values = pixels.float().flip(1) if order == "bgr" else pixels.float()
    centre, width = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (mean, std))
    expected = ((values / 255 if scale == 1 else values) - centre) / width
    assert torch.equal(embeds, expected)
    assert torch.equal(learns, expected)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    seed=st.one_of(st.none(), st.integers(0, 2**31)),
    epoch=st.integers(0, 5),
)
def test_an_epoch_takes_every_row_once_in_even_batches(
    count: int, batch_size: int, seed: int | None, epoch: int
) -> None:
    vectors = torch.arange(count, dtype=torch.float32)[:, None]
    labels = np.arange(count) * 3
    rows = np.arange(count)
    portion = Portion(VectorSamples(vectors), labels, rows, batch_size=batch_size, seed=seed)
    portion.epoch = epoch
    batches = list(portion)
    sizes = [len(values) for values, _ in batches]
    assert len(batches) == portion.n_batches
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    seen = torch.cat([values for values, _ in batches])[:, 0].long()
    assert torch.equal(torch.cat([codes for _, codes in batches]), seen * 3)
    assert sorted(seen.tolist()) == rows.tolist()
    assert [values.tolist() for values, _ in portion] == [values.tolist() for values, _ in batches]
    if seed is None:
        assert seen.tolist() == rows.tolist()


def test_every_epoch_has_an_order_of_its_own() -> None:
    portion = Portion(
        VectorSamples(torch.zeros(50, 1)), np.arange(50), np.arange(50), batch_size=50, seed=0
    )
    orders = []
    for portion.epoch in range(4):
        orders += [tuple(labels.tolist()) for _, labels in portion]
    assert len(set(orders)) == 4


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(0, 3), min_size=8, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
def test_each_class_is_trained_on_and_held_out(
    codes: list[int], fraction: float, seed: int
) -> None:
    every = np.array([*codes, *range(4), *range(4)])
    classes = np.array(list("abcd"))
    train, valid = split_rows(every, classes, fraction, seed)
    assert sorted([*train, *valid]) == list(range(len(every)))
    assert set(every[train]) == set(every[valid]) == set(range(4))


def test_head_and_backbone_have_groups_of_their_own() -> None:
    network = TinyCNN()
    network[0].requires_grad_(False)
    classifier = LinearHeadClassifier(learning_rate=1.0, weight_decay=0.01, device="cpu")
    classifier.classes_ = np.arange(5)
    plan = classifier._plan(np.arange(5), seed=0, backbone_learning_rate=0.1)
    groups = group_parameters(network, lambda name: name.startswith("14."), plan)
    found = {
        (group["lr"], group["weight_decay"]): sum(map(torch.numel, group["params"]))
        for group in groups
    }
    assert found == {
        (1.0, 0.01): 5 * 8,
        (1.0, 0.0): 5,
        (0.1, 0.01): 6 * 4 * 9 + 8 * 6 * 9,
        (0.1, 0.0): 2 * 4 + 6 + 2 * 6 + 8 + 2 * 8,
    }


def test_every_public_name_is_there_without_any_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('skorch', 'pillow_heif', 'matplotlib'): sys.modules[name] = None\n"
        "from featx import *\n"
        "import featx, pydoc\n"
        "assert 'FineTunedClassifier' in pydoc.render_doc(featx)\n"
        "print(FineTunedClassifier.__module__, LinearHeadClassifier.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "featx featx\n", done.stderr
