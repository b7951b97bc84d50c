"""What an image may be given as, and its content: what is hashed and decoded."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featx._errors import ImageDecodeError, InputError, reason_of
from featx._files import hint_on_path, lock_of_process
from featx._images.archives import is_archive, read_member, split_archive_path
from featx._images.faults import library_errors
from featx._images.limits import DEFAULT_LIMITS, Limits
from featx._images.pixels import checked_array, pixels_from_pillow, stored_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_EXPECTED = (
    "expected a sequence with one image a row: a list of paths, bytes, PIL images, arrays "
    "(height, width, 3) or tensors (3, height, width); or one array (n, height, width, 3), one "
    "tensor (n, 3, height, width), a Series or a one-column DataFrame"
)
_ADVICE = {
    2: " If this is a single grey image, wrap it in a list, [image].",
    3: (
        " If this is a single image, wrap it in a list, [image]; if it is a stack of grey images, "
        "pass list(images)."
    ),
}
_BYTES_LIKE = (bytes, bytearray, memoryview)
_CHANNELS = (1, 3)
_FRAMES = (("pandas", "DataFrame"), ("polars", "DataFrame"))
_COLUMNS = (
    *(("pandas", "Series"), ("pandas", "Index"), ("polars", "Series")),
    ("pandas.api.extensions", "ExtensionArray"),
)

# No path of a file is longer, on any system; what is longer is the content of an image, or a text.
_LONGEST_PATH = 4096

# Two threads must not load one lazily opened image at a time. Images share a few locks, by their
# address, so that none has to be attached to the caller's object.
_IMAGE_LOCKS = 64


def as_image_list(X: Any) -> Sequence[Any]:
    """Return the images of any accepted input as a list with one item a row.

    Pixels are not copied: the items are the caller's objects, or views of their rows. The input is
    what `featx.ImageEmbedder` takes, and may have no rows. Missing values (None, NaN, NA) stay in
    their rows; `read_content` refuses them.

    Raises
    ------
    InputError
        If it is a single image, a matrix of numbers, a generator, a DataFrame of several columns,
        or anything else that does not hold one image a row.

    Examples
    --------
    >>> as_image_list(("cat.jpg", Path("dog.jpg")))
    ['cat.jpg', PosixPath('dog.jpg')]
    >>> [item.shape for item in as_image_list(np.zeros((2, 4, 6, 3), dtype=np.uint8))]
    [(4, 6, 3), (4, 6, 3)]
    >>> as_image_list("cat.jpg")
    Traceback (most recent call last):
    featx.InputError: Got a single image, cat.jpg: wrap it in a list, [image].
    """
    items = _rows(X)
    if set(map(type, items)) == {str}:  # the usual case
        return items
    items = [unwrapped(item) for item in items]
    for row, item in enumerate(items):
        if not _is_image_like(item):
            raise InputError(f"Row {row} is {describe_item(item)}, not an image; {_EXPECTED}.")
    return items


def _rows(X: Any) -> list[Any]:
    if isinstance(X, (list, tuple)):
        return list(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "OSUT":
        return _rows_of_objects(X)
    if isinstance(X, np.ndarray) or _is_tensor(X):
        return _rows_of_numbers(X)
    if _is_instance(X, *_FRAMES):
        return _rows_of_frame(X)
    if _is_instance(X, *_COLUMNS):
        return list(X)
    if isinstance(X, (str, os.PathLike)) and _is_folder(X):
        raise InputError(
            f"Got the folder or archive {describe_item(X)}, expected images: list them by "
            "find_images(…)[0], or with their classes by load_image_folder(…)."
        )
    if isinstance(X, (str, os.PathLike, Image.Image, *_BYTES_LIKE)):
        raise InputError(f"Got a single image, {describe_item(X)}: wrap it in a list, [image].")
    if hasattr(X, "__next__"):
        raise InputError(
            f"Got a {type(X).__name__}, which can be read only once: make a list of it, list(X)."
        )
    if is_made_on_demand(X):
        return [X[row] for row in range(len(X))]
    raise InputError(f"Got {describe_item(X)}; {_EXPECTED}.")


def is_made_on_demand(images: Any) -> bool:
    """Return whether an object makes its images when they are taken, one by one."""
    is_one = isinstance(images, (str, Mapping, *_BYTES_LIKE))
    if is_one or isinstance(images, (list, tuple, np.ndarray)) or _is_tensor(images):
        return False
    if _is_instance(images, *_FRAMES, *_COLUMNS):
        return False
    # One picture, or a matrix, in an array of another library has no images as its rows.
    if len(getattr(images, "shape", "1")) not in (1, 4):
        return False
    return hasattr(images, "__len__") and hasattr(images, "__getitem__")


def unwrapped(item: Any) -> Any:
    """Return the image in what data sets wrap one in.

    That is a pair of image and number of its class (torchvision), a dict of bytes and path (Hugging
    Face), a scalar of Arrow, or a file in memory.

    Examples
    --------
    >>> unwrapped({"bytes": None, "path": "cat.jpg"}), unwrapped(("dog.jpg", 1))
    ('cat.jpg', 'dog.jpg')
    """
    # Two paths or pictures are no image and its label, but a row too many.
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], (int, np.integer)):
        item = item[0]
    if hasattr(item, "as_py"):
        item = item.as_py()
    if isinstance(item, Mapping) and not {"bytes", "path"}.isdisjoint(item):
        item = item.get("bytes") or item.get("path")
    return item.getvalue() if isinstance(item, io.BytesIO) else item


def _is_folder(path: str | os.PathLike[str]) -> bool:
    with contextlib.suppress(OSError):  # a text too long for a path
        return Path(path).is_dir() or is_archive(path)
    return False


def _rows_of_objects(X: npt.NDArray[Any]) -> list[Any]:
    if X.dtype.kind == "S" and X.size:
        raise InputError(
            f"Got an array of dtype {X.dtype}, which cuts zero bytes off the end of each image: "
            "pass a list of bytes."
        )
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if X.ndim != 1:
        raise InputError(
            f"Got an array of dtype {X.dtype} and shape {X.shape}, expected shape (n,) or "
            "(n, 1): one path or image a row."
        )
    return list(X.tolist())


def _rows_of_numbers(X: Any) -> list[Any]:
    is_array = isinstance(X, np.ndarray)
    if is_array and X.shape == (0,):
        return []
    if X.ndim != 4:
        advice = _ADVICE.get(X.ndim, "")
        raise InputError(f"Got {_describe_numbers(X)}; {_EXPECTED}.{advice}")
    if X.shape[3 if is_array else 1] not in _CHANNELS:
        layout = "(n, height, width, 3)" if is_array else "(n, 3, height, width)"
        raise InputError(
            f"Got {_describe_numbers(X)}, expected {layout} with 3 channels, or 1 for grey: "
            "reorder the axes (numpy transpose, torch permute)."
        )
    return list(X)


def _rows_of_frame(X: Any) -> list[Any]:
    if X.shape[1] != 1:
        raise InputError(
            f"Got a DataFrame of {X.shape[1]} columns {list(X.columns)}, expected one column of "
            'images: select it, as in X["path"].'
        )
    return list(X.iloc[:, 0] if hasattr(X, "iloc") else X.to_series(0))


def _is_tensor(item: Any) -> bool:
    return _is_instance(item, ("torch", "Tensor"))


def _is_instance(item: Any, *classes: tuple[str, str]) -> bool:
    """Tell whether an object is of a class of a library, without importing the library."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in classes)
    return any(kind is not None and isinstance(item, kind) for kind in kinds)


