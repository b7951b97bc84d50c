"""Checks of parameters: one form of message for what was got, what was expected, what was meant."""

from __future__ import annotations

import math
import unicodedata
from numbers import Integral, Real
from typing import TYPE_CHECKING

from featx._errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_LONGEST = 100


def brief(value: object) -> str:
    """Return the repr of a value, cut where it is long, on one line.

    Examples
    --------
    >>> brief("x" * 200)[-8:]
    "xxxxxx…'"
    """
    # A network prints all of its layers.
    if hasattr(value, "named_modules") and not isinstance(value, type):
        return f"<{type(value).__name__}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}…{text[-1]}"


def refuse(name: str, value: object, expected: str, known: Iterable[str] = ()) -> InputError:
    """Return the error that a parameter is not what it may be; a mistyped text meant one known.

    Examples
    --------
    >>> str(refuse("epochs", 0, "a whole number of at least 1"))
    'Got epochs=0 but expected a whole number of at least 1'
    """
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    return InputError(f"Got {name}={brief(value)} but expected {expected}{hint}")


def as_seen(name: object) -> str:
    """Return a name without case, spaces and what nobody sees; in one of its Unicode forms.

    Examples
    --------
    >>> as_seen("Hot Dog"), as_seen("cafe\u0301") == as_seen("caf\u00e9")
    ('hotdog', True)
    """
    letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(name)).casefold())
    return "".join(
        letter
        for letter in letters
        if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise InputError unless a parameter is one of some names.

    Examples
    --------
    >>> check_choice("on_error", "nann", ["raise", "nan"])
    Traceback (most recent call last):
    featx.InputError: Got on_error='nann' but expected 'raise' or 'nan'; did you mean 'nan'?
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise refuse(name, value, expected, choices)


def check_whole_number(
    name: str, value: object, at_least: int = 0, *, also: Collection[str | None] = ()
) -> None:
    """Raise InputError unless a parameter is a whole number, or one of some other values.

    Examples
    --------
    >>> check_whole_number("num_workers", -1, also=[None])
    Traceback (most recent call last):
    featx.InputError: Got num_workers=-1 but expected None or a whole number of at least 0
    """
    is_other = (value is None or isinstance(value, str)) and value in also
    is_whole = (
        isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least
    )
    if not is_other and not is_whole:
        others = "".join(f"{other!r} or " for other in also)
        known = [other for other in also if other is not None]
        raise refuse(name, value, f"{others}a whole number of at least {at_least}", known)


def check_number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_ends: bool = False,
    or_none: bool = False,
) -> None:
    """Raise InputError unless a parameter is a finite number between two others.

    Examples
    --------
    >>> check_number("dropout", 1, 0, 1)
    Traceback (most recent call last):
    featx.InputError: Got dropout=1 but expected a number of at least 0 and below 1
    """
    if or_none and value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]  # a Real by now
    is_above = low < number if open_ends else low <= number
    if not (math.isfinite(number) and is_above and number < high):
        lower = f"above {low:g}" if open_ends else f"of at least {low:g}"
        upper = "" if high == math.inf else f" and below {high:g}"
        raise refuse(name, value, f"a number {lower}{upper}{' or None' if or_none else ''}")


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless a parameter is True or False.

    Examples
    --------
    >>> check_flag("overwrite", "no")
    Traceback (most recent call last):
    featx.InputError: Got overwrite='no' but expected True or False
    """
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")
