"""Images in folders and archives: a subfolder for each class, or a collection without labels."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

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
    listing = _list_archive(root) if _in_archive(root) else _list_folder(_existing_folder(root))
    classes = {name: images for name, images in listing.classes.items() if images}
    if not classes and listing.unlabelled:
        raise InputError(
            f"Expected one subfolder for each class in {root}, got {len(listing.unlabelled)} "
            "images but none: sort them into class folders, or use find_images or `featx embed`, "
            "which take flat folders."
        )
    if not classes:
        raise InputError(_no_images(root, listing.skipped))
    paths = [path for images in classes.values() for path in images]
    labels = [name for name, images in classes.items() for _ in images]
    skipped = sorted(listing.skipped + listing.unlabelled, key=_parts)
    return bunch_of_images(paths, labels, return_X_y=return_X_y, skipped=skipped)


def find_images(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """List all images below a folder that has no labels.

    Parameters
    ----------
    folder : str or Path
        Searched with all its subfolders, links to folders included; also a ``.zip`` or ``.tar``
        archive, or a folder in one, which is read in place.

    Returns
    -------
    paths : list of str
        The images, by ending (`IMAGE_SUFFIXES`), sorted; they begin with `folder`.
    skipped : list of str
        Hidden files and folders, and files without the ending of an image.

    Raises
    ------
    InputError
        If the folder does not exist, is a file, or holds no images.

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
    if _in_archive(root):
        paths, skipped = _find_in_archive(root)
    else:
        paths, skipped = _find_below(_existing_folder(root))
    if not paths:
        raise InputError(_no_images(root, skipped))
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


@dataclass
class _Listing:
    """What is in a folder of class folders: images by class, images beside them, and the rest."""

    classes: dict[str, list[str]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def _list_folder(root: str) -> _Listing:
    listing = _Listing()
    for entry in _entries(root):
        if entry.name.startswith("."):
            listing.skipped.append(entry.path)
        elif _is_folder(entry):
            images, others = _find_below(entry.path, root)
            listing.classes[entry.name] = images
            listing.skipped += others if images else [entry.path, *others]
        elif _is_image_file(entry):
            listing.unlabelled.append(entry.path)
        else:
            listing.skipped.append(entry.path)
    return listing


def _list_archive(root: str) -> _Listing:
    listing = _Listing()
    images, listing.skipped = _find_in_archive(root)
    for path in images:
        label, *below = Path(path).relative_to(root).parts
        if below:
            listing.classes.setdefault(label, []).append(path)
        else:
            listing.unlabelled.append(path)
    return listing


def _in_archive(root: str) -> bool:
    return is_archive(root) or (not Path(root).exists() and split_archive_path(root) is not None)


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


def _existing_folder(root: str) -> str:
    if root.lower().endswith(COMPRESSED_TAR_SUFFIXES):
        raise InputError(
            f"Got {root}, but only .zip and .tar archives are read in place: finding an image in a "
            "compressed tar means unpacking all before it; unpack it, or make a .zip of it"
        )
    if not Path(root).exists():
        raise InputError(f"No such folder: {root}")
    if not Path(root).is_dir():
        raise InputError(f"Expected a folder, got the file {root}")
    return root


def _no_images(root: str, others: list[str]) -> str:
    if not others:
        return f"Expected images in {root}, got an empty folder."
    return (
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
        if _identity(current) in entered:
            skipped.append(current)
            continue
        entered.add(_identity(current))
        for entry in _entries(current):
            if entry.name.startswith("."):
                skipped.append(entry.path)
            elif _is_folder(entry):
                waiting.append(entry.path)
            elif _is_image_file(entry):
                images.append(entry.path)
            else:
                skipped.append(entry.path)
    return sorted(images, key=_parts), sorted(skipped, key=_parts)


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"Cannot list the folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    try:
        return Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
    except OSError:  # a link to itself
        return False


def _parts(path: str) -> tuple[str, ...]:
    return Path(path).parts
