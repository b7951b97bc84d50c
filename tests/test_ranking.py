"""Ranking networks: what the table says, what is refused, and that a pretrained network wins."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils import Bunch
from torch import nn
from typer.testing import CliRunner

from featx import ImageEmbedder, load_backbone, load_image_folder
from featx._cli.rank import rank
from featx._errors import FeatxError, ImageDecodeError, ImageDecodeWarning, InputError, WeightsError
from featx._extraction import onnx_runtime, runtime
from featx._extraction.onnx_runtime import OnnxRuntime
from featx._selection import ranking
from featx._selection.ranking import SCORES, order_by_rank, rank_backbones, seconds_per_image
from featx._selection.transferability import log_me

if TYPE_CHECKING:
    from collections.abc import Callable

# torch, because exporting each of many small networks would take most of the time.
RUN = {"batch_size": 4, "device": "cpu", "runtime": "torch"}
TINY = {"backbone": "timm/test_efficientnet", "weights": None, **RUN}
TINY_NAMES = ["timm/test_efficientnet", "timm/test_resnet"]
ABSENT = "timm/resnet18.a1_in1k"


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"blue": 6, "green": 6, "red": 6}))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither timm nor torchvision find weights of theirs on this machine."""
    monkeypatch.setenv("HF_HUB_CACHE", os.fspath(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.fspath(tmp_path / "hub"))


def rank_tiny(photos: Bunch, **params: Any) -> pd.DataFrame:
    settings: dict[str, Any] = {"embedder": ImageEmbedder(**TINY), "timed_images": 0}
    return rank_backbones(photos.paths, photos.target, TINY_NAMES, **(settings | params))


@pytest.mark.parametrize(
    ("image_size", "of_each_class", "draws"),
    [(96, 20, 2), pytest.param(None, 100, 20, marks=pytest.mark.slow)],
)
def test_the_better_of_a_pretrained_and_a_random_network_is_found_in_every_draw(
    sample_folder: Path, tmp_path: Path, image_size: int | None, of_each_class: int, draws: int
) -> None:
    photos = load_image_folder(sample_folder / "train")
    paths, labels = np.asarray(photos.paths), np.asarray(photos.target)
    of_class = [np.flatnonzero(labels == label)[:of_each_class] for label in photos.target_names]
    networks = [
        load_backbone(weights=None, image_size=image_size),
        load_backbone(image_size=image_size),
    ]
    embedder = ImageEmbedder(cache=tmp_path / "cache", progress=False)
    random = np.random.default_rng(0)
    wins = dict.fromkeys(["rank", *SCORES], 0)
    for _ in range(draws):
        draw = np.concatenate(
            [random.choice(rows, of_each_class // 2, replace=False) for rows in of_class]
        )
        table = rank_backbones(
            paths[draw], labels[draw], networks, embedder=embedder, timed_images=0
        )
        pretrained = table["weights"].str.contains("pytorch-model")
        assert pretrained.sum() == 1
        for column in wins:
            best = table["rank"].idxmin() if column == "rank" else table[column].idxmax()
            wins[column] += int(pretrained[best])
    assert wins == dict.fromkeys(wins, draws)


def test_the_table_has_a_row_for_each_network_best_first(photos: Bunch) -> None:
    table = rank_tiny(photos, timed_images=3)
    assert sorted(table["backbone"]) == sorted(TINY_NAMES)
    assert list(table["rank"]) == sorted(table["rank"])
    assert table["linear_probe"].is_monotonic_decreasing
    assert (table["seconds_per_image"] > 0).all()
    for row in table.itertuples():
        backbone = load_backbone(row.backbone, weights=None)
        vectors = ImageEmbedder(**TINY | {"backbone": row.backbone}).transform(photos.paths)
        assert row.dimension == vectors.shape[1]
        assert row.logme == pytest.approx(log_me(vectors, photos.target), abs=1e-5)
        assert row.parameters * 1e6 == sum(part.numel() for part in backbone.module.parameters())
        assert row.image_size == backbone.preprocessing.image_size
        assert row.weights == backbone.weights
    assert np.isnan(rank_tiny(photos)["seconds_per_image"]).all()


def test_what_a_ranking_embedded_is_in_the_cache_for_whoever_comes_next(
    photos: Bunch, private_cache: Path
) -> None:
    rank_tiny(photos, scores="knn")
    stored = {path: path.stat().st_mtime_ns for path in private_cache.rglob("*.arrow")}
    assert stored
    again = rank_tiny(photos, timed_images=5)
    for name in TINY_NAMES:
        ImageEmbedder(**TINY | {"backbone": name}).transform(photos.paths)
    # Nothing was computed that had to be stored, the timed images neither.
    assert stored == {path: path.stat().st_mtime_ns for path in private_cache.rglob("*.arrow")}
    np.testing.assert_array_equal(again["logme"], rank_tiny(photos)["logme"])


def test_the_time_of_an_image_is_that_of_the_network_from_the_graph_that_is_kept(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[int] = []
    ran: list[int] = []
    export, run = onnx_runtime.export_onnx, OnnxRuntime.run

    def counted_export(network: nn.Module, rows: int, side: int) -> bytes:
        exported.append(rows)
        return export(network, rows, side)

    def counted_run(runtime: Any, pixels: torch.Tensor, *lanes: int) -> Any:
        ran.append(len(pixels))
        return run(runtime, pixels, *lanes)

    monkeypatch.setattr(onnx_runtime, "export_onnx", counted_export)
    monkeypatch.setattr(OnnxRuntime, "run", counted_run)
    embedder = ImageEmbedder(**TINY | {"runtime": "onnx"})
    timed = 5 + min(5, 2 * torch.get_num_threads())  # and those that come before
    for exports, computed in [(1, len(photos.paths) + timed), (0, timed)]:
        runtime._open_runtime.cache_clear()  # as in a new process
        runtime._chosen.clear()
        exported.clear(), ran.clear()
        table = rank_backbones(
            photos.paths, photos.target, TINY_NAMES[:1], embedder=embedder, timed_images=5,
            scores="logme",
        )  # fmt: skip
        assert (table["seconds_per_image"] > 0).all()
        assert (len(exported), sum(ran)) == (exports, computed)


def test_an_image_that_is_repeated_is_timed_once(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(2))
    monkeypatch.setattr(ranking.time, "perf_counter", lambda: 6.0 * next(clock))
    embedder = ImageEmbedder(**TINY | {"backbone": TINY_NAMES[0], "runtime": "torch"})
    repeated = [photos.paths[0], photos.paths[1], photos.paths[0]]
    assert seconds_per_image(embedder, repeated, 3) == 3.0
    assert np.isnan(seconds_per_image(embedder, repeated, 0))
    monkeypatch.undo()
    tolerant = embedder.set_params(on_error="nan")
    assert np.isnan(seconds_per_image(tolerant, ["absent.png"], 1))


def test_layers_and_pooling_are_the_embedders_unless_they_are_given(photos: Bunch) -> None:
    given_pooling = rank_tiny(photos, pooling="grid2", scores="logme")
    prototype = ImageEmbedder(**TINY, pooling="grid2")
    of_embedder = rank_tiny(photos, embedder=prototype, scores="logme")
    pd.testing.assert_frame_equal(given_pooling, of_embedder)
    plain = rank_tiny(photos, scores="logme")
    assert (given_pooling["dimension"] == 4 * plain["dimension"].to_numpy()).all()
    assert prototype.get_params()["backbone"] == TINY["backbone"]


def test_a_network_may_be_given_at_several_sizes_and_by_itself(photos: Bunch) -> None:
    networks = [load_backbone(TINY_NAMES[0], weights=None, image_size=size) for size in (64, 96)]
    table = rank_backbones(
        photos.paths, photos.target, [*networks, networks[0]], timed_images=0, scores="logme",
        embedder=ImageEmbedder(**RUN, weights=None, image_size=32),
    )  # fmt: skip
    assert sorted(table["image_size"]) == [64, 96]
    alone = rank_backbones(
        photos.paths, photos.target, networks[0], timed_images=0, scores="logme",
        embedder=ImageEmbedder(**RUN),
    )  # fmt: skip
    assert alone["logme"][0] == table["logme"][list(table["image_size"]).index(64)]


def test_by_default_the_networks_that_come_as_packages_are_ranked(photos: Bunch) -> None:
    table = rank_backbones(
        photos.paths, photos.target, timed_images=0, scores="logme",
        embedder=ImageEmbedder(**RUN, image_size=64),
    )  # fmt: skip
    assert "efficientnet_lite0" in set(table["backbone"])
    assert (table["weights"].str.contains("pytorch-model")).all()


def test_absent_weights_are_an_error_before_any_image_is_embedded(
    photos: Bunch, private_cache: Path, no_weights: None
) -> None:
    names = ["efficientnet_lite0", ABSENT]
    with pytest.raises(WeightsError, match=ABSENT):
        rank_backbones(photos.paths, photos.target, names)
    assert not list(private_cache.rglob("*.arrow"))
    with pytest.raises(WeightsError, match="none of"), pytest.warns(UserWarning, match=ABSENT):
        rank_backbones(photos.paths, photos.target, [ABSENT], on_missing="skip")


def test_absent_weights_can_be_left_out(photos: Bunch, no_weights: None) -> None:
    names = ["efficientnet_lite0", ABSENT]
    embedder = ImageEmbedder(**RUN, image_size=64)
    with pytest.warns(UserWarning, match=f"Left out {ABSENT}: The weights"):
        table = rank_backbones(
            photos.paths, photos.target, names, embedder=embedder, on_missing="skip",
            timed_images=0,
        )  # fmt: skip
    assert list(table["backbone"]) == ["efficientnet_lite0"]


def test_unreadable_images_raise_or_are_left_out_of_every_score(photos: Bunch) -> None:
    expected = rank_tiny(photos)
    broken = list(photos.paths)
    broken.insert(4, "absent.png")
    labels = [*photos.target[:4], "red", *photos.target[4:]]
    images = Bunch(paths=broken, target=labels)
    with pytest.raises(ImageDecodeError, match=r"absent\.png"):
        rank_tiny(images)
    with pytest.warns(ImageDecodeWarning) as caught:
        table = rank_tiny(images, skip_unreadable=True)
    (warning,) = caught
    assert [failure.row for failure in warning.message.failures] == [4]
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scores": ["logme", "logm"]}, "Got scores='logm' .*did you mean 'logme'"),
        ({"scores": []}, r"Got scores=\[\]"),
        ({"on_missing": "ignore"}, "on_missing='ignore'"),
        ({"embedder": ImageEmbedder(on_error="nan")}, "skip_unreadable=True"),
    ],
)
def test_what_is_not_known_is_refused(photos: Bunch, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank_tiny(photos, **params)


def test_labels_and_networks_are_checked_before_images_are_read(private_cache: Path) -> None:
    absent = [f"absent-{number}.png" for number in range(6)]
    for labels, message in [
        (list("aaaaaa"), "one class only"),
        (list("aabb"), "6 rows and 4 labels"),
        (list("aaaabb"), "class 'b' of 2 image"),
    ]:
        with pytest.raises(InputError, match=message):
            rank_backbones(absent, labels, ["efficientnet_lite0"])
    for networks, message in [
        ([], r"Got backbones=\[\]"),
        (["efficientnet_lite0", 7], "Got backbones=7 but"),
        ([["efficientnet_lite0"]], r"Got backbones=\['efficientnet_lite0'\]"),
        (["efficientnet_light0"], "did you mean"),
    ]:
        with pytest.raises(InputError, match=message):
            rank_backbones(absent, list("aaabbb"), networks)
    # Without a probe a small class is no obstacle.
    with pytest.raises(ImageDecodeError):
        rank_backbones(absent, list("aaaabb"), ["efficientnet_lite0"], scores="logme")


def test_copies_of_an_image_count_once_for_log_me(photos: Bunch) -> None:
    # As many dimensions as images: one copy would make an evidence without bound.
    expected = rank_tiny(photos, scores="logme")
    photos.paths, photos.target = [*photos.paths, photos.paths[3]], [*photos.target, "blue"]
    repeated = rank_tiny(photos, scores="logme")
    assert np.isfinite(repeated["logme"]).all()
    pd.testing.assert_frame_equal(repeated, expected)
    # Where every image has two labels nothing can be told.
    photos.paths, photos.target = [*photos.paths[:6]] * 2, ["a"] * 6 + ["b"] * 6
    assert np.isnan(rank_tiny(photos, scores="logme")["logme"]).all()


SCORE_COLUMNS = st.lists(st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf]), min_size=1, max_size=6)


@given(first=SCORE_COLUMNS, data=st.data())
def test_ranks_are_those_of_the_first_score_and_ties_of_the_next(
    first: list[float], data: st.DataObject
) -> None:
    size = len(first)
    second = data.draw(st.lists(st.sampled_from([0.1, 0.2, np.nan]), min_size=size, max_size=size))
    names = [f"net {number}" for number in range(size)]
    table = order_by_rank(
        pd.DataFrame({"backbone": names, "logme": first, "knn": second}), ["logme", "knn"]
    )
    assert sorted(table["backbone"]) == names
    key = table[["logme", "knn"]].fillna(-np.inf).apply(tuple, axis=1).tolist()
    assert key == sorted(key, reverse=True)
    for place, number in zip(key, table["rank"], strict=True):
        assert number == 1 + sum(other > place for other in key)
    assert list(table.columns) == ["backbone", "rank", "logme", "logme_rank", "knn", "knn_rank"]


@pytest.fixture
def featx_rank() -> Callable[..., Any]:
    """Run the command in this process."""
    app = typer.Typer()
    app.command()(rank)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_the_command_prints_a_table_and_writes_all_of_it(
    featx_rank: Callable[..., Any], photos: Bunch, tmp_path: Path
) -> None:
    folder, out = Path(photos.paths[0]).parent.parent, tmp_path / "ranking.csv"
    arguments = (folder, "--backbones", "efficientnet_lite0", "--scores", "logme, knn", "--out",
                 out, "--image-size", 64, "--timed-images", 1)  # fmt: skip
    done = featx_rank(*arguments)
    assert done.exit_code == 0
    assert done.stderr == ""
    header, row, wrote = done.stdout.splitlines()
    assert header.split()[:4] == ["rank", "backbone", "logme", "knn"]
    assert row.split()[:2] == ["1", "efficientnet_lite0"]
    assert wrote == f"Wrote {out}"
    table = pd.read_csv(out)
    assert {"logme", "knn", "seconds_per_image", "parameters", "weights"} <= set(table.columns)
    assert f"{table['logme'][0]:.3f}" in row

    as_json = json.loads(featx_rank(*arguments[:-1], 0, "--json").stdout)
    assert as_json[0]["seconds_per_image"] is None
    assert as_json[0]["image_size"] == 64
    assert as_json[0]["logme"] == pytest.approx(table["logme"][0])


def test_the_command_says_what_it_left_out(
    featx_rank: Callable[..., Any], photos: Bunch, no_weights: None
) -> None:
    folder = Path(photos.paths[0]).parent.parent
    names = ("--backbones", f"efficientnet_lite0,{ABSENT}", "--timed-images", 0)
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(WeightsError, match=ABSENT):
        featx_rank(folder, *names)
    with pytest.raises(FeatxError, match="--skip-unreadable"):
        featx_rank(folder, *names, "--skip-missing")
    done = featx_rank(folder, *names, "--skip-missing", "--skip-unreadable")
    assert done.exit_code == 0
    assert f"Left out {ABSENT}" in done.stderr
    assert "broken.png" in done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert ABSENT not in done.stdout
    shutil.rmtree(folder / "red")
    shutil.rmtree(folder / "blue")
    with pytest.raises(InputError, match="one class only"):
        featx_rank(folder)
