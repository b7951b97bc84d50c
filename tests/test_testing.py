"""The checks of image transformers: each passes what is right and catches what is wrong."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from featx import ImageEmbedder
from featx.errors import InputError
from featx.testing import check_image_transformer, image_transformer_checks
from featx.testing.forms import FORMS, form_of, sample_images

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}
CHECKS = image_transformer_checks()
NAMES = [check.__name__ for check in CHECKS]
LOCAL_FRAMES = ["check_set_output_transform_pandas", "check_set_output_transform_polars"]
FRAMES = [name for name in NAMES if "output_transform_" in name]
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
        return (self.rows(X) - self.mean_) * self.scale

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return np.array([f"colour{column}" for column in range(6)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


# Each of the following breaks a promise and changes nothing else.


class CopiesParameter(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = ("all",)) -> None:
        self.scale = scale
        self.options = [*options]


class HasNoRepr(Colours):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class HasOldTags(Colours):
    def _more_tags(self) -> dict[str, bool]:
        return {"requires_fit": True}


class HasWrongTag(Colours):
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = "no"
        return tags


class InheritsMixinLate(Colours, OneToOneFeatureMixin):
    pass


class SetsAttributeInInit(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = None) -> None:
        super().__init__(scale, options)
        self.history: list[Any] = []


class ReplacesParameter(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = None) -> None:
        super().__init__(scale if isinstance(scale, float) else 1.0, options)


SHARED: list[Any] = []


class SharesDefault(Colours):
    def __init__(self, scale: Any = 1.0, options: Any = SHARED) -> None:
        super().__init__(scale, options)


class ReplacesDefault(Colours):
    def __init__(self, scale: Any = None, options: Any = None) -> None:
        super().__init__(1.0 if scale is None else scale, options)


class ChecksInSetParams(Colours):
    def set_params(self, **parameters: Any) -> Any:
        if isinstance(parameters.get("scale"), str):
            raise TypeError("scale is a str")
        return super().set_params(**parameters)


class HidesParameter(Colours):
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return super().get_params() | ({"scale": 2.0} if deep else {})


class KeepsOldValue(Colours):
    def set_params(self, **parameters: Any) -> Any:
        given = {name: value for name, value in parameters.items() if value is not None}
        return super().set_params(**given)


MODELS = {"sum": 3.0, "mean": 1.0}


class LoadsModelInInit(Colours):
    """As embetter's: the model stays the first one, whatever ``set_params`` names."""

    def __init__(self, options: Any = "sum") -> None:
        self.options = options
        self.model = MODELS[options]

    def transform(self, X: Any) -> Any:
        check_is_fitted(self)
        return (self.rows(X) - self.mean_) * self.model


class LoadsModelQuietly(Colours):
    def __init__(self, options: Any = "sum") -> None:
        self.options = options
        self._model = MODELS.get(options, 1.0) if isinstance(options, str) else 1.0

    def transform(self, X: Any) -> Any:
        check_is_fitted(self)
        return (self.rows(X) - self.mean_) * self._model


class TakesNoY(Colours):
    def fit(self, X: Any, labels: Any = None) -> Any:
        return super().fit(X)


class NeedsY(Colours):
    def fit(self, X: Any, y: Any) -> Any:
        return super().fit(X)


