"""Images listed in a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import datetime
import math
import numbers
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from featx._checks import brief
from featx._errors import InputError, did_you_mean
from featx._images.folders import bunch_of_images
from featx._images.sources import unwrapped
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Sequence

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (*_DELIMITERS, *_PARQUET_SUFFIXES)

# Names of columns that are taken where there is no "path" or "label".
_USUAL_PATHS = (
    *("filename", "file_name", "filepath", "file_path", "image_path", "image", "img", "file"),
    *("image_id", "id"),
)
_USUAL_LABELS = ("class", "target", "labels", "category")
# Not "007", "+49…" and what has more digits than a float keeps: they are names.
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?")

Columns: TypeAlias = dict[str, Any]
"""The columns of a table: lists of text, or of Arrow."""


@public
def load_manifest(
    file: str | os.PathLike[str],
    *,
    path_column: str = "path",
    label_column: str | None = "label",
    root: str | os.PathLike[str] | None = None,
    suffix: str = "",
    return_X_y: bool = False,
) -> Any:
    r"""Read the paths and labels of images from a CSV, TSV or Parquet file.

    Parameters
    ----------
    file : str or Path
        The ending tells the format: ``.csv``, ``.tsv`` or ``.tab`` (UTF-8, with a header, a comma,
        semicolon or tab between values), or ``.parquet`` or ``.pq``.
    path_column : str
        The column of paths, or of the images themselves, as bytes or as Hugging Face keeps them.
        Relative paths start at the folder of `file`, or else, where the first one is there and not
        here, at the working folder. Where there is no column ``"path"``, one of a usual name is
        taken (``"filename"``, ``"image"``, ``"file"``, ``"id"``, …), with a warning.
    label_column : str or None
        The column of labels, which are read as text ("007" stays "007"); None if there is none.
        Where there is no ``"label"``, ``"class"`` or ``"target"`` is taken, with a warning.
    root : str or Path, optional
        The folder at which relative paths start instead.
    suffix : str
        What is put behind each path, as ``".jpg"`` where a column has but the names.
    return_X_y : bool
        Return ``(data, target)`` instead.

    Returns
    -------
    sklearn.utils.Bunch
        With ``data`` and ``paths``, the same ndarray of object, shape (n,): the paths as strings,
        or the images of cells as bytes, in the order of the file; ``target``, ndarray of str, shape
        (n,): the labels, and ``target_names``, list of str: the distinct labels, sorted; both None
        without labels; and ``further``, dict: the other columns, from a text file as lists of text,
        or of numbers where all are, and from Parquet as columns of Arrow.

    Raises
    ------
    InputError
        If the file does not exist, cannot be read, has no rows, lacks a column or has one twice,
        or has in some row no path or label, or one that is neither text, number, truth value nor
        date.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "birds.csv")
    ...     _ = file.write_text("path,species\nowl.jpg,007\n")
    ...     birds = load_manifest(file, label_column="species")
    >>> birds.target.tolist()
    ['007']
    """
    table = Path(file)
    if not table.exists():
        raise InputError(f"No such file: {table}")
    if not table.is_file():
        raise InputError(f"Expected a file, got {table}, which is none.")
    ending = table.suffix.lower()
    if ending in _DELIMITERS:
        columns, places = _read_text(table)
    elif ending in _PARQUET_SUFFIXES:
        columns, places = _read_parquet(table)
    else:
        known = ", ".join(TABLE_SUFFIXES)
        raise InputError(
            f"Cannot tell the format of {table} by its ending, expected one of {known}."
        )
    path_column = _find(path_column, columns, table, "path", _USUAL_PATHS)
    if label_column is not None:
        label_column = _find(label_column, columns, table, "label", _USUAL_LABELS)
    if not places:
        raise InputError(f"Expected images in {table}, got a table without rows.")
    cells = _listed(columns[path_column])
    cells = [_image(cell, path_column, f"{table}, {places[row]}") for row, cell in enumerate(cells)]
    folder = table.parent if root is None else Path(root)
    if root is None:
        first = next((cell for cell in cells if isinstance(cell, str)), "")
        is_elsewhere = not os.path.lexists(folder / f"{first}{suffix}")
        folder = Path() if is_elsewhere and os.path.lexists(f"{first}{suffix}") else folder
    images = [
        os.fspath(folder / f"{cell}{suffix}") if isinstance(cell, str) else cell for cell in cells
    ]
    labels = None
    if label_column is not None:
        texts = enumerate(_listed(columns[label_column]))
        labels = [_text(cell, label_column, f"{table}, {places[row]}") for row, cell in texts]
    further = {
        name: _numbers(values) if isinstance(values, list) else values
        for name, values in columns.items()
        if name not in (path_column, label_column)
    }
    return bunch_of_images(images, labels, return_X_y=return_X_y, further=further)


def load_path_list(stream: BinaryIO) -> list[str]:
    r"""Read the paths of images from a text, one on each line, as ``find`` prints them.

    Paths that are no valid text are kept as they are; empty lines are left out. InputError where
    there is no path.

    Examples
    --------
    >>> import io
    >>> load_path_list(io.BytesIO(b"cats/1.jpg\n\ncats/2 (copy).jpg\n"))
    ['cats/1.jpg', 'cats/2 (copy).jpg']
    """
    lines = (line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") for line in stream)
    paths = [os.fsdecode(line) for line in lines if line]
    if not paths:
        raise InputError("Expected paths of images on standard input, one on each line, got none")
    return paths


def _find(column: str, columns: Columns, table: Path, default: str, usual: Sequence[str]) -> str:
    """Return the column of a name, or the one of a usual name where none was asked for."""
    if column in columns:
        return column
    names = {name.strip().lower(): name for name in columns}
    found = [names[name] for name in usual if name in names] if column == default else []
    if found:
        warnings.warn(
            f"{table} has no column {column!r}: its column {found[0]!r} is taken",
            UserWarning,
            stacklevel=3,
        )
        return found[0]
    listed = brief(list(columns))
    raise InputError(
        f"{table} has no column {column!r}; its columns are {listed}"
        f"{did_you_mean(column, columns) or '.'}"
    )


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else list(values.to_pylist())


def _image(cell: Any, column: str, place: str) -> Any:
    """Return the path of a cell as text, or the encoded image that it holds."""
    cell = unwrapped(cell)
    if isinstance(cell, bytes) and cell:
        return cell
    return _text(cell, column, place)


def _text(cell: Any, column: str, place: str) -> str:
    """Return the text of a cell that has one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        cell = ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column of whole numbers with a gap is stored as floats
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError:
            raise InputError(f"{place}: {brief(cell)} in column {column!r} is no UTF-8.") from None
    if not isinstance(cell, (str, bool, numbers.Number, datetime.date, datetime.time)):
        raise InputError(
            f"{place}: got a {type(cell).__name__} in column {column!r}, expected text, a number, "
            "a truth value or a date."
        )
    if not str(cell).strip():
        raise InputError(f"{place}: no value in column {column!r}.")
    return str(cell)


