"""The exceptions and warnings of featx, one small family.

Every error that a person can cause derives from `FeatxError`; the command line prints its message
as one line and exits with code 2. Anything else is a fault of featx and keeps its traceback.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@public
class FeatxError(Exception):
    """Base of every error that featx raises on purpose."""


@public
class InputError(FeatxError, ValueError):
    """What was passed cannot be used: the message says what was got and what was expected."""


@public
class ImageDecodeError(FeatxError, ValueError):
    """An image could not be read or decoded.

    Parameters
    ----------
    source : str
        The path of the image, or a description of it where it has no path.
    reason : str
        Why it was refused.
    row : int or None
        Its row in the input, once that is known.
    """

    def __init__(self, source: str, reason: str, row: int | None = None) -> None:
        super().__init__(source, reason, row)
        self.source = source
        self.reason = reason
        self.row = row

    def __str__(self) -> str:
        place = "" if self.row is None else f" (row {self.row})"
        return f"Cannot read image {self.source}{place}: {self.reason}"


@public
class WeightsError(FeatxError):
    """Weights are absent, damaged, or do not fit their network."""


@public
class MissingPackageError(FeatxError, ImportError):
    """An optional package is not installed; the message says how to install it."""


@public
class StaleEmbedderError(FeatxError, RuntimeError):
    """A fitted embedder no longer computes what it computed when it was fitted."""


@public
class SchemaError(FeatxError, ValueError):
    """A file is not one that featx wrote, or is of another version."""


@public
class UntrustedModelError(FeatxError, ValueError):
    """A model file holds types that featx does not load."""


@public
@dataclass(frozen=True)
class DecodeFailure:
    """One image that could not be read: its row, its path (or description) and the reason.

    See Also
    --------
    featx.ImageDecodeWarning : Holds them as ``failures``.
    """

    row: int
    source: str
    reason: str


@public
class ImageDecodeWarning(UserWarning):
    """Some images could not be read and their rows are NaN; `failures` lists each."""

    def __init__(self, failures: Sequence[DecodeFailure], total: int) -> None:
        self.failures = tuple(failures)
        self.total = total
        first = self.failures[0]
        super().__init__(
            f"{len(self.failures)} of {total} images could not be read and their rows are NaN; "
            f"the first is row {first.row}, {first.source}: {first.reason}"
        )

    def __reduce__(self) -> tuple[type, tuple[tuple[DecodeFailure, ...], int]]:
        return type(self), (self.failures, self.total)


@public
class CacheWarning(UserWarning):
    """The cache could not be used or held damaged rows; the embeddings are right all the same."""


@public
class RuntimeFallbackWarning(UserWarning):
    """A runtime could not be built and another took its place; the embeddings are as exact."""


@public
class PrecisionWarning(UserWarning):
    """A lower precision moves the vectors of this network away from those of float32."""


def reason_of(error: BaseException) -> str:
    """Return what an error of the system or of a library says, on one line.

    Examples
    --------
    >>> reason_of(PermissionError(13, "Permission denied", "a.jpg")), reason_of(MemoryError())
    ('Permission denied', 'MemoryError')
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence part that offers the known names nearest to a mistyped one.

    Examples
    --------
    >>> did_you_mean("efficentnet_lite0", ["efficientnet_lite0", "resnet50"])
    "; did you mean 'efficientnet_lite0'?"
    >>> did_you_mean("zebra", ["efficientnet_lite0"])
    ''
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not near:
        return ""
    return "; did you mean " + " or ".join(repr(match) for match in near) + "?"
