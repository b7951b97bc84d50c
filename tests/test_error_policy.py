"""What becomes of unreadable images: policy × which are bad × batch size × workers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from featx import ImageDecodeError, ImageDecodeWarning, ImageEmbedder, load_image_folder

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "device": "cpu"}
COUNT = 12

# The rows that are bad, for batches of 4 as well as of 1 and 5.
BAD_ROWS = {
    "none": [],
    "first": [0],
    "middle": [6],
    "last": [11],
    "first and last": [0, 11],
    "a whole batch": [4, 5, 6, 7],
    "all but one": [row for row in range(COUNT) if row != 8],
    "all": list(range(COUNT)),
}


@pytest.fixture(scope="module")
def good_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], np.ndarray]:
    """Return the bytes of some images and their embeddings."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("good")
    contents = []
    for row in range(COUNT):
        pixels = np.random.default_rng(row).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        contents.append((folder / f"{row}.png").read_bytes())
    return contents, ImageEmbedder(**TINY, cache=None).transform(contents)


def damage(content: bytes, row: int) -> bytes:
    """Spoil an image in the way that its row says."""
    return (b"", content[: len(content) // 2], b"<html>not found</html>")[row % 3]


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_every_row_is_its_image_or_its_failure(
    good_rows: tuple[list[bytes], np.ndarray],
    tmp_path: Path,
    case: str,
    batch_size: int,
    num_workers: int,
    cached: bool,
) -> None:
    contents, expected = good_rows
    bad = BAD_ROWS[case]
    paths = []
    for row, content in enumerate(contents):
        paths.append(tmp_path / f"{row}.png")
        paths[-1].write_bytes(damage(content, row) if row in bad else content)
    for row in bad[1:]:
        if row % 4 == 3:
            paths[row].unlink()  # some are absent rather than damaged
    strict = ImageEmbedder(
        **TINY,
        batch_size=batch_size,
        num_workers=num_workers,
        cache=tmp_path / "cache" if cached else None,
    )
    tolerant = ImageEmbedder(**strict.get_params()).set_params(on_error="nan")

    if not bad:
        np.testing.assert_array_equal(strict.transform(paths), expected)
        np.testing.assert_array_equal(tolerant.transform(paths), expected)
        return
    with pytest.raises(ImageDecodeError) as caught:
        strict.transform(paths)
    assert caught.value.row in bad
    assert caught.value.source == str(paths[caught.value.row])

    if len(bad) == COUNT:
        with pytest.raises(ImageDecodeError, match="none of the 12 images could be read"):
            tolerant.transform(paths)
        return
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        rows = tolerant.transform(paths)
    (warning,) = [entry.message for entry in issued]
    assert isinstance(warning, ImageDecodeWarning)
    assert [failure.row for failure in warning.failures] == bad
    assert [failure.source for failure in warning.failures] == [str(paths[row]) for row in bad]
    assert all(failure.reason for failure in warning.failures)
    assert rows.shape == expected.shape
    assert np.isnan(rows[bad]).all()
    good = [row for row in range(COUNT) if row not in bad]
    np.testing.assert_array_equal(rows[good], expected[good])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_unreadable_image_is_the_one_that_is_named(
    make_image_folder: Callable[..., Path], num_workers: int
) -> None:
    photos = load_image_folder(make_image_folder({"red": 12}))
    for row in (3, 9):
        content = Path(photos.paths[row]).read_bytes()
        Path(photos.paths[row]).write_bytes(content[:100])
    with pytest.raises(ImageDecodeError, match="row 3"):
        ImageEmbedder(**TINY, num_workers=num_workers, batch_size=4).transform(photos.paths)


def test_dropping_rows_is_not_offered() -> None:
    for policy in ("skip", "drop", "ignore", None, True):
        with pytest.raises(ValueError, match="expected 'raise' or 'nan'"):
            ImageEmbedder(**TINY, on_error=policy).fit(["a.jpg"])