def _numbers(values: list[str]) -> list[Any]:
    """Return the numbers that all texts are, with None for empty ones, or the texts."""
    texts = [value for value in values if value]
    if not texts or not all(map(_PLAIN_NUMBER.fullmatch, texts)):
        return values
    kind = int if all(text.lstrip("-").isdecimal() for text in texts) else float
    return [kind(value) if value else None for value in values]


def _read_text(table: Path) -> tuple[Columns, list[str]]:
    rows: list[list[str]] = []
    places: list[str] = []
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column's name
        with table.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            delimiters = [_DELIMITERS[table.suffix.lower()], ",", ";", "\t"]
            delimiter = next((each for each in delimiters if each in first), delimiters[0])
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(reader, [])
            for row in reader:
                if not row:  # a blank line
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{table}, line {reader.line_num}: got {len(row)} values, expected "
                        f"{len(header)}, as in the header."
                    )
                rows.append(row)
                places.append(f"line {reader.line_num}")
    except UnicodeDecodeError as error:
        is_utf_16 = table.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
        kind = "UTF-16" if is_utf_16 else f"another encoding than utf-8 ({error.reason})"
        raise InputError(f"Cannot read {table}: it is {kind}; save it as CSV UTF-8") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"Cannot read {table}: {error}") from error
    _refuse_repeated(header, table)
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}, places


def _read_parquet(table: Path) -> tuple[Columns, list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            content = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"Cannot read {table}: {error}") from error
    _refuse_repeated(content.column_names, table)
    columns = dict(zip(content.column_names, content.columns, strict=True))
    return columns, [f"row {number}" for number in range(1, len(content) + 1)]


def _refuse_repeated(header: Sequence[str], table: Path) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{table} has several columns {name!r}, expected one.")
