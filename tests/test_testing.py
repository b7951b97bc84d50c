"""The checks of image transformers: each passes what is right and catches what is wrong."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from featx import ImageEmbedder
from featx._errors import InputError
from featx.testing import check_image_transformer, image_transformer_checks
from featx.testing._subject import FORMS, form_of, sample_images

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}
CHECKS = image_transformer_checks()
NAMES = [check.__name__ for check in CHECKS]
LOCAL_FRAMES = ["check_set_output_transform_pandas", "check_set_output_transform_polars"]
FRAMES = [name for name in NAMES if "output_transform_" in name]
POLARS = [name for name in FRAMES if name.endswith("polars")]
PICTURES = [Image.fromarray(pixels) for pixels in sample_images()]


class Colours(TransformerMixin, BaseEstimator):
    """A right transformer: the mean colour of each half of an image, less that of the training."""

    def __init__(self, scale: Any = 1.0, options: Any = None) -> None:
        self.scale = scale
        self.options = options

    def read(self, image: Any) -> Any:
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        if hasattr(image, "permute"):
            image = image.permute(1, 2, 0)
        pixels = np.asarray(image)
        if pixels.size == 0:
            raise ValueError("an image has no pixels")
        return pixels

    def colours(self, pixels: Any) -> Any:
        left, right = np.array_split(pixels, 2, axis=1)
        return np.concatenate([left.mean(axis=(0, 1)), right.mean(axis=(0, 1))])

    def rows(self, X: Any) -> Any:
        return np.array([self.colours(self.read(image)) for image in X])

    def fit(self, X: Any, y: Any = None) -> Any:
        if len(X) == 0:
            raise ValueError("Got 0 images but expected at least 1")
        self.mean_ = self.rows(X).mean(axis=0)
        self.n_features_out_ = 6
        return self

    def transform(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.embed(X)

    def embed(self, X: Any) -> Any:
        return (self.rows(X) - self.mean_) * self.scale

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return np.array([f"colour{column}" for column in range(6)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


CASES: list[Any] = []


def breaks(*failing: str, images: Any = None, **parameters: Any) -> Any:
    """Note that a transformer, made with these parameters, fails just these checks."""

    def note(kind: type) -> type:
        values = [getattr(value, "__name__", str(value)) for value in parameters.values() if value]
        name = "-".join([kind.__name__, *values])
        CASES.append(pytest.param(kind(**parameters), images, sorted(failing), id=name))
        return kind

    return note


# Each of the following breaks a promise and changes nothing else.


@breaks("check_estimator_cloneable")
class CopiesParameter(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = ("all",)) -> None:
        self.scale = scale
        self.options = [*options]


@breaks("check_estimator_repr")
class HasNoRepr(Colours):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@breaks("check_estimator_tags_renamed")
class HasOldTags(Colours):
    def _more_tags(self) -> dict[str, bool]:
        return {"requires_fit": True}


@breaks("check_valid_tag_types")
class HasWrongTag(Colours):
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = "no"
        return tags


@breaks("check_mixin_order")
class InheritsMixinLate(Colours, OneToOneFeatureMixin):
    pass


@breaks("check_no_attributes_set_in_init")
class SetsAttributeInInit(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = None) -> None:
        super().__init__(scale, options)
        self.history: list[Any] = []


@breaks("check_parameters_stored_unchanged")
class ReplacesParameter(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = None) -> None:
        super().__init__(scale if isinstance(scale, float) else 1.0, options)


SHARED: list[Any] = []


@breaks("check_parameters_default_constructible")
class SharesDefault(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = SHARED) -> None:
        super().__init__(scale, options)


@breaks("check_parameters_default_constructible")
class ReplacesDefault(Colours):
    def __init__(self, scale: Any = None, options: Any = None) -> None:
        super().__init__(1.0 if scale is None else scale, options)


@breaks("check_do_not_raise_errors_in_init_or_set_params")
class ChecksInSetParams(Colours):
    def set_params(self, **parameters: Any) -> Any:
        if isinstance(parameters.get("scale"), str):
            raise TypeError("scale is a str")
        return super().set_params(**parameters)


@breaks("check_get_params_invariance", "check_parameters_default_constructible")
class HidesParameter(Colours):
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return super().get_params() | ({"scale": 2.0} if deep else {})


@breaks("check_set_params")
class KeepsOldValue(Colours):
    def set_params(self, **parameters: Any) -> Any:
        given = {name: value for name, value in parameters.items() if value is not None}
        return super().set_params(**given)


@breaks("check_parameters_default_constructible", "check_set_params_takes_effect")
class SetParamsReturnsNone(Colours):
    def set_params(self, **parameters: Any) -> Any:
        super().set_params(**parameters)


MODELS = {"sum": 3.0, "mean": 1.0}


@breaks(
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_no_attributes_set_in_init",
    "check_parameters_stored_unchanged",
    "check_set_params_takes_effect",
)
class LoadsModelInInit(Colours):
    """As embetter's: the model stays the first one, whatever ``set_params`` names."""

    def __init__(self, options: Any = "sum") -> None:
        self.options = options
        self.model = MODELS[options]

    def embed(self, X: Any) -> Any:
        return (self.rows(X) - self.mean_) * self.model


