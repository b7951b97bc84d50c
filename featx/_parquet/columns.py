"""The columns of a Parquet file of embeddings: from what Python holds to what Arrow holds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featx._errors import InputError
from featx._images.digest import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

EMBEDDING = "embedding"
LABEL = "label"
LABEL_TYPES = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.null())
# The types each column may have, beside that of the embeddings.
TYPES = {
    "path": (pa.string(),),
    LABEL: LABEL_TYPES,
    "digest": (pa.binary(DIGEST_BYTES),),
    "error": (pa.string(),),
}
OWN_COLUMNS = (EMBEDDING, *TYPES)
PRECISIONS = {"float32": pa.float32(), "float16": pa.float16()}

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def embedding_type(dimension: int, precision: str = "float32") -> pa.DataType:
    """Return the type of the column of embeddings.

    Examples
    --------
    >>> embedding_type(1280)
    FixedSizeListType(fixed_size_list<element: float not null>[1280])
    """
    # Elements that cannot be null are read more than twice as fast.
    element = pa.field("element", PRECISIONS[precision], nullable=False)
    return pa.list_(element, dimension)


def embedding_column(
    vectors: NDArray[np.floating], kind: pa.DataType, is_null: NDArray[np.bool_] | None = None
) -> pa.FixedSizeListArray:
    """Return vectors, C-contiguous and of the type's precision, as a column, without a copy."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)),
        type=kind,
        mask=None if is_null is None else pa.array(is_null),
    )


def narrow_vectors(
    vectors: NDArray[np.float32], describe: Callable[[int], str]
) -> NDArray[np.float16]:
    """Return vectors as float16; InputError where a number would become infinite.

    ``describe`` returns what to call a row in the message.

    Examples
    --------
    >>> narrow_vectors(np.array([[0.5, 4.0]], np.float32), "row {}".format)
    array([[0.5, 4. ]], dtype=float16)
    """
    with np.errstate(over="ignore"):
        narrow = vectors.astype(np.float16)
    # What was infinite before stays so; what became so would be another vector.
    became_infinite = np.isinf(narrow) & np.isfinite(vectors)
    if became_infinite.any():
        row = int(became_infinite.any(axis=1).argmax())
        value = vectors[row][became_infinite[row]][0]
        raise InputError(
            f"Got the value {value:g} in the embedding of {describe(row)}, but float16 ends at "
            f"{_LARGEST_FLOAT16:g}; store these embeddings as float32"
        )
    return narrow


def path_column(items: Sequence[Any]) -> pa.Array:
    """Return the paths among some images as text, and null for those that have none.

    What is no valid text in a name becomes an escape.

    Examples
    --------
    >>> path_column(["a.jpg", b"encoded image"]).to_pylist()
    ['a.jpg', None]
    """
    paths = [item if isinstance(item, str | os.PathLike) else None for item in items]
    return text_column("paths", paths)


def text_column(name: str, values: Sequence[str | os.PathLike[str] | None]) -> pa.Array:
    """Return texts as a column."""
    texts: list[str | None] = []
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str | os.PathLike):
            raise InputError(f"Got {value!r} in row {row} of {name}, expected text or None")
        texts.append(None if value is None else _as_text(os.fspath(value)))
    return pa.array(texts, pa.string())


def _as_text(text: str) -> str:
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def label_column(labels: Sequence[Any]) -> pa.Array:
    """Return labels as a column of text, whole numbers, floats, truth values or nulls."""
    values = np.asarray(labels, dtype=object).tolist()
    try:
        column = pa.array([_as_text(v) if isinstance(v, str) else v for v in values])
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"Got labels that are not all text or all numbers: {error}") from None
    if column.type not in LABEL_TYPES:
        raise InputError(f"Got labels of the type {column.type}, expected text, numbers or None")
    return column


def digest_column(digests: Sequence[bytes | None]) -> pa.Array:
    """Return digests as a column."""
    for row, digest in enumerate(digests):
        if digest is not None and (not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES):
            raise InputError(
                f"Got {digest!r} in row {row} of digests, expected {DIGEST_BYTES} bytes or None"
            )
    return pa.array(digests, pa.binary(DIGEST_BYTES))


def extra_column(name: str, values: Sequence[Any]) -> pa.Array:
    """Return the values of one of the caller's own columns, of any type that Arrow can hold."""
    if isinstance(values, pa.Array | pa.ChunkedArray):  # as they are, not through Python
        return values
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"Got a column {name!r} that Arrow cannot hold: {error}") from None


def check_beside(
    n_rows: int,
    rows: str,
    own: Mapping[str, Sequence[Any] | None],
    extras: Mapping[str, Sequence[Any]],
) -> None:
    """Raise InputError unless what stands beside some rows has names of its own, and their number.

    ``rows`` says what they are; ``own`` are the values of featx's own columns, ``extras`` others.
    """
    for name in extras:
        if name in OWN_COLUMNS:
            raise InputError(
                f"Got a further column {name!r}, but that is one of featx's own "
                f"({', '.join(OWN_COLUMNS)}); rename it"
            )
    named = {**own, **{f"values of {name!r}": values for name, values in extras.items()}}
    for name, values in named.items():
        if values is not None and len(values) != n_rows:
            raise InputError(f"Got {len(values)} {name} for {n_rows} {rows}, expected one for each")


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

    ``stored_in`` is the schema of what an output has already; InputError where it has other
    columns, or of types that cannot hold these values.
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
    if kind == pa.string() and pa.types.is_primitive(column.type):
        return column.cast(kind)  # numbers of a text file, which was kept as text before
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
