"""Folders of images are listed completely, in one order, with nothing left out silently."""

from __future__ import annotations

import os
import re
import shlex
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx._errors import ImageDecodeError, InputError
from featx._images.decode import _FORMATS
from featx._images.folders import (
    IMAGE_SUFFIXES,
    count_endings,
    find_images,
    load_image_folder,
)
from featx._images.manifests import load_manifest
from featx._images.sources import read_content

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
    assert count_endings(photos.skipped) == (
        "3 hidden, 2 .txt, 1 .jpg, 1 .md, 1 folder, 1 without an ending"
    )
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that differ in spaces only
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
    found = ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "dog/broken.jpg"]
    assert below(tmp_path / "photos", photos.paths) == found
    assert photos.target.tolist() == ["cat", "dog", "dog", "dog"]
    with pytest.raises(ImageDecodeError, match=r"no such file; it is a link to '.*absent.jpg'"):
        read_content(photos.paths[-1])
    assert below(tmp_path / "photos", photos.skipped) == [
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
        ("absent", "No such file or folder: "),
        ("file.jpg", "Expected a folder, got the file "),
        ("empty", "Expected images in .*, got an empty folder"),
        ("texts", "Expected images in .*, got other files.*1 .txt"),
    ]:
        with pytest.raises(InputError, match=message) as failure:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(failure.value)
        assert "\n" not in str(failure.value)


