"""Images listed in a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from featx._errors import InputError, did_you_mean
from featx._images.folders import bunch_of_images
from featx._public import public

if TYPE_CHECKING:
    from collections.abc import Sequence

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (*_DELIMITERS, *_PARQUET_SUFFIXES)

Row: TypeAlias = tuple[str, list[Any]]
"""Where a row stands in its file, and its values."""


@public
def load_manifest(
    file: str | os.PathLike[str],
    *,
    path_column: str = "path",
    label_column: str | None = "label",
    return_X_y: bool = False,
) -> Any:
    r"""Read the paths and labels of images from a CSV, TSV or Parquet file.

    Parameters
    ----------
    file : str or Path
        The ending tells the format: ``.csv``, ``.tsv`` or ``.tab`` (UTF-8, with a header), or
        ``.parquet`` or ``.pq``.
    path_column : str
        The column of paths. Relative paths start at the folder of `file`.
    label_column : str or None
        The column of labels, which are read as text ("007" stays "007"); None if there is none.
    return_X_y : bool
        Return ``(data, target)`` instead.

    Returns
    -------
    sklearn.utils.Bunch
        With ``data`` and ``paths``, the same ndarray of object, shape (n,): the paths as strings,
        in the order of the file; ``target``, ndarray of str, shape (n,): the labels, and
        ``target_names``, list of str: the distinct labels, sorted; both None without labels; and
        ``further``, dict of str to list: the other columns, as text from a text file and as they
        are from Parquet.

    Raises
    ------
    InputError
        If the file does not exist, cannot be read, has no rows, lacks a column, or lacks a path or
        a label in some row.

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
    suffix = table.suffix.lower()
    if suffix in _DELIMITERS:
        header, rows = _read_text(table, _DELIMITERS[suffix])
    elif suffix in _PARQUET_SUFFIXES:
        header, rows = _read_parquet(table)
    else:
        known = ", ".join(TABLE_SUFFIXES)
        raise InputError(
            f"Cannot tell the format of {table} by its ending, expected one of {known}."
        )
    paths = _required(path_column, header, rows, table)
    labels = None if label_column is None else _required(label_column, header, rows, table)
    if not rows:
        raise InputError(f"Expected images in {table}, got a table without rows.")
    further = {
        name: [values[index] for _, values in rows]
        for index, name in enumerate(header)
        if name not in (path_column, label_column)
    }
    paths = [os.fspath(table.parent / path) for path in paths]
    return bunch_of_images(paths, labels, return_X_y=return_X_y, further=further)


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
    lines = (line.rstrip(b"\r\n") for line in stream)
    paths = [os.fsdecode(line) for line in lines if line]
    if not paths:
        raise InputError("Expected paths of images on standard input, one on each line, got none")
    return paths


def _required(column: str, header: Sequence[str], rows: Sequence[Row], table: Path) -> list[str]:
    """Return the values of a column as text, none of them missing."""
    if header.count(column) > 1:
        raise InputError(f"{table} has several columns {column!r}, expected one.")
    if column not in header:
        raise InputError(
            f"{table} has no column {column!r}; its columns are {list(header)}"
            f"{did_you_mean(column, header) or '.'}"
        )
    index = list(header).index(column)
    texts: list[str] = []
    for position, values in rows:
        text = _as_text(values[index])
        if not text.strip():
            raise InputError(f"{table}, {position}: no value in column {column!r}.")
        texts.append(text)
    return texts


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with a gap is stored as floats
    return str(value)


def _read_text(table: Path, delimiter: str) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column's name
        with table.open(encoding="utf-8-sig", newline="") as lines:
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
                rows.append((f"line {reader.line_num}", row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {table}: {error}") from error
    return header, rows


def _read_parquet(table: Path) -> tuple[list[str], list[Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            content = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"Cannot read {table}: {error}") from error
    columns = [column.to_pylist() for column in content.columns]
    rows = [
        (f"row {number}", list(row)) for number, row in enumerate(zip(*columns, strict=True), 1)
    ]
    return content.column_names, rows
