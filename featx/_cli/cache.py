"""``featx cache``: what is in the cache, whether it is sound, and how to make it smaller."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from featx._cli import options, printing
from featx._errors import InputError

if TYPE_CHECKING:
    from featx._store.cache import EmbeddingCache
    from featx._store.management import RemovalReport, TableInfo

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

# What is said of a recipe, in this order; the rest is in the output of --json.
_SHOWN_OF_A_RECIPE = [
    "backbone",
    "weights",
    "layers",
    "pooling",
    "views",
    "precision",
    "runtime",
    "device_type",
]

Folder = Annotated[
    str,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="The cache's folder; 'auto' is that of FEATX_CACHE, else the user's cache folder.",
    ),
]

app = typer.Typer(
    name="cache",
    help="Show, check and shrink the folder in which embeddings are kept.",
    no_args_is_help=True,
)


@app.command()
def info(cache: Folder = "auto", as_json: options.AsJson = False) -> None:
    """Show what is stored: each recipe, how much, and when it was last used."""
    found = _open(cache).info()
    if as_json:
        printing.print_json(asdict(found))
        return
    limit = "no limit" if found.max_bytes is None else f"limit {format_bytes(found.max_bytes)}"
    typer.echo(f"{found.folder}: {format_bytes(found.n_bytes)} ({limit})")
    if found.tables:
        printing.print_table(
            ("fingerprint", "rows", "shards", "size", "last use", "recipe"),
            [_row(table) for table in found.tables],
        )
    _say_leftovers(found.n_temporary_files, found.n_void_claims, "left by killed processes")
    if found.n_foreign_files:
        typer.echo(f"Not the cache's own, and left alone: {found.n_foreign_files} files")


@app.command()
def verify(
    cache: Folder = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged or left behind.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Read every stored row and check it; exit with 1 when something is damaged."""
    report = _open(cache).verify(repair=repair)
    if as_json:
        printing.print_json(asdict(report))
    else:
        typer.echo(
            f"{report.n_rows} sound rows and {report.n_damaged_rows} damaged ones in "
            f"{report.n_shards} shards, {len(report.unreadable_shards)} shards unreadable"
        )
        for path in report.unreadable_shards:
            typer.echo(f"Unreadable: {path}")
        for path in report.unchecked_tables:
            typer.echo(f"Not checked, of another version of featx: {path}")
        _say_foreign(report.foreign_files)
        _say_leftovers(
            report.n_temporary_files,
            report.n_void_claims,
            "removed" if repair else "left by killed processes",
        )
        if not report.is_sound:
            typer.echo(
                "What was damaged has been removed and will be computed again"
                if repair
                else "What is damaged is never served; --repair removes it"
            )
    if not report.is_sound:
        sys.exit(1)


@app.command()
def prune(
    cache: Folder = "auto",
    max_size: Annotated[
        str | None, typer.Option(help="What may be left, such as 5GB or 300MB.", metavar="SIZE")
    ] = None,
    unused_days: Annotated[
        float | None, typer.Option(help="Remove what was not used for so many days.", min=0)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove what was not used for long, and what killed processes have left behind."""
    size = None if max_size is None else parse_size(max_size)
    _print_removal(_open(cache).prune(size, unused_days), as_json)


@app.command()
def clear(
    cache: Folder = "auto",
    fingerprint: Annotated[
        str | None, typer.Option(help="Remove only the embeddings of one fingerprint.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove all embeddings; nothing in the folder that is not the cache's own is touched."""
    opened = _open(cache)
    what = "all embeddings" if fingerprint is None else f"the embeddings of {fingerprint}"
    if not yes and not typer.confirm(f"Remove {what} in {opened.folder}?", err=True):
        raise typer.Exit(1)
    _print_removal(opened.clear(fingerprint), as_json)


def parse_size(text: str) -> int:
    """Return a number of bytes that is written as 5GB, 300 MB or 1000."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"Got the size {text!r}, expected one such as 5GB, 300MB or 1000")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes for people."""
    unit = "G" if n_bytes >= _UNITS["G"] else "M"
    return f"{n_bytes / _UNITS[unit]:.1f} {unit}B"


def _open(folder: str) -> EmbeddingCache:
    from featx._store.cache import open_cache

    cache = open_cache(folder)
    if cache is None:
        raise InputError(
            "The cache is turned off by --cache or FEATX_CACHE; name a folder with --cache"
        )
    return cache


def _row(table: TableInfo) -> tuple[str, ...]:
    last_use = "-"
    if table.last_used is not None:
        last_use = time.strftime("%Y-%m-%d %H:%M", time.localtime(table.last_used))
    values = [(table.recipe or {}).get(key) for key in _SHOWN_OF_A_RECIPE]
    words = [" + ".join(map(str, each)) if isinstance(each, list) else each for each in values]
    if table.dimension is not None:
        words.append(f"{table.dimension} numbers each")
    return (
        table.fingerprint,
        str(table.n_rows),
        str(table.n_shards),
        format_bytes(table.n_bytes),
        last_use,
        ", ".join(str(word) for word in words if word),
    )


def _print_removal(report: RemovalReport, as_json: bool) -> None:
    if as_json:
        printing.print_json(asdict(report))
        return
    typer.echo(
        f"Removed {format_bytes(report.n_bytes)} in {report.n_shards} shards; "
        f"{format_bytes(report.n_bytes_left)} are left"
    )
    _say_leftovers(report.n_temporary_files, report.n_void_claims, "removed")
    _say_foreign(report.foreign_files)


def _say_leftovers(n_files: int, n_claims: int, what: str) -> None:
    if n_files or n_claims:
        typer.echo(f"Temporary files and claims {what}: {n_files} and {n_claims}")


def _say_foreign(paths: tuple[str, ...]) -> None:
    for path in paths:
        typer.echo(f"Not the cache's own, and left alone: {path}")
