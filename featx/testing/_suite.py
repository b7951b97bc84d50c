"""All checks, one by one or together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from unittest import SkipTest

from featx._checks import refuse
from featx.testing import _rows as rows
from featx.testing import _state as state
from featx.testing._subject import CHECKS, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featx.testing._subject import Check

_CHECKS: tuple[Check, ...] = tuple(
    check for room in (state, rows) for check in CHECKS[room.__name__]
)


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes
    ----------
    name : str
        The name of the check.
    status : {"passed", "skipped", "xfail"}
        A check is skipped where the transformer does not have what it is about; ``"xfail"`` is a
        failure that was expected.
    reason : str
        Why it was skipped, or why its failure was expected.
    """

    name: str
    status: Literal["passed", "skipped", "xfail"]
    reason: str = ""


def image_transformer_checks() -> tuple[Check, ...]:
    """Return the checks, for one test each.

    Returns
    -------
    tuple of functions of (estimator, images=None)
        Each raises where the transformer breaks the promise that the function's docstring names,
        and `unittest.SkipTest`, which pytest shows as skipped, where it does not apply.

    Examples
    --------
    With pytest, each test is named after its check::

        @pytest.mark.parametrize("check", image_transformer_checks())
        def test_my_embedder(check):
            check(MyEmbedder())

    >>> from featx.testing import image_transformer_checks
    >>> image_transformer_checks()[0].__name__
    'check_estimator_cloneable'
    """
    return _CHECKS


def check_image_transformer(
    estimator: Any,
    *,
    images: Sequence[Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[CheckResult]:
    """Check that a transformer of images keeps scikit-learn's contract.

    The rows of a pickled transformer must agree bit for bit, and all others to 1e-4 of the largest
    value, since a network may round differently in another batch.

    Parameters
    ----------
    estimator : transformer
        An instance; it is cloned and left as it is.
    images : sequence of images, optional
        At least 2 different ones that can be read, in a form that the transformer takes. By default
        five random arrays of uint8 and shape (48, 64, 3). The checks of input forms turn their
        pixels into paths, bytes, PIL images, arrays and tensors.
    expected_failed_checks : dict of str to str, optional
        The names of checks that may fail, with the reason of each.

    Returns
    -------
    list of CheckResult
        One for each check that ran: what passed, was skipped, or failed as expected.

    Raises
    ------
    ExceptionGroup
        When checks fail. Its message lists the name and the reason of each; its exceptions are
        theirs, in that order, with their tracebacks. When the transformer cannot be cloned, no
        other check is run.
    InputError
        When the transformer is a class, the images are fewer than 2, or an expected failure is not
        the name of a check.

    Notes
    -----
    Each image is computed about 60 times, so that a small network and few images are quicker.

    A form of input that the transformer refuses, with any error, skips its check and is seen as
    such in the result: to refuse is honest, to take it for something else is not. An unreadable
    image must raise an error or give a row of NaN.

    A transformer without ``get_feature_names_out`` or ``set_output`` is not asked for names and
    data frames, and one whose tags say ``non_deterministic`` not for the same rows twice.

    Examples
    --------
    >>> from featx import ImageEmbedder
    >>> from featx.testing import check_image_transformer
    >>> embedder = ImageEmbedder("timm/test_efficientnet", weights=None, cache=None)
    >>> {result.status for result in check_image_transformer(embedder)}
    {'passed'}
    """
    expected = dict(expected_failed_checks or {})
    names = [check.__name__ for check in _CHECKS]
    for name in expected:
        if name not in names:
            raise refuse("expected_failed_checks", name, "names of checks", names)
    Subject(estimator, images)  # refuses what cannot be tried, before it looks like a failed check
    results: list[CheckResult] = []
    failures: dict[str, Exception] = {}
    for check in _CHECKS:
        name = check.__name__
        try:
            check(estimator, images)
        except SkipTest as skip:
            results.append(CheckResult(name, "skipped", str(skip)))
        except Exception as error:
            if name in expected:
                results.append(CheckResult(name, "xfail", expected[name]))
            else:
                failures[name] = error
            if check is _CHECKS[0]:
                break
        else:
            results.append(CheckResult(name, "passed"))
    if failures:
        raise _report(type(estimator).__name__, failures)
    return results


def _report(transformer: str, failures: Mapping[str, Exception]) -> ExceptionGroup[Exception]:
    lines = [f"- {name}: {_reason(error)}" for name, error in failures.items()]
    for name, error in failures.items():
        error.add_note(f"in {name} of {transformer}")
    head = f"{transformer} fails {len(failures)} of {len(_CHECKS)} checks:"
    return ExceptionGroup("\n".join([head, *lines]), list(failures.values()))


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}"
