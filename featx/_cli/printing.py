"""What commands print, and where: results to standard output, remarks to standard error."""

from __future__ import annotations

import json
import math
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from featx._errors import ImageDecodeWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featx._errors import DecodeFailure

_WIDTH_OF_A_PIPE = 1000


def report_skipped(skipped: Sequence[str]) -> None:
    """Say how many files were left out."""
    if skipped:
        typer.echo(
            f"Skipped, as hidden or no images by their names: {len(skipped)}, the first "
            f"{skipped[0]!r}",
            err=True,
        )


def report_failures(failures: Sequence[DecodeFailure]) -> None:
    """Say which images could not be read, and why."""
    for failure in failures:
        typer.echo(f"Unreadable: {failure.source}: {failure.reason}", err=True)


@contextmanager
def warnings_as_remarks() -> Iterator[None]:
    """Say what a person should know as the other commands do, not as Python shows warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                if isinstance(warning.message, ImageDecodeWarning):
                    report_failures(warning.message.failures)
                else:
                    typer.echo(f"Warning: {warning.message}", err=True)


def json_row(row: dict[Any, Any]) -> dict[Any, Any]:
    """Return a row in which what is no number is null: JSON has neither NaN nor infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def print_json(value: Any) -> None:
    """Print a result for programs."""
    # NaN is not JSON: whoever reads this must not need a parser that takes it.
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, title in enumerate(header):
        # The names in the first column are what people copy: they are never shortened.
        table.add_column(title, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width to fit into, and a wrapped table is one that no program can read.
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    Console(width=width).print(table)
