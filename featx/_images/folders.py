"""Images in folders and archives: a subfolder for each class, or a collection without labels."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx._checks import as_seen
from featx._errors import InputError
from featx._files import hint_on_path
from featx._images.archives import (
    PACKED_SUFFIXES,
    is_archive,
    list_members,
    open_archive,
    split_archive_path,
)
from featx._images.levels import by_folder, check_level, joined, only_way
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable

IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".icb", ".ico"}
    | {".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo"}
    | {".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".vda", ".vst"}
    | {".webp"}
)
"""The endings, in lower case, by which a file is taken for an image, whatever it holds."""

_HOUSEKEEPING = frozenset(
    {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx"}
    | {"@eadir", "@recycle", "@__thumb", "@recently-snapshot", "#recycle", "#snapshot"}
)
"""Folders, in lower case, that systems make for themselves; passed over as hidden ones are."""

_KINDS_SHOWN = 6
_LONGEST_ENDING = 12
_WORDS = ("folder", "other")


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
        ``skipped``, list of str: what was left out, which is hidden files and folders, those that
        systems make for themselves (``@eaDir``, ``lost+found``), files without the ending of an
        image, images outside the class folders, class folders without images, and what is no
        plain file.

    Raises
    ------
    InputError
        If the folder does not exist, is a file, has no class folders, or no images; if the class
        folders lie deeper, in its only subfolder or in ``train`` and ``test``.

    Warns
    -----
    UserWarning
        If class names differ only in case, spaces or Unicode form; if all class folders hold the
        same subfolders; if the names in an archive are in an unknown encoding.

    See Also
    --------
    find_images : Images without labels, however deep.
    load_manifest : Images listed in a table.

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
    root, classes, unlabelled, others = _list_classes(os.fsdecode(folder))
    if not classes and unlabelled:
        raise InputError(
            f"Got {len(unlabelled)} images in {root} and no class folders, expected a subfolder "
            "for each class: sort the images into such, or use find_images or 'featx embed', which "
            "take flat folders"
        )
    if not classes:
        raise _no_images(root, others)
    paths = [path for images in classes.values() for path in images]
    labels = [name for name, images in classes.items() for _ in images]
    skipped = sorted(others + unlabelled, key=_parts)
    return bunch_of_images(paths, labels, return_X_y=return_X_y, skipped=skipped)


@public
def find_images(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """List all images below a folder or an archive, without labels, and what was passed over.

    Images are told by their ending, whatever they hold. Links to folders are followed; a link to a
    file that is missing is an image, which cannot be read.

    Parameters
    ----------
    folder : str or Path
        The folder; also a ``.zip`` or ``.tar`` archive, or a folder in one (``photos.zip/train``).

    Returns
    -------
    paths : list of str
        The images, beginning with `folder`, sorted.
    skipped : list of str
        Hidden files and folders, those that systems make for themselves, files without the ending
        of an image, and what is no plain file.

    Raises
    ------
    InputError
        If the folder does not exist, is a file, or holds no images.

    See Also
    --------
    load_image_folder : Images in one subfolder for each class.

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
    root = os.fsdecode(folder)
    paths, skipped = _find_in_archive(root) if _is_in_archive(root) else _find_below(root)
    if not paths:
        raise _no_images(root, skipped)
    return paths, skipped


def count_endings(paths: Iterable[str]) -> str:
    """Return how many files have each ending.

    Examples
    --------
    >>> count_endings(["a/1.HEIC", "a/2.heic", "a/notes.txt", "a/.hidden", "a/readme"])
    '2 .heic, 1 .txt, 1 hidden, 1 without an ending'
    """
    counts = sorted(Counter(map(_ending, paths)).items(), key=lambda item: (-item[1], item[0]))
    shown = counts[:_KINDS_SHOWN]
    others = sum(count for _, count in counts[_KINDS_SHOWN:])
    return ", ".join(
        f"{count} {kind}{'s' if count > 1 and kind in _WORDS else ''}"
        for kind, count in [*shown, ("other", others)]
        if count
    )


def _ending(path: str) -> str:
    if Path(path).name.startswith("."):
        return "hidden"
    suffix = Path(path).suffix.lower()
    is_one = 1 < len(suffix) <= _LONGEST_ENDING and suffix.isprintable() and " " not in suffix
    if is_one:
        return suffix
    # A class folder without images is not to be missed.
    return "folder" if Path(path).is_dir() else "without an ending"


