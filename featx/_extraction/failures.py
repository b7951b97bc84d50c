"""Failures: what is said where images could not be read."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from featx._errors import ImageDecodeError, ImageDecodeWarning, InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx._errors import DecodeFailure
    from featx._extraction.extractor import Extraction

ERROR_POLICIES = ("raise", "nan")
"""What ``on_error=`` may be."""


def check_error_policy(on_error: Any) -> None:
    """Raise InputError unless it is one of `ERROR_POLICIES`.

    Examples
    --------
    >>> check_error_policy("nann")
    Traceback (most recent call last):
    featx.InputError: Got on_error='nann' but expected 'raise' or 'nan'; did you mean 'nan'?
    """
    if on_error not in ERROR_POLICIES:
        hint = did_you_mean(str(on_error), ERROR_POLICIES)
        raise InputError(f"Got on_error={on_error!r} but expected 'raise' or 'nan'{hint}")


def refuse_all_failed(failures: Sequence[DecodeFailure], n_images: int) -> None:
    """Raise `ImageDecodeError` when not one of some images could be read."""
    if len(failures) == n_images:
        first = failures[0]
        raise ImageDecodeError(
            first.source, f"{first.reason}; none of the {n_images} images could be read", first.row
        )


def warn_of_failures(extraction: Extraction) -> None:
    """Issue one `ImageDecodeWarning` where some could not be read, to the caller of `transform`."""
    if extraction.failures:
        warning = ImageDecodeWarning(extraction.failures, len(extraction.digests))
        # The frames above are transform and the wrapper of scikit-learn's set_output.
        warnings.warn(warning, stacklevel=4)
