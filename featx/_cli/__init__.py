"""The command line: parse, call, print. Everything it does is a call that Python users have too.

Only typer is imported at the top, so that ``featx --help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from featx._cli.backbones import app as backbones
from featx._cli.cache import app as cache
from featx._cli.compare import compare
from featx._cli.embed import embed
from featx._cli.predict import predict
from featx._cli.rank import rank
from featx._cli.select import select
from featx._errors import FeatxError
from featx._version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"featx {__version__}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Images become the embeddings of a frozen, pretrained CNN, ready for scikit-learn."""


for _command in (embed, select, rank, compare, predict):
    app.command()(_command)
app.add_typer(backbones, name="backbones")
app.add_typer(cache, name="cache")


def main() -> None:
    """Run the command line: 0 is success, 2 a fault in what was asked for, 1 any other."""
    # A terminal that cannot show a character shows a question mark, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except FeatxError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
