"""`featx embed`: a Parquet file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.inputs import load_unlabelled, make_embedder
from featx.cli.options import AsJson, Backbone, Cache, Device, ImagesOrList, PathColumn
from featx.cli.printing import print_json, report_failures, report_skipped


def embed(
    images: ImagesOrList,
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    backbone: Backbone = "efficientnet_lite0",
    device: Device = "auto",
    cache: Cache = "auto",
    path_column: PathColumn = "path",
    label_column: Annotated[
        str | None, typer.Option(help="The table's column of labels; 'label' if there is one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the embeddings of images to a Parquet file, one row per image.

    An image that cannot be read is a row with a null embedding and the reason; the exit code is
    then 1.
    """
    found = load_unlabelled(images, path_column, label_column)
    embedder = make_embedder(backbone, device, cache).set_params(on_error="nan")

    from featx.export import export_embeddings

    summary = export_embeddings(
        found.paths, out, embedder=embedder, labels=found.labels, further=found.further
    )
    report_skipped(found.skipped)
    report_failures(summary.failures)
    if as_json:
        figures = {"rows": summary.rows, "dimension": summary.dimension}
        print_json(figures | {"unreadable": len(summary.failures), "file": str(out)})
    else:
        typer.echo(
            f"{summary.rows} rows of {summary.dimension} columns, {len(summary.failures)} without "
            f"an embedding, in {out}"
        )
    if summary.failures:
        raise typer.Exit(1)
