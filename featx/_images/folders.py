"""Images in folders and archives: a subfolder for each class, or a collection without labels."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np

from featx._errors import InputError
from featx._images.archives import (
    COMPRESSED_TAR_SUFFIXES,
    is_archive,
    list_members,
    split_archive_path,
)
from featx._public import public

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""The endings, in lower case, by which a file in a folder is taken for an image."""


@public
def load_image_folder(folder: str | os.PathLike[str], *, return_X_y: bool = False) -> Any:
    """List the images of a folder with one subfolder for each class.

    The name of the subfolder is the label of every image in it, however deep. Nothing is decoded.

    Parameters
    ----------
    folder : str or Path
        The folder that holds the class folders; also a ``.zip`` or ``.tar`` archive, or a folder
        in one (``photos.zip/train``), which is read in place.
    return_X_y : bool
        Return ``(data, target)`` instead.

    Returns
    -------
    sklearn.utils.Bunch
        With ``data`` and ``paths``, the same ndarray of object, shape (n,): the paths as strings,
        beginning with `folder`, sorted by class and path; ``target``, ndarray of str, shape (n,):
        the class names; ``target_names``, list of str: the distinct class names, sorted;
        ``skipped``, list of str: what was left out, which is hidden files and folders, files
        without the ending of an image (`IMAGE_SUFFIXES`), images outside the class folders, and
        class folders without images.

    Raises
    ------
    InputError
        If the folder does not exist, is a file, has no class folders, or no images.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         Path(folder, name, "1.jpg").touch()
    ...     photos = load_image_folder(folder)
    >>> photos.target.tolist()
    ['cat', 'dog']
    >>> [Path(path).name for path in photos.paths]
    ['1.jpg', '1.jpg']
    """
    root = os.fspath(folder)
    in_archive = _is_in_archive(root)
    classes, unlabelled, others = _list_archive(root) if in_archive else _list_folder(root)
    if not classes and unlabelled:
        raise InputError(
            f"Expected one subfolder for each class in {root}, got {len(unlabelled)} "
            "images but none: sort them into class folders, or use find_images or `featx embed`, "
            "which take flat folders."
        )
    if not classes:
        raise _no_images(root, others)
    paths = [path for images in classes.values() for path in images]
    labels = [name for name, images in classes.items() for _ in images]
    skipped = sorted(others + unlabelled, key=_parts)
    return bunch_of_images(paths, labels, return_X_y=return_X_y, skipped=skipped)


def find_images(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """List all images below a folder or an archive that has no labels, and what was passed over.

    Links to folders are followed. Images are told by their ending (`IMAGE_SUFFIXES`), sorted, and
    begin with ``folder``; hidden files and folders are passed over. InputError where there are
    none.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("1.jpg", "2.PNG", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     paths, skipped = find_images(folder)
    >>> [Path(path).name for path in paths]
    ['1.jpg', '2.PNG']
    """
    root = os.fspath(folder)
    paths, skipped = _find_in_archive(root) if _is_in_archive(root) else _find_below(root)
    if not paths:
        raise _no_images(root, skipped)
    return paths, skipped


def bunch_of_images(
    paths: list[str], labels: list[str] | None, *, return_X_y: bool, **attributes: Any
) -> Any:
    """Return paths and labels as scikit-learn's own loaders return data: a Bunch, or a pair."""
    # Imported here, so that a mistyped folder is reported at once.
    from sklearn.utils import Bunch

    data = np.array(paths, dtype=object)
    target = None if labels is None else np.array(labels, dtype=str)
    if return_X_y:
        return data, target
    target_names = None if labels is None else sorted(set(labels))
    return Bunch(data=data, paths=data, target=target, target_names=target_names, **attributes)


_Listing: TypeAlias = tuple[dict[str, list[str]], list[str], list[str]]
"""What is in a folder of class folders: images by class, images beside them, and the rest."""


def _list_folder(root: str) -> _Listing:
    classes: dict[str, list[str]] = {}
    folders, unlabelled, skipped = _scan(root)
    for folder in folders:
        images, others = _find_below(folder, root)
        if images:
            classes[Path(folder).name] = images
        skipped += others if images else [folder, *others]
    return classes, unlabelled, skipped


def _list_archive(root: str) -> _Listing:
    classes: dict[str, list[str]] = {}
    unlabelled: list[str] = []
    images, skipped = _find_in_archive(root)
    for path in images:
        label, *below = Path(path).relative_to(root).parts
        (classes.setdefault(label, []) if below else unlabelled).append(path)
    return classes, unlabelled, skipped


def _is_in_archive(root: str) -> bool:
    """Tell whether a path is an archive or goes into one; if not, it must be a folder."""
    if is_archive(root) or (not Path(root).exists() and split_archive_path(root) is not None):
        return True
    if root.lower().endswith(COMPRESSED_TAR_SUFFIXES):
        raise InputError(
            f"Got {root}, but only .zip and .tar archives are read in place: finding an image in a "
            "compressed tar means unpacking all before it; unpack it, or make a .zip of it"
        )
    if not Path(root).exists():
        raise InputError(f"No such folder: {root}")
    if not Path(root).is_dir():
        raise InputError(f"Expected a folder, got the file {root}")
    return False


def _find_in_archive(root: str) -> tuple[list[str], list[str]]:
    """Return the images and the rest of an archive, or of a folder in one, sorted."""
    archive, below = (root, "") if is_archive(root) else split_archive_path(root) or (root, "")
    images: list[str] = []
    skipped: list[str] = []
    names = list_members(archive, below)
    if not names and below:
        raise InputError(f"No such folder in the archive {archive}: {below}")
    for name in names:
        parts = PurePosixPath(name).parts
        hidden = any(part.startswith(".") for part in parts)
        is_image = not hidden and Path(name).suffix.lower() in IMAGE_SUFFIXES
        (images if is_image else skipped).append(os.fspath(Path(root, *parts)))
    return images, skipped


def _no_images(root: str, others: list[str]) -> InputError:
    if not others:
        return InputError(f"Expected images in {root}, got an empty folder.")
    return InputError(
        f"Expected images in {root}, got {len(others)} other files or folders, the first "
        f"{others[0]}: images end in .jpg, .png and the like."
    )


def _find_below(folder: str, *entered_before: str) -> tuple[list[str], list[str]]:
    """Return the images and the rest, sorted. No folder is entered twice, so links may loop."""
    images: list[str] = []
    skipped: list[str] = []
    entered = {_identity(other) for other in entered_before}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if (identity := _identity(current)) in entered:
            skipped.append(current)
            continue
        entered.add(identity)
        for found, paths in zip((waiting, images, skipped), _scan(current), strict=True):
            found += paths
    return sorted(images, key=_parts), sorted(skipped, key=_parts)


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _scan(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Return the folders, the images and the rest that are in a folder itself, by name."""
    folders: list[str] = []
    images: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"Cannot list the folder {folder}: {error.strerror}") from error
    for entry in found:
        kind = others
        if not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # a link to itself
                if entry.is_dir():
                    kind = folders
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                    kind = images
        kind.append(entry.path)
    return folders, images, others


def _parts(path: str) -> tuple[str, ...]:
    return Path(path).parts
