"""What an export promises at any size: memory that does not grow, and the writer's own speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "export.py"


def measure(way: str, rows: int, folder: Path) -> dict[str, float]:
    place = folder / f"{way}-{rows}"
    place.mkdir()
    command = [sys.executable, BENCHMARK, "--rows", str(rows), "--way", way, "--folder", place]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path in (place / "out").glob("*"):
        path.unlink()
    (place / "out.parquet").unlink(missing_ok=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def test_eight_times_the_images_need_no_more_memory(tmp_path: Path) -> None:
    few, many = (measure("dataset", rows, tmp_path)["peak_mb"] for rows in (1_500, 12_000))
    assert many < 1.1 * few


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "dataset"])
def test_a_million_images_need_no_more_memory_than_a_tenth_of_them(
    way: str, tmp_path: Path
) -> None:
    few, many = (measure(way, rows, tmp_path)["peak_mb"] for rows in (100_000, 1_000_000))
    assert 0.9 * few < many < 1.1 * few
