"""`featx predict`: labels and probabilities of new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx._cli.options import (
    AsJson,
    Cache,
    Device,
    ImagesOrList,
    PathColumn,
    SkipUnreadable,
    advice_on_unreadable,
    load_unlabelled,
)
from featx._cli.printing import print_json, report_failures, report_skipped


def predict(
    model: Annotated[Path, typer.Argument(help="A model that 'featx select' wrote.")],
    images: ImagesOrList,
    out: Annotated[
        Path | None, typer.Option(help="The CSV file to write; stdout by default.")
    ] = None,
    device: Device = "auto",
    cache: Cache = "auto",
    skip_unreadable: SkipUnreadable = False,
    path_column: PathColumn = "path",
    as_json: AsJson = False,
) -> None:
    """Write path, label and probability of new images as CSV."""
    found = load_unlabelled(images, path_column, None)

    from featx._files import output_file
    from featx._persistence import load_model
    from featx._prediction import predict_images, write_predictions

    if out is not None:
        output_file(out)  # refused before the work
    with advice_on_unreadable(skip_unreadable):
        predictions, failures = predict_images(
            load_model(model),
            found.paths,
            skip_unreadable=skip_unreadable,
            device=device,
            cache=cache,
        )
    report_skipped(found.skipped)
    report_failures(failures)
    if out is not None:
        write_predictions(predictions, out)
    if as_json:
        print_json(predictions.to_dict("records"))
    elif out is None:
        typer.echo(predictions.to_csv(index=False), nl=False)
    else:
        typer.echo(f"{len(predictions)} predictions in {out}")
