"""The arguments and options that commands share, and what is made of them: images, an embedder."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from featx._cli.printing import warnings_as_remarks
from featx._errors import ImageDecodeError
from featx._files import output_file

LABEL = "label"


def out_file(what: str) -> Any:
    """Return the option of a file to write, which is refused before the work."""
    return typer.Option(help=what, callback=lambda out: out and output_file(out))


_IMAGES = "A folder or archive (.zip, .tar) of images, or a table (.csv, .tsv, .parquet) of them"
Images = Annotated[Path, typer.Argument(help=f"{_IMAGES}.")]
ImagesOrList = Annotated[
    list[Path],
    typer.Argument(help=f"{_IMAGES}, or - for a list on standard input, one path a line."),
]
Weights = Annotated[
    str, typer.Option(help="'default', a tag, or a .safetensors or .pth file of the network.")
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', …")]
Cache = Annotated[
    str, typer.Option(help="Folder that keeps embeddings; 'auto' is the user's, 'off' keeps none.")
]
TestImages = Annotated[Path | None, typer.Option(help="Held-out images, as a folder or a table.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Go on without images that cannot be read.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PathColumn = Annotated[str, typer.Option(help="The table's column of paths.")]
Root = Annotated[
    Path | None, typer.Option(help="Folder at which the table's paths start; its own if not given.")
]
Suffix = Annotated[str, typer.Option(help="Put behind each path of the table, such as '.jpg'.")]
LabelColumn = Annotated[str, typer.Option(help="The table's column of labels.")]


def make_embedder(
    backbone: Annotated[
        str, typer.Option(help="The network; see 'featx backbones'.")
    ] = "efficientnet_lite0",
    weights: Weights = "default",
    layers: Annotated[
        str, typer.Option(help="Layers to take, separated by commas; or 'multilevel'.")
    ] = "penultimate",
    pooling: Annotated[
        str,
        typer.Option(help="One for all layers or one for each: 'avg', 'max', 'gem', 'grid2', …"),
    ] = "avg",
    views: Annotated[
        str, typer.Option(help="'center', 'flip', 'five_crops', 'ten_crops' or 'multiscale'.")
    ] = "center",
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the network's input in pixels; its own if not given."),
    ] = None,
    pixel_range: Annotated[
        str,
        typer.Option(help="Black and white of more than 8 bits: 'type', 'image' or as '0,4095'."),
    ] = "type",
    device: Device = "auto",
    runtime: Annotated[
        str, typer.Option(help="What executes the network: 'auto', 'onnx', 'torch' or 'compile'.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the network's arithmetic: 'float32' or 'bfloat16'.")
    ] = "float32",
    cache: Cache = "auto",
    **params: Any,
) -> Any:
    """Return the `ImageEmbedder` that the options describe; ``params`` are its others."""
    from featx import ImageEmbedder

    return ImageEmbedder(
        backbone,
        weights=weights,
        layers=one_or_several(layers),
        pooling=one_or_several(pooling),
        views=views,
        image_size=image_size,
        pixel_range=_pixel_range(pixel_range),
        device=device,
        runtime=runtime,
        precision=precision,
        cache=cache,
        **params,
    )


def _pixel_range(text: str) -> Any:
    try:
        black, white = map(float, text.split(","))
    except ValueError:
        return text
    return black, white


def with_embedder_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `make_embedder`, but for those named.

    The command has a parameter ``embedder``: a function that makes the embedder of these options,
    which is called where the work begins.
    """
    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for option in inspect.signature(make_embedder, eval_str=True).parameters.values()
        if option.name not in without and option.kind is not inspect.Parameter.VAR_KEYWORD
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [option for option in signature.parameters.values() if option.name != "embedder"]

        @wraps(command)
        def run(**values: Any) -> None:
            shared = {option.name: values.pop(option.name) for option in options}
            command(**values, embedder=partial(make_embedder, **shared))

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it
            parameters=[option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in own]
            + options
        )
        return run

    return decorate


def split_names(names: str) -> list[str]:
    """Return the names that commas separate."""
    return [name.strip() for name in names.split(",") if name.strip()]


def one_or_several(names: str) -> str | list[str]:
    """Return the names that commas separate, or the only one as it is: it may be a word for all."""
    parts = split_names(names)
    return parts[0] if len(parts) == 1 else parts


