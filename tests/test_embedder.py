"""`ImageEmbedder` as a scikit-learn transformer: parameters, composition, refusals."""

from __future__ import annotations

import pickle
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import ImageDecodeError, ImageDecodeWarning, ImageEmbedder, load_image_folder
from featx._errors import FeatxError, InputError, StaleEmbedderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.utils import Bunch

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"red": 6, "green": 6}))


@pytest.fixture
def broken(photos: Bunch) -> Path:
    """One of the photographs, cut off in the middle."""
    path = Path(photos.paths[3])
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_default_embedder_gives_1280_float32_columns_without_a_fit() -> None:
    embeddings = ImageEmbedder().transform([np.zeros((10, 20, 3), np.uint8)])
    assert embeddings.shape == (1, 1280)
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()


def test_fit_runs_no_forward_and_reads_no_image() -> None:
    embedder = ImageEmbedder().fit(["absent.jpg", "absent-too.jpg"])
    assert embedder.n_features_out_ == 1280
    assert len(embedder.recipe_) == 32


def test_init_stores_every_parameter_as_it_is() -> None:
    odd = {name: object() for name in ImageEmbedder().get_params()}
    embedder = ImageEmbedder(**odd)
    assert all(embedder.get_params()[name] is value for name, value in odd.items())
    assert vars(embedder) == odd


def test_set_params_changes_the_network_that_runs() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    embedder = ImageEmbedder(**TINY)
    first = embedder.transform(images)
    other = clone(embedder).set_params(backbone="timm/test_resnet")
    assert not np.array_equal(other.transform(images)[:, : first.shape[1]], first)
    assert other.fit(images).recipe_ != embedder.fit(images).recipe_


def test_a_grid_search_over_backbones_scores_each_network(photos: Bunch) -> None:
    search = GridSearchCV(
        make_pipeline(ImageEmbedder(**TINY), StandardScaler(), LogisticRegression()),
        {"imageembedder__backbone": ["timm/test_efficientnet", "timm/test_resnet"]},
        cv=2,
    ).fit(photos.paths, photos.target)
    for name in search.param_grid["imageembedder__backbone"]:
        dimension = ImageEmbedder(**TINY | {"backbone": name}).fit(photos.paths).n_features_out_
        model = clone(search.estimator).set_params(imageembedder__backbone=name)
        model.fit(photos.paths, photos.target)
        assert model[-1].coef_.shape[1] == dimension


def test_a_pickle_carries_no_weights() -> None:
    embedder = ImageEmbedder()
    embedder.fit_transform([np.zeros((8, 8, 3), np.uint8)])
    assert len(pickle.dumps(embedder)) < 2000


def test_feature_names_count_the_columns() -> None:
    names = ImageEmbedder().get_feature_names_out()
    assert names[0] == "efficientnet_lite0_0000"
    assert names[-1] == "efficientnet_lite0_1279"
    assert len(set(names)) == len(names) == 1280


@pytest.mark.parametrize("make_input", [pd.Series, lambda paths: pd.DataFrame({"path": paths})])
def test_pandas_output_keeps_the_index_of_the_input(photos: Bunch, make_input: Any) -> None:
    images = make_input(list(photos.paths))
    images.index = range(100, 100 + len(photos.paths))
    frame = ImageEmbedder(**TINY).set_output(transform="pandas").fit_transform(images)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == list(images.index)
    assert list(frame.columns) == list(ImageEmbedder(**TINY).get_feature_names_out())
    np.testing.assert_array_equal(frame.to_numpy(), ImageEmbedder(**TINY).transform(photos.paths))


def test_polars_goes_in_and_comes_out(photos: Bunch) -> None:
    images = pl.DataFrame({"path": list(photos.paths)})
    frame = ImageEmbedder(**TINY).set_output(transform="polars").fit_transform(images)
    assert isinstance(frame, pl.DataFrame)
    np.testing.assert_array_equal(frame.to_numpy(), ImageEmbedder(**TINY).transform(photos.paths))


