"""Checks of the rows, one an image in whatever form it comes, and of them as data frames."""

from __future__ import annotations

import operator
import os
import re
import tempfile
import warnings
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
from sklearn import config_context

from featx.testing._subject import (
    FORMS,
    UNREADABLE,
    Subject,
    dense,
    form_of,
    image_check,
    pixels_of,
    require,
    rows_are_alike,
)

_SAYS_ONE_IMAGE = re.compile(r"\b(1|one) (sample|image|class)|n_(samples|images) ?= ?1\b")


@image_check
def check_transformer_general(subject: Subject) -> None:
    """One row an image, and `fit_transform` gives the rows of `fit` and then `transform`."""
    expected = subject.rows()
    count = len(subject.images)
    require(len(expected) == count, f"transform gave {len(expected)} rows for {count} images")
    estimator = subject.fresh()
    for time in ("first", "second"):
        subject.require_same_rows(
            estimator.fit_transform(subject.images, subject.labels),
            expected,
            f"the {time} fit_transform and fit().transform() give different rows",
        )


@image_check
def check_transformer_list_and_array(subject: Subject) -> None:
    """`transform` gives the same rows for a list of images and an array of them."""
    estimator = subject.fresh()
    images = _as_array(subject.images)
    estimator.fit(images, subject.labels)
    subject.require_same_rows(
        estimator.transform(images), subject.rows(), "a list and an array give different rows"
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
def check_methods_sample_order_invariance(subject: Subject) -> None:
    """Images in another order give the same rows in that order."""
    estimator = subject.fitted()
    rows = dense(estimator.transform(subject.images))
    if rows_are_alike(rows):
        raise SkipTest("all images give the same row, so that their order cannot be seen")
    order = np.roll(np.arange(len(subject.images)), 1)
    subject.require_same_rows(
        estimator.transform([subject.images[row] for row in order]),
        rows[order],
        "images in another order give other rows",
    )


@image_check
def check_methods_subset_invariance(subject: Subject) -> None:
    """`transform` of an image alone gives the row that it gives among others."""
    estimator = subject.fitted()
    subject.require_same_rows(
        np.vstack([dense(estimator.transform([image])) for image in subject.images]),
        estimator.transform(subject.images),
        "images one by one give other rows than all at once",
    )


@image_check
def check_fit_one_image(subject: Subject) -> None:
    """One image can be fitted and gives one row, or the `ValueError` says that it is too few."""
    try:
        output = subject.fresh().fit_transform(subject.images[:1], subject.labels[:1])
    except ValueError as error:
        require(
            _SAYS_ONE_IMAGE.search(str(error)) is not None,
            f"fit on one image raised an error that does not say so: {error}",
        )
        return
    require(len(dense(output)) == 1, f"one image gave {len(dense(output))} rows")


@image_check
def check_finite_output(subject: Subject) -> None:
    """Images that can be read give neither NaN nor infinity."""
    finite = np.isfinite(subject.rows())
    require(bool(finite.all()), f"{np.sum(~finite)} of {finite.size} values are not finite")


@image_check
def check_unreadable_image(subject: Subject) -> None:
    """`transform` of an image that cannot be read raises an error, or its row is NaN.

    To drop it moves every later row to another image; zeros, or the row of a neighbour, pass for
    an embedding.
    """
    estimator = subject.fitted()
    good = [pixels_of(image) for image in subject.images[:2]]
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
            _require_nan_between(subject, dense(output), expected, form)
    if refused == len(UNREADABLE):
        raise SkipTest("it takes no image of a form that can be unreadable")


def _require_nan_between(
    subject: Subject, rows: np.ndarray, expected: np.ndarray, form: str
) -> None:
    require(len(rows) == 3, f"3 images, one of them unreadable, gave {len(rows)} rows")
    require(
        bool(np.isnan(rows[1]).all()),
        f"an unreadable image ({form}) gave a row of numbers, not an error or NaN",
    )
    subject.require_same_rows(
        rows[[0, 2]], expected, f"an unreadable image ({form}) changes the other rows"
    )


@image_check
def check_readonly_memmap_input(subject: Subject) -> None:
    """Arrays that cannot be written to, as workers of joblib get them, give the same rows."""
    arrays = [
        image if isinstance(image, np.ndarray) else pixels_of(image) for image in subject.images
    ]
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for row, each in enumerate(arrays):
            path = Path(folder) / f"{row}.npy"
            np.save(path, each)
            images.append(np.load(path, mmap_mode="r"))
        estimator = subject.fitted()
        expected = _transform_unless_refused(estimator, arrays)
        subject.require_same_rows(
            estimator.transform(images), expected, "read-only arrays give other rows"
        )
        subject.fresh().fit(images, subject.labels)


@image_check
def check_input_unchanged(subject: Subject) -> None:
    """`fit` and `transform` leave the images as they are."""
    items = list(subject.images)
    contents = [_content(image) for image in items]
    estimator = subject.fitted()
    _require_unchanged(subject.images, items, contents, "fit")
    estimator.transform(subject.images)
    _require_unchanged(subject.images, items, contents, "transform")


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


def _form_check(form: str) -> None:
    def body(subject: Subject) -> None:
        pixels = [pixels_of(image) for image in subject.images]
        estimator = subject.fitted()
        with tempfile.TemporaryDirectory() as folder:
            own = [FORMS[form_of(subject.images[0])](each, Path(folder)) for each in pixels]
            other = [FORMS[form](each, Path(folder)) for each in pixels]
            expected = estimator.transform(own)
            subject.require_same_rows(
                _transform_unless_refused(estimator, other),
                expected,
                f"the same pixels give other rows as {form}",
            )

    image_check(
        body,
        f"check_input_form_{form}",
        f"The same pixels give the same rows as {form}, unless that form is refused.",
    )


# A refusal skips the check of a form, so that it is seen; other rows fail it.
for _form in FORMS:
    _form_check(_form)


@image_check
def check_transformer_get_feature_names_out(subject: Subject) -> None:
    """There is one name a column: an array of str objects, all different."""
    estimator = subject.fitted()
    if not hasattr(estimator, "get_feature_names_out"):
        raise SkipTest("it has no get_feature_names_out")
    names = estimator.get_feature_names_out()
    require(
        isinstance(names, np.ndarray) and names.dtype == object,
        f"get_feature_names_out gave {type(names).__name__} but expected an array of objects",
    )
    require(all(isinstance(name, str) for name in names), "not every name is a str")
    require(len(set(names)) == len(names), "some columns have the same name")
    width = dense(estimator.transform(subject.images)).shape[1]
    require(len(names) == width, f"got {len(names)} names for {width} columns")


@image_check
def check_n_features_out(subject: Subject) -> None:
    """``n_features_out_`` is the number of columns."""
    estimator = subject.fitted()
    if not hasattr(estimator, "n_features_out_"):
        raise SkipTest("it has no n_features_out_")
    width = dense(estimator.transform(subject.images)).shape[1]
    require(
        estimator.n_features_out_ == width,
        f"n_features_out_ is {estimator.n_features_out_} but there are {width} columns",
    )


@image_check
def check_set_output_transform(subject: Subject) -> None:
    """``set_output(transform="default")`` gives what no setting gives."""
    estimator = subject.fresh()
    _set_output(estimator, "default")
    subject.require_same_rows(
        estimator.fit_transform(subject.images, subject.labels),
        subject.rows(),
        'set_output(transform="default") changes rows',
    )


def _set_output(estimator: Any, library: str) -> None:
    _skip_without_set_output(estimator)
    result = estimator.set_output(transform=library)
    require(result is estimator, f"set_output returned a {type(result).__name__}, not self")


def _skip_without_set_output(estimator: Any) -> None:
    if not hasattr(estimator, "set_output"):
        raise SkipTest("it has no set_output")


def _frame_check(name: str, library: str, *, everywhere: bool) -> None:
    def body(subject: Subject) -> None:
        estimator = subject.fresh()
        _skip_without_set_output(estimator)
        if find_spec(library) is None:
            raise SkipTest(f"{library} is not installed")
        plain = subject.fitted().transform(subject.images)
        if hasattr(plain, "toarray"):
            raise SkipTest("its output is sparse, which no data frame holds")
        if not everywhere:
            _set_output(estimator, library)
        with config_context(transform_output=library) if everywhere else nullcontext():
            frames = (
                estimator.fit_transform(subject.images, subject.labels),
                estimator.transform(subject.images),
            )
        for frame in frames:
            _require_frame(subject, frame, library, plain, estimator.get_feature_names_out())

    where = "scikit-learn's configuration" if everywhere else "set_output"
    image_check(body, name, f"Asked by {where}, it gives a {library} data frame of its rows.")


def _require_frame(subject: Subject, frame: Any, library: str, rows: Any, names: Any) -> None:
    kind = type(frame)
    require(
        kind.__module__.split(".")[0] == library and kind.__name__ == "DataFrame",
        f"asked for a {library} data frame, it gave a {kind.__name__}",
    )
    require(
        list(frame.columns) == list(names),
        f"the columns of its {library} data frame are not get_feature_names_out()",
    )
    subject.require_same_rows(frame, rows, f"its {library} data frame holds other values")


# As an output of one transformer and of all, in each library that is installed.
_frame_check("check_set_output_transform_pandas", "pandas", everywhere=False)
_frame_check("check_global_output_transform_pandas", "pandas", everywhere=True)
_frame_check("check_set_output_transform_polars", "polars", everywhere=False)
_frame_check("check_global_set_output_transform_polars", "polars", everywhere=True)