def test_a_flat_folder_is_told_what_takes_flat_folders(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(InputError, match=r"Got 2 images .*no class folders.*find_images"):
        load_image_folder(tmp_path)


def test_all_endings_of_a_format_are_found_or_none(tmp_path: Path) -> None:
    Image.init()
    registered = Image.registered_extensions()
    formats = {registered[ending] for ending in IMAGE_SUFFIXES if ending in registered}
    endings = {ending for ending, name in registered.items() if name in formats}
    assert endings <= IMAGE_SUFFIXES
    assert set(_FORMATS) <= formats <= {*_FORMATS, "JPEG", "MPO", "HEIF"}
    phone = {".heic", ".heif", ".hif", ".mpo", ".apng", ".ico", ".jpx", ".j2c", ".avifs"}
    assert phone <= IMAGE_SUFFIXES
    root = make(tmp_path, *(f"cat/IMG{ending.upper()}" for ending in IMAGE_SUFFIXES))
    photos = load_image_folder(root)
    assert (len(photos.paths), photos.skipped) == (len(IMAGE_SUFFIXES), [])


def test_folders_that_systems_make_are_passed_over(tmp_path: Path) -> None:
    made = ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
    root = make(tmp_path, "cat/1.jpg", *(f"{name}/cat/1.jpg" for name in made))
    make(root, *(f"cat/{name}/1.jpg" for name in made))
    photos = load_image_folder(root)
    assert below(root, photos.paths) == below(root, find_images(root)[0]) == ["cat/1.jpg"]
    assert set(below(root, photos.skipped)) == {*made, *(f"cat/{name}" for name in made)}


@pytest.fixture(params=["folder", "archive"])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Make a folder, or an archive, of empty files."""

    def make_one(*names: str) -> Path:
        if request.param == "folder":
            return make(tmp_path / "data", *names)
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        return tmp_path / "data.zip"

    return make_one


@pytest.mark.parametrize("top", ["", "photos/", "photos/deep er/"])
@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("Train", "Valid", "TEST"),
        ("seg_train/seg_train", "seg_test/seg_test", "seg_pred"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("trainset", "testset"),
        ("all", "train"),
        ("training", "rest"),
        ("test", "dev"),
    ],
)
def test_the_folder_above_train_and_test_is_refused_with_the_command_to_type(
    pack: Callable[..., Path], top: str, names: tuple[str, ...]
) -> None:
    images = [f"{top}{name}/{label}/1.jpg" for name in names for label in ("cat", "dog")]
    root = pack(*images, f"{top}labels.csv")
    with pytest.raises(InputError, match="are no classes: give one of them") as failure:
        load_image_folder(root)
    train, option, test = shlex.split(str(failure.value).partition("featx select ")[2])
    assert (option, train != test) == ("--test", True)
    for part in (train, test):
        assert load_image_folder(part).target_names == ["cat", "dog"]
        assert os.path.relpath(part, root) in {os.path.normpath(f"{top}{name}") for name in names}


def test_parts_of_a_data_set_without_class_folders_are_refused(pack: Callable[..., Path]) -> None:
    root = pack("train/cat.1.jpg", "train/dog.1.jpg", "test/1.jpg")
    with pytest.raises(InputError, match=r"'test', 'train'.* are no classes: sort the images"):
        load_image_folder(root)


@pytest.mark.parametrize(
    "names", [("bullet train", "bus"), ("train", "bus"), ("test tube", "vial")]
)
def test_a_class_may_be_called_train(pack: Callable[..., Path], names: tuple[str, ...]) -> None:
    root = pack(*(f"{name}/1.jpg" for name in names))
    assert load_image_folder(root).target_names == sorted(names)


@given(depth=st.integers(1, 4), labels=st.sets(names, min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_one_folder_too_many_names_the_way_that_works(
    tmp_path_factory: pytest.TempPathFactory, depth: int, labels: set[str]
) -> None:
    root = tmp_path_factory.mktemp("above")
    make(root, *(f"{'top/' * depth}{label}/1.jpg" for label in labels), "__MACOSX/top/._1.jpg")
    with pytest.raises(InputError, match="got one that holds") as failure:
        load_image_folder(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that differ in spaces only
        photos = load_image_folder(str(failure.value).split(": give ")[1])
    assert photos.target_names == sorted(labels)
    assert below(root, find_images(root)[0]) == below(root, photos.paths)


def test_a_single_class_of_images_is_a_class(pack: Callable[..., Path]) -> None:
    root = pack("cat/1.jpg", "cat/indoor/2.jpg")
    assert load_image_folder(root).target.tolist() == ["cat", "cat"]


def test_class_folders_that_hold_the_same_subfolders_are_named(pack: Callable[..., Path]) -> None:
    images = [f"{a}/{b}/1.jpg" for a in ("cat", "dog") for b in ("inside", "outside")]
    root = pack(*images, "cat/night/1.jpg")
    with pytest.warns(UserWarning, match=r"'cat', 'dog' .* all hold folders 'inside'"):
        assert load_image_folder(root).target_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "Cat"), ("caf\u00e9", "cafe\u0301"), ("hot dog", "hotdog"), ("cat", "cat ")],
)
def test_classes_that_people_take_for_one_are_named(
    tmp_path: Path, pack: Callable[..., Path], one: str, other: str
) -> None:
    root = pack(f"{one}/1.jpg", f"{other}/1.jpg", "bird/1.jpg")
    table = tmp_path / "list.csv"
    table.write_text(f"path,label\n1.jpg,{one}\n2.jpg,{other}\n3.jpg,bird\n", "utf-8")
    for load in (load_image_folder, load_manifest):
        with pytest.warns(UserWarning, match="differ only in") as caught:
            load(root if load is load_image_folder else table)
        (warning,) = caught
        assert ascii(one) in str(warning.message)
        assert ascii(other) in str(warning.message)
        assert "bird" not in str(warning.message)


@given(paths=st.lists(st.text(min_size=1), max_size=20))
def test_what_was_skipped_is_counted_to_the_last_in_one_short_line(paths: list[str]) -> None:
    text = count_endings(paths)
    assert sum(map(int, re.findall(r"(?:^|, )(\d+) ", text))) == len(paths)
    assert text.isprintable()
    assert len(text) < 200


def test_the_sample_of_the_project_is_listed_whole(sample_folder: Path) -> None:
    photos = load_image_folder(sample_folder / "train")
    assert len(photos.paths) == 1000
    assert len(photos.target_names) == 10
    assert photos.skipped == []
