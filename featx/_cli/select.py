"""`featx select`: the best head by cross-validation, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx._cli import options, printing

if TYPE_CHECKING:
    from featx._selection.selection import Selection


@options.with_embedder_options()
def select(
    train: options.Images,
    out: Annotated[Path, typer.Option(help="The folder for model, scores and embeddings.")],
    embedder: Any,
    test: options.TestImages = None,
    heads: Annotated[
        str, typer.Option(help="Heads to try, separated by commas, or 'all'.")
    ] = "all",
    folds: Annotated[int, typer.Option("--cv", min=2, help="Folds of the cross-validation.")] = 5,
    jobs: Annotated[int, typer.Option(help="Worker processes of the search.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and the heads.")] = 0,
    skip_unreadable: options.SkipUnreadable = False,
    path_column: options.PathColumn = "path",
    root: options.Root = None,
    suffix: options.Suffix = "",
    label_column: options.LabelColumn = options.LABEL,
    as_json: options.AsJson = False,
) -> None:
    """Choose the best head by cross-validation, score it on held-out images, and save it.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    train_images = options.load_labelled(train, path_column, label_column, root, suffix)
    test_images = options.load_labelled(test, path_column, label_column, root, suffix)

    from featx._selection.selection import check_output_folder, select_model

    check_output_folder(out)
    with options.advice_on_unreadable(skip_unreadable):
        selection = select_model(
            train_images,
            test_images,
            heads=options.one_or_several(heads),
            embedder=embedder(),
            cv=folds,
            n_jobs=jobs,
            random_state=seed,
            skip_unreadable=skip_unreadable,
        )
    files = selection.save(out)
    printing.report_skipped(options.skipped_of(train_images, test_images))
    printing.report_failures(selection.failures)
    if selection.shared_images:
        typer.echo(
            f"Held-out images that are also in the training set: {selection.shared_images}; the "
            "held-out accuracy is too high by them",
            err=True,
        )
    if as_json:
        printing.print_json(selection.summary() | {"files": [str(file) for file in files]})
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
    printing.print_table(
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
