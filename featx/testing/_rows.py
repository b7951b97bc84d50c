"""Checks of the rows: one an image, whatever stands beside it and in whatever form it comes."""

from __future__ import annotations

import operator
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np

from featx.testing._forms import FORMS, UNREADABLE, form_of, pixels_of
from featx.testing._trial import Trial, dense, image_check, require, rows_are_alike

if TYPE_CHECKING:
    from featx.testing._trial import Check

_SAYS_ONE_IMAGE = re.compile(r"\b(1|one) (sample|image|class)|n_(samples|images) ?= ?1\b")


@image_check
def check_transformer_general(trial: Trial) -> None:
    """One row an image, and `fit_transform` gives the rows of `fit` and then `transform`."""
    expected = trial.rows()
    count = len(trial.images)
    require(len(expected) == count, f"transform gave {len(expected)} rows for {count} images")
    estimator = trial.fresh()
    for time in ("first", "second"):
        trial.require_same_rows(
            estimator.fit_transform(trial.images, trial.labels),
            expected,
            f"the {time} fit_transform and fit().transform() give different rows",
        )


@image_check
def check_transformer_list_and_array(trial: Trial) -> None:
    """`transform` gives the same rows for a list of images and an array of them."""
    estimator = trial.fresh()
    images = _as_array(trial.images)
    estimator.fit(images, trial.labels)
    trial.require_same_rows(
        estimator.transform(images), trial.rows(), "a list and an array give different rows"
    )


def _as_array(images: list[Any]) -> np.ndarray:
    shapes = {image.shape if isinstance(image, np.ndarray) else None for image in images}
    if len(shapes) == 1 and None not in shapes:
        return np.stack(images)
    array = np.empty(len(images), dtype=object)
    for row, image in enumerate(images):
        array[row] = image
    return array


@image_check
def check_methods_sample_order_invariance(trial: Trial) -> None:
    """Images in another order give the same rows in that order."""
    estimator = trial.fitted()
    rows = dense(estimator.transform(trial.images))
    if rows_are_alike(rows):
        raise SkipTest("all images give the same row, so that their order cannot be seen")
    order = np.roll(np.arange(len(trial.images)), 1)
    trial.require_same_rows(
        estimator.transform([trial.images[row] for row in order]),
        rows[order],
        "images in another order give other rows",
    )


@image_check
def check_methods_subset_invariance(trial: Trial) -> None:
    """`transform` of an image alone gives the row that it gives among others."""
    estimator = trial.fitted()
    trial.require_same_rows(
        np.vstack([dense(estimator.transform([image])) for image in trial.images]),
        estimator.transform(trial.images),
        "images one by one give other rows than all at once",
    )


@image_check
def check_fit_one_image(trial: Trial) -> None:
    """One image can be fitted and gives one row, or the `ValueError` says that it is too few."""
    try:
        output = trial.fresh().fit_transform(trial.images[:1], trial.labels[:1])
    except ValueError as error:
        require(
            _SAYS_ONE_IMAGE.search(str(error)) is not None,
            f"fit on one image raised an error that does not say so: {error}",
        )
        return
    require(len(dense(output)) == 1, f"one image gave {len(dense(output))} rows")


@image_check
def check_finite_output(trial: Trial) -> None:
    """Images that can be read give neither NaN nor infinity."""
    finite = np.isfinite(trial.rows())
    require(bool(finite.all()), f"{np.sum(~finite)} of {finite.size} values are not finite")


@image_check
def check_unreadable_image(trial: Trial) -> None:
    """`transform` of an image that cannot be read raises an error, or its row is NaN.

    To drop it moves every later row to another image; zeros, or the row of a neighbour, pass for
    an embedding.
    """
    estimator = trial.fitted()
    good = [pixels_of(image) for image in trial.images[:2]]
    refused = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for form, make_unreadable in UNREADABLE.items():
            first, last = (FORMS[form](pixels, Path(folder)) for pixels in good)
            unreadable = make_unreadable(Path(folder))
            try:
                expected = dense(_transform_unless_refused(estimator, [first, last]))
            except SkipTest:
                refused += 1
                continue
            try:
                output = estimator.transform([first, unreadable, last])
            except Exception:  # noqa: S112 - any error is a right answer
                continue
            _require_nan_between(trial, dense(output), expected, form)
    if refused == len(UNREADABLE):
        raise SkipTest("it takes no image of a form that can be unreadable")


def _require_nan_between(trial: Trial, rows: np.ndarray, expected: np.ndarray, form: str) -> None:
    require(len(rows) == 3, f"3 images, one of them unreadable, gave {len(rows)} rows")
    require(
        bool(np.isnan(rows[1]).all()),
        f"an unreadable image ({form}) gave a row of numbers, not an error or NaN",
    )
    trial.require_same_rows(
        rows[[0, 2]], expected, f"an unreadable image ({form}) changes the other rows"
    )


@image_check
def check_readonly_memmap_input(trial: Trial) -> None:
    """Arrays that cannot be written to, as workers of joblib get them, give the same rows."""
    arrays = [
        image if isinstance(image, np.ndarray) else pixels_of(image) for image in trial.images
    ]
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for row, each in enumerate(arrays):
            path = Path(folder) / f"{row}.npy"
            np.save(path, each)
            images.append(np.load(path, mmap_mode="r"))
        estimator = trial.fitted()
        expected = _transform_unless_refused(estimator, arrays)
        trial.require_same_rows(
            estimator.transform(images), expected, "read-only arrays give other rows"
        )
        trial.fresh().fit(images, trial.labels)


@image_check
def check_input_unchanged(trial: Trial) -> None:
    """`fit` and `transform` leave the images as they are."""
    items = list(trial.images)
    contents = [_content(image) for image in items]
    estimator = trial.fitted()
    _require_unchanged(trial.images, items, contents, "fit")
    estimator.transform(trial.images)
    _require_unchanged(trial.images, items, contents, "transform")


def _require_unchanged(images: list[Any], items: list[Any], contents: list[Any], by: str) -> None:
    same = len(images) == len(items) and all(map(operator.is_, images, items))
    require(same, f"{by} changes the list of images")
    for row, (item, content) in enumerate(zip(items, contents, strict=True)):
        require(np.array_equal(_content(item), content), f"{by} changes image {row}")


def _content(image: Any) -> Any:
    if isinstance(image, (str, bytes, os.PathLike)):
        return image
    return np.asarray(image).copy()


def _transform_unless_refused(estimator: Any, images: list[Any]) -> Any:
    try:
        return estimator.transform(images)
    except Exception as error:
        raise SkipTest(f"refused with {type(error).__name__}: {error}") from error


def _form_check(form: str) -> Check:
    def body(trial: Trial) -> None:
        pixels = [pixels_of(image) for image in trial.images]
        estimator = trial.fitted()
        with tempfile.TemporaryDirectory() as folder:
            own = [FORMS[form_of(trial.images[0])](each, Path(folder)) for each in pixels]
            other = [FORMS[form](each, Path(folder)) for each in pixels]
            expected = estimator.transform(own)
            trial.require_same_rows(
                _transform_unless_refused(estimator, other),
                expected,
                f"the same pixels give other rows as {form}",
            )

    body.__name__ = body.__qualname__ = f"check_input_form_{form}"
    body.__doc__ = f"The same pixels give the same rows as {form}, unless that form is refused."
    return image_check(body)


FORM_CHECKS = tuple(_form_check(form) for form in FORMS)
"""One check a form. A refusal skips it, so that it is seen; other rows fail it."""