def _is_table(images: Path) -> bool:
    from featx._images.archives import PACKED_SUFFIXES

    return images.is_file() and not images.name.lower().endswith(PACKED_SUFFIXES)


def _is_image(path: Path) -> bool:
    """Tell whether a path is one image, by its ending or its content; it may be in an archive."""
    from featx._images.archives import PACKED_SUFFIXES, open_archive, split_archive_path
    from featx._images.folders import IMAGE_SUFFIXES
    from featx._images.manifests import TABLE_SUFFIXES

    member = None if path.exists() else split_archive_path(path)
    if member is not None:
        return member[1] in open_archive(member[0]).names
    suffix = path.suffix.lower()
    if path.is_file() or (path.is_symlink() and not path.exists()):
        if path.name.lower().endswith((*IMAGE_SUFFIXES, *TABLE_SUFFIXES, *PACKED_SUFFIXES)):
            return suffix in IMAGE_SUFFIXES
        from featx._images.decode import decode_content
        from featx._images.sources import read_content

        with suppress(ImageDecodeError):
            decode_content(read_content(path))
            return True
    return False


@warnings_as_remarks()
def load_labelled(
    images: Path | None,
    path_column: str,
    label_column: str,
    root: Path | None = None,
    suffix: str = "",
) -> Any:
    """Return the images and labels of a folder, an archive or a table; of None, None."""
    from featx._images.folders import load_image_folder
    from featx._images.manifests import load_manifest

    if images is None:
        return None
    if _is_table(images):
        columns: dict[str, Any] = {"path_column": path_column, "label_column": label_column}
        return load_manifest(images, root=root, suffix=suffix, **columns)
    return load_image_folder(images)


@dataclass(frozen=True)
class Found:
    """Images to embed: paths, labels where there are, a table's further columns, the left out."""

    paths: Any
    labels: Any | None = None
    further: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@warnings_as_remarks()
def load_unlabelled(
    images: list[Path],
    path_column: str,
    label_column: str | None,
    root: Path | None = None,
    suffix: str = "",
) -> Found:
    """Return the images of anything that a command takes, and what stands beside them.

    Of several, it is their images one after the other, with labels where all have some, and without
    further columns.
    """
    found = [_load_one(one, path_column, label_column, root, suffix) for one in images]
    if len(found) == 1:
        return found[0]
    labels = None
    if all(one.labels is not None for one in found):
        labels = [label for one in found for label in one.labels or ()]
    paths = [path for one in found for path in one.paths]
    return Found(paths, labels, skipped=[path for one in found for path in one.skipped])


def _load_one(
    images: Path, path_column: str, label_column: str | None, root: Path | None, suffix: str
) -> Found:
    from featx._images.folders import find_images
    from featx._images.manifests import load_manifest, load_path_list

    if images == Path("-"):
        return Found(load_path_list(sys.stdin.buffer))
    if _is_image(images):
        return Found([str(images)])
    if _is_table(images):
        columns: dict[str, Any] = {"path_column": path_column, "label_column": label_column}
        table = load_manifest(images, root=root, suffix=suffix, **columns)
        # A table whose labels are where select looks for them has them, asked for or not.
        labels = table.further.pop(LABEL, None) if label_column is None else table.target
        return Found(table.data, labels, table.further)
    paths, skipped = find_images(images)
    parts = [Path(path).relative_to(images).parts for path in paths]
    classes = [folder for folder, *below in parts if below]
    # Class folders are labels, as for the other commands; other folders are none.
    labels = classes if len(classes) == len(paths) and len(set(classes)) > 1 else None
    return Found(paths, labels, skipped=skipped)


@contextmanager
def advice_on_unreadable(skip_unreadable: bool) -> Iterator[None]:
    """Say, where an image cannot be read, how to go on without such images."""
    try:
        yield
    except ImageDecodeError as error:
        if skip_unreadable:
            raise
        reason = f"{error.reason}; --skip-unreadable goes on without such images"
        raise ImageDecodeError(error.source, reason, error.row) from error


def skipped_of(*images: Any) -> list[str]:
    """Return the files that were left out of folders; None has none."""
    return [path for found in images if found is not None for path in found.get("skipped", [])]
