"""Checks of the constructor, the parameters and the tags; no image is looked at.

The functions are named as those of scikit-learn that they port.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

from featx.testing._subject import image_check, require

if TYPE_CHECKING:
    from featx.testing._subject import Subject

_ODD_VALUES: tuple[Any, ...] = (-1, 3.0, "helloworld", np.array([1.0, 4.0]), [1], {}, [])
_IMMUTABLE = (str, int, float, bool, tuple, type(None), np.generic)


@image_check
def check_estimator_cloneable(subject: Subject) -> None:
    """`clone` makes a copy; every further check needs one."""
    clone(subject.estimator)


@image_check
def check_estimator_repr(subject: Subject) -> None:
    """`repr` gives a text."""
    require(isinstance(repr(subject.fresh()), str), "repr gave no text")


@image_check
def check_estimator_tags_renamed(subject: Subject) -> None:
    """No class has the tag methods that scikit-learn 1.6 removed without the new one."""
    for kind in type(subject.estimator).__mro__:
        old = {"_more_tags", "_get_tags"} & vars(kind).keys()
        require(
            not old or "__sklearn_tags__" in vars(kind),
            f"{kind.__name__} defines {sorted(old)}, which scikit-learn no longer reads: "
            "define __sklearn_tags__",
        )


@image_check
def check_valid_tag_types(subject: Subject) -> None:
    """``__sklearn_tags__`` gives tags of a transformer, each of the right type."""
    standard = Tags(
        estimator_type=None,
        target_tags=TargetTags(required=False),
        transformer_tags=TransformerTags(),
        input_tags=InputTags(),
    )
    _require_tag_types(subject.tags, standard, "tags")


def _require_tag_types(tags: Any, standard: Any, name: str) -> None:
    require(
        isinstance(tags, type(standard)),
        f"{name} is {tags!r} but expected a {type(standard).__name__}",
    )
    for field in dataclasses.fields(standard):
        expected = getattr(standard, field.name)
        value = getattr(tags, field.name)
        if dataclasses.is_dataclass(expected):
            _require_tag_types(value, expected, f"{name}.{field.name}")
        elif expected is not None:
            require(
                isinstance(value, type(expected)),
                f"{name}.{field.name} is {value!r} but expected a {type(expected).__name__}",
            )


@image_check
def check_mixin_order(subject: Subject) -> None:
    """scikit-learn's mixins stand before `BaseEstimator`, which would hide their methods."""
    order = type(subject.estimator).__mro__
    if BaseEstimator not in order:
        return
    late = [
        kind.__name__
        for kind in order[order.index(BaseEstimator) :]
        if kind.__module__.startswith("sklearn.")
        and not issubclass(BaseEstimator, kind)
        and not kind.__name__.startswith("_")
    ]
    require(not late, f"{late} must be inherited before BaseEstimator")


@image_check
def check_no_attributes_set_in_init(subject: Subject) -> None:
    """``__init__`` sets no public attribute but its parameters."""
    estimator = subject.fresh()
    known = {
        name
        for kind in type(estimator).__mro__
        if "__init__" in vars(kind)
        for name in _parameters(vars(kind)["__init__"])
    }
    others = sorted(
        name for name in vars(estimator) if name not in known and not name.startswith("_")
    )
    require(not others, f"__init__ sets {others}, which are not among its parameters")


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
def check_get_params_invariance(subject: Subject) -> None:
    """``get_params(deep=True)`` holds all that ``get_params(deep=False)`` holds."""
    estimator = subject.fresh()
    deep = estimator.get_params(deep=True)
    shallow = estimator.get_params(deep=False)
    others = sorted(name for name, value in shallow.items() if deep.get(name) is not value)
    require(not others, f"get_params(deep=True) has other values of {others}")


@image_check
def check_set_params(subject: Subject) -> None:
    """``get_params`` gives what ``set_params`` got, and ``set_params`` gives the transformer."""
    estimator = subject.fresh()
    expected = estimator.get_params(deep=False)
    require(estimator.set_params(**expected) is estimator, "set_params did not return self")
    for name, original in expected.items():
        for value in (-np.inf, np.inf, None, original):
            estimator.set_params(**{name: value})
            stored = estimator.get_params(deep=False)
            others = [
                other
                for other in expected
                if stored.get(other) is not (value if other == name else expected[other])
            ]
            require(
                not others,
                f"after set_params({name}={value!r}), get_params has other values of {others}",
            )


@image_check
def check_set_params_takes_effect(subject: Subject) -> None:
    """``set_params`` has the effect of ``__init__``: another model is another model at once.

    A transformer that loads its model in ``__init__`` keeps the first one, and a grid search over
    models scores that one again and again.
    """
    kind = type(subject.estimator)
    values = subject.fresh().get_params(deep=False)
    estimator = kind(**dict.fromkeys(_parameters(kind), "helloworld"))
    estimator.set_params(**values)
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
