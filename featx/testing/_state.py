"""Checks of the constructor, the parameters and the tags, of `fit` and of the state it leaves."""

from __future__ import annotations

import inspect
import pickle
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from featx.testing._subject import Subject, changed_names, dense, image_check, require, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable


def _borrow(check: Callable[[str, Any], None]) -> None:
    """Take over a check of scikit-learn that looks at no data."""

    def body(subject: Subject) -> None:
        check(type(subject.estimator).__name__, subject.estimator)

    name = check.__name__
    image_check(body, name, f"As ``sklearn.utils.estimator_checks.{name}``.")


# The first one says whether there can be any other: each needs a clone.
for _check in (
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
):
    _borrow(_check)


@image_check
def check_parameters_stored_unchanged(subject: Subject) -> None:
    """``__init__`` stores each parameter as it is: the very object, not a copy of it."""
    kind = type(subject.estimator)
    values = {name: object() for name in _parameters(kind)}
    stored = kind(**values).get_params(deep=False)
    others = sorted(name for name, value in values.items() if stored.get(name) is not value)
    require(not others, f"__init__ does not store {others} as they are passed")


@image_check
def check_set_params_takes_effect(subject: Subject) -> None:
    """``set_params`` has the effect of ``__init__``: another model is another model at once.

    A transformer that loads its model in ``__init__`` keeps the first one, and a grid search over
    models scores that one again and again.
    """
    kind = type(subject.estimator)
    values = subject.fresh().get_params(deep=False)
    estimator = kind(**dict.fromkeys(_parameters(kind), "helloworld"))
    require(estimator.set_params(**values) is estimator, "set_params did not return self")
    estimator.fit(subject.images, subject.labels)
    subject.require_same_rows(
        estimator.transform(subject.images),
        subject.rows(),
        "set_params does not give the rows that __init__ gives with the same parameters",
    )


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: each
        for name, each in inspect.signature(function).parameters.items()
        if name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }


@image_check
def check_fit_score_takes_y(subject: Subject) -> None:
    """`fit` and its like take labels as the second argument, named y, as pipelines pass them."""
    for name in ("fit", "fit_transform", "partial_fit", "score"):
        method = getattr(subject.fresh(), name, None)
        if method is None:
            continue
        arguments = [each for each in inspect.signature(method).parameters if each != "self"]
        require(
            arguments[1:2] in (["y"], ["Y"]),
            f"{name} takes {arguments} but y is expected in the second place",
        )
        method(subject.images, subject.labels)
    if not subject.tags.target_tags.required:
        subject.fresh().fit(subject.images)


@image_check
def check_estimators_fit_returns_self(subject: Subject) -> None:
    """`fit` returns the transformer."""
    estimator = subject.fresh()
    result = estimator.fit(subject.images, subject.labels)
    require(result is estimator, f"fit returned a {type(result).__name__}, not self")


@image_check
def check_estimators_overwrite_params(subject: Subject) -> None:
    """`fit` leaves each parameter as it is, inside too."""
    estimator = subject.fresh()
    before = snapshot(estimator.get_params())
    estimator.fit(subject.images, subject.labels)
    others = changed_names(before, snapshot(estimator.get_params()))
    require(not others, f"fit changes the parameters {others}")


@image_check
def check_dont_overwrite_parameters(subject: Subject) -> None:
    """`fit` sets only attributes that begin or end with an underscore."""
    estimator = subject.fresh()
    before = dict(vars(estimator))
    estimator.fit(subject.images, subject.labels)
    others = sorted(
        name
        for name, value in vars(estimator).items()
        if not name.startswith("_") and not name.endswith("_") and before.get(name) is not value
    )
    require(not others, f"fit sets {others}: learnt attributes end in an underscore")


