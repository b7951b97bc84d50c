"""Every accepted input becomes one item a row; what is not accepted is refused with a way out."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow
import pytest
import torch
from PIL import Image

from featx._errors import ImageDecodeError, InputError
from featx._images.decode import decode_content
from featx._images.sources import as_image_list, describe_item, read_content

if TYPE_CHECKING:
    from collections.abc import Iterator

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
PATHS = ["a.png", "b.jpg", "c.webp"]


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


# as_image_list ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "X",
    [
        PATHS,
        tuple(PATHS),
        np.array(PATHS),
        np.array(PATHS, dtype=object),
        np.array(PATHS, dtype=object)[:, np.newaxis],
        np.array(PATHS)[:, np.newaxis],
        np.array(PATHS, dtype=np.dtypes.StringDType()),
        pd.Series(PATHS, index=[7, 7, 3]),
        pd.Series(PATHS, dtype=object),
        pd.Series(PATHS, dtype="category"),
        pd.Series(PATHS).array,
        pd.Index(PATHS),
        pd.DataFrame({"image": PATHS}),
        pl.Series(PATHS),
        pl.DataFrame({"image": PATHS}),
    ],
    ids=lambda X: type(X).__module__.split(".")[0] + "." + type(X).__name__,
)
def test_every_container_of_paths_becomes_one_path_a_row(X: Any) -> None:
    items = as_image_list(X)
    assert list(items) == PATHS
    assert all(isinstance(item, str) for item in items)


@pytest.mark.parametrize(
    "X",
    [
        list(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)),
        [torch.from_numpy(pixels.transpose(2, 0, 1)) for pixels in PIXELS],
        [Image.fromarray(pixels) for pixels in PIXELS],
        [encode(Image.fromarray(pixels), "PNG") for pixels in PIXELS],
        pd.Series(list(PIXELS)),
        pd.Series([encode(Image.fromarray(pixels), "PNG") for pixels in PIXELS]),
        pl.Series([encode(Image.fromarray(pixels), "PNG") for pixels in PIXELS]),
        [
            PIXELS[0],
            encode(Image.fromarray(PIXELS[1]), "PNG"),
            Image.fromarray(PIXELS[2]),
            bytearray(encode(Image.fromarray(PIXELS[3]), "PNG")),
        ],
    ],
    ids=lambda X: type(X).__name__,
)
def test_every_container_of_images_decodes_to_the_same_pixels(X: Any) -> None:
    decoded = [decode_content(read_content(item)).permute(1, 2, 0) for item in as_image_list(X)]
    assert np.array_equal(np.stack(decoded), PIXELS)


def test_an_object_array_of_images_is_one_image_a_row() -> None:
    images = np.empty(4, dtype=object)
    images[:] = list(PIXELS)
    assert all(item is image for item, image in zip(as_image_list(images), images, strict=True))


def test_pixels_are_not_copied() -> None:
    for items in (as_image_list(PIXELS), as_image_list(list(PIXELS))):
        assert all(np.shares_memory(read_content(item), PIXELS) for item in items)
    tensor = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    for item in as_image_list(tensor):
        assert np.shares_memory(read_content(item), tensor.numpy())


@pytest.mark.parametrize(
    "X",
    [
        [],
        (),
        np.array([]),
        np.empty((0, 8, 8, 3), dtype=np.uint8),
        np.empty((0, 1), dtype=object),
        torch.empty(0, 3, 8, 8),
        pd.Series([], dtype=object),
        pd.DataFrame({"image": []}),
        pl.Series([], dtype=pl.String),
    ],
    ids=lambda X: type(X).__module__.split(".")[0] + "." + type(X).__name__,
)
def test_zero_rows_are_left_to_the_caller(X: Any) -> None:
    assert len(as_image_list(X)) == 0


def generator() -> Iterator[str]:
    yield "a.png"


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.png", "Got a single image, a.png: wrap it in a list"),
        (Path("a.png"), "Got a single image, a.png: wrap it in a list"),
        (b"123", "Got a single image, <3 bytes>: wrap it in a list"),
        (Image.new("RGB", (4, 5)), "Got a single image, .*4 x 5.*: wrap it in a list"),
        (PIXELS[0], r"Got uint8 array of shape \(8, 9, 3\).*wrap it in a list"),
        (torch.zeros(3, 8, 8), r"Got float32 tensor of shape \(3, 8, 8\).*wrap it in a list"),
        (np.zeros((5, 7)), r"Got float64 array of shape \(5, 7\); expected .* one image a row"),
        (torch.zeros(5, 7), r"Got float32 tensor of shape \(5, 7\); expected"),
        (np.arange(5), r"Got int64 array of shape \(5,\); expected"),
        (np.array(["a.png", "b.png"]).reshape(1, 2), r"shape \(1, 2\), expected shape \(n,\)"),
        (np.array("a.png", dtype=object), r"shape \(\), expected shape \(n,\)"),
        (np.array([b"12\0"]), "cuts zero bytes"),
        (np.zeros((2, 3, 8, 8)), r"\(2, 3, 8, 8\), expected \(n, height, width, 3\).*reorder"),
        (torch.zeros(2, 8, 8, 3), r"\(2, 8, 8, 3\), expected \(n, 3, height, width\).*reorder"),
        (pd.DataFrame({"path": ["a"], "size": [1]}), r"2 columns \['path', 'size'\].*select it"),
        (pl.DataFrame({"path": ["a"], "size": [1]}), r"2 columns \['path', 'size'\].*select it"),
        (generator(), "Got a generator, which can be read only once.*list"),
        (map(str, PATHS), "Got a map, which can be read only once.*list"),
        (None, "Got <missing value>; expected"),
        (3, "Got <int>; expected"),
        ({"a.png"}, "Got <set>; expected"),
        ({"path": ["a.png"]}, "Got <dict of path>; expected"),
        (["a.png", 3], "Row 1 is <int>, not an image; expected"),
        ([["a.png"]], "Row 0 is <list>, not an image; expected"),
        (pd.Series([1, 2]), "Row 0 is <int>, not an image; expected"),
        (pl.Series([[1.0, 2.0]]), "Row 0 is <Series>, not an image; expected"),
    ],
    ids=lambda value: str(value)[:25] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_one_image_a_row_is_refused_with_a_way_out(X: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as failure:
        as_image_list(X)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_a_missing_value_keeps_its_row_and_fails_when_it_is_read(missing: Any) -> None:
    items = as_image_list(pd.Series(["a.png", missing, "b.png"], dtype=object))
    assert len(items) == 3
    with pytest.raises(ImageDecodeError, match="missing value"):
        read_content(items[1])


def test_missing_values_of_typed_columns_fail_when_they_are_read() -> None:
    for column in (pd.Series(["a.png", None], dtype="string"), pl.Series(["a.png", None])):
        with pytest.raises(ImageDecodeError, match="missing value"):
            read_content(as_image_list(column)[1])


# read_content: files ----------------------------------------------------------------------------


def test_a_path_gives_the_bytes_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    assert read_content(path) == read_content(str(path)) == b"content"


def reason_of(item: Any) -> str:
    with pytest.raises(ImageDecodeError) as failure:
        read_content(item)
    assert failure.value.source == describe_item(item)
    return failure.value.reason


def test_files_that_cannot_be_read_are_refused_with_their_reason(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "file").touch()
    assert reason_of(tmp_path / "absent.png") == "no such file"
    assert reason_of(tmp_path) == "it is a folder, expected a file"
    assert reason_of("") == "no such file"
    assert "symbolic links" in reason_of(loop)
    assert "not a directory" in reason_of(tmp_path / "file" / "image.png")
    assert "too long" in reason_of("x" * 5000)
    assert "null" in reason_of("a\0b")


def test_a_url_is_a_path_and_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for url in ("http://localhost/cat.jpg", "file:///etc/hostname", "s3://bucket/cat.jpg"):
        assert "it is a URL, and nothing is fetched" in reason_of(url)
        assert "it is a URL" in reason_of(Path("photos") / url)  # as of a table
    assert "it is a URL" in reason_of(f"https://localhost/cat.jpg?{'signature' * 100}")


def test_what_only_other_programs_take_for_a_path_is_named(tmp_path: Path) -> None:
    assert reason_of("~/cat.jpg") == "no such file; ~ is not expanded: use os.path.expanduser"
    for path in (r"C:\photos\cat.jpg", rf"{tmp_path}/photos\cat.jpg"):
        assert reason_of(path) == r"no such file; it has \ as on Windows, expected /"
    (tmp_path / "cat.jpg").symlink_to(".git/annex/objects/cat.jpg")
    reason = reason_of(tmp_path / "cat.jpg")
    assert "it is a link to '.git/annex/objects/cat.jpg', which is missing" in reason


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("cat.jpg", "cat.jpg\n"),
        ("cat.jpg", "cat.JPG"),
        ("cat.JPG", "cat.jpg"),
        ("hats/cat.jpg", r"hats\cat.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("home.jpg", "$FEATX_TEST.jpg"),
    ],
)
def test_a_path_that_is_there_in_another_spelling_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, asked: str
) -> None:
    monkeypatch.setenv("FEATX_TEST", "home")
    (tmp_path / "hats").mkdir()
    (tmp_path / there).touch()
    reason = reason_of(f"{tmp_path}/{asked}")
    assert reason == f"no such file; {str(tmp_path / there)!a} is there"


def test_a_folder_or_an_archive_in_place_of_images_is_told_what_lists_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.zip").touch()
    for X in (tmp_path / "photos", str(tmp_path / "photos"), tmp_path / "photos.zip"):
        with pytest.raises(InputError, match=r"find_images.*load_image_folder"):
            as_image_list(X)


def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket.jpg"))
        for item in (pipe, tmp_path / "socket.jpg", "/dev/zero"):
            assert "not a regular file" in reason_of(item)


def test_a_file_above_the_limit_of_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    assert "2,147,483,649 bytes are more than the limit" in reason_of(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.touch(mode=0)
    assert reason_of(path) == "permission denied"


# read_content: objects --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_arrays_become_height_width_channels(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype=np.uint8)
    assert read_content(array).shape == (*shape, 1)[:3]


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (3, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_tensors_become_height_width_channels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    content = read_content(torch.zeros(shape, dtype=dtype))
    assert content.shape == (5, 6, 1 if shape[0] != 3 else 3)


def test_a_tensor_in_an_autograd_graph_is_read() -> None:
    tensor = torch.rand(3, 4, 5, requires_grad=True) * 0.5
    assert np.array_equal(read_content(tensor), tensor.detach().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "item",
    [
        torch.zeros(4, 5, 3),
        torch.zeros(2, 3, 4, 5),
        torch.zeros(3, 0, 4),
        torch.zeros(3, 4, 5, dtype=torch.bool),
        torch.zeros(3, 4, 5).to_sparse(),
        torch.zeros(3, 4, 5, device="meta"),
        np.zeros((3, 4, 5), dtype=np.uint8),
        np.zeros((4, 5, 3), dtype=np.complex64),
        np.array([["a"]], dtype=object),
    ],
    ids=describe_item,
)
def test_arrays_and_tensors_that_hold_no_image_are_refused(item: Any) -> None:
    assert reason_of(item)


def test_something_else_than_an_image_is_an_input_error_not_a_bad_image() -> None:
    with pytest.raises(InputError, match="Got <int>, not an image"):
        read_content(3)


# read_content: PIL images -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "I;16"])
def test_a_pil_image_is_left_as_it_was(mode: str) -> None:
    image = Image.fromarray(PIXELS[0]).convert("L" if mode == "I;16" else mode).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image) * np.uint16(257))
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    image.info["exif"] = Image.Exif().tobytes()

    def state() -> tuple[Any, ...]:
        palette = image.getpalette("RGBA") if mode == "P" else None
        return image.mode, image.size, dict(image.info), image.tobytes(), palette

    before = state()
    read_content(image)
    assert state() == before


def test_one_lazily_opened_image_is_read_by_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    barrier = threading.Barrier(8)

    def read(image: Image.Image) -> bool:
        barrier.wait()
        return np.array_equal(read_content(image), pixels)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            image = Image.open(path)
            assert all(pool.map(read, [image] * 8))


def test_a_forked_child_does_not_wait_for_an_image_that_a_thread_of_its_parent_loads() -> None:
    is_loading, is_done = threading.Event(), threading.Event()

    class Slow(Image.Image):
        def copy(self) -> Image.Image:
            is_loading.set()
            is_done.wait()
            return Image.new("RGB", (4, 4))

    image = Slow()
    image._mode, image._size = "RGB", (4, 4)
    thread = threading.Thread(target=read_content, args=(image,))
    thread.start()
    is_loading.wait()
    if (child := os.fork()) == 0:
        signal.alarm(20)  # ends a child that waits
        is_done.set()
        os._exit(0 if read_content(image).shape == (4, 4, 3) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    is_done.set()
    thread.join()


def test_the_same_pil_image_twice_in_a_list_is_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).save(path)
    image = Image.open(path)
    for item in as_image_list([image, image]):
        assert np.array_equal(read_content(item), PIXELS[0])


def test_of_a_pil_animation_the_current_frame_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
    content = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    image = Image.open(io.BytesIO(content))
    image.seek(1)
    assert (read_content(image) == (0, 255, 0)).all()


def test_a_closed_or_damaged_pil_image_is_refused() -> None:
    content = encode(Image.fromarray(PIXELS[0]), "PNG")
    closed = Image.open(io.BytesIO(content))
    closed.close()
    assert reason_of(closed)
    assert "truncated" in reason_of(Image.open(io.BytesIO(content[: len(content) // 2])))


# describe_item and the borders of the room -------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "description"),
    [
        ("photos/cat.jpg", "photos/cat.jpg"),
        (Path("photos/cat.jpg"), "photos/cat.jpg"),
        ("", "''"),
        ("two\nlines.png", r"'two\nlines.png'"),
        ("undecodable\udcff.png", r"'undecodable\udcff.png'"),
        (bytearray(5), "<5 bytes>"),
        (np.zeros((2, 3)), "<float64 array of shape (2, 3)>"),
        (torch.zeros(3, 2, 2), "<float32 tensor of shape (3, 2, 2)>"),
        (Image.new("L", (3, 2)), "<PIL image, mode L, 3 x 2>"),
        (float("nan"), "<missing value>"),
        (object(), "<object>"),
    ],
    ids=lambda value: ascii(value)[:25].partition(" at 0x")[0],
)
def test_an_item_is_described_on_one_line(item: Any, description: str) -> None:
    assert describe_item(item) == description


def test_a_path_is_described_whole_and_what_is_too_long_to_be_one_is_cut() -> None:
    assert describe_item("x" * 4096) == "x" * 4096
    assert describe_item("x" * 38_814) == f"'{'x' * 100}'… (38,814 characters)"
    with pytest.raises(ImageDecodeError, match="38,814 characters") as failure:
        read_content("x" * 38_814)
    assert len(str(failure.value)) < 250


def test_a_pil_image_that_was_opened_from_a_file_is_called_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).save(path)
    with Image.open(path) as image:
        assert describe_item(image) == str(path)


def test_listing_images_loads_neither_torch_nor_a_dataframe_library(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"content")
    program = (
        "import sys; from featx._images.folders import find_images;"
        "from featx._images.sources import as_image_list, read_content;"
        f"items = as_image_list(find_images({str(tmp_path)!r})[0]);"
        "assert read_content(items[0]) == b'content';"
        "print([name for name in ('torch', 'pandas', 'polars', 'sklearn') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed == "[]\n"


# What data sets wrap images in -------------------------------------------------------------------


class Pairs:
    """What has a length and an index, as data sets of torchvision have; used up by each item."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row], row % 2