@breaks("check_set_params_takes_effect")
class LoadsModelQuietly(Colours):
    def __init__(self, options: Any = "sum") -> None:
        self.options = options
        self._model = MODELS.get(options, 1.0) if isinstance(options, str) else 1.0

    def embed(self, X: Any) -> Any:
        return (self.rows(X) - self.mean_) * self._model


@breaks("check_fit_score_takes_y")
class TakesNoY(Colours):
    def fit(self, X: Any, labels: Any = None) -> Any:
        return super().fit(X)


@breaks("check_fit_score_takes_y")
class NeedsY(Colours):
    def fit(self, X: Any, y: Any) -> Any:
        return super().fit(X)


@breaks("check_estimators_fit_returns_self")
class ReturnsNone(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        self.fit(X)
        return self.transform(X)


@breaks("check_estimators_overwrite_params", options=[])
class ChangesParameter(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.options.append(len(X))
        return super().fit(X)


@breaks("check_dont_overwrite_parameters")
class SetsPublicAttribute(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.count = len(X)
        return super().fit(X)


@breaks("check_fit_check_is_fitted", "check_transformers_unfitted")
class IsAlwaysFitted(Colours):
    def __sklearn_is_fitted__(self) -> bool:
        return True


@breaks("check_fit_check_is_fitted", "check_pipeline_consistency", "check_transformers_unfitted")
class IsNeverFitted(Colours):
    def __sklearn_is_fitted__(self) -> bool:
        return False

    def transform(self, X: Any) -> Any:
        return self.rows(X)


@breaks("check_transformers_unfitted")
class RaisesAttributeErrorUnfitted(Colours):
    def transform(self, X: Any) -> Any:
        return self.rows(X) - self.mean_


@breaks("check_transformers_unfitted")
class ClaimsToNeedNoFit(Colours):
    def transform(self, X: Any) -> Any:
        return self.rows(X) - getattr(self, "mean_", 0)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


@breaks("check_fit_idempotent", "check_pipeline_consistency", "check_transformer_general")
class AddsFitsUp(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        before = getattr(self, "mean_", 0)
        super().fit(X)
        self.mean_ += before
        return self


@breaks("check_dict_unchanged")
class CountsTransforms(Colours):
    def embed(self, X: Any) -> Any:
        self.transforms_ = getattr(self, "transforms_", 0) + 1
        return super().embed(X)


@breaks("check_dict_unchanged")
class MovesStatistics(Colours):
    """As a network left in training mode."""

    def fit(self, X: Any, y: Any = None) -> Any:
        self.statistics_ = np.zeros(6)
        return super().fit(X)

    def embed(self, X: Any) -> Any:
        rows = super().embed(X)
        self.statistics_ += rows.std(axis=0)
        return rows


@breaks("check_estimators_pickle")
class CannotBePickled(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.half_ = lambda value: value / 2
        return super().fit(X)


@breaks("check_estimators_pickle")
class PickleLosesState(Colours):
    def __getstate__(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "n_features_out_"}


@breaks("check_estimators_pickle")
class PickleRounds(Colours):
    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)
        if "mean_" in state:
            self.mean_ = np.nextafter(self.mean_, np.inf)


@breaks("check_estimators_pickle", scale=2.0)
class PickleForgetsParameter(Colours):
    def __setstate__(self, state: Any) -> None:
        vars(self).update(state if "mean_" in state else {"scale": 1.0, "options": None})


@breaks("check_estimators_pickle")
class PickleChangesOriginal(Colours):
    def __getstate__(self) -> Any:
        self.pickled_ = True
        return vars(self)


@breaks("check_estimators_empty_data_messages")
class FitsNoImages(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        return super().fit(X) if len(X) else self


@breaks("check_estimators_empty_data_messages")
class SaysNothingOfNoImages(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        if len(X) == 0:
            raise ValueError
        return super().fit(X)


@breaks("check_pipeline_consistency", *FRAMES)
class FitTransformDoesNotFit(Colours):
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return Colours(self.scale).fit(X).transform(X)


@breaks(
    "check_pipeline_consistency", "check_set_output_transform", "check_transformer_general", *FRAMES
)
class FitTransformDiffers(Colours):
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.fit(X).transform(X) + self.mean_


@breaks(
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_transformer_general",
)
class DropsLastRow(Colours):
    def embed(self, X: Any) -> Any:
        rows = super().embed(X)
        return rows[:-1] if len(rows) > 3 else rows


@breaks("check_transformer_list_and_array")
class MirrorsArrays(Colours):
    def rows(self, X: Any) -> Any:
        return super().rows(X[:, :, ::-1] if isinstance(X, np.ndarray) else X)


@breaks("check_methods_sample_order_invariance", "check_methods_subset_invariance")
class SortsRows(Colours):
    def embed(self, X: Any) -> Any:
        return np.sort(super().embed(X), axis=0)


@breaks("check_methods_subset_invariance")
class DependsOnBatch(Colours):
    def embed(self, X: Any) -> Any:
        rows = super().embed(X)
        return rows - 0.001 * rows.mean(axis=0)


@breaks("check_fit_one_image", "check_methods_subset_invariance")
class SqueezesOneRow(Colours):
    def embed(self, X: Any) -> Any:
        return super().embed(X).squeeze()


@breaks("check_fit_one_image")
class RefusesOneImage(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        if len(X) == 1:
            raise ValueError("bad input")
        return super().fit(X)


@breaks("check_finite_output")
class GivesInfinity(Colours):
    def embed(self, X: Any) -> Any:
        return np.full_like(super().embed(X), np.inf)


def drop(rows: Any) -> Any:
    return []


def give_zeros(rows: Any) -> Any:
    return [np.zeros(6)]


def give_neighbour(rows: Any) -> Any:
    return rows[-1:]


def give_nan(rows: Any) -> Any:
    return [np.full(6, np.nan)]


@breaks("check_unreadable_image", options=drop)
@breaks("check_unreadable_image", options=give_zeros)
@breaks("check_unreadable_image", options=give_neighbour)
class HandlesUnreadable(Colours):
    """What cannot be read is dropped, or becomes the row that ``options`` gives."""

    def rows(self, X: Any) -> Any:
        rows: list[Any] = []
        for image in X:
            try:
                rows.append(super().colours(self.read(image)))
            except (OSError, ValueError):
                rows.extend(self.options(rows))
        return np.array(rows)


@breaks("check_unreadable_image", options=give_zeros)
class HandlesUnreadablePictures(HandlesUnreadable):
    def rows(self, X: Any) -> Any:
        pictures = all(isinstance(image, Image.Image) for image in X)
        return super().rows(X) if pictures else Colours.rows(self, X)


@breaks("check_unreadable_image")
class BlanksOthersToo(Colours):
    def embed(self, X: Any) -> Any:
        try:
            return super().embed(X)
        except (OSError, ValueError):
            return np.full((len(X), 6), np.nan)


@breaks("check_readonly_memmap_input")
class NeedsToWrite(Colours):
    def read(self, image: Any) -> Any:
        if isinstance(image, np.ndarray):
            image.setflags(write=True)
        return super().read(image)


@breaks("check_input_unchanged", images=PICTURES)
class TurnsPictures(Colours):
    def read(self, image: Any) -> Any:
        if isinstance(image, Image.Image):
            image.paste(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
        return super().read(image)


@breaks("check_readonly_memmap_input")
class MirrorsReadOnly(Colours):
    def read(self, image: Any) -> Any:
        pixels = super().read(image)
        return pixels[:, ::-1] if isinstance(image, np.memmap) else pixels


@breaks("check_input_unchanged")
class ReplacesInList(Colours):
    def rows(self, X: Any) -> Any:
        if isinstance(X, list):
            X[0] = self.read(X[0]).copy()
        return super().rows(X)


@breaks("check_input_form_path_string", options="path_string")
@breaks("check_input_form_path", options="path")
@breaks("check_input_form_bytes", options="bytes")
@breaks("check_input_form_pil", options="pil")
@breaks("check_input_form_array", options="array", images=PICTURES)
@breaks("check_input_form_tensor", options="tensor")
class MirrorsOneForm(Colours):
    def read(self, image: Any) -> Any:
        pixels = super().read(image)
        return pixels[:, ::-1] if form_of(image) == self.options else pixels


@breaks("check_transformer_get_feature_names_out", *FRAMES)
class NamesTooFew(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return super().get_feature_names_out()[1:]


@breaks("check_transformer_get_feature_names_out", *POLARS)
class RepeatsName(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return np.array(["colour"] * 6, dtype=object)


@breaks("check_transformer_get_feature_names_out", *POLARS)
class NumbersColumns(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return np.arange(6).astype(object)


@breaks("check_transformer_get_feature_names_out")
class ListsNames(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return super().get_feature_names_out().tolist()


@breaks("check_n_features_out")
class MiscountsColumns(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        self.n_features_out_ = 5
        return self


@breaks("check_set_output_transform", *LOCAL_FRAMES)
class SetOutputReturnsNone(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        super().set_output(transform=transform)


@breaks("check_set_output_transform", *LOCAL_FRAMES)
class SetOutputRescales(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        self.scale = 2.0
        return super().set_output(transform=transform)


@breaks(*LOCAL_FRAMES)
class IgnoresSetOutput(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        return self


@breaks(*FRAMES)
class GivesNoFrames(Colours):
    pass


@breaks(*FRAMES)
class NamesColumnsItself(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        self._library = transform
        return self

    def embed(self, X: Any) -> Any:
        rows = super().embed(X)
        return pd.DataFrame(rows) if getattr(self, "_library", None) == "pandas" else rows


# Set afterwards, so that scikit-learn does not wrap it.
GivesNoFrames.transform = NamesColumnsItself.transform = Colours.transform.__wrapped__


def failed_checks(transformer: Any, images: Any = None) -> list[str]:
    try:
        check_image_transformer(transformer, images=images)
    except ExceptionGroup as group:
        return re.findall(r"^- (\w+):", group.message, re.MULTILINE)
    return []


@pytest.mark.parametrize(("transformer", "images", "failing"), CASES)
def test_a_broken_promise_is_caught_by_the_name_of_its_check_and_by_no_other(
    transformer: Any, images: Any, failing: list[str]
) -> None:
    assert sorted(failed_checks(transformer, images)) == failing


def test_every_check_has_a_transformer_that_it_catches() -> None:
    assert {name for case in CASES for name in case.values[2]} == set(NAMES)


@pytest.mark.parametrize("check", CHECKS)
def test_image_embedder_keeps_every_promise(check: Any) -> None:
    check(ImageEmbedder(**TINY))
    check(ImageEmbedder(**TINY, cache=None))


def test_an_embedder_of_files_that_gives_nan_for_unreadable_ones_passes(tmp_path: Path) -> None:
    paths = [FORMS["path"](pixels, tmp_path) for pixels in sample_images()]
    results = check_image_transformer(ImageEmbedder(**TINY, on_error="nan"), images=paths)
    assert [(result.name, result.status) for result in results] == [
        (name, "passed") for name in NAMES
    ]


class TakesFilesOnly(Colours):
    def read(self, image: Any) -> Any:
        if not isinstance(image, (str, os.PathLike)):
            raise TypeError(f"Got a {type(image).__name__} but expected a path")
        return super().read(image)


class TakesPicturesOnly(Colours):
    """As embetter's, it trips over anything else."""

    def read(self, image: Any) -> Any:
        return super().read(image.convert("RGB"))


class TakesTensorsOnly(Colours):
    def read(self, image: Any) -> Any:
        return super().read(image.permute(0, 1, 2))


class Eigenfaces(Colours):
    """Learns from pixels, so that the rows of one image alone are another matter at fit."""

    def fit(self, X: Any, y: Any = None) -> Any:
        pixels = self.pixels(X)
        if len(pixels) < 2:
            raise ValueError("Got 1 image but expected at least 2")
        self.pca_ = PCA(2, svd_solver="full").fit(pixels)
        return self

    def pixels(self, X: Any) -> Any:
        return np.array([self.read(image).ravel() for image in X], dtype=np.float32)

    def embed(self, X: Any) -> Any:
        return self.pca_.transform(self.pixels(X))

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        self.fit(X)
        return self.pca_.fit_transform(self.pixels(X))

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return self.pca_.get_feature_names_out()


class Sparse(Colours):
    def embed(self, X: Any) -> Any:
        return sparse.csr_array(super().embed(X))


class Nameless(Colours, auto_wrap_output_keys=None):
    get_feature_names_out = property()

    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        del self.n_features_out_
        return self


class Projects(Colours):
    def __init__(self, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        self.projection_ = np.random.default_rng(self.random_state).normal(size=(6, 6))
        return self

    def embed(self, X: Any) -> Any:
        return self.rows(X) @ self.projection_


class Augments(Colours):
    def embed(self, X: Any) -> Any:
        return self.rows(X) + np.random.default_rng().normal(size=(len(X), 6))


class SaysThatItAugments(Augments):
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True
        return tags


def skipped_checks(transformer: Any, images: Any = None) -> list[str]:
    results = check_image_transformer(transformer, images=images)
    assert all(result.reason for result in results if result.status == "skipped")
    return [result.name for result in results if result.status == "skipped"]


def test_right_transformers_of_other_kinds_pass() -> None:
    assert skipped_checks(Colours()) == []
    assert skipped_checks(HandlesUnreadable(options=give_nan)) == []
    assert skipped_checks(Projects()) == []
    assert skipped_checks(Eigenfaces()) == ["check_n_features_out"]
    assert skipped_checks(Sparse()) == FRAMES


def test_what_a_transformer_does_not_have_is_skipped_with_its_reason(tmp_path: Path) -> None:
    paths = [FORMS["path_string"](pixels, tmp_path) for pixels in sample_images()]
    arrays = "check_readonly_memmap_input"
    forms = {form: f"check_input_form_{form}" for form in FORMS}
    files = [forms.pop("path_string"), forms.pop("path")]
    assert skipped_checks(TakesFilesOnly(), paths) == [arrays, *forms.values()]
    assert skipped_checks(TakesPicturesOnly(), PICTURES) == [
        arrays,
        *files,
        *(forms[form] for form in ("bytes", "array", "tensor")),
    ]
    tensors = [FORMS["tensor"](pixels, tmp_path) for pixels in sample_images()]
    assert skipped_checks(TakesTensorsOnly(), tensors) == [
        "check_unreadable_image",
        arrays,
        *files,
        *(forms[form] for form in ("bytes", "pil", "array")),
    ]
    assert skipped_checks(Nameless()) == NAMES[-7:]


def test_chance_must_be_declared_and_then_excuses_the_comparisons() -> None:
    assert "check_transformer_general" in failed_checks(Augments())
    assert "check_transformer_general" in skipped_checks(SaysThatItAugments())


def test_images_that_all_give_one_row_cannot_prove_their_order() -> None:
    same = [sample_images()[0]] * 3
    assert "check_methods_sample_order_invariance" in skipped_checks(Colours(), same)


def test_only_images_in_rgb_are_turned_into_other_forms() -> None:
    grey = [pixels[..., :1] for pixels in sample_images()]
    forms = [name for name in NAMES if "input_form" in name]
    assert skipped_checks(Nameless(), grey) == ["check_unreadable_image", *forms, *NAMES[-7:]]


def test_data_frames_of_a_library_that_is_not_installed_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    assert skipped_checks(Colours()) == POLARS


def test_every_failure_is_reported_at_once_with_its_traceback() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        check_image_transformer(LoadsModelInInit())
    group = caught.value
    head, *lines = group.message.splitlines()
    assert head == f"LoadsModelInInit fails 4 of {len(NAMES)} checks:"
    assert "- check_set_params_takes_effect: KeyError: 'helloworld'" in lines
    assert len(group.exceptions) == len(lines) == 4
    assert group.exceptions[-1].__notes__ == [
        "in check_set_params_takes_effect of LoadsModelInInit"
    ]
    assert all(error.__traceback__ is not None for error in group.exceptions)


def test_an_expected_failure_is_no_failure_and_keeps_its_reason() -> None:
    reason = "BatchNorm is left in training mode"
    results = check_image_transformer(
        DependsOnBatch(), expected_failed_checks={"check_methods_subset_invariance": reason}
    )
    (expected,) = [result for result in results if result.status != "passed"]
    assert expected.name == "check_methods_subset_invariance"
    assert (expected.status, expected.reason) == ("xfail", reason)


def test_a_wrong_call_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'check_set_params'"):
        check_image_transformer(Colours(), expected_failed_checks={"check_set_param": "later"})
    with pytest.raises(InputError, match=r"the class Colours .* pass Colours\(\)"):
        check_image_transformer(Colours)
    with pytest.raises(InputError, match="Got 1 image"):
        check_image_transformer(Colours(), images=sample_images()[:1])


def test_the_transformer_and_the_images_are_left_as_they_are() -> None:
    transformer, images = TurnsPictures(), [picture.copy() for picture in PICTURES]
    before = dict(vars(transformer))
    assert failed_checks(transformer, images) == ["check_input_unchanged"]
    assert vars(transformer) == before
    assert all(image == picture for image, picture in zip(images, PICTURES, strict=True))


@pytest.mark.parametrize("transformer", [LoadsModelInInit(), DependsOnBatch(), ReturnsNone()])
def test_scikit_learn_itself_checks_nothing_but_clone_of_an_image_transformer(
    transformer: Any,
) -> None:
    with pytest.warns(SkipTestWarning, match="Can't test estimator"):
        results = check_estimator(transformer)
    assert [(result["check_name"], result["status"]) for result in results] == [
        ("check_estimator_cloneable", "passed")
    ]
    assert failed_checks(transformer) != []
