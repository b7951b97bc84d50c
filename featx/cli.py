"""The command line: parse, call, print. Everything it does is a call that Python users have too.

Only typer is imported at the top, so that ``featx --help`` answers at once.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.errors import FeatxError, ImageDecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featx.embedder import ImageEmbedder
    from featx.errors import DecodeFailure
    from featx.selection.selection import Selection

_WIDTH_OF_A_PIPE = 1000
_STANDARD_INPUT = Path("-")
_LABEL = "label"

app = typer.Typer(
    help="Images become the embeddings of a frozen, pretrained CNN, ready for scikit-learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_IMAGES = "A folder or archive (.zip, .tar) of images, or a table (.csv, .tsv, .parquet) of them"
Images = Annotated[Path, typer.Argument(help=f"{_IMAGES}.")]
ImagesOrList = Annotated[
    Path,
    typer.Argument(help=f"{_IMAGES}, or - for a list on standard input, one path a line."),
]
Backbone = Annotated[str, typer.Option(help="The network; see 'featx backbones'.")]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', …")]
Cache = Annotated[
    str, typer.Option(help="Folder that keeps embeddings; 'auto' is the user's, 'none' keeps none.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Go on without images that cannot be read.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PathColumn = Annotated[str, typer.Option(help="The table's column of paths.")]
LabelColumn = Annotated[str, typer.Option(help="The table's column of labels.")]


@app.command()
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
    found = _load_unlabelled(images, path_column, label_column)
    embedder = _make_embedder(backbone, device, cache).set_params(on_error="nan")

    from featx.export import export_embeddings

    summary = export_embeddings(
        found.paths, out, embedder=embedder, labels=found.labels, further=found.further
    )
    _report_skipped(found.skipped)
    _report_failures(summary.failures)
    if as_json:
        figures = {"rows": summary.rows, "dimension": summary.dimension}
        _print_json(figures | {"unreadable": len(summary.failures), "file": str(out)})
    else:
        typer.echo(
            f"{summary.rows} rows of {summary.dimension} columns, {len(summary.failures)} without "
            f"an embedding, in {out}"
        )
    if summary.failures:
        raise typer.Exit(1)


@app.command()
def select(
    train: Images,
    out: Annotated[Path, typer.Option(help="The folder for model, scores and embeddings.")],
    test: Annotated[
        Path | None, typer.Option(help="Held-out images, as a folder or a table.")
    ] = None,
    heads: Annotated[
        str, typer.Option(help="Heads to try, separated by commas, or 'all'.")
    ] = "all",
    folds: Annotated[int, typer.Option("--cv", min=2, help="Folds of the cross-validation.")] = 5,
    jobs: Annotated[int, typer.Option(help="Worker processes of the search.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the folds and the heads.")] = 0,
    backbone: Backbone = "efficientnet_lite0",
    device: Device = "auto",
    cache: Cache = "auto",
    skip_unreadable: SkipUnreadable = False,
    path_column: PathColumn = "path",
    label_column: LabelColumn = _LABEL,
    as_json: AsJson = False,
) -> None:
    """Choose the best head by cross-validation, score it on held-out images, and save it.

    Images are in one folder per class, or in a table with a path and a label column.
    """
    train_images = _load_labelled(train, path_column, label_column)
    test_images = None if test is None else _load_labelled(test, path_column, label_column)

    from featx.selection.selection import check_output_folder, select_model

    check_output_folder(out)
    with _advice_on_unreadable(skip_unreadable):
        selection = select_model(
            train_images,
            test_images,
            heads=heads if heads == "all" else [name.strip() for name in heads.split(",")],
            embedder=_make_embedder(backbone, device, cache),
            cv=folds,
            n_jobs=jobs,
            random_state=seed,
            skip_unreadable=skip_unreadable,
        )
    files = selection.save(out)
    _report_skipped([path for found in (train_images, test_images) for path in _skipped(found)])
    _report_failures(selection.failures)
    if selection.shared_images:
        typer.echo(
            f"Held-out images that are also in the training set: {selection.shared_images}; the "
            "held-out accuracy is too high by them",
            err=True,
        )
    if as_json:
        _print_json(selection.summary() | {"files": [str(file) for file in files]})
    else:
        _print_selection(selection, folds)
        typer.echo(f"Wrote {', '.join(file.name for file in files)} in {out}")


@app.command()
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
    found = _load_unlabelled(images, path_column, None)

    from featx.files import output_file
    from featx.persistence import load_model
    from featx.prediction import predict_images, write_predictions

    if out is not None:
        output_file(out)  # refused before the work
    with _advice_on_unreadable(skip_unreadable):
        predictions, failures = predict_images(
            load_model(model),
            found.paths,
            skip_unreadable=skip_unreadable,
            device=device,
            cache=_parse_cache(cache),
        )
    _report_skipped(found.skipped)
    _report_failures(failures)
    if out is not None:
        write_predictions(predictions, out)
    if as_json:
        _print_json(predictions.to_dict("records"))
    elif out is None:
        typer.echo(predictions.to_csv(index=False), nl=False)
    else:
        typer.echo(f"{len(predictions)} predictions in {out}")


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the networks whose pretrained weights featx knows by name."""
    from featx.backbones.catalog import list_backbones

    entries = [
        {
            "name": entry.name,
            "dimension": entry.dimension,
            "image_size": entry.image_size,
            "parameters": entry.parameters,
            "licence": entry.licence,
            "installed": entry.installed,
            "install": entry.install_command,
        }
        for entry in list_backbones()
    ]
    if as_json:
        _print_json(entries)
        return
    _print_table(
        ("backbone", "dimension", "image size", "parameters", "licence", "weights"),
        [
            (
                str(entry["name"]),
                str(entry["dimension"]),
                f"{entry['image_size']} px",
                f"{entry['parameters']:,}",
                str(entry["licence"]),
                "installed" if entry["installed"] else str(entry["install"]),
            )
            for entry in entries
        ],
    )


