"""Parquet files of embeddings, alone or as parts of a dataset: written and read by row group."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from featx._errors import InputError, SchemaError
from featx._files import write_atomically
from featx._parquet.columns import EMBEDDING, PRECISIONS, TYPES

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

FORMAT_VERSION = 1
_VERSION_KEY = b"featx.format_version"
_PROVENANCE_KEY = b"featx.provenance"

# The size of a row group; a reader holds several times as much beside the result.
_ROW_GROUP_BYTES = 16 * 2**20
# Short vectors bring long paths along, so that rows are limited too.
_ROW_GROUP_ROWS = 2**17

_PART = re.compile(r"part-(\d{5,})\.parquet")

# What stands in a provenance and moves a vector by a rounding step at most, or names the rest.
MACHINERY = ("fingerprint", "recipe", "runtime", "device_type", "versions", "weights")


def as_metadata(provenance: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the metadata of a file: the version of its format, and what made the embeddings."""
    try:
        text = json.dumps(dict(provenance), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"Got a provenance that JSON cannot hold: {error}") from None
    return {_VERSION_KEY: str(FORMAT_VERSION).encode(), _PROVENANCE_KEY: text.encode()}


def rows_of_a_group(schema: pa.Schema) -> int:
    """Return how many rows a row group has."""
    kind = schema.field(EMBEDDING).type
    row_bytes: int = kind.list_size * kind.value_type.bit_width // 8
    return min(max(1, _ROW_GROUP_BYTES // row_bytes), _ROW_GROUP_ROWS)


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of `pyarrow.parquet.ParquetWriter` that every file is written with."""
    beside = [name for name in schema.names if name != EMBEDDING]
    return {
        # Vectors do not compress, and the extremes of their elements say nothing.
        "compression": dict.fromkeys(beside, "zstd"),
        "use_dictionary": beside,
        "write_statistics": beside,
        "write_page_checksum": True,
    }


class EmbeddingWriter:
    """Takes tables of any number of rows and writes row groups of one size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._group_rows = rows_of_a_group(schema)
        self._tables: list[pa.Table] = []
        self._waiting = 0

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        while self._waiting + table.num_rows >= self._group_rows:
            room = self._group_rows - self._waiting
            self._tables.append(table.slice(0, room))
            self._waiting += room
            self.flush()
            table = table.slice(room)
        if table.num_rows:
            self._tables.append(table)
            self._waiting += table.num_rows

    def flush(self) -> None:
        """Write the rows that wait for others as a row group."""
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._tables), self._group_rows)
        self._tables, self._waiting = [], 0


@contextlib.contextmanager
def open_writer(
    path: Path, schema: pa.Schema, temporary: Path | None = None
) -> Iterator[EmbeddingWriter]:
    """Write a file of embeddings; ``path`` is the old file, or none, until the block ends well.

    ``schema`` has the metadata of `as_metadata`, and ``temporary`` is as `write_atomically` takes
    it.
    """
    with (
        write_atomically(path, temporary) as output,
        pq.ParquetWriter(output, schema, **writer_options(schema)) as parquet,
    ):
        writer = EmbeddingWriter(parquet, schema)
        yield writer
        writer.flush()


