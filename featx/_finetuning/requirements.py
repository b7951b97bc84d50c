"""The package that fine-tuning needs and featx itself does not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from featx._errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def package_required(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Say, where imports in a block fail for want of a package, how to install it.

    Parameters
    ----------
    package : str
        The package; what it misses itself is a fault of another kind.
    extra : str
        The extra of featx that installs it.
    purpose : str
        What needs it, as the beginning of a sentence.

    Raises
    ------
    MissingPackageError
        If it is not installed.

    Examples
    --------
    >>> with package_required("surely_absent", "finetune", "Fine-tuning"):
    ...     import surely_absent
    Traceback (most recent call last):
    featx.MissingPackageError: Fine-tuning needs the package surely_absent, which is not ...
    """
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackageError(
            f"{purpose} needs the package {package}, which is not installed; run: "
            f"pip install 'featx[{extra}]'",
            name=package,
        ) from None
