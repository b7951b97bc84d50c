"""Checks of the constructor, the parameters and the tags: scikit-learn's own, and further ones."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import estimator_checks

from featx.testing._subject import image_check, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from featx.testing._subject import Subject

_ODD_VALUES: tuple[Any, ...] = (-1, 3.0, "helloworld", np.array([1.0, 4.0]), [1], {}, [])
_IMMUTABLE = (str, int, float, bool, tuple, type(None), np.generic)


def _borrow(check: Callable[[str, Any], None]) -> None:
    """Take over a check of scikit-learn that looks at no data."""

    def body(subject: Subject) -> None:
        check(type(subject.estimator).__name__, subject.estimator)

    body.__name__ = body.__qualname__ = check.__name__
    body.__doc__ = f"As ``sklearn.utils.estimator_checks.{check.__name__}``."
    image_check(body)


# The first one says whether there can be any other: each needs a clone.
for _check in (
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
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
def check_parameters_default_constructible(subject: Subject) -> None:
    """With required parameters only, it is made of its defaults, and those cannot change."""
    kind = type(subject.estimator)
    given = subject.fresh().get_params(deep=False)
    parameters = _parameters(kind)
    required = [name for name, each in parameters.items() if each.default is each.empty]
    stored = kind(**{name: given[name] for name in required}).get_params(deep=False)
    for name in parameters.keys() - set(required):
        default = parameters[name].default
        require(
            isinstance(default, _IMMUTABLE) or callable(default),
            f"the default of {name} is a {type(default).__name__}, which all instances would "
            "share: take None and make it in fit",
        )
        require(
            name in stored and (stored[name] is default or stored[name] == default),
            f"{name} has the default {default!r} but __init__ stores {stored.get(name)!r}",
        )


@image_check
def check_do_not_raise_errors_in_init_or_set_params(subject: Subject) -> None:
    """``__init__`` and ``set_params`` take anything: `fit` is where parameters are checked."""
    kind = type(subject.estimator)
    for value in _ODD_VALUES:
        values = dict.fromkeys(_parameters(kind), value)
        for name, function in (("__init__", kind), ("set_params", subject.fresh().set_params)):
            try:
                function(**values)
            except Exception as error:
                raise AssertionError(
                    f"{name} given {value!r} for each parameter raised "
                    f"{type(error).__name__}: {error}"
                ) from error


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
