"""Parquet files of embeddings: what an export writes, and other tools open as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from featx.errors import InputError, SchemaError
from featx.files import output_file, write_atomically
from featx.store.shards import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, BinaryIO

    from numpy.typing import ArrayLike, NDArray
    from sklearn.utils import Bunch

FORMAT_VERSION = 1
_VERSION_KEY = b"featx.format_version"
_PROVENANCE_KEY = b"featx.provenance"
_EMBEDDING = "embedding"
_LABEL_TYPES = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.null())
# The types each column may have, beside that of the embeddings.
_TYPES = {
    "path": (pa.string(),),
    "label": _LABEL_TYPES,
    "digest": (pa.binary(DIGEST_BYTES),),
    "error": (pa.string(),),
}

_OWN_COLUMNS = (_EMBEDDING, *_TYPES)

# The size of a row group; a reader holds several times as much beside the result.
_ROW_GROUP_BYTES = 16 * 2**20


def write_embeddings(
    file: str | os.PathLike[str],
    embeddings: ArrayLike,
    *,
    paths: Sequence[str | os.PathLike[str] | None] | None = None,
    labels: Sequence[Any] | None = None,
    digests: Sequence[bytes | None] | None = None,
    errors: Sequence[str | None] | None = None,
    further: Mapping[str, Sequence[Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write embeddings to a Parquet file, one row per image.

    The column ``embedding`` is a fixed-size list of float32. The columns ``path``, ``label``,
    ``digest`` and ``error`` stand beside it as far as they are given. The file is complete or
    absent: an older file stays as it is until the new one is whole.

    Parameters
    ----------
    file : str or path-like
        The file to write, in a folder that exists.
    embeddings : array-like of float, shape (n, dimension)
        Row i is the embedding of image i. It is stored as float32.
    paths : sequence of str, path-like or None, optional
        Where each image came from. What is no valid text in a name is written as an escape.
    labels : sequence of length n, optional
        The label of each image: text, numbers or None, of one type.
    digests : sequence of bytes or None, optional
        The digest of each image's content, 16 bytes each.
    errors : sequence of str or None, optional
        Why an image has no embedding. Where it is not None the embedding is null; elsewhere
        the row is stored as it is, NaN too.
    further : mapping of str to sequence of length n, optional
        More columns to stand beside these, of any type that Arrow can hold.
    provenance : mapping, optional
        What made the embeddings, of values that JSON knows. It is kept in the file's metadata.

    Raises
    ------
    InputError
        The arguments differ in length, cannot be stored, or the folder does not exist.
    OSError
        The file could not be written; an older one is as it was.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "photos.parquet")
    ...     write_embeddings(file, np.eye(2), paths=["a.jpg", "b.jpg"], labels=["cat", "dog"])
    ...     photos = read_embeddings(file)
    >>> photos.data
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    >>> photos.target
    array(['cat', 'dog'], dtype=object)
    """
    target = output_file(file)
    vectors = _as_vectors(embeddings)
    further = {} if further is None else further
    check_further_names(further)
    named = {"paths": paths, "labels": labels, "digests": digests, "errors": errors}
    named |= {f"values of {name!r}": values for name, values in further.items()}
    for name, values in named.items():
        if values is not None and len(values) != len(vectors):
            raise InputError(
                f"Got {len(values)} {name} for {len(vectors)} embeddings, expected one for each"
            )
    columns = {
        "path": None if paths is None else _text_column("paths", paths),
        "label": None if labels is None else _label_column(labels),
        _EMBEDDING: _embedding_column(vectors, errors),
        "digest": None if digests is None else _digest_column(digests),
        "error": None if errors is None else _text_column("errors", errors),
        **{name: _further_column(name, values) for name, values in further.items()},
    }
    metadata = {
        _VERSION_KEY: str(FORMAT_VERSION),
        _PROVENANCE_KEY: _as_json({} if provenance is None else provenance),
    }
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    with write_atomically(target) as output:
        _write(table.replace_schema_metadata(metadata), output)


