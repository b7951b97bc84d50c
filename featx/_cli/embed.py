"""`featx embed`: the embeddings of images as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx._cli import options, printing


@options.with_embedder_options()
def embed(
    images: options.ImagesOrList,
    # Text, as a path would lose the slash at its end.
    out: Annotated[
        str,
        typer.Option(help="A .parquet file, or a folder (as in 'photos/') for a dataset of parts."),
    ],
    embedder: Any,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per forward; by device and memory if not given."),
    ] = None,
    path_column: options.PathColumn = "path",
    root: options.Root = None,
    suffix: options.Suffix = "",
    label_column: Annotated[
        str | None, typer.Option(help="The table's column of labels; 'label' if there is one.")
    ] = None,
    precision_out: Annotated[
        str, typer.Option(help="Of the stored numbers: 'float32', or 'float16' for half the size.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, in place of whatever is there.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the embeddings of images to Parquet, one row per image.

    Run again, it goes on from what is there: a dataset gets what is new, a file becomes the one of
    these images. An image that cannot be read is a row with a null embedding and the reason; the
    exit code is then 1.
    """
    found = options.load_unlabelled(images, path_column, label_column, root, suffix)

    from featx._export import export_embeddings

    n_before = _count_rows(out)
    summary = export_embeddings(
        found.paths,
        out,
        embedder=embedder(batch_size=batch_size or "auto", on_error="nan"),
        labels=found.labels,
        further=found.further,
        precision_out=precision_out,
        overwrite=overwrite,
    )
    printing.report_skipped(found.skipped)
    printing.report_failures(summary.failures)
    if as_json:
        printing.print_json(
            {
                "rows": summary.rows,
                "dimension": summary.dimension,
                "new": summary.new,
                "kept": summary.kept,
                "replaced": summary.replaced,
                "unreadable": len(summary.failures),
                "files": [str(file) for file in summary.files],
            }
        )
    else:
        n_removed = n_before - summary.kept - summary.replaced
        removed = f", {n_removed} of other images removed" if n_removed > 0 else ""
        before = (
            ""
            if summary.new == summary.rows and not removed
            else f" ({summary.new} new, {summary.kept} kept, {summary.replaced} replaced{removed})"
        )
        typer.echo(
            f"{summary.rows} rows of {summary.dimension} columns{before}, {len(summary.failures)} "
            f"without an embedding, in {out}"
        )
    if summary.failures:
        raise typer.Exit(1)


def _count_rows(out: str) -> int:
    """Return how many rows the file has that an export is about to replace; 0 where it is none."""
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(out).num_rows) if Path(out).is_file() else 0
    except (OSError, pyarrow.ArrowException):
        return 0
