"""Public names: listed once, in ``featx/__init__.pyi``, and loaded when they are first used."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TypeVar

Thing = TypeVar("Thing")


def public(thing: Thing) -> Thing:
    """Give a class or a function its public address, so that no file and no pickle names a room.

    Examples
    --------
    >>> import featx
    >>> featx.ImageEmbedder.__module__
    'featx'
    """
    thing.__module__ = "featx"
    return thing


def rooms_of_names() -> dict[str, str]:
    """Return the module that defines each public name."""
    listing = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    return {
        name.name: statement.module
        for statement in listing.body
        if isinstance(statement, ast.ImportFrom) and statement.module is not None
        for name in statement.names
    }
