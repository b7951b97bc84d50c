"""`featx select`: the best head by cross-validation, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx._cli.options import (
    LABEL,
    AsJson,
    Images,
    LabelColumn,
    PathColumn,
    SkipUnreadable,
    TestImages,
    advice_on_unreadable,
    load_labelled,
    skipped_of,
    split_names,
    with_embedder_options,
)
from featx._cli.printing import print_json, print_table, report_failures, report_skipped

if TYPE_CHECKING:
    from featx._selection.selection import Selection


@with_embedder_options()
def select(
    train: Images,
    out: Annotated[Path, typer.Option(help="The folder for model, scores and embeddings.")],
    embedder: Any,
    test: TestImages = None,
    heads: Annotated[
        str, typer.Option(help="Heads to try, separated by commas, or 'all'.")
    ] = "all",
    folds: Annotated[int, typer.Option("--cv", min=2, help="Folds of the cross-validation.")] = 5,
    jobs: Annotated[int, typer.Option(help="Worker processes of the search.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and the heads.")] = 0,
    skip_unreadable: SkipUnreadable = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = LABEL,
    as_json: AsJson = False,
) -> None:
    """Choose the best head by cross-validation, score it on held-out images, and save it.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    train_images = load_labelled(train, path_column, label_column)
    test_images = None if test is None else load_labelled(test, path_column, label_column)

    from featx._selection.selection import check_output_folder, select_model

    check_output_folder(out)
    with advice_on_unreadable(skip_unreadable):
        selection = select_model(
            train_images,
            test_images,
            heads=heads if heads == "all" else split_names(heads),
            embedder=embedder(),
            cv=folds,
            n_jobs=jobs,
            random_state=seed,
            skip_unreadable=skip_unreadable,
        )
    files = selection.save(out)
    report_skipped([path for found in (train_images, test_images) for path in skipped_of(found)])
    report_failures(selection.failures)
    if selection.shared_images:
        typer.echo(
            f"Held-out images that are also in the training set: {selection.shared_images}; the "
            "held-out accuracy is too high by them",
            err=True,
        )
    if as_json:
        print_json(selection.summary() | {"files": [str(file) for file in files]})
    else:
        _print_selection(selection, folds)
        typer.echo(f"Wrote {', '.join(file.name for file in files)} in {out}")


def _print_selection(selection: Selection, folds: int) -> None:
    skipped = len(selection.train.failures)
    note = f", {skipped} left out as unreadable" if skipped else ""
    typer.echo(
        f"{len(selection.train.images)} images of {len(selection.search.classes_)} classes{note}; "
        f"accuracy over {folds} folds:"
    )
    print_table(
        ("head", "accuracy", "fit time", "chosen"),
        [
            (
                score["head"],
                f"{score['mean']:.3f} ± {score['std']:.3f}",
                f"{score['fit_seconds']:.2f} s",
                ", ".join(f"{name}={value:g}" for name, value in score["params"].items()),
            )
            for score in selection.scores.to_dict("records")
        ],
    )
    if selection.held_out is not None:
        low, high = selection.held_out.interval
        typer.echo(
            f"Held-out accuracy of {selection.scores['head'][0]}: "
            f"{selection.held_out.accuracy:.3f} "
            f"({selection.held_out.correct} of {selection.held_out.total}; "
            f"95 % interval {low:.3f} to {high:.3f})"
        )
