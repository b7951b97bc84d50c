"""What the checks work with: a transformer, images in each form, and the comparison of rows."""

from __future__ import annotations

import io
import os
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import SkipTest

import joblib
import numpy as np
from PIL import Image
from sklearn.base import clone
from sklearn.utils import get_tags

from featx._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

Check: TypeAlias = "Callable[..., None]"
"""A function of a transformer and, optionally, images."""

# Rows that are computed in other batches may differ by the rounding of their arithmetic, as a share
# of the largest value.
_ROUNDING = 1e-4


class Subject:
    """A transformer and the images it is tried on.

    Parameters
    ----------
    estimator : transformer
        It is only cloned, never fitted.
    images : sequence of images, optional
        At least 2, in a form that the transformer takes; by default those of `sample_images`.
    """

    def __init__(self, estimator: Any, images: Sequence[Any] | None = None) -> None:
        if isinstance(estimator, type):
            name = estimator.__name__
            raise InputError(f"Got the class {name} but expected an instance: pass {name}()")
        self.estimator = estimator
        # Copies, so that a transformer that writes into its images spoils no other check.
        self.images = sample_images() if images is None else deepcopy(list(images))
        if len(self.images) < 2:
            raise InputError(f"Got {len(self.images)} image(s) but expected at least 2")
        self.labels = np.arange(len(self.images)) % 2

    @property
    def tags(self) -> Any:
        """The scikit-learn tags of the transformer."""
        return get_tags(self.estimator)

    def fresh(self) -> Any:
        """Return an unfitted copy, whose chance is fixed where it has a ``random_state``."""
        copy = clone(self.estimator)
        if "random_state" in copy.get_params(deep=False):
            copy.set_params(random_state=0)
        return copy

    def fitted(self) -> Any:
        """Return a copy that was fitted to the images."""
        copy = self.fresh()
        # Not chained: what fit returns is the matter of one check alone.
        copy.fit(self.images, self.labels)
        return copy

    def rows(self) -> npt.NDArray[Any]:
        """Return the rows of the images."""
        return dense(self.fitted().transform(self.images))

    def require_same_rows(self, actual: Any, expected: Any, problem: str) -> None:
        """Raise `AssertionError` with the problem where rows differ by more than rounding.

        Raises
        ------
        SkipTest
            When the shapes agree and the tags say that the transformer is not deterministic.
        """
        actual, expected = dense(actual), dense(expected)
        require(
            actual.shape == expected.shape,
            f"{problem}: got rows of shape {actual.shape} but expected {expected.shape}",
        )
        if self.tags.non_deterministic:
            raise SkipTest("its tags say that it is not deterministic")
        far = ~np.isclose(actual, expected, rtol=0, atol=_tolerance(expected), equal_nan=True)
        places = np.argwhere(far)
        if len(places):
            row, column = places[0]
            raise AssertionError(
                f"{problem}: {len(places)} of {far.size} values differ, the first in row {row}, "
                f"column {column}: got {actual[row, column]} but expected {expected[row, column]}"
            )


CHECKS: dict[str, list[Check]] = {}
"""The checks of each file, in their order."""


def image_check(
    body: Callable[[Subject], None], name: str | None = None, doc: str | None = None
) -> Check:
    """Turn a function of a subject into a check: a function of a transformer and images."""

    def check(estimator: Any, images: Sequence[Any] | None = None) -> None:
        body(Subject(estimator, images))

    # Not functools.wraps, which would also give it the signature of the body.
    check.__module__, check.__doc__ = body.__module__, doc or body.__doc__
    check.__name__ = check.__qualname__ = name or body.__name__
    CHECKS.setdefault(body.__module__, []).append(check)
    return check


def require(condition: bool, problem: str) -> None:
    """Raise `AssertionError` with the problem unless the condition holds.

    Unlike the statement, it also does so under ``python -O``.
    """
    if not condition:
        raise AssertionError(problem)


def dense(output: Any) -> npt.NDArray[Any]:
    """Return what a transformer gave (array, sparse matrix or data frame) as a 2-D array."""
    rows = np.asarray(output.toarray() if hasattr(output, "toarray") else output)
    require(
        rows.ndim == 2, f"expected an output of 2 dimensions, one row an image, got {rows.ndim}"
    )
    return rows


