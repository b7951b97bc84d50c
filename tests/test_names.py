"""Every name that a file can have works from end to end."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx import ImageEmbedder, find_images, load_image_folder, read_embeddings
from featx import _cli as cli

NAMES = [
    b"plain.png",
    b"with space.png",
    b"new\nline.png",
    b"tab\tquote'\".png",
    "Größe-猫.png".encode(),
    b"no-utf8-\xff\xfe.png",
    b"-dash.png",
    b"comma,semicolon;.png",
    b"=1+1.png",
    b"%s{}[a-z]*.png",
    b"http:--example.org.png",
    b"UPPER.PNG",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for label in (b"caf\xe9", b"ein Hund\n"):
        where = folder / os.fsdecode(label)
        where.mkdir(parents=True)
        for number, name in enumerate(NAMES):
            pixels = np.random.default_rng(number + len(label)).integers(0, 256, (20, 20, 3))
            stream = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
            (where / os.fsdecode(name)).write_bytes(stream.getvalue())
    return folder


def test_every_name_is_found_and_embedded(photos: Path) -> None:
    found = load_image_folder(photos)
    assert len(found.paths) == 2 * len(NAMES)
    assert {os.fsencode(Path(path).name) for path in found.paths} == set(NAMES)
    embedder = ImageEmbedder("timm/test_efficientnet", weights=None, device="cpu")
    contents = [Path(path).read_bytes() for path in found.paths]
    np.testing.assert_array_equal(embedder.transform(found.paths), embedder.transform(contents))


def test_every_name_goes_through_the_command_line(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def featx(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["featx", *map(str, arguments)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    run, out = tmp_path / "run", tmp_path / "photos.parquet"
    featx("select", photos, "--out", run, "--cv", 2, "--heads", "linear_svm")
    featx("embed", photos, "--out", out)
    assert len(set(read_embeddings(out).paths)) == 2 * len(NAMES)
    featx("predict", run / "model.skops", photos, "--out", tmp_path / "predictions.csv")
    text = (tmp_path / "predictions.csv").read_bytes().decode(errors="surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["path"] for row in rows} == {str(path) for path in find_images(photos)[0]}
    assert {row["label"] for row in rows} == {"caf\\udce9", "ein Hund\n"}
