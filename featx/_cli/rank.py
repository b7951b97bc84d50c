"""`featx rank`: which pretrained network serves some labelled images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featx._cli.inputs import (
    advice_on_unreadable,
    load_labelled,
    make_embedder,
    skipped_of,
    split_names,
)
from featx._cli.options import (
    LABEL,
    AsJson,
    Cache,
    Device,
    Images,
    LabelColumn,
    Layers,
    PathColumn,
    Pooling,
    SkipUnreadable,
    Views,
)
from featx._cli.printing import (
    json_row,
    print_json,
    print_table,
    report_skipped,
    warnings_as_remarks,
)

if TYPE_CHECKING:
    import pandas as pd

_NONE = "–"


def rank(
    data: Images,
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
            help="Any of 'linear_probe', 'logme', 'knn', 'hscore', 'leep' and 'nce', separated "
            "by commas; the first decides the order."
        ),
    ] = "linear_probe,logme,knn,hscore",
    out: Annotated[Path | None, typer.Option(help="A CSV file for the whole table.")] = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out networks whose weights are not here."),
    ] = False,
    timed_images: Annotated[
        int, typer.Option(min=0, help="Images embedded once more for the time; 0 for no time.")
    ] = 128,
    layers: Layers = "penultimate",
    pooling: Pooling = "avg",
    views: Views = "center",
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of every network's input in pixels; its own if not given."),
    ] = None,
    device: Device = "auto",
    cache: Cache = "auto",
    skip_unreadable: SkipUnreadable = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = LABEL,
    as_json: AsJson = False,
) -> None:
    """Rank networks by how well their embeddings serve labelled images, before any tuning.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    images = load_labelled(data, path_column, label_column)

    from featx._backbones.catalog import DEFAULT_BACKBONE
    from featx._files import output_file, write_atomically
    from featx._selection.ranking import rank_backbones

    if out is not None:
        output_file(out)  # refused before the work
    names = split_names(scores)
    with advice_on_unreadable(skip_unreadable), warnings_as_remarks():
        table = rank_backbones(
            images.data,
            images.target,
            None if backbones is None else split_names(backbones),
            scores=names,
            embedder=make_embedder(
                DEFAULT_BACKBONE,
                layers=layers,
                pooling=pooling,
                views=views,
                image_size=image_size,
                device=device,
                cache=cache,
            ),
            on_missing="skip" if skip_missing else "raise",
            skip_unreadable=skip_unreadable,
            timed_images=timed_images,
        )
    report_skipped(skipped_of(images))
    if out is not None:
        with write_atomically(out) as file:
            table.to_csv(file, index=False)
    if as_json:
        print_json([json_row(row) for row in table.to_dict("records")])
        return
    _print_ranking(table, list(dict.fromkeys(names)))
    if out is not None:
        typer.echo(f"Wrote {out}")


def _print_ranking(table: pd.DataFrame, scores: list[str]) -> None:
    print_table(
        ("rank", "backbone", *scores, "ms per image", "parameters", "dimension", "image size"),
        [
            (
                str(row["rank"]),
                row["backbone"],
                *(_shown(row[score], ".3f") for score in scores),
                _shown(row["seconds_per_image"] * 1000, ".1f"),
                f"{row['parameters']:.1f} M",
                str(row["dimension"]),
                f"{row['image_size']} px",
            )
            for row in table.to_dict("records")
        ],
    )


def _shown(figure: float, form: str) -> str:
    return _NONE if math.isnan(figure) else f"{figure:{form}}"