def rows_are_alike(rows: npt.NDArray[Any]) -> bool:
    """Tell whether a comparison of these rows could not see that two are exchanged."""
    return bool(np.allclose(rows, rows[:1], rtol=0, atol=_tolerance(rows), equal_nan=True))


def snapshot(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a hash of each value, so that a change inside one is seen later."""
    hashes: dict[str, Any] = {}
    for name, value in values.items():
        try:
            hashes[name] = joblib.hash(value)
        except Exception:
            # What cannot be pickled, such as a lock or a lambda, is itself and no other.
            hashes[name] = (id(value), value)
    return hashes


def changed_names(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of two snapshots that were added, removed or changed."""
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


def _tolerance(rows: npt.NDArray[Any]) -> float:
    finite = rows[np.isfinite(rows)]
    precision = np.finfo(rows.dtype).eps if rows.dtype.kind == "f" else 0.0
    return float(max(_ROUNDING, 4 * precision) * np.max(np.abs(finite), initial=0.0))


def sample_images() -> list[npt.NDArray[np.uint8]]:
    """Return five 8-bit RGB images of shape (48, 64, 3), each of twelve random coloured squares.

    They are of one shape, for transformers that stack them, and not square, so that exchanged axes
    are seen. Large squares leave even an untrained network with different rows, as noise does not.
    """
    random = np.random.default_rng(0)
    squares = random.integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    return list(squares.repeat(16, axis=1).repeat(16, axis=2))


def pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """Return the 8-bit RGB pixels of an image of any form.

    Raises
    ------
    SkipTest
        When it is no 8-bit RGB image, so that it has not the same pixels in every form.
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            image = file.convert("RGB")
    elif isinstance(image, Image.Image):
        image = image.convert("RGB")
    elif hasattr(image, "permute"):
        image = image.permute(1, 2, 0)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise SkipTest(f"needs 8-bit RGB images, got {pixels.dtype} of shape {pixels.shape}")
    return pixels


def form_of(image: Any) -> str:
    """Return the name of the form of an image, a key of `FORMS`."""
    if isinstance(image, str):
        return "path_string"
    if isinstance(image, os.PathLike):
        return "path"
    if isinstance(image, bytes):
        return "bytes"
    if isinstance(image, Image.Image):
        return "pil"
    return "tensor" if hasattr(image, "permute") else "array"


def write_file(content: bytes, folder: Path) -> Path:
    """Write a new file into a folder, named after the number of its files."""
    path = folder / f"{len(list(folder.iterdir()))}.png"
    path.write_bytes(content)
    return path


def png_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the pixels as a PNG file, which keeps them as they are."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _tensor(pixels: npt.NDArray[np.uint8]) -> Any:
    import torch  # here, because no other check needs it

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


FORMS: dict[str, Callable[[npt.NDArray[np.uint8], Path], Any]] = {
    "path_string": lambda pixels, folder: str(write_file(png_of(pixels), folder)),
    "path": lambda pixels, folder: write_file(png_of(pixels), folder),
    "bytes": lambda pixels, _: png_of(pixels),
    "pil": lambda pixels, _: Image.open(io.BytesIO(png_of(pixels))),
    "array": lambda pixels, _: pixels.copy(),
    "tensor": lambda pixels, _: _tensor(pixels),
}
"""How pixels, and a folder for files, become an image of each form."""

UNREADABLE: dict[str, Callable[[Path], Any]] = {
    "path_string": lambda folder: str(write_file(b"this is not an image", folder)),
    "path": lambda folder: write_file(b"this is not an image", folder),
    "bytes": lambda _: b"this is not an image",
    "pil": lambda _: _cut_off_picture(),
    "array": lambda _: np.zeros((0, 0, 3), np.uint8),
}
"""What nobody can read, in the forms that can hold such a thing."""


def _cut_off_picture() -> Image.Image:
    content = png_of(sample_images()[0])
    return Image.open(io.BytesIO(content[: len(content) // 2]))