@pytest.mark.parametrize("wrap", ["pair", "dict", "path", "file", "arrow", "column", "data set"])
def test_an_image_is_the_same_in_whatever_wraps_it(wrap: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{row}.png" for row in range(len(PIXELS))]
    for row, file in enumerate(files):
        Image.fromarray(PIXELS[row]).save(file)
    contents = [file.read_bytes() for file in files]
    wrapped: Any = {
        "pair": [(content, 1) for content in contents],
        "dict": [{"bytes": content, "path": "elsewhere.png"} for content in contents],
        "path": [{"bytes": None, "path": str(file)} for file in files],
        "file": [io.BytesIO(content) for content in contents],
        "arrow": pyarrow.array(contents),
        "column": pyarrow.chunked_array([contents[:1], contents[1:]]),
        "data set": Pairs([Image.open(io.BytesIO(content)) for content in contents]),
    }[wrap]
    items = as_image_list(wrapped)
    assert len(items) == len(PIXELS)
    for item, picture in zip(items, PIXELS, strict=True):
        assert np.array_equal(decode_content(read_content(item)).permute(1, 2, 0), picture)


def test_bfloat16_is_taken_as_float32_is() -> None:
    tensor = torch.rand(3, 4, 5).bfloat16()
    assert np.array_equal(read_content(tensor), read_content(tensor.float()))


@pytest.mark.parametrize(
    ("item", "advice"),
    [
        (np.zeros((4, 5, 4), np.uint8), "PIL.Image.fromarray"),
        (np.zeros((3, 4, 5), np.uint8), "transpose"),
    ],
)
def test_the_way_out_of_another_layout_is_one_call(item: np.ndarray, advice: str) -> None:
    assert advice in reason_of(item)


class OtherArray:
    """An array of another library, which rows can be taken of."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Any:
        return self.values[row]


def test_one_picture_is_not_taken_for_its_rows_whatever_library_holds_it() -> None:
    assert len(as_image_list(OtherArray(PIXELS))) == len(PIXELS)
    for values in (PIXELS[0], PIXELS[0, 0]):
        with pytest.raises(InputError, match="Got <OtherArray>; expected a sequence"):
            as_image_list(OtherArray(values))


def test_two_images_in_a_row_are_not_one() -> None:
    for row in (("a.jpg", "b.jpg"), (PIXELS[0], PIXELS[1]), ("a.jpg", "cat")):
        with pytest.raises(InputError, match="Row 0 is <tuple>, not an image"):
            as_image_list([row])