def bunch_of_images(
    paths: list[str], labels: list[str] | None, *, return_X_y: bool, **attributes: Any
) -> Any:
    """Return paths and labels as scikit-learn's own loaders return data: a Bunch, or a pair."""
    # Imported here, so that a mistyped folder is reported at once.
    from sklearn.utils import Bunch

    data = np.array(paths, dtype=object)
    target = None if labels is None else np.array(labels, dtype=str)
    target_names = None if labels is None else sorted(set(labels))
    _warn_of_alike(target_names or [])
    if return_X_y:
        return data, target
    return Bunch(data=data, paths=data, target=target, target_names=target_names, **attributes)


def _warn_of_alike(names: list[str]) -> None:
    """Say which classes are one to people, but not to programs."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(as_seen(name), []).append(name)
    groups = [" and ".join(map(ascii, group)) for group in alike.values() if len(group) > 1]
    if groups:
        warnings.warn(
            f"Classes that differ only in case, spaces or Unicode form: {', '.join(groups[:3])}"
            f"{', …' if len(groups) > 3 else ''}; give them one name if they are one class",
            stacklevel=4,
        )


def _list_classes(root: str) -> tuple[str, dict[str, list[str]], list[str], list[str]]:
    """Return a folder of class folders, its images by class, images beside them, and the rest.

    The folder is another than the one given where an archive was packed with absolute names: how
    deep the class folders lay on some machine is nobody's intention.
    """
    if not _is_in_archive(root):
        classes, unlabelled, others = _list_folder(root)
        check_level(root, classes)
        return root, classes, unlabelled, others
    root = os.fspath(Path(root))
    images, others = _find_in_archive(root)
    classes = by_folder(root, images)
    if is_archive(root) and open_archive(root).is_absolute:
        root, classes = only_way(root, images)
    unlabelled = classes.pop("", [])
    check_level(root, classes)
    return root, classes, unlabelled, others


def _list_folder(root: str) -> tuple[dict[str, list[str]], list[str], list[str]]:
    classes: dict[str, list[str]] = {}
    folders, unlabelled, skipped = _scan(root)
    for folder in folders:
        images, others = _find_below(folder, root)
        if images:
            classes[Path(folder).name] = images
        skipped += others if images else [folder, *others]
    return classes, unlabelled, skipped


def _is_in_archive(root: str) -> bool:
    """Tell whether a path is an archive or goes into one; if not, it must be a folder."""
    if is_archive(root) or (not Path(root).exists() and split_archive_path(root) is not None):
        return True
    if root.lower().endswith(PACKED_SUFFIXES) and Path(root).is_file():
        raise InputError(
            f"Got {root}, but only .zip and .tar archives are read in place: finding an image in "
            "another means unpacking all before it; unpack it, or make a .zip of it"
        )
    if not Path(root).exists():
        raise InputError(f"No such file or folder: {root}{hint_on_path(root)}")
    if not Path(root).is_dir():
        raise InputError(f"Expected a folder, got the file {root}")
    return False


def _find_in_archive(root: str) -> tuple[list[str], list[str]]:
    """Return the images and the rest of an archive, or of a folder in one, sorted."""
    root = os.fspath(Path(root))
    archive, below = (root, "") if is_archive(root) else split_archive_path(root) or (root, "")
    names, skipped = list_members(archive, below)
    if not names and not skipped and below:
        raise InputError(f"No such folder in the archive {archive}: {below}")
    images: list[str] = []
    for name in names:
        *folders, file = name.split("/")
        is_image = _is_image(file) and not any(map(_is_passed_over, [*folders, file]))
        (images if is_image else skipped).append(name)
    skipped.sort(key=lambda name: name.split("/"))
    return [joined(root, name) for name in images], [joined(root, name) for name in skipped]


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in IMAGE_SUFFIXES


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HOUSEKEEPING


def _no_images(root: str, others: list[str]) -> InputError:
    if not others:
        return InputError(f"Expected images in {root}, got an empty folder.")
    return InputError(
        f"Expected images in {root}, got other files or folders ({count_endings(others)}), the "
        f"first {others[0]!r}: images end in .jpg, .png and the like."
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
        if not _is_passed_over(entry.name):
            with contextlib.suppress(OSError):  # a link to itself
                if entry.is_dir():
                    kind = folders
                elif _is_image(entry.name) and (entry.is_file() or not Path(entry.path).exists()):
                    # A link whose target is missing, as of git-annex or DVC, is an image all the
                    # same: one that cannot be read.
                    kind = images
        kind.append(entry.path)
    return folders, images, others


def _parts(path: str) -> tuple[str, ...]:
    return Path(path).parts