def _is_table(images: Path) -> bool:
    from featx.images.archives import is_archive

    return images.is_file() and not is_archive(images)


def _load_labelled(images: Path, path_column: str, label_column: str) -> Any:
    from featx.images.sources import load_image_folder, load_manifest

    if _is_table(images):
        return load_manifest(images, path_column=path_column, label_column=label_column)
    return load_image_folder(images)


@dataclass(frozen=True)
class _Found:
    """Images to embed: paths, labels where there are, a table's further columns, the left out."""

    paths: Any
    labels: Any | None = None
    further: dict[str, list[Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def _load_unlabelled(images: Path, path_column: str, label_column: str | None) -> _Found:
    from featx.images.folders import IMAGE_SUFFIXES
    from featx.images.sources import find_images, load_manifest, load_path_list

    if images == _STANDARD_INPUT:
        return _Found(load_path_list(sys.stdin.buffer))
    if _is_table(images) and images.suffix.lower() not in IMAGE_SUFFIXES:
        table = load_manifest(images, path_column=path_column, label_column=label_column)
        # A table whose labels are where select looks for them has them, asked for or not.
        labels = table.further.pop(_LABEL, None) if label_column is None else table.target
        return _Found(table.data, labels, table.further)
    if images.is_file() and images.suffix.lower() in IMAGE_SUFFIXES:
        return _Found([str(images)])
    paths, skipped = find_images(images)
    return _Found(paths, skipped=skipped)


def _make_embedder(backbone: str, device: str, cache: str) -> ImageEmbedder:
    from featx.embedder import ImageEmbedder

    return ImageEmbedder(backbone, device=device, cache=_parse_cache(cache))


def _parse_cache(cache: str) -> str | None:
    return None if cache == "none" else cache


@contextmanager
def _advice_on_unreadable(skip_unreadable: bool) -> Iterator[None]:
    try:
        yield
    except ImageDecodeError as error:
        if skip_unreadable:
            raise
        reason = f"{error.reason}; --skip-unreadable goes on without such images"
        raise ImageDecodeError(error.source, reason, error.row) from error


def _skipped(found: Any) -> list[str]:
    return [] if found is None else found.get("skipped", [])


def _report_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        typer.echo(
            f"Skipped, as hidden or no images by their names: {len(skipped)}, the first "
            f"{skipped[0]!r}",
            err=True,
        )


def _report_failures(failures: Sequence[DecodeFailure]) -> None:
    for failure in failures:
        typer.echo(f"Unreadable: {failure.source}: {failure.reason}", err=True)


def _print_json(value: Any) -> None:
    # NaN is not JSON: whoever reads this must not need a parser that takes it.
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_selection(selection: Selection, folds: int) -> None:
    skipped = len(selection.train.failures)
    note = f", {skipped} left out as unreadable" if skipped else ""
    typer.echo(
        f"{len(selection.train.paths)} images of {len(selection.search.classes_)} classes{note}; "
        f"accuracy over {folds} folds:"
    )
    _print_table(
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


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, title in enumerate(header):
        # The names in the first column are what people copy: they are never shortened.
        table.add_column(title, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width to fit into, and a wrapped table is one that no program can read.
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    Console(width=width).print(table)


def main() -> None:
    """Run the command line: 0 is success, 2 a fault in what was asked for, 1 any other."""
    # A terminal that cannot show a character shows a question mark, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except FeatxError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
