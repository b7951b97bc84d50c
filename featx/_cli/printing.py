"""What commands print, and where: results to standard output, remarks to standard error."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from featx._errors import ImageDecodeWarning
from featx._files import json_text, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from featx._errors import DecodeFailure

NOT_KNOWN = "–"  # a figure that is not there
_WIDTH = 1000  # no table is wider


def report_skipped(skipped: Sequence[str]) -> None:
    """Say how many files were left out, by their endings."""
    from featx._images.folders import count_endings

    if skipped:
        typer.echo(
            f"Skipped, as hidden, outside the class folders or no images by their names: "
            f"{count_endings(skipped)}; the first is {skipped[0]!r}",
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


def print_json(value: Any) -> None:
    """Print a result for programs; what is no finite number is null, as JSON has no NaN."""
    typer.echo(json_text(value))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in rows:
        table.add_row(*row)
    # A line longer than the terminal goes on in the next one: names and figures are what people
    # copy, and are never shortened.
    Console(width=_WIDTH).print(table)


def csv_of(table: pd.DataFrame) -> bytes:
    """Return a table as CSV, in which names of files that are no UTF-8 are what they are."""
    return table.to_csv(index=False).encode("utf-8", "surrogateescape")


def write_csv(table: pd.DataFrame, out: Path | None) -> None:
    """Write a table to a file that is whole or absent; nothing where none is named."""
    if out is not None:
        with write_atomically(out) as file:
            file.write(csv_of(table))


def figure(value: float | None, form: str, unit: str = "") -> str:
    """Return a figure for people, or what stands for one that is not there."""
    return NOT_KNOWN if value is None or math.isnan(value) else f"{value:{form}}{unit}"
