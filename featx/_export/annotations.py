"""What stands beside the images of an export: labels and further columns, as Arrow holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from featx._errors import InputError
from featx._parquet.columns import LABEL, OWN_COLUMNS, check_beside, extra_column, label_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def make_annotations(
    n_images: int, labels: Sequence[Any] | None, extras: Mapping[str, Sequence[Any]]
) -> dict[str, pa.Array]:
    """Return labels and further columns, each with one value per image."""
    check_beside(n_images, "images", {"labels": labels}, extras)
    columns = {} if labels is None else {LABEL: label_column(_taken(labels))}
    columns |= {name: extra_column(name, _taken(values)) for name, values in extras.items()}
    return {name: _plain(column) for name, column in columns.items()}


def fit_types(
    annotations: Mapping[str, pa.Array], stored_in: pa.Schema | None
) -> dict[str, pa.Array]:
    """Return labels and further columns in the types that they are written with.

    ``stored_in`` is the schema of what an output has already; InputError where it has other columns,
    or of types that cannot hold these values.
    """
    if stored_in is None:
        # A column of nothing but gaps is one whose values are still to come.
        return {
            name: column.cast(pa.string()) if pa.types.is_null(column.type) else column
            for name, column in annotations.items()
        }
    stored = {
        field.name: field.type
        for field in stored_in
        if field.name == LABEL or field.name not in OWN_COLUMNS
    }
    if stored.keys() != annotations.keys():
        raise InputError(
            f"Got the columns {sorted(annotations)} but the output has {sorted(stored)}, "
            "expected the same"
        )
    return {name: _cast(name, column, stored[name]) for name, column in annotations.items()}


def _taken(values: Sequence[Any]) -> Sequence[Any]:
    # What makes its values when they are taken need not know where they end.
    if isinstance(values, list | tuple) or hasattr(values, "__array__"):
        return values
    return [values[row] for row in range(len(values))]


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column of a type that does not depend on what it was made from."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Text is one type, whether it comes from a list or from pandas.
    return column.cast(pa.string()) if column.type == pa.large_string() else column


def _cast(name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    schemas = [pa.schema([("values", of_one)]) for of_one in (column.type, kind)]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        common = None
    if common != kind:
        raise InputError(
            f"Got the column {name!r} of type {column.type} but in the output it is of {kind}, "
            "expected the same"
        )
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise InputError(f"Got values of {name!r} that {kind} cannot hold: {error}") from None