class ReturnsNone(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        self.fit(X)
        return self.transform(X)


class ChangesParameter(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.options.append(len(X))
        return super().fit(X)


class SetsPublicAttribute(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.count = len(X)
        return super().fit(X)


class IsAlwaysFitted(Colours):
    def __sklearn_is_fitted__(self) -> bool:
        return True


class IsNeverFitted(Colours):
    def __sklearn_is_fitted__(self) -> bool:
        return False

    def transform(self, X: Any) -> Any:
        return self.rows(X)


class RaisesAttributeErrorUnfitted(Colours):
    def transform(self, X: Any) -> Any:
        return self.rows(X) - self.mean_


class ClaimsToNeedNoFit(Colours):
    def transform(self, X: Any) -> Any:
        return self.rows(X) - getattr(self, "mean_", 0)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


class AddsFitsUp(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        before = getattr(self, "mean_", 0)
        super().fit(X)
        self.mean_ += before
        return self


class CountsTransforms(Colours):
    def transform(self, X: Any) -> Any:
        self.transforms_ = getattr(self, "transforms_", 0) + 1
        return super().transform(X)


class MovesStatistics(Colours):
    """As a network left in training mode."""

    def fit(self, X: Any, y: Any = None) -> Any:
        self.statistics_ = np.zeros(6)
        return super().fit(X)

    def transform(self, X: Any) -> Any:
        rows = super().transform(X)
        self.statistics_ += rows.std(axis=0)
        return rows


class CannotBePickled(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        self.half_ = lambda value: value / 2
        return super().fit(X)


class PickleLosesState(Colours):
    def __getstate__(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "n_features_out_"}


class PickleRounds(Colours):
    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)
        if "mean_" in state:
            self.mean_ = np.nextafter(self.mean_, np.inf)


class PickleChangesOriginal(Colours):
    def __getstate__(self) -> Any:
        self.pickled_ = True
        return vars(self)


class FitsNoImages(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        return super().fit(X) if len(X) else self


class SaysNothingOfNoImages(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        if len(X) == 0:
            raise ValueError
        return super().fit(X)


class FitTransformDoesNotFit(Colours):
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return Colours(self.scale).fit(X).transform(X)


class FitTransformDiffers(Colours):
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.fit(X).transform(X) + self.mean_


class DropsLastRow(Colours):
    def transform(self, X: Any) -> Any:
        rows = super().transform(X)
        return rows[:-1] if len(rows) > 3 else rows


class GivesFlatRows(Colours):
    def transform(self, X: Any) -> Any:
        return super().transform(X).ravel()


class MirrorsArrays(Colours):
    def rows(self, X: Any) -> Any:
        return super().rows(X[:, :, ::-1] if isinstance(X, np.ndarray) else X)


class SortsRows(Colours):
    def transform(self, X: Any) -> Any:
        return np.sort(super().transform(X), axis=0)


class DependsOnBatch(Colours):
    def transform(self, X: Any) -> Any:
        rows = super().transform(X)
        return rows - 0.001 * rows.mean(axis=0)


class SqueezesOneRow(Colours):
    def transform(self, X: Any) -> Any:
        return super().transform(X).squeeze()


class RefusesOneImage(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        if len(X) == 1:
            raise ValueError("bad input")
        return super().fit(X)


class GivesInfinity(Colours):
    def transform(self, X: Any) -> Any:
        return np.full_like(super().transform(X), np.inf)


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


def drop(rows: Any) -> Any:
    return []


def give_zeros(rows: Any) -> Any:
    return [np.zeros(6)]


def give_neighbour(rows: Any) -> Any:
    return rows[-1:]


def give_nan(rows: Any) -> Any:
    return [np.full(6, np.nan)]


class BlanksOthersToo(Colours):
    def transform(self, X: Any) -> Any:
        try:
            return super().transform(X)
        except (OSError, ValueError):
            return np.full((len(X), 6), np.nan)


class NeedsToWrite(Colours):
    def read(self, image: Any) -> Any:
        if isinstance(image, np.ndarray):
            image.setflags(write=True)
        return super().read(image)


class ShrinksPictures(Colours):
    def read(self, image: Any) -> Any:
        if isinstance(image, Image.Image):
            image.thumbnail((32, 32))
        return super().read(image)


class EmptiesTheList(Colours):
    def rows(self, X: Any) -> Any:
        rows = super().rows(X)
        if isinstance(X, list):
            X.append(X.pop(0))
        return rows


class MirrorsOneForm(Colours):
    def read(self, image: Any) -> Any:
        pixels = super().read(image)
        return pixels[:, ::-1] if form_of(image) == self.options else pixels


class NamesTooFew(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return super().get_feature_names_out()[1:]


class RepeatsName(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return np.array(["colour"] * 6, dtype=object)


class ListsNames(Colours):
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return super().get_feature_names_out().tolist()


class MiscountsColumns(Colours):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        self.n_features_out_ = 5
        return self


class SetOutputReturnsNone(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        super().set_output(transform=transform)


class SetOutputRescales(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        self.scale = 2.0
        return super().set_output(transform=transform)


class IgnoresSetOutput(Colours):
    def set_output(self, *, transform: Any = None) -> Any:
        return self


class GivesNoFrames(Colours):
    pass


# Set afterwards, so that scikit-learn does not wrap it.
GivesNoFrames.transform = Colours.transform.__wrapped__

CASES: list[tuple[Any, list[str]]] = [
    (CopiesParameter(), ["check_estimator_cloneable"]),
    (HasNoRepr(), ["check_estimator_repr"]),
]
