"""Checks of the names of the columns and of data frames as output."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any
from unittest import SkipTest

import numpy as np
from sklearn import config_context

from featx.testing._subject import Subject, dense, image_check, require


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
        try:
            importlib.import_module(library)
        except ImportError:
            raise SkipTest(f"{library} is not installed") from None
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

    body.__name__ = body.__qualname__ = name
    where = "scikit-learn's configuration" if everywhere else "set_output"
    body.__doc__ = f"Asked by {where}, it gives a {library} data frame of its rows."
    image_check(body)


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