def _write(table: pa.Table, output: BinaryIO) -> None:
    beside = [name for name in table.column_names if name != _EMBEDDING]
    dimension = table.schema.field(_EMBEDDING).type.list_size
    pq.write_table(
        table,
        output,
        row_group_size=max(1, _ROW_GROUP_BYTES // (4 * dimension)),
        # Vectors do not compress, and the extremes of their elements say nothing.
        compression=dict.fromkeys(beside, "zstd"),
        use_dictionary=beside,
        write_statistics=beside,
        write_page_checksum=True,
    )


def _as_vectors(embeddings: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(embeddings)
    if array.ndim != 2 or array.shape[1] < 1 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"Got embeddings of {array.dtype} and shape {array.shape}, "
            "expected floats and the shape (n, dimension)"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _embedding_column(
    vectors: NDArray[np.float32], errors: Sequence[str | None] | None
) -> pa.FixedSizeListArray:
    # Elements that cannot be null are read more than twice as fast.
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)),
        type=pa.list_(element, vectors.shape[1]),
        mask=None
        if errors is None
        else pa.array([error is not None for error in errors], pa.bool_()),
    )


def _text_column(name: str, values: Sequence[str | os.PathLike[str] | None]) -> pa.Array:
    texts: list[str | None] = []
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str | os.PathLike):
            raise InputError(f"Got {value!r} in row {row} of {name}, expected text or None")
        texts.append(None if value is None else _as_text(os.fspath(value)))
    return pa.array(texts, pa.string())


def _as_text(text: str) -> str:
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _label_column(labels: Sequence[Any]) -> pa.Array:
    values = np.asarray(labels, dtype=object).tolist()
    try:
        column = pa.array([_as_text(v) if isinstance(v, str) else v for v in values])
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"Got labels that are not all text or all numbers: {error}") from None
    if column.type not in _LABEL_TYPES:
        raise InputError(f"Got labels of the type {column.type}, expected text, numbers or None")
    return column


def _digest_column(digests: Sequence[bytes | None]) -> pa.Array:
    for row, digest in enumerate(digests):
        if digest is not None and (not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES):
            raise InputError(
                f"Got {digest!r} in row {row} of digests, expected {DIGEST_BYTES} bytes or None"
            )
    return pa.array(digests, pa.binary(DIGEST_BYTES))


def check_further_names(names: Iterable[str]) -> None:
    """Refuse further columns that have the name of one of featx's own.

    Raises
    ------
    InputError
        A name is taken.
    """
    for name in names:
        if name in _OWN_COLUMNS:
            raise InputError(
                f"Got a further column {name!r}, but that is one of featx's own "
                f"({', '.join(_OWN_COLUMNS)}); rename it"
            )


def _further_column(name: str, values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"Got a column {name!r} that Arrow cannot hold: {error}") from None


def _as_json(provenance: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(provenance), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"Got a provenance that JSON cannot hold: {error}") from None


@overload
def read_embeddings(
    file: str | os.PathLike[str], *, return_X_y: Literal[False] = False
) -> Bunch: ...


@overload
def read_embeddings(
    file: str | os.PathLike[str], *, return_X_y: Literal[True]
) -> tuple[NDArray[np.float32], NDArray[Any]]: ...


