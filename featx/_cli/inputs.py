"""From what a person names on the command line to images, labels and an embedder."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx._cli.options import LABEL
from featx._errors import ImageDecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD_INPUT = Path("-")


def _is_table(images: Path) -> bool:
    from featx._images.archives import is_archive

    return images.is_file() and not is_archive(images)


def load_labelled(images: Path, path_column: str, label_column: str) -> Any:
    """Return the images and labels of a folder, an archive or a table."""
    from featx._images.sources import load_image_folder, load_manifest

    if _is_table(images):
        return load_manifest(images, path_column=path_column, label_column=label_column)
    return load_image_folder(images)


@dataclass(frozen=True)
class Found:
    """Images to embed: paths, labels where there are, a table's further columns, the left out."""

    paths: Any
    labels: Any | None = None
    further: dict[str, list[Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def load_unlabelled(images: Path, path_column: str, label_column: str | None) -> Found:
    """Return the images of anything that a command takes, and what stands beside them."""
    from featx._images.folders import IMAGE_SUFFIXES
    from featx._images.sources import find_images, load_manifest, load_path_list

    if images == _STANDARD_INPUT:
        return Found(load_path_list(sys.stdin.buffer))
    if _is_table(images) and images.suffix.lower() not in IMAGE_SUFFIXES:
        table = load_manifest(images, path_column=path_column, label_column=label_column)
        # A table whose labels are where select looks for them has them, asked for or not.
        labels = table.further.pop(LABEL, None) if label_column is None else table.target
        return Found(table.data, labels, table.further)
    if images.is_file() and images.suffix.lower() in IMAGE_SUFFIXES:
        return Found([str(images)])
    paths, skipped = find_images(images)
    return Found(paths, skipped=skipped)


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


def skipped_of(found: Any) -> list[str]:
    """Return the files that were left out of a folder."""
    return [] if found is None else found.get("skipped", [])
