"""Folders of images are listed completely, in one order, with nothing left out silently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx._errors import InputError
from featx._images.folders import find_images, load_image_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(root: Path, paths: Iterable[str]) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


def test_each_class_folder_is_a_label_and_files_below_it_belong_to_it(tmp_path: Path) -> None:
    root = make(tmp_path, "dog/2.jpg", "cat/deep/er/1.PNG", "cat/10.jpeg", "cat/9.webp")
    photos = load_image_folder(root)
    assert below(root, photos.paths) == [
        "cat/10.jpeg",
        "cat/9.webp",
        "cat/deep/er/1.PNG",
        "dog/2.jpg",
    ]
    assert photos.target.tolist() == ["cat", "cat", "cat", "dog"]
    assert photos.target_names == ["cat", "dog"]
    assert photos.skipped == []
    assert photos.data is photos.paths
    assert photos.paths.dtype == object
    assert photos.target.dtype.kind == "U"
    assert all(isinstance(path, str) for path in photos.paths)


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "cat/1.jpg",
        "cat/notes.txt",
        "cat/.hidden.jpg",
        "cat/.thumbnails/1.jpg",
        "cat/noending",
        "readme.md",
        "stray.jpg",
        ".git/config",
        "empty/notes.txt",
    )
    photos = load_image_folder(root)
    assert below(root, photos.paths) == ["cat/1.jpg"]
    assert photos.target_names == ["cat"]
    assert sorted(below(root, photos.skipped)) == [
        ".git",
        "cat/.hidden.jpg",
        "cat/.thumbnails",
        "cat/noending",
        "cat/notes.txt",
        "empty",
        "empty/notes.txt",
        "readme.md",
        "stray.jpg",
    ]


def test_data_and_target_are_returned_alone_on_request(tmp_path: Path) -> None:
    X, y = load_image_folder(make(tmp_path, "cat/1.jpg", "dog/1.jpg"), return_X_y=True)
    assert below(tmp_path, X) == ["cat/1.jpg", "dog/1.jpg"]
    assert y.tolist() == ["cat", "dog"]


def test_paths_begin_with_the_folder_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "photos/cat/1.jpg")
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "photos/", Path("photos")):
        assert load_image_folder(folder).paths.tolist() == ["photos/cat/1.jpg"]
        assert find_images(folder)[0] == ["photos/cat/1.jpg"]


names = st.text(st.sampled_from("ab1._- éЖ"), min_size=1, max_size=5).filter(
    lambda name: not name.startswith(".")
)


@given(files=st.sets(st.tuples(names, names), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_every_image_is_found_once_in_the_same_order_however_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str]]
) -> None:
    listings = []
    for order in (sorted(files), sorted(files, reverse=True)):
        root = tmp_path_factory.mktemp("order")
        make(root, *(f"{label}/{name}.jpg" for label, name in order))
        photos = load_image_folder(root)
        listings.append(list(zip(below(root, photos.paths), photos.target.tolist(), strict=True)))
        assert below(root, find_images(root)[0]) == below(root, photos.paths)
    assert listings[0] == listings[1]
    assert {(label, Path(path).stem) for path, label in listings[0]} == {
        (label, Path(f"{name}.jpg").stem) for label, name in files
    }
    assert np.array_equal([label for _, label in listings[0]], sorted(label for label, _ in files))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "store/cat/1.jpg", "photos/dog/1.jpg")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "store" / "cat")
    (tmp_path / "photos" / "dog" / "2.jpg").symlink_to(tmp_path / "store" / "cat" / "1.jpg")
    (tmp_path / "photos" / "dog" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dog" / "self").symlink_to(tmp_path / "photos" / "dog")
    (tmp_path / "photos" / "dog" / "broken.jpg").symlink_to(tmp_path / "absent.jpg")
    (tmp_path / "photos" / "dog" / "loop.jpg").symlink_to(tmp_path / "photos" / "dog" / "loop.jpg")
    photos = load_image_folder(tmp_path / "photos")
    assert below(tmp_path / "photos", photos.paths) == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]
    assert photos.target.tolist() == ["cat", "dog", "dog"]
    assert below(tmp_path / "photos", photos.skipped) == [
        "dog/broken.jpg",
        "dog/loop.jpg",
        "dog/self",
        "dog/up",
    ]


def test_a_pipe_with_the_name_of_an_image_is_skipped(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    assert below(tmp_path, load_image_folder(tmp_path).skipped) == ["cat/2.jpg"]


def test_find_images_takes_flat_and_nested_folders(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a/c.TIFF", "a.jpg", "notes.txt", ".hidden/d.jpg")
    paths, skipped = find_images(tmp_path)
    assert below(tmp_path, paths) == ["a/c.TIFF", "a.jpg", "b.jpg"]
    assert below(tmp_path, skipped) == [".hidden", "notes.txt"]


@pytest.mark.parametrize("load", [load_image_folder, find_images])
def test_a_folder_that_cannot_be_used_is_refused_in_one_line_that_names_it(
    load: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path, "file.jpg", "texts/cat/notes.txt")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("absent", "No such folder: "),
        ("file.jpg", "Expected a folder, got the file "),
        ("empty", "Expected images in .*, got an empty folder"),
        ("texts", "Expected images in .*, got 2? ?.*other files"),
    ]:
        with pytest.raises(InputError, match=message) as failure:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(failure.value)
        assert "\n" not in str(failure.value)


def test_a_flat_folder_is_told_what_takes_flat_folders(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(
        InputError, match=r"one subfolder for each class.*got 2 images.*find_images"
    ):
        load_image_folder(tmp_path)


def test_the_sample_of_the_project_is_listed_whole(sample_folder: Path) -> None:
    photos = load_image_folder(sample_folder / "train")
    assert len(photos.paths) == 1000
    assert len(photos.target_names) == 10
    assert photos.skipped == []
