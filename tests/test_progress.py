"""Progress: every image is counted once, and what was there already is told from what was not."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest

from featx import ImageEmbedder
from featx._progress import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "device": "cpu"}


class Counted:
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.done = 0
        self.found = 0

    def __call__(self, done: int, found: int = 0) -> None:
        self.done += done
        self.found += found


@pytest.mark.parametrize("known", [0, 5, 12])
def test_every_image_is_counted_once_and_those_that_are_found_apart(
    tmp_path: Path, known: int
) -> None:
    images: list[object] = list(
        np.random.default_rng(0).integers(0, 256, (12, 30, 30, 3), dtype=np.uint8)
    )
    embedder = ImageEmbedder(**TINY, cache=tmp_path, on_error="nan")
    if known:
        embedder.transform(images[:known])
    counted = Counted()
    # Two of them twice, and one that cannot be read.
    list(embedder.stream([*images, *images[:2], b"no image"], advance=counted))
    assert counted.done == 15
    assert known <= counted.found <= known + 2  # those twice may have been stored by then


def test_without_a_cache_every_image_is_counted_too() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 30, 3), dtype=np.uint8)
    counted = Counted()
    list(ImageEmbedder(**TINY, cache=None).stream(list(images), advance=counted))
    assert (counted.done, counted.found) == (5, 0)


def test_the_bar_shows_the_rate_and_the_share_that_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("Embedding", 200, True) as advance:
        advance(50, found=50)
        advance(50)
        advance(0)
    shown = terminal.getvalue()
    assert "Embedding" in shown
    assert "100/200" in shown
    assert "images/s" in shown
    assert "50% already there" in shown
