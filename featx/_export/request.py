"""What an export was asked for: images, labels and further columns, taken window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featx._errors import InputError
from featx._images.sources import as_image_list
from featx._parquet.columns import LABEL, check_further_names, further_column, label_column

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

# Each window is a step of the progress bar.
WINDOW_ROWS = 4096
# Images that are made while they are taken may be large, so that their bytes are limited too.
_WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Window:
    """Some of the images that are asked for.

    Attributes
    ----------
    rows : sequence of int
        Their rows in the request.
    items : sequence of images
        Themselves.
    beside : pyarrow.Table
        Their labels and further columns; of no columns if there are none.
    """

    rows: Sequence[int]
    items: Sequence[Any]
    beside: pa.Table

    def select(self, is_chosen: NDArray[np.bool_]) -> Window:
        """Return some of the images."""
        places = np.flatnonzero(is_chosen).tolist()
        return Window(
            [self.rows[place] for place in places],
            [self.items[place] for place in places],
            # Arrow would count the rows of a table without columns as none.
            self.beside.filter(pa.array(is_chosen)) if self.beside.num_columns else self.beside,
        )

    @staticmethod
    def join(windows: Sequence[Window]) -> Window:
        """Return several windows as one."""
        return Window(
            [row for window in windows for row in window.rows],
            [item for window in windows for item in window.items],
            pa.concat_tables([window.beside for window in windows]),
        )


class Request:
    """Images with what stands beside them; only a window of it is held at a time.

    Parameters
    ----------
    images : sequence of images
        As `ImageEmbedder` takes them, or anything with a length whose items are images.
    labels : sequence, optional
        One per image.
    further : mapping of str to sequence
        More columns.

    Attributes
    ----------
    total : int
        How many images there are.
    types : dict of str to pyarrow.DataType
        Of the labels and further columns, until `adopt_types` is called as the values have them.

    Raises
    ------
    InputError
        There are no images, or something is not one per image, or Arrow cannot hold it.
    """

    def __init__(
        self, images: Any, labels: Sequence[Any] | None, further: Mapping[str, Sequence[Any]]
    ) -> None:
        check_further_names(further)
        _check_images(images)
        self.total = len(images)
        if self.total == 0:
            raise InputError("Got 0 images but expected at least 1")
        self._images = images
        self._beside = dict(further) if labels is None else {LABEL: labels, **further}
        self._check_lengths()
        self.types = {name: self._infer_type(name) for name in self._beside}

    def adopt_types(self, stored: Mapping[str, pa.DataType] | None) -> None:
        """Decide what types the columns are written with.

        Parameters
        ----------
        stored : mapping of str to pyarrow.DataType, optional
            The types that an output has already.

        Raises
        ------
        InputError
            They are other columns, or of types that cannot hold these values.
        """
        if stored is None:
            # A column of nothing but gaps is one whose values are still to come.
            stored = {
                name: pa.string() if pa.types.is_null(kind) else kind
                for name, kind in self.types.items()
            }
        if stored.keys() != self.types.keys():
            raise InputError(
                f"Got the columns {sorted(self.types)} but the output has {sorted(stored)}, "
                "expected the same"
            )
        for name, kind in self.types.items():
            if _unify(kind, stored[name]) != stored[name]:
                raise InputError(
                    f"Got the column {name!r} of type {kind} but in the output it is of "
                    f"{stored[name]}, expected the same"
                )
        self.types = dict(stored)

    def windows(self) -> Iterator[Window]:
        """Yield the request piece by piece, in its order.

        Raises
        ------
        InputError
            Something among the images is no image; only images that are made while they are taken
            are not looked at before.
        """
        start = 0
        while start < self.total:
            items = _take_images(self._images, start, min(start + WINDOW_ROWS, self.total))
            rows = range(start, start + len(items))
            columns = {name: self._column(name, rows) for name in self._beside}
            yield Window(rows, items, pa.table(columns))
            start = rows.stop

    def _check_lengths(self) -> None:
        for name, values in self._beside.items():
            if len(values) != self.total:
                raise InputError(
                    f"Got {self.total} images and {len(values)} labels but expected one label per "
                    "image"
                    if name == LABEL
                    else f"Got {len(values)} values of {name!r} for {self.total} images, expected "
                    "one for each"
                )

    def _infer_type(self, name: str) -> pa.DataType:
        """Return the one type that holds the values of all windows."""
        kind = pa.null()
        for start in range(0, self.total, WINDOW_ROWS):
            values = _slice(self._beside[name], start, min(start + WINDOW_ROWS, self.total))
            window_kind = _convert(name, values).type
            common = _unify(kind, window_kind)
            if common is None:
                what = (
                    "labels that are not all text or all numbers"
                    if name == LABEL
                    else f"a column {name!r} that Arrow cannot hold"
                )
                raise InputError(f"Got {what}: both {kind} and {window_kind}")
            kind = common
        return kind

    def _column(self, name: str, rows: range) -> pa.Array:
        values = _slice(self._beside[name], rows.start, rows.stop)
        column = _convert(name, values)
        if column.type == self.types[name]:
            return column
        try:
            return column.cast(self.types[name])
        except pa.ArrowException as error:
            raise InputError(
                f"Got values of {name!r} that {self.types[name]} cannot hold: {error}"
            ) from None


def _convert(name: str, values: Any) -> pa.Array:
    column = label_column(values) if name == LABEL else further_column(name, values)
    # Each window would have a dictionary of its own.
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Text is one type, whether it comes from a list or from pandas.
    return column.cast(pa.string()) if column.type == pa.large_string() else column


def _unify(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, or None."""
    if first == second:
        return first
    schemas = [pa.schema([("values", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _check_images(images: Any) -> None:
    """Refuse what is no sequence of images, as far as that can be told without making any."""
    if _is_made_on_demand(images):
        return
    if isinstance(images, list | tuple) or not _is_sliced(images):
        as_image_list(images)
        return
    for start in range(0, len(images), WINDOW_ROWS):
        try:
            as_image_list(_slice(images, start, start + WINDOW_ROWS))
        except InputError:
            as_image_list(images)  # the same fault, named by its row among all
            raise


def _is_made_on_demand(images: Any) -> bool:
    if isinstance(images, str | bytes | bytearray | memoryview | Mapping) or _is_sliced(images):
        return False
    return hasattr(images, "__len__") and hasattr(images, "__getitem__")


def _is_sliced(values: Any) -> bool:
    return isinstance(values, list | tuple) or hasattr(values, "__array__")


def _slice(values: Any, start: int, stop: int) -> Any:
    if hasattr(values, "iloc"):
        return values.iloc[start:stop]
    if _is_sliced(values):
        return values[start:stop]
    return [values[row] for row in range(start, stop)]


def _take_images(images: Any, start: int, stop: int) -> Sequence[Any]:
    if not _is_made_on_demand(images):
        return as_image_list(_slice(images, start, stop))
    items: list[Any] = []
    held = 0
    for row in range(start, stop):
        items.append(images[row])
        held += _bytes_of(items[-1])
        if held > _WINDOW_BYTES:
            break
    try:
        return as_image_list(items)
    except InputError as error:
        raise InputError(f"In the images from row {start} on: {error}") from None


def _bytes_of(item: Any) -> int:
    if isinstance(item, bytes | bytearray):
        return len(item)
    if hasattr(item, "mode") and hasattr(item, "width"):  # a PIL image, which has no nbytes
        return int(item.width * item.height * 4)
    return int(getattr(item, "nbytes", 0))
