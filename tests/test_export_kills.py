"""What an export promises when it is killed: absent, old or complete, and then the same rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_trial import HashEmbedder, write_images

from featx import export_embeddings, read_embeddings
from featx._errors import SchemaError

SCRIPT = Path(__file__).with_name("export_kills.py")


def kill_exports(folder: Path, *, out: str, is_cached: bool, rounds: int) -> None:
    options = ["--out", out, "--rounds", str(rounds), *(["--cached"] if is_cached else [])]
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout.split()[0])
    assert killed >= rounds // 2


@pytest.mark.parametrize(("out", "is_cached"), [("out.parquet", True), ("out", False)])
def test_a_killed_export_leaves_no_half_and_its_rerun_ends_with_the_same_rows(
    out: str, is_cached: bool, tmp_path: Path
) -> None:
    kill_exports(tmp_path, out=out, is_cached=is_cached, rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("out", ["out.parquet", "out"])
def test_a_hundred_killed_exports_leave_no_half_and_end_with_the_same_rows(
    out: str, is_cached: bool, tmp_path: Path
) -> None:
    kill_exports(tmp_path, out=out, is_cached=is_cached, rounds=100)


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_an_export_that_was_truncated_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "photos", [b"image %d" % number for number in range(50)])
    summary = export_embeddings(paths, tmp_path / name, embedder=HashEmbedder())
    file = summary.files[-1]
    content = file.read_bytes()
    for size in np.linspace(0, len(content) - 1, 20).astype(int):
        file.write_bytes(content[:size])
        with pytest.raises(SchemaError, match=file.name):
            read_embeddings(tmp_path / name)
