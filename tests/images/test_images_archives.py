"""Images in archives are read in place, like files, and damaged archives are refused by name."""

from __future__ import annotations

import io
import os
import signal
import stat
import struct
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx._errors import ImageDecodeError, InputError
from featx._images import archives
from featx._images.archives import list_members, open_archive, split_archive_path
from featx._images.folders import find_images, load_image_folder
from featx._images.limits import Limits
from featx._images.manifests import load_manifest
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {
    "cat/1.png": b"cat one",
    "cat/deep/2.jpg": b"cat two",
    "dog/1.PNG": b"dog one",
    "dog/notes.txt": b"not an image",
    ".hidden/3.png": b"hidden",
    "cat/.4.png": b"hidden too",
    "loose.png": b"no class",
}


def make_zip(
    path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(params=["zip", "stored zip", "tar"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "tar":
        return make_tar(tmp_path / "photos.tar")
    method = zipfile.ZIP_STORED if request.param == "stored zip" else zipfile.ZIP_DEFLATED
    return make_zip(tmp_path / "photos.zip", method=method)


def test_an_archive_lists_as_the_folder_that_was_packed(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    packed, unpacked = load_image_folder(archive), load_image_folder(folder)
    assert [Path(path).relative_to(archive) for path in packed.paths] == [
        Path(path).relative_to(folder) for path in unpacked.paths
    ]
    assert packed.target.tolist() == unpacked.target.tolist()
    assert packed.target_names == unpacked.target_names == ["cat", "dog"]
    assert [Path(p).relative_to(archive) for p in find_images(archive)[0]] == [
        Path(p).relative_to(folder) for p in find_images(folder)[0]
    ]


def test_a_folder_in_an_archive_is_a_folder(archive: Path) -> None:
    paths, skipped = find_images(archive / "dog")
    assert paths == [str(archive / "dog" / "1.PNG")]
    assert skipped == [str(archive / "dog" / "notes.txt")]
    assert find_images(f"{archive}/dog/") == (paths, skipped)
    assert find_images(f"{archive}/") == find_images(archive)
    assert (
        load_image_folder(f"{archive}/").paths.tolist() == load_image_folder(archive).paths.tolist()
    )
    with pytest.raises(InputError, match="No such folder in the archive"):
        find_images(archive / "bird")


def test_a_path_into_an_archive_reads_that_file(archive: Path) -> None:
    for name, content in FILES.items():
        assert read_content(archive / name) == content
        assert read_content(str(archive / name)) == content
    with pytest.raises(ImageDecodeError, match="no such file in the archive"):
        read_content(archive / "cat" / "9.png")


def test_a_manifest_may_name_images_in_an_archive_beside_it(archive: Path) -> None:
    manifest = archive.parent / "list.csv"
    manifest.write_text(f"path,label\n{archive.name}/cat/1.png,cat\n")
    assert read_content(load_manifest(manifest).paths[0]) == FILES["cat/1.png"]


def test_a_folder_that_is_named_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos.zip"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"a file")
    assert load_image_folder(folder).paths.tolist() == [str(folder / "cat" / "1.png")]
    assert read_content(folder / "cat" / "1.png") == b"a file"
    assert split_archive_path(folder / "cat" / "1.png") is None


def test_an_archive_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "photos.zip", {"1.png": b"old"})
    assert read_content(path / "1.png") == b"old"
    replacement = make_zip(tmp_path / "other.zip", {"1.png": b"brand new"})
    replacement.replace(path)
    assert read_content(path / "1.png") == b"brand new"


def test_many_threads_read_one_archive(archive: Path) -> None:
    wrong: list[str] = []

    def read(name: str) -> None:
        for _ in range(50):
            if read_content(archive / name) != FILES[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in FILES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_process_reads_its_own_bytes(archive: Path) -> None:
    open_archive(str(archive))
    child = os.fork()
    if child == 0:
        right = all(
            read_content(archive / name) == FILES[name] for name in FILES for _ in range(20)
        )
        os._exit(0 if right else 1)
    assert all(read_content(archive / name) == FILES[name] for name in FILES for _ in range(20))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_does_not_wait_for_an_archive_that_a_thread_of_its_parent_opens(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_opening, is_done = threading.Event(), threading.Event()
    read_archive = archives._read_archive

    def wait_and_read(path: str) -> archives.Archive:
        is_opening.set()
        is_done.wait()
        return read_archive(path)

    monkeypatch.setattr(archives, "_read_archive", wait_and_read)
    thread = threading.Thread(target=open_archive, args=(str(archive),))
    thread.start()
    is_opening.wait()
    if (child := os.fork()) == 0:
        signal.alarm(20)  # ends a child that waits
        is_done.set()
        os._exit(0 if read_content(archive / "loose.png") == FILES["loose.png"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    is_done.set()
    thread.join()


def test_names_that_climb_out_are_skipped_and_nothing_is_written(tmp_path: Path) -> None:
    files = {"../outside.png": b"up", "a/../../b.png": b"up", r"C:\x.png": b"c", "in.png": b"in"}
    for archive in (make_zip(tmp_path / "a.zip", files), make_tar(tmp_path / "a.tar", files)):
        before = sorted(tmp_path.parent.rglob("*"))
        paths, skipped = find_images(archive)
        assert paths == [f"{archive}/in.png"]
        assert sorted(skipped) == sorted(f"{archive}/{name}" for name in files if name != "in.png")
        for path in skipped:
            with pytest.raises(ImageDecodeError, match="no such file in the archive"):
                read_content(path)
        assert sorted(tmp_path.parent.rglob("*")) == before


plain = st.text(st.sampled_from("ab1 -é"), min_size=1, max_size=3).map(lambda name: f"{name}.png")
spelling = st.sampled_from(
    ["{0}/{1}", "./{0}/{1}", "/{0}/{1}", "{0}//{1}", "{0}/./{1}", "\\{0}\\{1}"]
)


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(st.tuples(plain, plain), spelling, min_size=1, max_size=6))
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_name_has_one_form_however_it_was_packed(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[Path, dict[str, bytes]], Path],
    files: dict[tuple[str, str], str],
) -> None:
    folder = tmp_path_factory.mktemp("spelled")
    stored = {form.format(*name): "/".join(name).encode() for name, form in files.items()}
    archive = make(folder / f"a.{make.__name__[5:]}", stored)
    paths, skipped = find_images(archive)
    assert sorted(paths) == sorted(f"{archive}/{content.decode()}" for content in stored.values())
    assert skipped == []
    for path in paths:
        assert read_content(path).decode() == os.path.relpath(path, archive)
    for name, content in stored.items():  # as a table may name it
        assert read_content(f"{archive}/{name}") == content


def test_classes_of_an_archive_of_absolute_names_are_found(tmp_path: Path) -> None:
    files = {f"/home/me/data/{name}/1.png": b"" for name in ("cat", "dog")}
    for archive in (make_zip(tmp_path / "a.zip", files), make_tar(tmp_path / "a.tar", files)):
        for root in (archive, archive / "home/me/data"):
            photos = load_image_folder(root)
            assert photos.target.tolist() == ["cat", "dog"]
            assert photos.paths[0] == f"{archive}/home/me/data/cat/1.png"


def test_hard_links_in_a_tar_are_the_files_they_name(tmp_path: Path) -> None:
    for split, source in (("train", "all"), ("small", "train")):  # a link to a link
        for name, content in FILES.items():
            path = tmp_path / "data" / "all" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            link = tmp_path / "data" / split / name
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "data" / source / name, link)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "data", ".")
    listed = [find_images(tmp_path / "a.tar" / split)[0] for split in ("all", "train", "small")]
    for paths in zip(*listed, strict=True):
        assert len({read_content(path) for path in paths}) == 1
        assert len({Path(path).relative_to(tmp_path / "a.tar").parts[1:] for path in paths}) == 1
    assert [len(paths) for paths in listed] == [len(find_images(tmp_path / "data" / "all")[0])] * 3


def test_what_is_no_plain_file_in_an_archive_is_listed_among_the_skipped(tmp_path: Path) -> None:
    kinds = {"link.png": tarfile.SYMTYPE, "device.png": tarfile.CHRTYPE, "to.png": tarfile.LNKTYPE}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("real.png")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in (*kinds, "real.png"):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (
                (stat.S_IFREG if name == "real.png" else stat.S_IFLNK) | 0o644
            ) << 16
            packed.writestr(entry, "x")
        packed.writestr("folder.png\\", "")
    for path in (tmp_path / "a.tar", tmp_path / "a.zip"):
        assert list_members(str(path)) == (["real.png"], sorted(kinds))
        assert find_images(path)[1] == sorted(f"{path}/{name}" for name in kinds)
        with pytest.raises(ImageDecodeError):
            read_content(path / "link.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "File is not a zip file|empty file"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"<html><body>Sign in", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_archive_is_called_by_its_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    for name in ("a.zip", "a.tar"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"Cannot read the archive .*: .*({reason})"):
            find_images(tmp_path / name)


def test_an_archive_is_read_by_its_content(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip").rename(tmp_path / "zip.tar")
    make_tar(tmp_path / "a.tar", FILES | {"in.png": (tmp_path / "zip.tar").read_bytes()})
    (tmp_path / "a.tar").rename(tmp_path / "tar.zip")
    for name in ("zip.tar", "tar.zip"):
        for path, content in FILES.items():
            assert read_content(tmp_path / name / path) == content


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_an_archive_that_is_cut_off_is_refused_and_not_a_smaller_one(
    tmp_path: Path, suffix: str
) -> None:
    path = (make_zip if suffix == "zip" else make_tar)(tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    content_end = len(whole.rstrip(b"\0")) if suffix == "tar" else len(whole)
    for size in {*range(0, content_end, 97), *range(0, content_end, 512)}:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="Cannot read the archive"):
            find_images(path)


def test_tars_that_were_joined_are_refused_and_not_the_first_of_them(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes() + path.read_bytes())
    with pytest.raises(InputError, match="another archive was joined to it"):
        find_images(path)


def zip_of_bytes(path: Path, name: bytes, extra: bytes = b"") -> Path:
    """Make an archive whose names are bytes of no stated encoding."""
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("?" * len(name))
        entry.extra = extra
        archive.writestr(entry, b"content")
    path.write_bytes(path.read_bytes().replace(b"?" * len(name), name))
    return path


@given(name=st.text(st.characters(min_codepoint=0xA1, codec="utf-8"), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_names_in_utf8_are_right_where_an_archive_does_not_say_so(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    field = b"\1" + bytes(4) + f"{name}.png".encode()
    for archive in (
        zip_of_bytes(folder / "mac.zip", f"{name}.png".encode()),
        zip_of_bytes(
            folder / "field.zip", b"\x81.png", struct.pack("<HH", 0x7075, len(field)) + field
        ),
    ):
        (path,), _ = find_images(archive)
        assert path == f"{archive}/{name}.png"
        assert read_content(path) == b"content"


def test_names_in_an_unknown_encoding_bring_one_warning_and_can_be_read(tmp_path: Path) -> None:
    packed = zip_of_bytes(tmp_path / "a.zip", "猫/1.png".encode("cp932"))
    tarred = make_tar(tmp_path / "a.tar", {"\udc94L/1.png": b"content"})
    for archive in (packed, tarred):
        for load in (load_image_folder, find_images):
            with pytest.warns(UserWarning, match="unknown encoding") as caught:
                paths = load(archive)[0] if load is find_images else load(archive).paths
            assert len(caught) == 1
            assert [read_content(path) for path in paths] == [b"content"]


def test_a_member_above_the_limit_of_bytes_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"zeros.png": bytes(50_000_000)})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("featx._images.archives.ZipArchive.read", None)
    with pytest.raises(ImageDecodeError, match="50,000,000 bytes are more than the limit"):
        read_content(path / "zeros.png", Limits(max_file_bytes=1_000_000))


def test_a_member_whose_size_is_a_lie_is_refused_or_cut_to_what_was_stated(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.png": bytes(1_000_000)})
    content = bytearray(path.read_bytes())
    directory = content.rfind(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageDecodeError):
        read_content(path / "1.png")


def test_an_encrypted_member_is_refused_by_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.png": b"secret"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(ImageDecodeError, match="encrypted"):
        read_content(path / "1.png")


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz", "photos.RAR", "photos.7z"])
def test_a_compressed_tar_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    for load in (load_image_folder, find_images):
        with pytest.raises(InputError, match=r"unpack it, or make a \.zip"):
            load(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_gives_the_bytes_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from(["zip", "tar"]))
    path = folder / f"a.{suffix}"
    (make_zip if suffix == "zip" else make_tar)(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    messages = []
    try:
        for image in find_images(path)[0]:
            try:
                read_content(image)
            except ImageDecodeError as error:
                messages.append(str(error))
    except InputError as error:
        messages.append(str(error))
    assert not any("\n" in message for message in messages)


def test_an_embedder_takes_paths_into_archives(tmp_path: Path) -> None:
    from featx import ImageEmbedder

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    path = make_zip(tmp_path / "photos.zip", {"cat/1.png": stream.getvalue()})
    embedder = ImageEmbedder("timm/test_efficientnet", weights=None, device="cpu", runtime="torch")
    np.testing.assert_array_equal(
        embedder.transform(find_images(path)[0]), embedder.transform([pixels])
    )