def _is_missing(item: Any) -> bool:
    if isinstance(item, (float, np.floating)):
        return bool(np.isnan(item))
    return item is None or type(item).__name__ in ("NAType", "NaTType")


def _is_image_like(item: Any) -> bool:
    return (
        isinstance(item, (str, os.PathLike, Image.Image, np.ndarray, *_BYTES_LIKE))
        or _is_tensor(item)
        or _is_missing(item)
    )


def describe_item(item: Any) -> str:
    """Return what to call an image in a message, on one line: its path, or what it is.

    Examples
    --------
    >>> describe_item(Path("photos/cat.jpg"))
    'photos/cat.jpg'
    >>> describe_item(b"123")
    '<3 bytes>'
    >>> describe_item(np.zeros((4, 6, 3), dtype=np.uint8))
    '<uint8 array of shape (4, 6, 3)>'
    """
    if isinstance(item, (str, os.PathLike)):
        path = os.fsdecode(item)
        if len(path) > _LONGEST_PATH:
            return f"{path[:100]!a}… ({len(path):,} characters)"
        return path if path.isprintable() and path else ascii(path)
    if isinstance(item, _BYTES_LIKE):
        return f"<{memoryview(item).nbytes} bytes>"
    if isinstance(item, Image.Image):
        name = getattr(item, "filename", "")
        if name:
            return describe_item(name)
        return f"<PIL image, mode {item.mode}, {item.width} x {item.height}>"
    if isinstance(item, np.ndarray) or _is_tensor(item):
        return f"<{_describe_numbers(item)}>"
    if _is_missing(item):
        return "<missing value>"
    if isinstance(item, Mapping):
        return f"<{type(item).__name__} of {', '.join(map(str, item))[:100]}>"
    return f"<{type(item).__name__}>"


