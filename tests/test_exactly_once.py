"""Each distinct image goes through a network once: over folds, candidates, workers and sessions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx import ImageEmbedder, head_search, load_image_folder
from featx._extraction.onnx_runtime import OnnxRuntime
from featx._selection.selection import select_model

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

    def counted(self: OnnxRuntime, pixels: Any, lanes: int = 1) -> list[np.ndarray]:
        # Padding is black; the images of these tests are not.
        batches.append(int(sum(bool(image.any()) for image in pixels)))
        return run(self, pixels, lanes)

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


@pytest.mark.parametrize("n_jobs", [1, 2, 4])
def test_five_folds_over_five_candidates_cost_one_forward_per_image(
    make_image_folder: Callable[..., Path],
    private_cache: Path,
    forwards: list[int],
    n_jobs: int,
) -> None:
    photos = load_image_folder(make_image_folder({"red": 150, "green": 150}))
    search_over(5, n_jobs, cache=private_cache).fit(photos.paths, photos.target)
    count = stored_rows(private_cache)
    assert len(count) == 300
    assert set(count.values()) == {1}
    if n_jobs == 1:
        assert sum(forwards) == 300
    forwards.clear()
    search_over(5, 1).fit(photos.paths, photos.target)
    assert sum(forwards) == 0, "a second session computes nothing"
    assert sum(stored_rows(private_cache).values()) == 300


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_backbones_costs_one_forward_per_image_and_backbone(
    make_image_folder: Callable[..., Path], private_cache: Path, forwards: list[int], n_jobs: int
) -> None:
    photos = load_image_folder(make_image_folder({"red": 20, "green": 20}))
    search = head_search(
        ["linear_svm", "k_nearest_neighbors"],
        # Named, as workers of an earlier search keep the environment they were started in.
        embedder=ImageEmbedder(**TINY, cache=private_cache),
        backbones=["timm/test_efficientnet", "timm/test_resnet", "timm/test_convnext"],
        n_jobs=n_jobs,
    )
    search.fit(photos.paths, photos.target)
    tables = [stored_rows(table) for table in (private_cache / "v1").iterdir()]
    assert [sorted(table.values()) for table in tables] == [[1] * 40] * 3
    if n_jobs == 1:
        assert sum(forwards) == 3 * 40


def test_neither_batch_size_nor_workers_nor_path_enter_the_key(
    make_image_folder: Callable[..., Path], forwards: list[int], tmp_path: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 5}))
    first = ImageEmbedder(**TINY).fit(photos.paths)
    first.transform(photos.paths)
    assert sum(forwards) == 5
    moved = [Path(path).rename(tmp_path / Path(path).name) for path in photos.paths]
    os.utime(moved[0], (0, 0))
    for change in ({"batch_size": 3}, {"num_workers": 0}, {"num_workers": 3}, {"progress": True}):
        other = clone(first).set_params(**change).fit(moved)
        assert other.recipe_ == first.recipe_
        np.testing.assert_array_equal(other.transform(moved), first.transform(moved))
    assert sum(forwards) == 5


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_other_backends_of_joblib_share_the_work_in_a_fresh_process(
    make_image_folder: Callable[..., Path], private_cache: Path, backend: str
) -> None:
    """In a process of its own, because building a network in several threads is what can fail."""
    folder = make_image_folder({"red": 20, "green": 20})
    code = f"""
import joblib
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from featx import ImageEmbedder, load_image_folder
photos = load_image_folder({str(folder)!r})
embedder = ImageEmbedder(**{TINY!r})
for _ in range(2):  # the second time, the parent may have embedded already
    with joblib.parallel_config(backend={backend!r}, n_jobs=2):
        cross_val_score(make_pipeline(embedder, LogisticRegression()), photos.paths, photos.target)
    embedder.transform(photos.paths[:1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert stored_rows(private_cache) == Counter(dict.fromkeys(stored_rows(private_cache), 1))
    assert len(stored_rows(private_cache)) == 40


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_forked_child_embeds_after_its_parent_has(
    make_image_folder: Callable[..., Path], runtime: str
) -> None:
    folder = make_image_folder({"red": 4})
    code = f"""
import os
from featx import ImageEmbedder, load_image_folder
paths = load_image_folder({str(folder)!r}).paths
embedder = ImageEmbedder(**{TINY!r}, runtime={runtime!r}, cache=None)
expected = embedder.transform(paths)
child = os.fork()
if child == 0:
    os._exit(0 if abs(embedder.transform(paths) - expected).max() < 1e-4 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


@pytest.mark.parametrize("cache", ["none", "unusable"])
def test_a_selection_without_a_cache_still_costs_one_forward_per_image(
    make_image_folder: Callable[..., Path], forwards: list[int], tmp_path: Path, cache: str
) -> None:
    photos = load_image_folder(make_image_folder({"red": 10, "green": 10}))
    (tmp_path / "file").write_text("where the folder should be")
    embedder = ImageEmbedder(**TINY, cache=None if cache == "none" else tmp_path / "file")
    selection = select_model(photos, heads=["linear_svm"], embedder=embedder, cv=2)
    assert sum(forwards) == 20
    assert selection.model.steps[0][1].cache == embedder.cache
    assert selection.search.best_estimator_.steps[0][1].cache == embedder.cache


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
    from featx._errors import CacheWarning

    with pytest.warns(CacheWarning):
        embeddings = ImageEmbedder(**TINY, cache=blocked).transform(photos.paths)
    np.testing.assert_array_equal(
        embeddings, ImageEmbedder(**TINY, cache=None).transform(photos.paths)
    )
