"""Laws of the transformer: equalities over random images, bit for bit under ONNX Runtime."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_networks import TINY

from featx import (
    EmbeddingCache,
    ImageEmbedder,
    head_search,
    load_image_folder,
    load_model,
    save_model,
)

if TYPE_CHECKING:
    from pathlib import Path

# The sizes of batches are those that a person gets and one that needs several batches. The long
# version of the laws is `pytest tests/test_laws.py --hypothesis-profile=long`.
EXECUTIONS = (("onnx", "auto"), ("onnx", 4), ("torch", "auto"), ("compile", 4))

laws = settings(
    deadline=None,
    # A cold cache per example is made by the tests themselves, so that a fixture may be shared.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def random_images(draw: st.DrawFn, min_size: int = 1, max_size: int = 9) -> list[np.ndarray]:
    """Draw images of different sizes; some are repeated."""
    seeds = draw(st.lists(st.integers(0, 2**16), min_size=min_size, max_size=max_size))
    images = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        height, width = random.integers(1, 200, 2)
        images.append(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return images


@pytest.fixture(params=EXECUTIONS, ids=lambda execution: "-".join(map(str, execution)))
def embedder(request: pytest.FixtureRequest) -> ImageEmbedder:
    """An embedder that computes everything anew."""
    runtime, batch_size = request.param
    return ImageEmbedder(**TINY | {"batch_size": batch_size}, runtime=runtime, cache=None)


def assert_same_rows(embedder: ImageEmbedder, actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit under ONNX Runtime; to a rounding step under torch, whose kernels may share out
    their sums in another way from one call to the next (seen: 4e-9, one part in a million)."""
    if embedder.runtime != "onnx":
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(actual, expected)


@laws
@given(images=random_images(), data=st.data())
def test_a_subset_of_the_images_gives_that_subset_of_the_rows(
    embedder: ImageEmbedder, images: list[np.ndarray], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=9))
    whole = embedder.transform(images)
    assert_same_rows(embedder, embedder.transform([images[row] for row in rows]), whole[rows])