def _describe_numbers(item: Any) -> str:
    kind = "array" if isinstance(item, np.ndarray) else "tensor"
    dtype = str(item.dtype).removeprefix("torch.")
    return f"{dtype} {kind} of shape {tuple(item.shape)}"


def read_content(item: Any, limits: Limits = DEFAULT_LIMITS) -> bytes | npt.NDArray[Any]:
    """Return the content of one image: what is hashed and decoded.

    A path is read from disk, once; a string is always a path and never fetched. Tensors and arrays
    become arrays of shape (height, width, channels), without copying. A PIL image becomes its
    upright RGB pixels; the caller's object stays as it is but for being loaded, as any use of a
    lazily opened image loads it, and several threads may read it at once.

    Raises
    ------
    ImageDecodeError
        If the file cannot be read, is no regular file, or is larger than the limit; if the value is
        missing; if the PIL image cannot be decoded; if the array is not of the shape and dtype of
        an image.

    Examples
    --------
    >>> read_content(b"encoded image")
    b'encoded image'
    >>> read_content(Image.new("L", (6, 4))).shape
    (4, 6, 3)
    >>> read_content("http://example.org/cat.jpg")
    Traceback (most recent call last):
    featx.ImageDecodeError: Cannot read image http://example.org/cat.jpg: no such file; it is a ...
    """
    if not isinstance(item, (str, bytes)):
        item = unwrapped(item)
    if isinstance(item, bytes):
        return item
    if isinstance(item, (str, os.PathLike)):
        return _read_file(item, limits)
    if type(item) is np.ndarray and item.dtype == np.uint8 and item.shape[2:] == (3,) and item.size:
        return item  # the usual form is not described first, in case it should be wrong
    source = describe_item(item)
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, Image.Image):
        limits.check_pixels(item.size, source)
        with lock_of_process("image", (id(item) >> 4) % _IMAGE_LOCKS):
            stored = stored_numbers(item, source)
            with library_errors(source):
                copied = item.copy()
        return pixels_from_pillow(copied, source, limits, stored)
    if isinstance(item, np.ndarray):
        return checked_array(np.asarray(item), source)
    if _is_tensor(item):
        return _array_of_tensor(item, source)
    if _is_missing(item):
        raise ImageDecodeError(source, "missing value")
    raise InputError(f"Got {source}, not an image; {_EXPECTED}.")


def _read_file(path: str | os.PathLike[str], limits: Limits) -> bytes:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path() would rewrite the path, "" to "." for one
        # Opening a FIFO or a device may wait for ever, so it is not tried.
        if stat.S_ISREG(status.st_mode) and status.st_size <= limits.max_file_bytes:
            return Path(path).read_bytes()
    except NotADirectoryError as error:
        member = split_archive_path(path)
        if member is None:
            raise ImageDecodeError(describe_item(path), reason_of(error).lower()) from error
        return read_member(*member, describe_item(path), limits)
    except FileNotFoundError:
        reason = f"no such file{hint_on_path(path)}"
        raise ImageDecodeError(describe_item(path), reason) from None
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the path
        is_too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        reason = reason_of(error).lower() + (hint_on_path(path) if is_too_long else "")
        raise ImageDecodeError(describe_item(path), reason) from error
    source = describe_item(path)
    if stat.S_ISDIR(status.st_mode):
        raise ImageDecodeError(source, "it is a folder, expected a file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageDecodeError(source, "not a regular file (a pipe, socket or device)")
    limits.check_bytes(status.st_size, source)
    raise AssertionError  # one of them has raised


def _array_of_tensor(tensor: Any, source: str) -> npt.NDArray[Any]:
    if tensor.ndim == 3 and tensor.shape[0] not in _CHANNELS:
        raise ImageDecodeError(
            source, "expected shape (3, height, width), (1, height, width) or (height, width)"
        )
    with library_errors(source):
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such numbers
            tensor = tensor.float()
        array: npt.NDArray[Any] = tensor.numpy(force=True)
    return checked_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, source)
