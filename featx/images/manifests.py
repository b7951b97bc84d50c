"""Images listed in a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featx.errors import InputError, did_you_mean
from featx.images.folders import bunch_of_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET_SUFFIXES = (".parquet", ".pq")

Row: TypeAlias = tuple[str, list[str | None]]
"""Where a row stands in its file, and its values in the columns asked for; None is missing."""


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
        ``target_names``, list of str: the distinct labels, sorted; both None without labels.

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
    columns = [path_column] if label_column is None else [path_column, label_column]
    paths: list[str] = []
    labels: list[str] = []
    for place, values in _rows(table, columns):
        for column, value in zip(columns, values, strict=True):
            if value is None or not value.strip():
                raise InputError(f"{table}, {place}: no value in column {column!r}.")
        paths.append(os.fspath(table.parent / str(values[0])))
        labels.append(str(values[-1]))
    if not paths:
        raise InputError(f"Expected images in {table}, got a table without rows.")
    return bunch_of_images(paths, None if label_column is None else labels, return_X_y=return_X_y)


def _rows(table: Path, columns: Sequence[str]) -> Iterator[Row]:
    suffix = table.suffix.lower()
    if suffix in _DELIMITERS:
        return _text_rows(table, columns, _DELIMITERS[suffix])
    if suffix in _PARQUET_SUFFIXES:
        return _parquet_rows(table, columns)
    known = ", ".join([*_DELIMITERS, *_PARQUET_SUFFIXES])
    raise InputError(f"Cannot tell the format of {table} by its ending, expected one of {known}.")


def _text_rows(table: Path, columns: Sequence[str], delimiter: str) -> Iterator[Row]:
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column's name
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(reader, [])
            indices = [_index(column, header, table) for column in columns]
            for row in reader:
                if not row:  # a blank line
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{table}, line {reader.line_num}: got {len(row)} values, expected "
                        f"{len(header)}, as in the header."
                    )
                yield f"line {reader.line_num}", [row[index] for index in indices]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {table}: {error}") from error


def _parquet_rows(table: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            header = file.schema_arrow.names
            for column in columns:
                _index(column, header, table)
            values = file.read(columns=list(columns)).select(list(columns)).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"Cannot read {table}: {error}") from error
    for number, row in enumerate(zip(*(values[column] for column in columns), strict=True), 1):
        yield f"row {number}", [_as_text(value) for value in row]


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)


def _index(column: str, header: Sequence[str], table: Path) -> int:
    if header.count(column) > 1:
        raise InputError(f"{table} has several columns {column!r}, expected one.")
    if column not in header:
        raise InputError(
            f"{table} has no column {column!r}; its columns are {list(header)}"
            f"{did_you_mean(column, header) or '.'}"
        )
    return list(header).index(column)