class EmbeddingFile:
    """A Parquet file of embeddings, open for reading.

    Attributes
    ----------
    provenance : dict
        What made the embeddings.
    dimension, precision : int, {"float32", "float16"}
        The length of an embedding, and its elements.
    rows, group_rows : int, tuple of int
        How many there are, and how many each row group has.

    Raises
    ------
    InputError
        The file cannot be opened.
    SchemaError
        It is damaged, or not one that this version of featx wrote. So do the methods.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._source = self.path.open("rb")
        except OSError as error:
            raise InputError(f"Cannot read {str(path)!r}: {error.strerror}") from None
        try:
            with self._refusing_damage():
                self._parquet = pq.ParquetFile(self._source, page_checksum_verification=True)
                self._check()
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read_columns(self, group: int | None = None) -> pa.Table:
        """Return all columns but the embeddings, of a row group or of the whole file."""
        names = [name for name in self.schema.names if name != EMBEDDING]
        with self._refusing_damage():
            if group is not None:
                return self._parquet.read_row_group(group, columns=names)
            table = self._parquet.read(columns=names)
            if names and table.num_rows != self.rows:
                raise SchemaError(f"it has {table.num_rows} rows, expected {self.rows}")
            return table

    def read_group(self, group: int) -> pa.Table:
        """Return all columns of one row group."""
        with self._refusing_damage():
            return self._parquet.read_row_group(group)

    def read_vectors(self, group: int, out: NDArray[np.float32]) -> None:
        """Read the embeddings of one row group into an array; NaN where there is none."""
        with self._refusing_damage():
            column = self._parquet.read_row_group(group, columns=[EMBEDDING]).column(0)
            if len(column) != len(out):
                raise SchemaError(f"it has {len(column)} embeddings, expected {len(out)}")
            column = column.combine_chunks()
            present = column.flatten().to_numpy().reshape(-1, self.dimension)
            if column.null_count:
                out[:] = np.nan
                out[column.is_valid().to_numpy(zero_copy_only=False)] = present
            else:
                out[:] = present

    def _check(self) -> None:
        self.schema = self._parquet.schema_arrow
        self.provenance = _read_provenance(self.schema.metadata or {})
        self.dimension, self.precision = _check_columns(self.schema)
        metadata = self._parquet.metadata
        self.group_rows = tuple(
            metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
        )
        self.rows: int = metadata.num_rows
        if sum(self.group_rows) != self.rows:
            raise SchemaError(f"its row groups have {sum(self.group_rows)} rows, not {self.rows}")

    @contextlib.contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, MemoryError, LookupError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise SchemaError(
                f"{str(self.path)!r} cannot be read as embeddings: {reason}"
            ) from error


def _check_columns(schema: pa.Schema) -> tuple[int, str]:
    """Refuse a schema that is not of this format; return dimension and precision."""
    if EMBEDDING not in schema.names:
        raise SchemaError(f"it has no column {EMBEDDING!r}")
    kind = schema.field(EMBEDDING).type
    precisions = {value: name for name, value in PRECISIONS.items()}
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in precisions:
        raise SchemaError(f"its embeddings are {kind}, expected fixed-size lists of float")
    for field in schema:
        if field.type not in TYPES.get(field.name, (field.type,)):
            raise SchemaError(f"its column {field.name!r} is of {field.type}")
    return kind.list_size, precisions[kind.value_type]


def _read_provenance(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if not {_VERSION_KEY, _PROVENANCE_KEY} <= metadata.keys():
        raise SchemaError("it was not written by featx")
    version = metadata[_VERSION_KEY].decode()
    if version != str(FORMAT_VERSION):
        raise SchemaError(f"it has the format version {version}, this featx reads {FORMAT_VERSION}")
    provenance: dict[str, Any] = json.loads(metadata[_PROVENANCE_KEY])
    return provenance


def describe_maker(provenance: Mapping[str, Any]) -> str:
    """Return the words for what made some embeddings.

    Examples
    --------
    >>> describe_maker({"backbone": "efficientnet_lite0", "recipe": "ab12cd34ef56"})
    'efficientnet_lite0 (recipe ab12cd34…)'
    """
    backbone = provenance.get("backbone", "an unnamed network")
    for name in ("recipe", "fingerprint"):  # featx 0.1 wrote a number of its own as the recipe
        if isinstance(provenance.get(name), str):
            return f"{backbone} ({name} {provenance[name][:8]}…)"
    return f"{backbone} (no recipe)"


def same_recipe(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether what made some embeddings gives the same vectors as another, up to rounding.

    Files of featx 0.1 name no recipe: there all that decides a vector is compared, which is all but
    the runtime, the device and the versions. What somebody else wrote as a provenance is compared
    as it is.

    Examples
    --------
    >>> same_recipe({"recipe": "ab12", "runtime": "onnx"}, {"recipe": "ab12", "runtime": "torch"})
    True
    """
    recipes = [made.get("recipe") for made in (first, second)]
    if all(isinstance(recipe, str) for recipe in recipes):
        return recipes[0] == recipes[1]
    if "fingerprint" in first and first["fingerprint"] == second.get("fingerprint"):
        return True
    is_described = "weights_sha256" in first and "weights_sha256" in second
    ignored = MACHINERY if is_described else ("versions",)
    kept = [{name: made[name] for name in made if name not in ignored} for made in (first, second)]
    return json.dumps(kept[0], sort_keys=True) == json.dumps(kept[1], sort_keys=True)


def read_headers(paths: Iterable[Path]) -> list[EmbeddingFile]:
    """Return what each file says of itself, closed again; refuse files that cannot be one matrix.

    SchemaError names two files that differ in recipe, dimension, precision or columns.
    """
    files: list[EmbeddingFile] = []
    for path in paths:  # a dataset may have more parts than a process may have open files
        with EmbeddingFile(path) as file:
            files.append(file)
        first = files[0]
        if not same_recipe(file.provenance, first.provenance):
            raise SchemaError(
                f"{str(first.path)!r} holds embeddings of {describe_maker(first.provenance)} but "
                f"{str(file.path)!r} those of {describe_maker(file.provenance)}; expected parts "
                "of one and the same"
            )
        if not file.schema.equals(first.schema):
            raise SchemaError(
                f"{str(first.path)!r} and {str(file.path)!r} have different columns; expected "
                "parts of one dataset"
            )
    return files


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

    SchemaError where a part is missing between two others, or another Parquet file lies beside
    them, which other readers would take for one.
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