@laws
@given(images=random_images(min_size=2), seed=st.integers(0, 100))
def test_the_order_of_the_images_is_the_order_of_the_rows(
    embedder: ImageEmbedder, images: list[np.ndarray], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = embedder.transform([images[row] for row in order])
    assert_same_rows(embedder, shuffled, embedder.transform(images)[order])


@laws
@given(images=random_images())
def test_a_second_transform_gives_the_same_rows(
    embedder: ImageEmbedder, images: list[np.ndarray]
) -> None:
    assert_same_rows(embedder, embedder.transform(images), embedder.transform(images))


@laws
@given(images=random_images(), known=st.integers(0, 9))
def test_a_cold_cache_a_warm_one_and_a_half_filled_one_give_the_same_rows(
    embedder: ImageEmbedder,
    tmp_path_factory: pytest.TempPathFactory,
    images: list[np.ndarray],
    known: int,
) -> None:
    uncached = embedder.transform(images)
    for first in (images[:known], images):
        cached = clone(embedder).set_params(cache=tmp_path_factory.mktemp("law"))
        if first:
            cached.transform(first)
        assert_same_rows(embedder, cached.transform(images), uncached)
        assert_same_rows(embedder, cached.transform(images), uncached)


@laws
@given(images=random_images())
def test_clone_pickle_and_a_saved_model_give_the_same_rows(
    embedder: ImageEmbedder, tmp_path: Path, images: list[np.ndarray]
) -> None:
    fitted = clone(embedder).fit(images)
    expected = fitted.transform(images)
    save_model(fitted, tmp_path / "embedder.skops")
    for other in (
        clone(fitted),
        pickle.loads(pickle.dumps(fitted)),
        load_model(tmp_path / "embedder.skops"),
    ):
        assert_same_rows(embedder, other.transform(images), expected)


@laws
@given(images=random_images())
def test_every_form_of_the_same_pixels_gives_the_same_rows(
    embedder: ImageEmbedder, tmp_path_factory: pytest.TempPathFactory, images: list[np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    paths = [folder / f"{row}.png" for row in range(len(images))]
    pictures = [Image.fromarray(pixels) for pixels in images]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    expected = embedder.transform(images)
    forms: list[list[Any]] = [
        paths,
        [str(path) for path in paths],
        [path.read_bytes() for path in paths],
        pictures,
        [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in images],
        [(images, pictures, paths)[row % 3][row] for row in range(len(images))],
    ]
    for form in forms:
        assert_same_rows(embedder, embedder.transform(form), expected)


@laws
@given(images=random_images(max_size=40), size=st.sampled_from([1, 3, 4, "auto"]))
def test_the_size_of_the_batches_does_not_matter(
    embedder: ImageEmbedder,
    tmp_path_factory: pytest.TempPathFactory,
    images: list[np.ndarray],
    size: Any,
) -> None:
    if embedder.runtime == "compile":
        size = embedder.batch_size  # another size is compiled for seconds; its batches are padded
    other = clone(embedder).set_params(batch_size=size)
    expected = embedder.transform(images)
    assert_same_rows(embedder, other.transform(images), expected)
    # Each with a cache of its own, so that neither is served what the other has computed.
    other.set_params(cache=tmp_path_factory.mktemp("size"))
    assert_same_rows(embedder, other.transform(images), expected)


@laws
@given(images=random_images(), threads=st.integers(0, 3))
def test_the_number_of_decoding_threads_does_not_matter(
    embedder: ImageEmbedder, images: list[np.ndarray], threads: int
) -> None:
    threaded = clone(embedder).set_params(num_workers=threads)
    assert_same_rows(embedder, threaded.transform(images), embedder.transform(images))


@laws
@given(seed=st.integers(0, 2**16))
def test_png_and_the_bytes_of_another_png_of_the_same_pixels_agree(
    embedder: ImageEmbedder, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    files = []
    for level in (1, 9):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
        files.append(stream.getvalue())
    first, second = embedder.transform(files)
    assert_same_rows(embedder, first, second)


@pytest.mark.parametrize(
    "heads",
    [
        ["logistic_regression", "k_nearest_neighbors"],
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_a_search_over_images_scores_as_one_over_precomputed_embeddings(
    make_image_folder: Any, heads: Any
) -> None:
    photos = load_image_folder(make_image_folder({"red": 12, "green": 12, "blue": 12}))
    search = head_search(heads, embedder=ImageEmbedder(**TINY), cv=3)
    search.fit(photos.paths, photos.target)
    vectors = ImageEmbedder(**TINY).transform(photos.paths)
    precomputed = GridSearchCV(
        search.estimator[1:], search.param_grid, cv=search.cv, scoring="accuracy"
    ).fit(vectors, photos.target)
    for name in ("mean_test_score", *(f"split{fold}_test_score" for fold in range(3))):
        np.testing.assert_array_equal(search.cv_results_[name], precomputed.cv_results_[name])


@pytest.mark.parametrize(
    ("runtime", "batch_size", "counts"),
    [
        ("onnx", "auto", (1, 2, 4, 8)),
        ("onnx", 3, (1, 2, 4, 8)),
        ("torch", "auto", (1, 2, 4, 8)),
        ("torch", 3, (1, 2, 4, 8)),
        # Compiled once more for each number.
        pytest.param("compile", 3, (1, 2, 4), marks=pytest.mark.slow),
        pytest.param("compile", "auto", (1, 2, 4, 8), marks=pytest.mark.slow),
    ],
)
def test_the_number_of_threads_of_arithmetic_does_not_change_a_row(
    runtime: str, batch_size: Any, counts: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (19, 50, 60, 3), dtype=np.uint8))
    params = TINY | {"batch_size": batch_size}
    embedder = ImageEmbedder(**params, runtime=runtime, cache=None)
    rows = {}
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            rows[count] = embedder.transform(images)
    finally:
        torch.set_num_threads(before)
    for count in counts[1:]:
        # torch splits a small batch over its threads in another way: a rounding step, and no more.
        assert_same_rows(embedder, rows[count], rows[1])


def test_one_cache_serves_two_networks_without_mixing_them(tmp_path: Path) -> None:
    images = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 100, 200)]
    cache = EmbeddingCache(tmp_path / "cache")
    first = ImageEmbedder(**TINY, cache=cache)
    second = clone(first).set_params(image_size=96)
    for embedder in (first, second, first, second):
        expected = clone(embedder).set_params(cache=None).transform(images)
        np.testing.assert_array_equal(embedder.transform(images), expected)


def test_a_pipeline_predicts_the_same_from_images_and_from_rows(make_image_folder: Any) -> None:
    photos = load_image_folder(make_image_folder({"red": 8, "green": 8}))
    embedder = ImageEmbedder(**TINY)
    pipeline = make_pipeline(embedder, StandardScaler(), LogisticRegression())
    pipeline.fit(photos.paths, photos.target)
    np.testing.assert_array_equal(
        pipeline.predict_proba(photos.paths),
        pipeline[1:].predict_proba(embedder.transform(photos.paths)),
    )
