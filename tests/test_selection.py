"""The search over heads is scikit-learn's own, and what it chooses can be saved and trusted."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import small_networks
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from featx import (
    ImageDecodeError,
    ImageEmbedder,
    InputError,
    head_search,
    load_image_folder,
    load_model,
    read_embeddings,
    save_model,
)
from featx._prediction import predict_images
from featx._selection.heads import choose_heads, head_name, make_heads
from featx._selection.selection import HeldOutScore, Selection, select_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# torch, because exporting the networks would take most of the time.
TINY = small_networks.TINY | {"runtime": "torch"}
NAMES = [head.name for head in make_heads()]


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"blue": 8, "green": 8, "red": 8}))


def test_a_head_search_is_an_unfitted_grid_search() -> None:
    search = head_search()
    assert isinstance(search, GridSearchCV)
    assert search.get_params(deep=False).keys() == GridSearchCV(None, {}).get_params().keys()
    assert type(search.estimator) is Pipeline
    assert isinstance(search.estimator.steps[0][1], ImageEmbedder)
    with pytest.raises(NotFittedError):
        check_is_fitted(search)
    assert clone(search).get_params().keys() == search.get_params().keys()


def test_every_combination_of_heads_can_be_asked_for_in_any_order() -> None:
    assert [head.name for head in choose_heads("all")] == NAMES
    assert [head.name for head in choose_heads(NAMES[::-1])] == NAMES[::-1]
    assert [head.name for head in choose_heads("rbf_svm")] == ["rbf_svm"]
    assert [head_name(head.classifier) for head in make_heads()] == NAMES
    for wrong in ("rbf_svn", ["rbf_svm", "svm"], []):
        with pytest.raises(InputError, match="expected 'all', classifiers, or some of"):
            choose_heads(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_each_head_fits_without_a_warning_and_its_grid_is_of_its_own_parameters(name: str) -> None:
    (head,) = choose_heads(name)
    assert is_classifier(head.classifier)
    assert set(head.grid) <= set(head.classifier.get_params())
    X, y = make_classification(120, 64, n_informative=20, n_classes=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = Pipeline([("scaler", head.scaler), ("head", head.classifier)])
        GridSearchCV(
            pipeline,
            {f"head__{key}": values for key, values in head.grid.items()},
            cv=3,
            error_score="raise",
        ).fit(X.astype(np.float32), y)


def test_a_search_over_backbones_tries_each_with_each_head(photos: Bunch) -> None:
    search = head_search(
        ["linear_svm", "k_nearest_neighbors"],
        embedder=ImageEmbedder(**TINY),
        backbones=["timm/test_efficientnet", "timm/test_resnet"],
        cv=2,
    )
    for grid in search.param_grid:
        for name in [key for key in grid if key.startswith("head__")]:
            grid[name] = grid[name][:1]
    search.fit(photos.paths, photos.target)
    tried = {
        (params["embedder__backbone"], type(params["head"]).__name__)
        for params in search.cv_results_["params"]
    }
    assert len(tried) == 4


def test_an_embedder_that_gives_nan_rows_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match="on_error='raise'"):
        head_search(embedder=ImageEmbedder(on_error="nan"))


def test_an_unreadable_image_stops_the_search_instead_of_scoring_nan(photos: Bunch) -> None:
    photos.paths[5] = "absent.png"
    search = head_search("linear_svm", embedder=ImageEmbedder(**TINY), cv=2)
    with pytest.raises(ValueError, match=r"absent\.png"):
        search.fit(photos.paths, photos.target)


@pytest.mark.parametrize(
    ("head", "calibrated"), [("linear_svm", True), ("rbf_svm", True), ("random_forest", False)]
)
def test_only_a_winner_without_probabilities_is_calibrated(
    photos: Bunch, tmp_path: Path, head: str, calibrated: bool
) -> None:
    selection = select_model(photos, photos, heads=head, embedder=ImageEmbedder(**TINY), cv=2)
    assert type(selection.search.best_estimator_.named_steps["head"]) is type(
        choose_heads(head)[0].classifier
    )
    assert isinstance(selection.model.steps[-1][1], CalibratedClassifierCV) == calibrated
    probabilities = selection.model.predict_proba(photos.paths)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    selection.save(tmp_path / "run")
    loaded = load_model(tmp_path / "run" / "model.skops")
    np.testing.assert_array_equal(loaded.predict_proba(photos.paths), probabilities)
    predictions, failures = predict_images(loaded, photos.paths)
    assert failures == ()
    np.testing.assert_array_equal(predictions["label"], loaded.predict(photos.paths))
    np.testing.assert_allclose(predictions["probability"], probabilities.max(axis=1))


def test_the_held_out_score_is_that_of_the_model_that_is_saved(photos: Bunch) -> None:
    test = load_image_folder(photos.paths[0].rsplit("/", 2)[0])
    selection = select_model(
        photos, test, heads=["linear_svm"], embedder=ImageEmbedder(**TINY), cv=2
    )
    assert selection.held_out is not None
    accuracy = selection.model.score(test.paths, test.target)
    assert selection.held_out.accuracy == pytest.approx(accuracy)


def test_the_wilson_interval_is_the_textbook_one() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    low, high = HeldOutScore(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert HeldOutScore(10, 10).interval[1] == 1.0


def test_the_same_seed_gives_the_same_selection(photos: Bunch) -> None:
    def scores(**params: Any) -> np.ndarray:
        selection = select_model(
            photos, heads=["random_forest", "linear_svm"], embedder=ImageEmbedder(**TINY), cv=2,
            **params,
        )  # fmt: skip
        return selection.search.cv_results_["mean_test_score"]

    np.testing.assert_array_equal(scores(random_state=3), scores(random_state=3))


def test_the_table_holds_the_best_candidate_of_each_head_best_first(photos: Bunch) -> None:
    selection = select_model(photos, embedder=ImageEmbedder(**TINY), cv=2)
    table = selection.scores
    assert sorted(table["head"]) == sorted(NAMES)
    assert table["mean"].is_monotonic_decreasing
    results = selection.search.cv_results_
    for row in table.itertuples():
        own = [
            score
            for head, score in zip(results["param_head"], results["mean_test_score"], strict=True)
            if head_name(head) == row.head
        ]
        assert row.mean == max(own)
    assert table["mean"][0] == selection.search.best_score_


def test_the_model_of_a_search_over_layers_stores_no_layer_that_lost(photos: Bunch) -> None:
    layers = ["penultimate", ("blocks.2", "max")]
    embedder = ImageEmbedder(**TINY, also_cache=["blocks.1"])
    search = head_search(["logistic_regression"], embedder=embedder, layers=layers, cv=2)
    search.fit(photos.data, photos.target)
    assert search.best_estimator_.named_steps["embedder"].also_cache == ["blocks.1"]
    assert embedder.also_cache == ["blocks.1"]


def test_a_pipeline_whose_embedder_was_never_fitted_predicts(photos: Bunch) -> None:
    embedder = ImageEmbedder(**TINY)
    head = LogisticRegression().fit(embedder.transform(photos.data), photos.target)
    predictions, _ = predict_images(make_pipeline(embedder, head), photos.data)
    expected = head.predict(embedder.transform(photos.data))
    assert predictions["label"].tolist() == expected.tolist()


def test_a_score_that_is_no_number_is_null_in_the_summary(photos: Bunch, tmp_path: Path) -> None:
    selection = select_model(photos, heads=["linear_svm"], embedder=ImageEmbedder(**TINY), cv=2)
    selection.scores.loc[0, "mean"] = np.nan
    selection.save(tmp_path / "run")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["scores"][0]["mean"] is None


def test_a_failed_save_raises_its_own_error(
    photos: Bunch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = select_model(photos, heads=["linear_svm"], embedder=ImageEmbedder(**TINY), cv=2)

    def fail(self: Selection, folder: Path) -> None:
        (folder.parent / "of somebody else").touch()
        raise MemoryError("the first error")

    monkeypatch.setattr(Selection, "_write", fail)
    with pytest.raises(MemoryError, match="the first error"):
        selection.save(tmp_path / "new" / "run")
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["of somebody else"]


def test_what_is_returned_names_no_folder_that_is_gone(photos: Bunch) -> None:
    selection = select_model(
        photos, heads=["linear_svm"], embedder=ImageEmbedder(**TINY, cache=None), cv=2
    )
    for model in (selection.search.estimator, selection.search.best_estimator_, selection.model):
        assert model.named_steps["embedder"].cache is None


def test_predictions_are_those_of_all_images_at_once_whatever_the_parcels(
    photos: Bunch, tmp_path: Path
) -> None:
    model = make_pipeline(ImageEmbedder(**TINY), LogisticRegression())
    model.fit(photos.data, photos.target)
    # Few images make parcels of few; a whole parcel of them may be unreadable.
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [*photos.data[:5], *[str(broken)] * 9, *photos.data[5:]]
    predictions, failures = predict_images(model, paths, skip_unreadable=True)
    assert [failure.row for failure in failures] == list(range(5, 14))
    assert predictions["path"].tolist() == list(photos.data)
    assert predictions["label"].tolist() == model.predict(photos.data).tolist()
    assert predictions.index.tolist() == list(range(len(photos.data)))
    np.testing.assert_allclose(  # sums of other lengths round differently
        predictions["probability"], model.predict_proba(photos.data).max(axis=1), rtol=1e-6
    )
    with pytest.raises(ImageDecodeError, match="none of the 2 images"):
        predict_images(model, [broken, broken], skip_unreadable=True)
    with pytest.raises(ImageDecodeError, match="row 5"):
        predict_images(model, paths)


def test_predictions_never_hold_all_vectors(photos: Bunch, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ImageEmbedder(**TINY)
    model = make_pipeline(embedder, LogisticRegression()).fit(photos.data, photos.target)
    seen: list[int] = []
    predict = LogisticRegression.predict

    def counted(self: LogisticRegression, X: np.ndarray) -> np.ndarray:
        seen.append(len(X))
        return predict(self, X)

    monkeypatch.setattr(LogisticRegression, "predict", counted)
    predict_images(model, list(photos.data) * 3)
    assert sum(seen) == 72
    assert max(seen) < 72


def test_labelled_arrays_of_one_shape_are_chosen_among_like_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    images[6:, :, ::2] = 0
    labelled = Bunch(data=list(images), target=["plain"] * 6 + ["striped"] * 6)
    selection = select_model(
        labelled, heads=["linear_svm"], embedder=ImageEmbedder(**TINY, image_size=32), cv=2
    )
    selection.save(tmp_path / "run")
    assert len(read_embeddings(tmp_path / "run" / "embeddings.parquet").target) == 12


# head_search: what people ask of it --------------------------------------------------------------


def drawn_images(count: int) -> tuple[list[np.ndarray], list[str]]:
    images = list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    for image in images[::2]:
        image[:, ::4] = 0
    return images, ["striped", "plain"] * (count // 2)


SMALL = ImageEmbedder(image_size=32, progress=False)


@pytest.mark.parametrize("scoring", ["roc_auc_ovr", "neg_log_loss"])
def test_a_score_of_probabilities_works_with_every_head(scoring: str) -> None:
    search = head_search(["linear_svm", "rbf_svm"], embedder=SMALL, scoring=scoring, cv=2)
    search.fit(*drawn_images(16))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict_proba(drawn_images(2)[0]).shape == (2, 2)


def test_few_images_leave_no_number_of_neighbours_out_of_reach() -> None:
    search = head_search("k_nearest_neighbors", embedder=SMALL, cv=3)
    given = search.param_grid
    search.fit(*drawn_images(12))
    assert {row["head__n_neighbors"] for row in search.cv_results_["params"]} == {3, 7}
    assert search.param_grid is given
    assert given[0]["head__n_neighbors"] == [3, 7, 15]


def test_folds_that_are_made_once_serve_every_head() -> None:
    images, labels = drawn_images(8)
    folds = StratifiedKFold(2).split(images, labels)
    search = head_search("k_nearest_neighbors", embedder=SMALL, cv=folds).fit(images, labels)
    assert search.n_splits_ == 2


def test_heads_may_be_classifiers_and_the_embedder_a_name() -> None:
    heads = [LogisticRegression(C=0.1), "rbf_svm", RidgeClassifier()]
    search = head_search(heads, embedder="efficientnet_lite1")
    assert search.estimator.named_steps["embedder"].backbone == "efficientnet_lite1"
    assert [len(grid) for grid in search.param_grid] == [2, 4, 2]
    search = head_search(RidgeClassifier(), embedder=SMALL, cv=2).fit(*drawn_images(8))
    assert isinstance(search.best_estimator_.named_steps["head"], RidgeClassifier)
    with pytest.raises(InputError, match="expected 'all', classifiers, or some of"):
        head_search([Ridge()])


def test_a_fitted_search_is_kept(tmp_path: Path) -> None:
    images, labels = drawn_images(8)
    search = head_search("logistic_regression", embedder=SMALL, cv=2).fit(images, labels)
    save_model(search, tmp_path / "search.skops")
    loaded = load_model(tmp_path / "search.skops")
    assert loaded.best_params_["head__C"] == search.best_params_["head__C"]
    assert np.array_equal(loaded.predict(images), search.predict(images))
