"""What commands print, and where: results to standard output, remarks to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featx.errors import DecodeFailure

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
