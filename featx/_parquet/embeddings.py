"""Parquet files of embeddings: what an export writes, and other tools open as it is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import pyarrow as pa

from featx._errors import InputError, SchemaError
from featx._files import output_file
from featx._parquet.columns import (
    EMBEDDING,
    TYPES,
    check_beside,
    digest_column,
    embedding_column,
    embedding_type,
    extra_column,
    label_column,
    text_column,
)
from featx._parquet.files import (
    EmbeddingFile,
    as_metadata,
    list_parts,
    open_writer,
    read_headers,
)
from featx._public import public

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import ArrayLike, NDArray
    from sklearn.utils import Bunch

# Row groups whose vectors are kept at hand, of 16 MB each.
_GROUPS_AT_HAND = 16


@public
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
    own = {"paths": paths, "labels": labels, "digests": digests, "errors": errors}
    check_beside(len(vectors), "embeddings", own, further)
    is_null = None if errors is None else np.array([error is not None for error in errors], bool)
    columns = {
        "path": None if paths is None else text_column("paths", paths),
        "label": None if labels is None else label_column(labels),
        EMBEDDING: embedding_column(vectors, embedding_type(vectors.shape[1]), is_null),
        "digest": None if digests is None else digest_column(digests),
        "error": None if errors is None else text_column("errors", errors),
        **{name: extra_column(name, values) for name, values in further.items()},
    }
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    table = table.replace_schema_metadata(as_metadata({} if provenance is None else provenance))
    with open_writer(target, table.schema) as writer:
        writer.write(table)


def _as_vectors(embeddings: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(embeddings)
    if array.ndim != 2 or array.shape[1] < 1 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"Got embeddings of {array.dtype} and shape {array.shape}, "
            "expected floats and the shape (n, dimension)"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


@public
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
    """Read what `write_embeddings` or `export_embeddings` wrote.

    Parameters
    ----------
    file : str or path-like
        The file, or the folder of a dataset, whose parts follow each other in their order.
    return_X_y : bool
        Return only the embeddings and the labels.

    Returns
    -------
    sklearn.utils.Bunch or (data, target)
        With the attributes, each None where the file has no such column:

        - ``data``: ndarray of float32, shape (n, dimension); NaN where an image has none. It is
          filled row group by row group, so that no second copy of it is ever held; what is stored
          as float16 is widened exactly
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
        A file is damaged, or none that this version of featx wrote; a part of a dataset is missing,
        or two parts hold embeddings of different recipes.

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
    headers = read_headers(list_parts(path) if path.is_dir() else [path])
    if not headers:
        raise SchemaError(f"{str(path)!r} is a folder without parts of a dataset")
    data = np.empty((sum(header.rows for header in headers), headers[0].dimension), np.float32)
    tables = []
    start = 0
    for header in headers:
        with EmbeddingFile(header.path) as part:
            for group, rows in enumerate(header.group_rows):
                part.read_vectors(group, data[start : start + rows])
                start += rows
            tables.append(part.read_columns())
    table = pa.concat_tables(tables)
    columns = {name: _as_array(table.column(name)) for name in table.column_names if name in TYPES}
    target = columns.get("label")
    if return_X_y:
        if target is None:
            raise InputError(f"{str(path)!r} has no labels: it was written without them")
        return data, target
    further = [name for name in table.column_names if name not in TYPES]
    return Bunch(
        data=data,
        target=target,
        paths=columns.get("path"),
        digests=columns.get("digest"),
        errors=columns.get("error"),
        further={name: table.column(name).to_pylist() for name in further},
        provenance=headers[0].provenance,
    )


def _as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    # A number beside None would become a float beside NaN, so those stay Python objects.
    is_plain = pa.types.is_primitive(column.type) and not column.null_count
    return np.array(column.to_pylist(), column.type.to_pandas_dtype() if is_plain else object)


class VectorsByDigest:
    """The vectors of files of embeddings, of one recipe, found by the digest of their image.

    They are fast to have in about the order of the files; in any other, row groups are read again
    and again. Images that could not be read have no vector.

    Raises
    ------
    SchemaError
        A file is damaged, or not of the same recipe as the first. So does `look_up`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "photos.parquet")
    ...     write_embeddings(file, np.eye(2), digests=[b"first" + bytes(11), b"second" + bytes(10)])
    ...     VectorsByDigest([file]).look_up([b"second" + bytes(10), b"third" + bytes(11)])
    (array([[ 0.,  1.],
           [nan, nan]], dtype=float32), array([ True, False]))
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        files = read_headers(paths)
        self.dimension = files[0].dimension
        self._groups = [(file, group) for file in files for group in range(len(file.group_rows))]
        counts = [file.group_rows[group] for file, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        self._vectors_of_group = functools.lru_cache(_GROUPS_AT_HAND)(self._read_group)
        found = [np.empty(0, "S16")]
        rows = [np.empty(0, np.intp)]
        for start, (closed, group) in zip(self._starts, self._groups, strict=False):
            with EmbeddingFile(closed.path) as file:
                digests = _sound_digests(file.read_columns(group))
            found.append(np.array(list(digests.values()), "S16"))
            rows.append(start + np.array(list(digests), np.intp))
        order = np.argsort(np.concatenate(found), kind="stable")
        self._digests, self._rows = np.concatenate(found)[order], np.concatenate(rows)[order]

    def look_up(
        self, digests: Sequence[bytes | None]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return float32 (n, dimension), NaN where there is no vector, and where there is one."""
        vectors = np.full((len(digests), self.dimension), np.nan, np.float32)
        is_found = np.zeros(len(digests), np.bool_)
        wanted = {row: digest for row, digest in enumerate(digests) if digest is not None}
        if not wanted or not len(self._digests):
            return vectors, is_found
        keys = np.array(list(wanted.values()), "S16")
        places = np.minimum(np.searchsorted(self._digests, keys), len(self._digests) - 1)
        is_there = self._digests[places] == keys
        targets, rows = np.array(list(wanted))[is_there], self._rows[places[is_there]]
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups):
            chosen = groups == group
            places = rows[chosen] - self._starts[group]
            vectors[targets[chosen]] = self._vectors_of_group(int(group))[places]
        is_found[targets] = True
        return vectors, is_found

    def _read_group(self, number: int) -> NDArray[np.float32]:
        closed, group = self._groups[number]
        vectors = np.empty((closed.group_rows[group], self.dimension), np.float32)
        with EmbeddingFile(closed.path) as file:
            file.read_vectors(group, vectors)
        return vectors


def _sound_digests(table: pa.Table) -> dict[int, bytes]:
    """Return the digests of the rows that have a vector, by their place."""
    rows = table.select([name for name in ("digest", "error") if name in table.column_names])
    return {
        place: row["digest"]
        for place, row in enumerate(rows.to_pylist())
        if row.get("digest") is not None and row.get("error") is None
    }