@pytest.mark.parametrize("column", ["path", ["path"]])
def test_a_column_of_paths_stands_beside_numeric_columns(photos: Bunch, column: Any) -> None:
    table = pd.DataFrame({"path": photos.paths, "price": np.arange(12.0), "weight": np.ones(12)})
    features = ColumnTransformer(
        [("image", ImageEmbedder(**TINY), column), ("rest", StandardScaler(), ["price", "weight"])]
    )
    matrix = features.fit_transform(table)
    expected = ImageEmbedder(**TINY).transform(photos.paths)
    np.testing.assert_array_equal(matrix[:, :-2], expected)
    assert list(features.get_feature_names_out())[-1] == "rest__weight"
    model = make_pipeline(features, LogisticRegression()).fit(table, photos.target)
    assert set(model.predict(table)) <= {"red", "green"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cross_validation_and_grid_search_run(photos: Bunch, n_jobs: int) -> None:
    pipeline = make_pipeline(ImageEmbedder(**TINY), StandardScaler(), LogisticRegression())
    scores = cross_val_score(pipeline, photos.paths, photos.target, cv=3, n_jobs=n_jobs)
    assert np.isfinite(scores).all()
    search = GridSearchCV(
        pipeline, {"logisticregression__C": [0.01, 1.0]}, cv=3, n_jobs=n_jobs, error_score="raise"
    ).fit(list(photos.paths), photos.target)
    assert list(search.predict(photos.paths[:2])) == list(photos.target[:2])


def test_fitting_leaves_the_parameters_and_transform_leaves_the_object_alone(
    photos: Bunch,
) -> None:
    embedder = ImageEmbedder(**TINY)
    before = embedder.get_params()
    embedder.fit(photos.paths)
    assert embedder.get_params() == before
    state = dict(vars(embedder))
    embedder.transform(photos.paths)
    assert vars(embedder) == state


def test_tags_say_what_the_input_is() -> None:
    tags = ImageEmbedder().__sklearn_tags__()
    assert not tags.requires_fit
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.string


@pytest.mark.parametrize(
    ("parameter", "value", "part"),
    [
        ("backbone", "efficentnet_lite0", "did you mean 'efficientnet_lite0'"),
        ("backbone", "timm/resnet51", "or 'timm/resnet50'"),
        ("backbone", 3, "name of a network"),
        ("weights", "imagenet", "'default' or None"),
        ("image_size", 0, "whole number of at least 1"),
        ("image_size", True, "whole number of at least 1"),
        ("device", "gpu7", "torch device"),
        ("device", "cuda:99", "CUDA devices"),
        ("device", "meta", "holds no numbers"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", 2.5, "at least 1"),
        ("runtime", "onxx", "did you mean 'onnx'"),
        ("num_workers", -1, "at least 0"),
        ("on_error", "skip", "'raise' or 'nan'"),
        ("max_pixels", 0, "at least 1"),
        ("max_file_bytes", 1.5, "whole number"),
        ("cache", 7, "EmbeddingCache"),
        ("progress", "yes", "'auto', True or False"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(
    parameter: str, value: Any, part: str
) -> None:
    images = [np.zeros((8, 8, 3), np.uint8)]
    with pytest.raises(FeatxError) as caught:
        ImageEmbedder(**{**TINY, parameter: value}).fit(images)
    message = str(caught.value)
    assert f"{parameter}={value!r}" in message
    assert part in message
    assert "\n" not in message


def test_numbers_that_numpy_drew_are_numbers() -> None:
    params = {"batch_size": np.int64(4), "num_workers": np.int64(1), "image_size": np.int64(96)}
    images = np.zeros((2, 8, 8, 3), np.uint8)
    drawn = ImageEmbedder(**{**TINY, **params}).fit_transform(images)
    plain = {name: int(value) for name, value in params.items()}
    np.testing.assert_array_equal(drawn, ImageEmbedder(**{**TINY, **plain}).transform(images))


def test_an_image_size_that_the_network_cannot_take_is_named() -> None:
    embedder = ImageEmbedder(**TINY | {"backbone": "timm/test_vit"}, image_size=17)
    with pytest.raises(InputError, match="cannot take one image of 3 x 17 x 17"):
        embedder.transform(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_failed_run_leaves_no_thread_behind(photos: Bunch, broken: Path) -> None:
    kept = []
    before = threading.active_count()
    for _ in range(5):
        try:
            ImageEmbedder(**TINY, num_workers=2).transform(photos.paths)
        except ImageDecodeError as error:
            kept.append(error)  # with its traceback, as a notebook keeps it
    assert len(kept) == 5
    assert threading.active_count() == before


def test_images_above_the_limits_are_refused_and_the_limits_change_no_vector(
    photos: Bunch,
) -> None:
    embedder = ImageEmbedder(**TINY).fit(photos.paths)
    expected = embedder.transform(photos.paths)
    for limit, value in (("max_pixels", 40 * 48 - 1), ("max_file_bytes", 100)):
        strict = ImageEmbedder(**TINY, cache=None, **{limit: value})
        with pytest.raises(ImageDecodeError, match="more than the limit"):
            strict.transform(photos.paths)
    wide = ImageEmbedder(**TINY, max_pixels=40 * 48, max_file_bytes=10**6).fit(photos.paths)
    assert wide.recipe_ == embedder.recipe_
    np.testing.assert_array_equal(wide.transform(photos.paths), expected)


def test_no_images_and_unequal_labels_are_refused(photos: Bunch) -> None:
    embedder = ImageEmbedder(**TINY)
    for method in (embedder.fit, embedder.transform, embedder.fit_transform):
        with pytest.raises(InputError, match="Got 0 images"):
            method([])
    with pytest.raises(InputError, match="12 images and 5 labels"):
        embedder.fit(photos.paths, photos.target[:5])


def test_a_fitted_embedder_refuses_to_compute_other_vectors(photos: Bunch) -> None:
    embedder = ImageEmbedder(**TINY).fit(photos.paths)
    embedder.set_params(image_size=96)
    for method in (embedder.transform, embedder.get_feature_names_out):
        with pytest.raises(
            StaleEmbedderError, match=r"fitted with the recipe .* \(onnx on cpu\).*call fit again"
        ):
            method(photos.paths)
    embedder.fit(photos.paths).transform(photos.paths)


def test_an_unreadable_image_raises_with_its_path_and_row(photos: Bunch, broken: Path) -> None:
    with pytest.raises(ImageDecodeError) as caught:
        ImageEmbedder(**TINY).transform(photos.paths)
    assert caught.value.row == 3
    assert caught.value.source == str(broken)
    assert str(broken) in str(caught.value)


def test_a_missing_file_raises_with_its_path_and_row(photos: Bunch) -> None:
    Path(photos.paths[5]).unlink()
    with pytest.raises(ImageDecodeError) as caught:
        ImageEmbedder(**TINY).transform(photos.paths)
    assert (caught.value.row, caught.value.source) == (5, photos.paths[5])


def test_on_error_nan_gives_one_warning_and_a_nan_row_in_its_place(
    photos: Bunch, broken: Path
) -> None:
    Path(photos.paths[7]).unlink()
    good = [row for row in range(12) if row not in (3, 7)]
    embedder = ImageEmbedder(**TINY, on_error="nan")
    for _ in range(2):  # cold, then warm
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            embeddings = embedder.transform(photos.paths)
        (warning,) = [entry.message for entry in caught]
        assert isinstance(warning, ImageDecodeWarning)
        assert [(failure.row, failure.source) for failure in warning.failures] == [
            (3, str(broken)),
            (7, photos.paths[7]),
        ]
        assert Path(caught[0].filename) == Path(__file__)
        assert not hasattr(embedder, "failures_")
        assert np.isnan(embeddings[[3, 7]]).all()
        expected = ImageEmbedder(**TINY).transform(photos.paths[good])
        np.testing.assert_array_equal(embeddings[good], expected)


def test_fit_transform_keeps_the_failures(photos: Bunch, broken: Path) -> None:
    embedder = ImageEmbedder(**TINY, on_error="nan")
    with pytest.warns(ImageDecodeWarning, match="1 of 12"):
        embedder.fit_transform(photos.paths)
    assert [failure.row for failure in embedder.failures_] == [3]
    embedder.fit_transform(photos.paths[4:])
    assert embedder.failures_ == ()


def test_when_no_image_can_be_read_nan_rows_are_not_an_answer(broken: Path) -> None:
    with pytest.raises(ImageDecodeError, match="none of the 2 images"):
        ImageEmbedder(**TINY, on_error="nan").transform([broken, broken])


def test_every_row_of_a_broken_image_that_is_repeated_fails(photos: Bunch, broken: Path) -> None:
    twin = broken.with_name("twin.png")
    twin.write_bytes(broken.read_bytes())
    with pytest.warns(ImageDecodeWarning) as caught:
        ImageEmbedder(**TINY, on_error="nan").transform([twin, photos.paths[0], broken])
    failures = caught[0].message.failures
    assert [(failure.row, failure.source) for failure in failures] == [
        (0, str(twin)),
        (2, str(broken)),
    ]


def test_a_fault_of_our_own_is_never_recorded_as_a_bad_image(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("featx._images.preprocess.Preprocessing.views", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        ImageEmbedder(**TINY, on_error="nan").transform(photos.paths)


def test_the_network_is_frozen_and_its_statistics_never_move(photos: Bunch) -> None:
    from featx import load_backbone

    network = load_backbone(TINY["backbone"], weights=None).module
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ImageEmbedder(**TINY, runtime="torch").transform(photos.paths)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_image_larger_or_smaller_than_the_network_expects_is_embedded() -> None:
    images = [Image.new("RGB", size) for size in ((1, 1), (2000, 10), (10, 2000), (500, 700))]
    assert np.isfinite(ImageEmbedder(**TINY).transform(images)).all()


def test_a_column_of_a_data_frame_is_noted_as_scikit_learn_notes_it(photos: Bunch) -> None:
    frame = pd.DataFrame({"photo": photos.paths})
    embedder = ImageEmbedder(**TINY).fit(frame)
    assert embedder.n_features_in_ == 1
    assert embedder.feature_names_in_.tolist() == ["photo"]
    assert make_pipeline(embedder, LogisticRegression()).n_features_in_ == 1
    embedder.fit(photos.paths)
    assert not hasattr(embedder, "n_features_in_")
    assert not hasattr(embedder, "feature_names_in_")


def test_a_range_of_numbers_is_part_of_the_recipe_and_of_the_vector(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    values[0] = 0, 4095, *values[0, 2:]
    given = {"type": (values * 16.0).astype(np.uint16), "image": values, (0, 4095): values}
    vectors, recipes = {}, set()
    for pixel_range, array in given.items():
        embedder = ImageEmbedder(pixel_range=pixel_range, progress=False, cache=tmp_path)
        vectors[pixel_range] = embedder.fit_transform([array])
        recipes.add(embedder.recipe_)
        with pytest.raises(InputError, match="pixel_range="):
            ImageEmbedder(pixel_range="auto").fit([array])
    assert len(recipes) == 3
    assert np.array_equal(vectors["image"], vectors[0, 4095])
    np.testing.assert_allclose(vectors["type"], vectors["image"], atol=0.05)
    with pytest.raises(ImageDecodeError, match="all but black"):
        ImageEmbedder(progress=False, cache=tmp_path).transform([values])
