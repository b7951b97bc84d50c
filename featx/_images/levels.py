"""At which of several nested folders the class folders stand, and whether it is the one given."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from typing import TYPE_CHECKING

from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

# What a folder of a data set may be called that is no class.
_PART = re.compile("(train|val|dev|test)(?:ing|id|idation)?(?:set|data|images?|imgs?|split)?")
_TRAINED_ON = ("train", "", "val", "dev", "test")
_TESTED_ON = ("test", "val", "dev", "", "train")


def joined(folder: str, name: str) -> str:
    """Return the path of what is in a folder, which begins with the folder as it was given."""
    # Path() would rewrite the folder, "./photos" to "photos".
    return os.path.join(folder, name)  # noqa: PTH118


def by_folder(root: str, images: Iterable[str]) -> dict[str, list[str]]:
    """Return images by the folder right below another that they lie in; "" is that one itself.

    Examples
    --------
    >>> by_folder("photos", ["photos/cat/a/1.jpg", "photos/cat/2.jpg", "photos/3.jpg"])
    {'cat': ['photos/cat/a/1.jpg', 'photos/cat/2.jpg'], '': ['photos/3.jpg']}
    """
    found: dict[str, list[str]] = {}
    start = len(joined(root, ""))
    for path in images:
        name, _, below = path[start:].partition("/")
        found.setdefault(name if below else "", []).append(path)
    return found


def only_way(root: str, images: Iterable[str]) -> tuple[str, dict[str, list[str]]]:
    """Go down as long as there is one folder and nothing beside it; also return what is there."""
    while True:
        found = by_folder(root, images)
        if len(found) != 1 or "" in found:
            return root, found
        root = joined(root, *found)


def check_level(root: str, classes: dict[str, list[str]]) -> None:
    """Refuse a folder that lies above the one of the class folders, with the way to that.

    Raises
    ------
    InputError
        If the class folders stand in its only folder, or in the parts of a data set.
    """
    way, found = root, classes
    if len(classes) == 1:
        way, found = only_way(root, [path for images in classes.values() for path in images])
    if "" in found or not found:
        return
    ways = {name: only_way(joined(way, name), images) for name, images in found.items()}
    inside = {name: set(images) for name, (_, images) in ways.items()}
    parts = _parts_of_a_data_set(inside)
    if parts:
        raise _is_above_parts(way, parts, ways)
    if way != root:
        raise InputError(
            f"Expected a subfolder for each class in {root}, got one that holds {len(found)} "
            f"folders of images, {_some(found)}: give {way}"
        )
    if len(inside) > 1 and (same := _common(inside.values())):
        warnings.warn(
            f"The folders {_some(found)} in {root} all hold folders {_some(same)}: "
            "the former are the classes; if the latter are, give one of the former",
            stacklevel=4,
        )


def _parts_of_a_data_set(inside: dict[str, set[str]]) -> dict[str, str]:
    """Return the folders that are parts of a data set, as "train" or "test"; {} if there are none.

    ``inside`` is what folders hold. "bullet train" and "test tube" may be classes.
    """
    parts = {name: part for name in inside if (part := _part(name))}
    if parts and _common(inside.values()):
        return {name: parts.get(name, "") for name in inside}
    if len(parts) < len(inside) and not _common(inside[name] for name in parts):
        parts = {name: part for name, part in parts.items() if _PART.fullmatch(name.casefold())}
    return parts if len(set(parts.values())) > 1 else {}


def _common(folders: Iterable[set[str]]) -> set[str]:
    """Return the subfolders that all folders hold, if they are most of each, and at least two."""
    all_names = [*folders]
    common = set.intersection(*all_names) if all_names else set()
    is_most = all("" not in names and 2 * len(common) >= len(names) for names in all_names)
    return common if len(common) > 1 and is_most else set()


def _part(name: str) -> str | None:
    words = re.split(r"[\W\d_]+", name.casefold())
    return next((found[1] for word in words if (found := _PART.fullmatch(word))), None)


def _is_above_parts(
    root: str, parts: dict[str, str], ways: dict[str, tuple[str, dict[str, list[str]]]]
) -> InputError:
    with_classes = [name for name in parts if set(ways[name][1]) != {""}]
    if with_classes:
        train = min(with_classes, key=lambda name: _TRAINED_ON.index(parts[name]))
        test = min(with_classes, key=lambda name: _TESTED_ON.index(parts[name]))
        advice = f"give one of them, as in featx select {shlex.quote(ways[train][0])}"
        if test != train:
            advice += f" --test {shlex.quote(ways[test][0])}"
    else:
        advice = "sort the images of each into a folder for each class, or list them in a table"
    return InputError(f"The folders {_some(parts)} in {root} are no classes: {advice}")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(repr, ordered[:4])) + (", …" if len(ordered) > 4 else "")
