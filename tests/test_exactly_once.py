"""Each distinct image goes through a network once: over folds, candidates, workers and sessions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx import ImageEmbedder, load_image_folder
from featx.extraction.runtime import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 8, "device": "cpu"}


def stored_rows(cache: Path) -> Counter[bytes]:
    """Count how often each digest was stored: everything that is computed is stored at once."""
    count: Counter[bytes] = Counter()
    for shard in cache.rglob("*.arrow"):
        with pa.memory_map(str(shard)) as source:
            count.update(pa.ipc.open_file(source).read_all().column("digest").to_pylist())
    return count


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of images in each batch that the network of this process runs."""
    batches: list[int] = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, pixels: Any) -> np.ndarray:
        # Padding is black; the images of these tests are not.
        batches.append(int(sum(bool(image.any()) for image in pixels)))
        return run(self, pixels)

    monkeypatch.setattr(OnnxRuntime, "run", counted)
    return batches


def search_over(candidates: int, n_jobs: int, **params: Any) -> GridSearchCV:
    steps = [
        ("embed", ImageEmbedder(**TINY, **params)),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression()),
    ]
    grid = {"classify__C": np.logspace(-3, 1, candidates)}
    return GridSearchCV(Pipeline(steps), grid, cv=5, n_jobs=n_jobs, error_score="raise")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_five_folds_over_five_candidates_cost_one_forward_per_image(
    make_image_folder: Callable[..., Path],
    private_cache: Path,
    forwards: list[int],
    n_jobs: int,
) -> None:
    photos = load_image_folder(make_image_folder({"red": 150, "green": 150}))
    search_over(5, n_jobs).fit(photos.paths, photos.target)
    count = stored_rows(private_cache)
    assert len(count) == 300
    assert set(count.values()) == {1}
    if n_jobs == 1:
        assert sum(forwards) == 300
    forwards.clear()
    search_over(5, 1).fit(photos.paths, photos.target)
    assert sum(forwards) == 0, "a second session computes nothing"
    assert sum(stored_rows(private_cache).values()) == 300


def test_without_a_cache_the_same_search_would_cost_26_forwards_per_image(
    make_image_folder: Callable[..., Path], forwards: list[int]
) -> None:
    photos = load_image_folder(make_image_folder({"red": 10, "green": 10}))
    search_over(5, 1, cache=None).fit(photos.paths, photos.target)
    assert sum(forwards) == (5 * 5 + 1) * 20


def test_an_image_under_many_names_is_computed_once(
    make_image_folder: Callable[..., Path], forwards: list[int], tmp_path: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 2, "green": 1}))
    copies = [tmp_path / f"copy-{number}.png" for number in range(4)]
    for copy in copies:
        copy.write_bytes(Path(photos.paths[0]).read_bytes())
    embeddings = ImageEmbedder(**TINY).transform([*photos.paths, *copies, *photos.paths])
    assert sum(forwards) == 3
    np.testing.assert_array_equal(embeddings[3:7], np.repeat(embeddings[:1], 4, axis=0))
    np.testing.assert_array_equal(embeddings[7:], embeddings[:3])


def test_a_changed_file_is_computed_again_and_a_moved_one_is_not(
    make_image_folder: Callable[..., Path], forwards: list[int], tmp_path: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 1, "green": 1}))
    embedder = ImageEmbedder(**TINY)
    first, second = embedder.transform(photos.paths)
    moved = tmp_path / "moved.png"
    Path(photos.paths[0]).rename(moved)
    Path(photos.paths[1]).write_bytes(moved.read_bytes())
    forwards.clear()
    changed = embedder.transform([photos.paths[1], moved])
    assert sum(forwards) == 0
    np.testing.assert_array_equal(changed, [first, first])
    assert not np.array_equal(first, second)


def test_what_was_computed_before_a_broken_image_is_kept(
    make_image_folder: Callable[..., Path], private_cache: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 40}))
    broken = Path(photos.paths[30])
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="row 30"):
        ImageEmbedder(**TINY).transform(photos.paths)
    assert len(stored_rows(private_cache)) >= 16
    broken.write_bytes(whole)
    ImageEmbedder(**TINY).transform(photos.paths)
    assert stored_rows(private_cache) == Counter(dict.fromkeys(stored_rows(private_cache), 1))
    assert len(stored_rows(private_cache)) == 40


def test_a_cache_that_cannot_be_used_costs_a_warning_and_no_row(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 3}))
    blocked = tmp_path / "a-file"
    blocked.write_text("where the folder should be")
    from featx.errors import CacheWarning

    with pytest.warns(CacheWarning):
        embeddings = ImageEmbedder(**TINY, cache=blocked).transform(photos.paths)
    np.testing.assert_array_equal(
        embeddings, ImageEmbedder(**TINY, cache=None).transform(photos.paths)
    )
