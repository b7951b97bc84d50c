"""Each distinct image goes through a network once: over folds, candidates, workers and sessions.

Counted in the network itself, in every process: what is left in a store shows no repeats.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_networks import TINY, Notes, write_numbered_images

from featx import CacheWarning, ImageEmbedder, head_search, load_image_folder, select_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.utils import Bunch


@pytest.fixture
def photos(tmp_path: Path) -> Bunch:
    return write_numbered_images(tmp_path / "photos", range(40))


def once(count: int) -> Counter[int]:
    return Counter(dict.fromkeys(range(count), 1))


def search_over(candidates: int, n_jobs: int, embedder: ImageEmbedder) -> GridSearchCV:
    pipeline = make_pipeline(embedder, StandardScaler(), LogisticRegression())
    grid = {"logisticregression__C": np.logspace(-3, 1, candidates)}
    return GridSearchCV(pipeline, grid, cv=5, n_jobs=n_jobs, error_score="raise")


def check_five_folds_over_five_candidates(
    notes: Notes, photos: Bunch, cache: Path, n_jobs: int
) -> None:
    # Named, as workers of an earlier search keep the environment they were started in.
    embedder = ImageEmbedder(**notes.network, cache=cache)
    search_over(5, n_jobs, embedder).fit(photos.paths, photos.target)
    assert notes.forwards() == once(len(photos.paths))
    if n_jobs > 1:
        assert os.getpid() not in notes.processes(), "the workers computed"
    notes.clear()
    search_over(5, 1, ImageEmbedder(**notes.network, cache=cache)).fit(photos.paths, photos.target)
    assert not notes.forwards(), "a second session computes nothing"


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_five_folds_over_five_candidates_cost_one_forward_per_image(
    notes: Notes, photos: Bunch, private_cache: Path, n_jobs: int
) -> None:
    check_five_folds_over_five_candidates(notes, photos, private_cache, n_jobs)


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2, 4])
@pytest.mark.parametrize("count", [300, 2000])
def test_five_folds_over_five_candidates_cost_one_forward_for_each_of_many_images(
    notes: Notes, tmp_path: Path, private_cache: Path, n_jobs: int, count: int
) -> None:
    photos = write_numbered_images(tmp_path / "photos", range(count))
    check_five_folds_over_five_candidates(notes, photos, private_cache, n_jobs)


def test_without_a_cache_the_same_search_costs_26_forwards_per_image(
    notes: Notes, photos: Bunch
) -> None:
    embedder = ImageEmbedder(**notes.network, cache=None)
    search_over(5, 1, embedder).fit(photos.paths, photos.target)
    # Five candidates on five folds, each trained and scored, and the best one on everything.
    assert notes.forwards() == Counter(dict.fromkeys(range(40), 5 * 5 + 1))


def test_repeats_that_a_store_would_merge_are_seen(notes: Notes, photos: Bunch) -> None:
    for cache in ("auto", None):
        ImageEmbedder(**notes.network, cache=cache).transform(photos.paths[:3])
    assert notes.forwards() == Counter({0: 2, 1: 2, 2: 2})


def test_a_search_over_backbones_costs_one_forward_per_image_and_backbone(
    tmp_path: Path, photos: Bunch, private_cache: Path
) -> None:
    networks = [Notes(tmp_path / f"{number}.txt", seed=number) for number in range(3)]
    for n_jobs in (1, 2):
        cache = private_cache / str(n_jobs)
        pipeline = make_pipeline(
            ImageEmbedder(**networks[0].network, cache=cache), LogisticRegression()
        )
        search = GridSearchCV(
            pipeline,
            {
                "imageembedder__backbone": [one.network["backbone"] for one in networks],
                "logisticregression__C": [0.1, 1],
            },
            cv=3,
            n_jobs=n_jobs,
            error_score="raise",
        )
        search.fit(photos.paths, photos.target)
        assert [one.forwards() for one in networks] == [once(40)] * 3
        for one in networks:
            one.clear()


def test_a_head_search_over_named_backbones_has_a_table_for_each(
    photos: Bunch, private_cache: Path
) -> None:
    search = head_search(
        ["k_nearest_neighbors"],
        embedder=ImageEmbedder(**TINY),
        backbones=["timm/test_efficientnet", "timm/test_resnet"],
        cv=2,
    )
    search.fit(photos.paths, photos.target)
    assert len({path.parent for path in private_cache.rglob("*.arrow")}) == 2


def test_neither_batch_size_nor_workers_nor_path_enter_the_key(
    notes: Notes, photos: Bunch, tmp_path: Path
) -> None:
    first = ImageEmbedder(**notes.network).fit(photos.paths)
    expected = first.transform(photos.paths)
    moved = [Path(path).rename(tmp_path / Path(path).name) for path in photos.paths]
    os.utime(moved[0], (0, 0))
    for change in ({"batch_size": 3}, {"num_workers": 0}, {"num_workers": 3}, {"progress": True}):
        other = clone(first).set_params(**change).fit(moved)
        assert other.recipe_ == first.recipe_
        np.testing.assert_array_equal(other.transform(moved), expected)
    assert notes.forwards() == once(40)


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_other_backends_of_joblib_share_the_work(
    notes: Notes, photos: Bunch, private_cache: Path, backend: str
) -> None:
    pipeline = make_pipeline(
        ImageEmbedder(**notes.network, cache=private_cache), LogisticRegression()
    )
    with joblib.parallel_config(backend=backend, n_jobs=2):
        cross_val_score(pipeline, photos.paths, photos.target, error_score="raise")
    assert notes.forwards() == once(40)


def test_threads_build_networks_and_a_forked_child_embeds_in_a_fresh_process(
    photos: Bunch, private_cache: Path
) -> None:
    """In a process of its own, because building a network in several threads is what can fail."""
    # Exported here, once for all tests; the process embeds other images than the cache holds.
    ImageEmbedder(**TINY).fit(photos.paths)
    code = f"""
