"""`featx compare`: whether a frozen network is enough for some images, or training it pays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx._cli import options, printing
from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from featx._comparison.comparison import Comparison


@options.with_embedder_options("runtime", "precision", "pixel_range")
def compare(
    data: options.Images,
    embedder: Any,
    test: options.TestImages = None,
    strategies: Annotated[
        str,
        typer.Option(
            help="'default', 'all', or names separated by commas: the heads 'logistic_regression', "
            "'linear_svm', 'rbf_svm', 'random_forest', 'k_nearest_neighbors' and 'linear_head' on "
            "the frozen network; 'last_stage', 'all_layers' and 'from_scratch' train it."
        ),
    ] = "default",
    labels_per_class: Annotated[
        str,
        typer.Option(
            help="How many labels of each class are used; several, such as 10,50,all, give "
            "learning curves."
        ),
    ] = "all",
    folds: Annotated[
        int, typer.Option("--cv", min=2, help="Folds of the cross-validation; none with --test.")
    ] = 3,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the images when layers are trained.")
    ] = 10,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of folds, draws, heads and trainings.")
    ] = 0,
    out: Annotated[
        Path | None,
        options.out_file("A CSV file with a row per training, kept as they are done."),
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    path_column: options.PathColumn = "path",
    root: options.Root = None,
    suffix: options.Suffix = "",
    label_column: options.LabelColumn = options.LABEL,
    as_json: options.AsJson = False,
) -> None:
    """Compare a frozen network and its heads with ways of training it, under the same splits.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    images = options.load_labelled(data, path_column, label_column, root, suffix)
    test_images = options.load_labelled(test, path_column, label_column, root, suffix)

    from featx._comparison.compare import compare_strategies

    with options.advice_on_unreadable(skip_unreadable), printing.warnings_as_remarks():
        comparison = compare_strategies(
            images.data,
            images.target,
            X_test=test_images and test_images.data,
            y_test=test_images and test_images.target,
            strategies=options.one_or_several(strategies),
            embedder=embedder(),
            labels_per_class=list(map(_parse_budget, options.split_names(labels_per_class))),
            cv=folds,
            epochs=epochs,
            random_state=seed,
            skip_unreadable=skip_unreadable,
            report=_make_report(out),
        )
    printing.report_skipped(options.skipped_of(images, test_images))
    if as_json:
        rows = comparison.summary().to_dict("records")
        printing.print_json({"strategies": rows, "verdict": comparison.verdict()})
        return
    _print_comparison(comparison, folds if test is None else None)
    if out is not None:
        typer.echo(f"Wrote {out}")


def _parse_budget(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"Got --labels-per-class {text!r} but expected whole numbers or 'all', such as "
            "10,50,all"
        ) from None


def _make_report(out: Path | None) -> Callable[[Comparison, int], None]:
    """Return what says after each training how far the comparison has come, and keeps it."""
    begun = time.monotonic()

    def report(comparison: Comparison, total: int) -> None:
        run = comparison.runs[-1]
        budget = run.split.labels_per_class
        labels = "" if budget == "all" else f", {budget} labels a class"
        typer.echo(
            f"[{len(comparison.runs)}/{total}, {time.monotonic() - begun:.0f} s] fold "
            f"{run.split.fold}{labels}: {run.description}: {run.accuracy:.3f}",
            err=True,
        )
        printing.write_csv(comparison.results, out)

    return report


def _print_comparison(comparison: Comparison, folds: int | None) -> None:
    summary = comparison.summary()
    source = "held-out" if folds is None else f"in {folds} folds"
    for budget, table in summary.groupby("labels_per_class", sort=False):
        first = table.iloc[0]
        labels = "all labels" if budget == "all" else f"{budget} labels a class"
        typer.echo(
            f"{labels.capitalize()}: {first['train_images']:.0f} images to train on, "
            f"{first['test_images']} to test, {source}; 95 % intervals:"
        )
        printing.print_table(
            (
                "strategy",
                "accuracy",
                "interval",
                "gain",
                "interval",
                "training",
                "cost",
                "prediction",
            ),
            [_row(row) for row in table.to_dict("records")],
        )
        typer.echo()
    if summary["labels_per_class"].nunique() > 1:
        curves = comparison.learning_curves()
        typer.echo("Accuracy by labels of each class:")
        printing.print_table(
            ("strategy", *map(str, curves.columns)),
            [
                (str(name), *(f"{accuracy:.3f}" for accuracy in row))
                for name, *row in curves.itertuples()
            ],
        )
        typer.echo()
    typer.echo(comparison.verdict())


def _row(row: dict[Any, Any]) -> tuple[str, ...]:
    gain, interval = f"{row['gain']:+.3f}", f"{row['gain_low']:+.3f} to {row['gain_high']:+.3f}"
    if row["gain_low"] == row["gain_high"]:
        gain, interval = printing.NOT_KNOWN, ""
    return (
        row["description"],
        f"{row['accuracy']:.3f}",
        f"{row['low']:.3f} to {row['high']:.3f}",
        gain,
        interval,
        f"{row['fit_seconds']:.1f} s",
        f"{row['cost']:.1f} ×",
        f"{row['predict_seconds'] * 1000:.1f} ms",
    )
