"""Poolings are those of the literature, whatever the layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from featx._backbones.pooling import POOLINGS, Layout, check_pooling, find_layout, pool, to_map
from featx._errors import InputError

MAP = Layout("map")


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    cells=st.sampled_from([2, 3]),
    seed=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_a_grid_is_adaptive_average_pooling(height: int, width: int, cells: int, seed: int) -> None:
    maps = random_map(2, 3, height, width, seed=seed)
    expected = functional.adaptive_avg_pool2d(maps, cells).flatten(1)
    torch.testing.assert_close(pool(maps, f"grid{cells}", MAP), expected)


def test_average_and_maximum_are_those_of_torch() -> None:
    maps = random_map(2, 5, 7, 6)
    torch.testing.assert_close(
        pool(maps, "avg", MAP), functional.adaptive_avg_pool2d(maps, 1).flatten(1)
    )
    assert torch.equal(pool(maps, "max", MAP), functional.adaptive_max_pool2d(maps, 1).flatten(1))


def test_the_generalised_mean_lies_between_mean_and_maximum_and_has_its_formula() -> None:
    maps = random_map(4, 5, 7, 7).relu()
    generalised = pool(maps, "gem", MAP)
    expected = (maps.clamp(min=1e-6).double() ** 3).mean((2, 3)) ** (1 / 3)
    torch.testing.assert_close(generalised, expected.float())
    assert (generalised >= pool(maps, "avg", MAP)).all()
    assert (generalised <= pool(maps, "max", MAP) + 1e-6).all()


def test_flatten_keeps_every_number() -> None:
    maps = random_map(2, 3, 4, 5)
    assert torch.equal(pool(maps, "flatten", MAP), maps.flatten(1))


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "cls"])
def test_every_layout_gives_the_vector_of_the_same_map(pooling: str) -> None:
    maps = random_map(2, 6, 4, 4)
    tokens = torch.cat([random_map(2, 3, 6, seed=1), maps.flatten(2).transpose(1, 2)], dim=1)
    expected = pool(maps, pooling, MAP)
    last = pool(maps.permute(0, 2, 3, 1), pooling, Layout("map_channels_last"))
    torch.testing.assert_close(last, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        pool(tokens, pooling, Layout("tokens", 3)), expected, rtol=1e-6, atol=1e-6
    )


def test_the_class_token_is_the_first_token() -> None:
    tokens = random_map(2, 5, 6)
    assert torch.equal(pool(tokens, "cls", Layout("tokens", 1, class_token=True)), tokens[:, 0])


def test_tokens_that_form_no_square_are_pooled_as_one_column() -> None:
    tokens = random_map(2, 6, 4)
    assert to_map(tokens, Layout("tokens")).shape == (2, 4, 6, 1)
    torch.testing.assert_close(pool(tokens, "avg", Layout("tokens")), tokens.mean(1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_of_ones_own_is_returned_in_float32(pooling: str) -> None:
    layout = Layout("tokens", 1, class_token=True)
    tokens = random_map(2, 5, 6).double()
    vectors = pool(tokens, pooling, layout)
    assert vectors.dtype == torch.float32
    before = vectors.clone()
    tokens.zero_()
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
def test_a_vector_has_nothing_left_to_pool(pooling: str) -> None:
    vectors = random_map(3, 8)
    pooled = pool(vectors, pooling, Layout("vector"))
    assert torch.equal(pooled, vectors)
    assert pooled.data_ptr() != vectors.data_ptr()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1280), Layout("vector")),
        ((1, 320, 7, 7), MAP),
        ((1, 320, 1, 1), MAP),
        ((1, 7, 7, 768), Layout("map_channels_last")),
        ((1, 3, 5, 7), MAP),
        ((1, 49, 64), Layout("tokens")),
        ((1, 50, 64), Layout("tokens", 1)),
        ((1, 48, 64), Layout("tokens")),
        ((1,), None),
        ((), None),
        ((64, 49, 32), None),
        ((1, 2, 3, 4, 5), None),
        ((1, 0, 3, 4), None),
    ],
)
def test_a_layout_is_told_by_the_shape(shape: tuple[int, ...], expected: Layout | None) -> None:
    assert find_layout(shape) == expected


def test_the_prefix_is_what_the_network_says() -> None:
    assert find_layout((1, 201, 64), prefix_tokens=5, class_token=True) == Layout("tokens", 5, True)
    assert find_layout((1, 49, 64), prefix_tokens=0) == Layout("tokens", 0, False)


@pytest.mark.parametrize(
    ("pooling", "shape", "message"),
    [
        ("cls", (1, 64, 7, 7), "has no class token"),
        ("grid2", (1, 64), "a vector of 64 numbers with no places left"),
        ("grid3", (1, 48, 64), "48 patch tokens do not form a square"),
    ],
)
def test_a_pooling_that_cannot_be_is_refused(
    pooling: str, shape: tuple[int, ...], message: str
) -> None:
    layout = find_layout(shape)
    assert layout is not None
    with pytest.raises(InputError, match=message):
        check_pooling(pooling, layout, shape, "blocks.3")