import os
import joblib
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from featx import ImageEmbedder
paths, labels = {photos.paths.tolist()!r}, {photos.target.tolist()!r}
embedder = ImageEmbedder(**{TINY!r}, runtime="torch", layers="blocks.2")
with joblib.parallel_config(backend="threading", n_jobs=2):
    scores = cross_val_score(make_pipeline(embedder, LogisticRegression()), paths, labels)
print(len(scores))
for runtime in ("onnx", "torch"):
    embedder = ImageEmbedder(**{TINY!r}, runtime=runtime)
    expected = embedder.transform(paths[:4])
    child = os.fork()
    if child == 0:
        rows = embedder.transform(paths)
        os._exit(0 if len(rows) == 40 and (rows[:4] == expected).all() else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180
    )
    assert (done.stdout, done.returncode) == ("5\n0\n0\n", 0), done.stderr


@pytest.mark.parametrize("cache", ["none", "unusable"])
def test_a_selection_without_a_cache_still_costs_one_forward_per_image(
    notes: Notes, photos: Bunch, tmp_path: Path, cache: str
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    embedder = ImageEmbedder(**notes.network, cache=None if cache == "none" else tmp_path / "file")
    selection = select_model(photos, heads=["linear_svm"], embedder=embedder, cv=2)
    assert notes.forwards() == once(40)
    assert selection.model.steps[0][1].cache == embedder.cache
    assert selection.search.best_estimator_.steps[0][1].cache == embedder.cache


def test_an_image_under_many_names_is_computed_once(
    notes: Notes, photos: Bunch, tmp_path: Path
) -> None:
    copies = [tmp_path / f"copy-{number}.png" for number in range(4)]
    for copy in copies:
        copy.write_bytes(Path(photos.paths[0]).read_bytes())
    few = photos.paths[:3]
    for cache in ("auto", None):
        embeddings = ImageEmbedder(**notes.network, cache=cache).transform([*few, *copies, *few])
        assert notes.forwards() == once(3)
        notes.clear()
        np.testing.assert_array_equal(embeddings[3:7], np.repeat(embeddings[:1], 4, axis=0))
        np.testing.assert_array_equal(embeddings[7:], embeddings[:3])


def test_a_changed_file_is_computed_again_and_a_moved_one_is_not(
    notes: Notes, photos: Bunch, tmp_path: Path
) -> None:
    embedder = ImageEmbedder(**notes.network)
    first, second = embedder.transform(photos.paths[:2])
    moved = tmp_path / "moved.png"
    Path(photos.paths[0]).rename(moved)
    Path(photos.paths[1]).write_bytes(moved.read_bytes())
    notes.clear()
    changed = embedder.transform([photos.paths[1], moved])
    assert not notes.forwards()
    np.testing.assert_array_equal(changed, [first, first])
    assert not np.array_equal(first, second)
    Path(photos.paths[2]).write_bytes(Path(photos.paths[7]).read_bytes())
    embedder.transform([photos.paths[2]])
    assert notes.forwards() == Counter({7: 1})


def test_what_was_computed_before_a_broken_image_is_kept(notes: Notes, photos: Bunch) -> None:
    broken = Path(photos.paths[30])
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    embedder = ImageEmbedder(**notes.network)
    with pytest.raises(ValueError, match="row 30"):
        embedder.transform(photos.paths)
    broken.write_bytes(whole)
    rows = embedder.transform(photos.paths)
    # What was under way beside the broken one may have been lost with it.
    assert all(notes.forwards()[number] == 1 for number in range(16))
    np.testing.assert_array_equal(
        rows, ImageEmbedder(**notes.network, cache=None).transform(photos.paths)
    )


def test_a_cache_that_cannot_be_used_costs_a_warning_and_no_row(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos = load_image_folder(make_image_folder({"red": 3}))
    blocked = tmp_path / "a-file"
    blocked.write_text("where the folder should be")
    with pytest.warns(CacheWarning):
        embeddings = ImageEmbedder(**TINY, cache=blocked).transform(photos.paths)
    np.testing.assert_array_equal(
        embeddings, ImageEmbedder(**TINY, cache=None).transform(photos.paths)
    )


def test_a_pickled_embedder_finds_what_another_has_computed(
    notes: Notes, photos: Bunch, private_cache: Path
) -> None:
    embedder: Any = ImageEmbedder(**notes.network)
    expected = embedder.fit_transform(photos.paths)
    again = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(again.transform(photos.paths), expected)
    assert notes.forwards() == once(40)