@image_check
def check_fit_check_is_fitted(subject: Subject) -> None:
    """`check_is_fitted` tells a fitted transformer from an unfitted one, if it needs a fit."""
    if subject.tags.requires_fit:
        try:
            check_is_fitted(subject.fresh())
        except NotFittedError:
            pass
        else:
            raise AssertionError("check_is_fitted takes it for fitted before fit")
    check_is_fitted(subject.fitted())


@image_check
def check_transformers_unfitted(subject: Subject) -> None:
    """Without a fit, `transform` raises `NotFittedError`, or, by its tags, gives the same rows."""
    estimator = subject.fresh()
    if not subject.tags.requires_fit:
        subject.require_same_rows(
            estimator.transform(subject.images),
            subject.rows(),
            "its tags say requires_fit=False but it gives other rows once it is fitted",
        )
        return
    try:
        estimator.transform(subject.images)
    except NotFittedError:
        return
    except Exception as error:
        raise AssertionError(
            f"transform before fit raised {type(error).__name__} but expected NotFittedError: "
            "call check_is_fitted in transform, or set the tag requires_fit=False"
        ) from error
    raise AssertionError("transform works before fit: set the tag requires_fit=False")


@image_check
def check_fit_idempotent(subject: Subject) -> None:
    """`fit` a second time on the same images changes no row."""
    estimator = subject.fitted()
    first = dense(estimator.transform(subject.images))
    estimator.fit(subject.images, subject.labels)
    subject.require_same_rows(
        estimator.transform(subject.images), first, "a second fit on the same images changes rows"
    )


@image_check
def check_dict_unchanged(subject: Subject) -> None:
    """`transform` leaves the transformer as it is, inside too."""
    estimator = subject.fitted()
    before = snapshot(vars(estimator))
    estimator.transform(subject.images)
    others = changed_names(before, snapshot(vars(estimator)))
    require(not others, f"transform changes the attributes {others}")


@image_check
def check_estimators_pickle(subject: Subject) -> None:
    """`pickle` keeps an unfitted one and its parameters, a fitted one and its rows bit for bit."""
    fitted = subject.fitted()
    expected = dense(fitted.transform(subject.images))
    before = snapshot(vars(fitted))
    restored = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    others = changed_names(before, snapshot(vars(fitted)))
    require(not others, f"being pickled changes the attributes {others}")
    lost = sorted(
        name for name in vars(fitted).keys() - vars(restored).keys() if not name.startswith("_")
    )
    require(not lost, f"a pickle loses the attributes {lost}")
    unfitted = pickle.loads(pickle.dumps(subject.fresh()))  # noqa: S301 - our own bytes
    unfitted.fit(subject.images, subject.labels)
    # Not bit for bit: two fits may round differently where two transforms of one state do not.
    subject.require_same_rows(
        unfitted.transform(subject.images), expected, "pickled before fit, it gives other rows"
    )
    require(
        np.array_equal(dense(restored.transform(subject.images)), expected, equal_nan=True),
        "pickled after fit, it gives other rows",
    )


@image_check
def check_estimators_empty_data_messages(subject: Subject) -> None:
    """`fit` on no images raises a `ValueError` that says something."""
    if subject.tags.no_validation:
        raise SkipTest("its tags say that it does not validate its input")
    try:
        subject.fresh().fit([], [])
    except ValueError as error:
        require(str(error).strip() != "", "the ValueError of fit on no images says nothing")
    else:
        raise AssertionError("fit on no images raises no ValueError")


@image_check
def check_pipeline_consistency(subject: Subject) -> None:
    """As the first step of a pipeline it gives the rows that it gives alone."""
    pipeline = make_pipeline(subject.fresh(), "passthrough")
    expected = subject.rows()
    subject.require_same_rows(
        pipeline.fit(subject.images, subject.labels).transform(subject.images),
        expected,
        "in a pipeline, fit and transform give other rows",
    )
    subject.require_same_rows(
        pipeline.fit_transform(subject.images, subject.labels),
        expected,
        "in a pipeline, fit_transform gives other rows",
    )