def read_embeddings(
    file: str | os.PathLike[str], *, return_X_y: bool = False
) -> Bunch | tuple[NDArray[np.float32], NDArray[Any]]:
    """Read a Parquet file that `write_embeddings` wrote.

    Parameters
    ----------
    file : str or path-like
        The file.
    return_X_y : bool
        Return only the embeddings and the labels.

    Returns
    -------
    sklearn.utils.Bunch or (data, target)
        With the attributes, each None where the file has no such column:

        - ``data``: ndarray of float32, shape (n, dimension); NaN where an image has none
        - ``target``: ndarray of shape (n,), the labels
        - ``paths``: ndarray of str, shape (n,)
        - ``digests``: ndarray of bytes, shape (n,)
        - ``errors``: ndarray of str or None, shape (n,)
        - ``further``: dict of str to list of length n, the columns beyond these
        - ``provenance``: dict, what made the embeddings

    Raises
    ------
    InputError
        The file cannot be opened, or has no labels although they are asked for.
    SchemaError
        The file is damaged, or none that `write_embeddings` of this version wrote.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "photos.parquet")
    ...     write_embeddings(file, np.zeros((2, 3)), labels=["cat", "dog"], provenance={"by": "me"})
    ...     photos = read_embeddings(file)
    >>> photos.data.shape, photos.paths, photos.provenance
    ((2, 3), None, {'by': 'me'})
    """
    from sklearn.utils import Bunch

    path = Path(file)
    try:
        source = path.open("rb")
    except OSError as error:
        raise InputError(f"Cannot read {str(path)!r}: {error.strerror}") from None
    with source:
        try:
            contents = _read(pq.ParquetFile(source, page_checksum_verification=True))
        except (OSError, MemoryError, LookupError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise SchemaError(f"{str(path)!r} cannot be read as embeddings: {reason}") from error
    if not return_X_y:
        return Bunch(**contents)
    if contents["target"] is None:
        raise InputError(f"{str(path)!r} has no labels: it was written without them")
    return contents["data"], contents["target"]


def _read(parquet: pq.ParquetFile) -> dict[str, Any]:
    schema = parquet.schema_arrow
    provenance = _read_provenance(schema.metadata or {})
    dimension = _check_columns(schema)
    beside = parquet.read(columns=[name for name in schema.names if name != _EMBEDDING])
    columns = {
        name: _as_array(beside.column(name)) for name in beside.column_names if name in _TYPES
    }
    further = [name for name in beside.column_names if name not in _TYPES]
    return {
        "data": _read_vectors(parquet, dimension),
        "target": columns.get("label"),
        "paths": columns.get("path"),
        "digests": columns.get("digest"),
        "errors": columns.get("error"),
        "further": {name: beside.column(name).to_pylist() for name in further},
        "provenance": provenance,
    }


def _check_columns(schema: pa.Schema) -> int:
    """Refuse a schema that is not of this format, and return the dimension of the embeddings."""
    if _EMBEDDING not in schema.names:
        raise SchemaError(f"it has no column {_EMBEDDING!r}")
    kind = schema.field(_EMBEDDING).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise SchemaError(f"its embeddings are {kind}, expected fixed-size lists of float")
    for field in schema:
        if field.type not in _TYPES.get(field.name, (field.type,)):
            raise SchemaError(f"its column {field.name!r} is of {field.type}")
    dimension: int = kind.list_size
    return dimension


def _read_provenance(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if not {_VERSION_KEY, _PROVENANCE_KEY} <= metadata.keys():
        raise SchemaError("it was not written by featx")
    version = metadata[_VERSION_KEY].decode()
    if version != str(FORMAT_VERSION):
        raise SchemaError(f"it has the format version {version}, this featx reads {FORMAT_VERSION}")
    provenance: dict[str, Any] = json.loads(metadata[_PROVENANCE_KEY])
    return provenance


def _read_vectors(parquet: pq.ParquetFile, dimension: int) -> NDArray[np.float32]:
    # Filled group by group, so that no second copy of all vectors is ever held.
    vectors = np.empty((parquet.metadata.num_rows, dimension), np.float32)
    start = 0
    for group in range(parquet.num_row_groups):
        column = parquet.read_row_group(group, columns=[_EMBEDDING]).column(0).combine_chunks()
        piece = vectors[start : start + len(column)]
        present = column.flatten().to_numpy().reshape(-1, dimension)
        if column.null_count:
            piece[:] = np.nan
            piece[column.is_valid().to_numpy(zero_copy_only=False)] = present
        else:
            piece[:] = present
        start += len(column)
    if start != len(vectors):
        raise SchemaError(f"it has {start} embeddings, expected {len(vectors)}")
    return vectors


def _as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    # A number beside None would become a float beside NaN, so those stay Python objects.
    is_plain = pa.types.is_primitive(column.type) and not column.null_count
    return np.array(column.to_pylist(), column.type.to_pandas_dtype() if is_plain else object)
