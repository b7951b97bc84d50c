"""Parameters: what each may be, and the line that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from featx._errors import InputError, did_you_mean

Check = tuple[Callable[[Any], bool], str]


def whole(least: int, *, or_none: bool = False) -> Check:
    """Return the check for a whole number."""
    text = f"a whole number of at least {least}" + (" or None" if or_none else "")
    return lambda value: (or_none and value is None) or _is_whole(value, least), text


def real(least: float, most: float = math.inf, *, open_ends: bool, or_none: bool = False) -> Check:
    """Return the check for a finite number between two others."""

    def holds(value: Any) -> bool:
        if value is None:
            return or_none
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        number = float(value)
        is_inside = least < number < most if open_ends else least <= number < most
        return math.isfinite(number) and is_inside

    low = f"above {least:g}" if open_ends else f"of at least {least:g}"
    high = "" if most == math.inf else f" and below {most:g}"
    return holds, f"a number {low}{high}" + (" or None" if or_none else "")


def choice(*names: str) -> Check:
    """Return the check for one of some names."""
    return (
        lambda value: isinstance(value, str) and value in names,
        "one of " + ", ".join(map(repr, names)),
    )


def flag() -> Check:
    """Return the check for True or False."""
    return lambda value: isinstance(value, bool), "True or False"


def sizes() -> Check:
    """Return the check for a sequence of whole numbers above 0, which may be empty."""

    def holds(value: Any) -> bool:
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and all(_is_whole(size, 1) for size in value)

    return holds, "a sequence of numbers of units, such as (256,), or ()"


def check_parameters(values: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Raise InputError at the first value that is not what it may be.

    Examples
    --------
    >>> check_parameters({"epochs": 0}, {"epochs": whole(1)})
    Traceback (most recent call last):
    featx.InputError: Got epochs=0 but expected a whole number of at least 1
    """
    for name, (holds, expected) in checks.items():
        value = values[name]
        if not holds(value):
            hint = did_you_mean(value, expected.split("'")[1::2]) if isinstance(value, str) else ""
            raise InputError(f"Got {name}={value!r} but expected {expected}{hint}")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
