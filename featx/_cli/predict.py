"""`featx predict`: labels and probabilities of new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx._cli import options, printing


def predict(
    model: Annotated[Path, typer.Argument(help="A model that 'featx select' wrote.")],
    images: options.ImagesOrList,
    out: Annotated[
        Path | None, options.out_file("The CSV file to write; stdout by default.")
    ] = None,
    device: options.Device = "auto",
    cache: options.Cache = "auto",
    skip_unreadable: options.SkipUnreadable = False,
    path_column: options.PathColumn = "path",
    root: options.Root = None,
    suffix: options.Suffix = "",
    as_json: options.AsJson = False,
) -> None:
    """Write path, label and probability of new images as CSV."""
    found = options.load_unlabelled(images, path_column, None, root, suffix)

    from featx._persistence import load_model
    from featx._prediction import predict_images

    with options.advice_on_unreadable(skip_unreadable):
        predictions, failures = predict_images(
            load_model(model),
            found.paths,
            skip_unreadable=skip_unreadable,
            device=device,
            cache=cache,
        )
    printing.report_skipped(found.skipped)
    printing.report_failures(failures)
    printing.write_csv(predictions, out)
    if as_json:
        printing.print_json(predictions.to_dict("records"))
    elif out is None:
        typer.echo(printing.csv_of(predictions), nl=False)
    else:
        typer.echo(f"{len(predictions)} predictions in {out}")
