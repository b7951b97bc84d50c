"""The memo of digests: files that have not changed are not read again, and a changed one is."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from featx import EmbeddingCache, ImageDecodeError, ImageEmbedder, load_image_folder
from featx._extraction import contents
from featx._extraction.stream import EmbeddingStream
from featx._images.digest import digest_content
from featx._store import memo as memo_module
from featx._store.memo import StatMemo

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.utils import Bunch

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"red": 6, "green": 6}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose content was read."""
    read: list[str] = []
    original = contents.read_content

    def counted(item: object, limits: object) -> object:
        read.append(os.fspath(item))
        return original(item, limits)

    monkeypatch.setattr(contents, "read_content", counted)
    return read


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be trusted, as they are two seconds later."""
    monkeypatch.setattr(memo_module, "GRANULARITY_NS", -(10**10))


def test_a_file_is_read_once_when_it_is_new_and_never_when_it_is_known(
    photos: Bunch, reads: list[str], old_files: None
) -> None:
    first = ImageEmbedder(**TINY).transform(photos.paths)
    assert sorted(reads) == sorted(photos.paths)
    reads.clear()
    np.testing.assert_array_equal(ImageEmbedder(**TINY).transform(photos.paths), first)
    assert reads == []


def test_an_image_in_an_archive_above_the_limit_of_a_file_is_read_once(
    photos: Bunch, tmp_path: Path, reads: list[str], old_files: None
) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, path in enumerate(photos.paths[:3]):
            file.write(path, f"{number}.png")
    largest = max(Path(path).stat().st_size for path in photos.paths[:3])
    assert archive.stat().st_size > largest
    embedder = ImageEmbedder(**TINY, max_file_bytes=largest)
    members = [f"{archive}/{number}.png" for number in range(3)]
    first = embedder.transform(members)
    assert sorted(reads) == members
    reads.clear()
    np.testing.assert_array_equal(embedder.transform(members), first)
    assert reads == []
    with pytest.raises(ImageDecodeError, match="more than the limit"):
        embedder.set_params(max_file_bytes=largest - 1).transform(members)


def test_a_young_file_is_read_again(photos: Bunch, reads: list[str]) -> None:
    ImageEmbedder(**TINY).transform(photos.paths)
    reads.clear()
    ImageEmbedder(**TINY).transform(photos.paths)
    assert sorted(reads) == sorted(photos.paths)


def test_known_files_that_lack_a_vector_are_read_and_give_the_same_rows(
    photos: Bunch, reads: list[str], old_files: None
) -> None:
    ImageEmbedder(**TINY).transform(photos.paths)
    other = ImageEmbedder(**TINY, layers="blocks.2")
    np.testing.assert_array_equal(
        other.transform(photos.paths), other.set_params(cache=None).transform(photos.paths)
    )


def test_a_rewritten_file_has_the_vector_of_its_new_content(photos: Bunch, old_files: None) -> None:
    embedder = ImageEmbedder(**TINY)
    before = embedder.transform(photos.paths)
    changed = Path(photos.paths[0])
    status = changed.stat()
    changed.write_bytes(Path(photos.paths[-1]).read_bytes())
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = embedder.transform(photos.paths)
    np.testing.assert_array_equal(after[0], before[-1])
    np.testing.assert_array_equal(after[1:], before[1:])


def test_a_memo_that_is_mistaken_costs_time_and_no_row(
    photos: Bunch, private_cache: Path, old_files: None
) -> None:
    """As where a clock was set back: what decides is the content, whenever it is read."""
    expected = ImageEmbedder(**TINY, cache=None).transform(photos.paths)
    memo = StatMemo(EmbeddingCache().folder / "memo")
    wrong = digest_content(b"another image")
    memo.remember([(memo.observe(path), wrong) for path in photos.paths[:2]])
    assert memo.lookup(list(photos.paths[:2])) == [wrong, wrong]
    embedder = ImageEmbedder(**TINY)
    np.testing.assert_array_equal(embedder.transform(photos.paths), expected)
    np.testing.assert_array_equal(embedder.transform(photos.paths), expected)


def test_without_a_cache_there_is_no_memo(photos: Bunch, private_cache: Path) -> None:
    ImageEmbedder(**TINY, cache=None).transform(photos.paths)
    assert not list(private_cache.glob("*"))


def test_many_parcels_give_the_rows_of_one(photos: Bunch, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [*photos.paths, *photos.paths[:5]]
    expected = ImageEmbedder(**TINY, cache=None).transform(paths)
    monkeypatch.setattr(EmbeddingStream, "parcel_images", lambda self, n_images: 3)
    for cache in (None, "auto"):
        rows = ImageEmbedder(**TINY, cache=cache).transform(paths)
        np.testing.assert_array_equal(rows, expected)
