"""The parts of a dataset: Parquet files in one folder, each complete in itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from featx._errors import SchemaError

if TYPE_CHECKING:
    from pathlib import Path

_PART = re.compile(r"part-(\d{5,})\.parquet")


def part_name(number: int) -> str:
    """Return the name of a part.

    Examples
    --------
    >>> part_name(3)
    'part-00003.parquet'
    """
    return f"part-{number:05}.parquet"


def is_part_name(name: str) -> bool:
    """Return whether a file is a part, by its name."""
    return _PART.fullmatch(name) is not None


def list_parts(folder: Path) -> list[Path]:
    """Return the parts of a dataset, in their order; hidden files are passed over.

    Parameters
    ----------
    folder : Path
        The dataset.

    Returns
    -------
    list of Path
        Empty where there are none.

    Raises
    ------
    SchemaError
        A part is missing between two others, or another Parquet file lies beside them, which other
        readers would take for one.
    """
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    matches = {name: _PART.fullmatch(name) for name in names}
    numbers = sorted(int(match[1]) for match in matches.values() if match is not None)
    foreign = sorted(name for name in names if name.endswith(".parquet") and not matches[name])
    if foreign:
        raise SchemaError(
            f"{str(folder)!r} holds {foreign[0]!r}, which is no part of a dataset; expected "
            f"{part_name(0)!r}, {part_name(1)!r}, …"
        )
    for expected, number in enumerate(numbers):
        if number != expected:
            raise SchemaError(
                f"{str(folder)!r} has no {part_name(expected)!r} but a {part_name(number)!r}; a "
                "part of this dataset is missing"
            )
    return [folder / part_name(number) for number in numbers]
