"""The command line: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import pytest

from featx import __version__, load_model, read_embeddings
from featx import _cli as cli
from featx._cli.printing import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def featx(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command in this process and return its exit code and what it printed."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featx", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def test_select_then_predict_from_a_folder(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    train = make_image_folder({"red": 8, "green": 8})
    test = make_image_folder({"red": 3, "green": 3}, name="test", seed=1)
    done = featx(
        "select", train, "--test", test, "--out", tmp_path / "run", "--cv", 2, "--heads",
        "linear_svm,k_nearest_neighbors",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "16 images of 2 classes" in done.out
    assert "linear_svm" in done.out
    assert "±" in done.out
    assert "95 % interval" in done.out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "model.skops",
        "cv_results.csv",
        "summary.json",
        "embeddings.parquet",
        "test_embeddings.parquet",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run", "test"]
    stored = read_embeddings(tmp_path / "run" / "embeddings.parquet")
    assert stored.data.shape == (16, 1280)
    assert sorted(set(stored.target)) == ["green", "red"]
    assert stored.provenance["recipe"] == load_model(tmp_path / "run" / "model.skops")[0].recipe_
    assert len(pd.read_csv(tmp_path / "run" / "cv_results.csv")) > 2

    done = featx("predict", tmp_path / "run" / "model.skops", test)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0
    assert [Path(row["path"]).name for row in rows] == [
        path.name for path in sorted(test.rglob("*.png"))
    ]
    assert {row["label"] for row in rows} <= {"red", "green"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)

    done = featx(
        "predict", tmp_path / "run" / "model.skops", test, "--out", tmp_path / "predictions.csv"
    )
    assert done.code == 0
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 6


def test_select_and_predict_speak_json(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    train = make_image_folder({"red": 6, "green": 6})
    done = featx(
        "select", train, "--test", train, "--out", tmp_path / "run", "--cv", 2, "--heads",
        "logistic_regression", "--json",
    )  # fmt: skip
    figures = json.loads(done.out)
    assert figures["best_head"] == "logistic_regression"
    assert figures["classes"] == ["green", "red"]
    assert figures["test_accuracy_95_low"] <= figures["test_accuracy"]
    assert figures == json.loads((tmp_path / "run" / "summary.json").read_text()) | {
        "files": figures["files"]
    }
    done = featx("predict", tmp_path / "run" / "model.skops", train, "--json")
    assert len(json.loads(done.out)) == 12


def test_select_reads_a_manifest_and_jobs_do_not_change_the_result(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 6, "green": 6})
    manifest = folder / "list.csv"
    paths = sorted(folder.rglob("*.png"))
    pd.DataFrame(
        {
            "file": [path.relative_to(folder) for path in paths],
            "kind": [p.parent.name for p in paths],
        }
    ).to_csv(manifest, index=False)
    results = []
    for jobs in (1, 2):
        done = featx(
            "select", manifest, "--path-column", "file", "--label-column", "kind", "--cv", 2,
            "--out", tmp_path / "run", "--heads", "linear_svm,random_forest", "--jobs", jobs,
        )  # fmt: skip
        assert done.code == 0, done.err
        table = pd.read_csv(tmp_path / "run" / "cv_results.csv")
        results.append(table.filter(like="test_score"))
    pd.testing.assert_frame_equal(*results)


def test_unreadable_images_stop_select_or_are_left_out_and_counted(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    train = make_image_folder({"red": 6, "green": 6})
    broken = train / "red" / "002.png"
    break_image(broken)
    command = ("select", train, "--out", tmp_path / "run", "--cv", 2, "--heads", "linear_svm")
    done = featx(*command)
    assert done.code == 2
    assert str(broken) in done.err
    assert "--skip-unreadable" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()

    done = featx(*command, "--skip-unreadable")
    assert done.code == 0
    assert "11 images of 2 classes, 1 left out as unreadable" in done.out
    assert str(broken) in done.err
    stored = read_embeddings(tmp_path / "run" / "embeddings.parquet")
    assert len(stored.data) == 11
    assert str(broken) not in stored.paths


def test_embed_writes_a_row_for_every_image(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 3, "green": 2})
    broken = folder / "green" / "000.png"
    break_image(broken)
    out = tmp_path / "photos.parquet"
    done = featx("embed", folder, "--out", out)
    assert done.code == 1
    assert str(broken) in done.err
    assert "5 rows of 1280 columns, 1 without an embedding" in done.out
    stored = read_embeddings(out)
    assert list(stored.paths) == [str(path) for path in sorted(folder.rglob("*.png"))]
    assert np.isnan(stored.data).all(axis=1).tolist() == [True, False, False, False, False]
    assert stored.errors[0]
    assert stored.errors[1:].tolist() == [None] * 4


def test_embed_of_nothing_but_unreadable_images_is_an_error_and_writes_nothing(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2})
    for path in folder.rglob("*.png"):
        break_image(path)
    done = featx("embed", folder, "--out", tmp_path / "photos.parquet")
    assert done.code == 2
    assert "none of the 2 images could be read" in done.err
    assert not (tmp_path / "photos.parquet").exists()


def test_embed_carries_the_columns_of_a_table_through(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 3})
    table = folder / "list.csv"
    table.write_text("price,path,kind\n1,red/002.png,a\n2,red/000.png,b\n3,red/001.png,a\n")
    out = tmp_path / "photos.parquet"
    assert featx("embed", table, "--label-column", "kind", "--out", out).code == 0
    stored = read_embeddings(out)
    assert [Path(path).name for path in stored.paths] == ["002.png", "000.png", "001.png"]
    assert stored.target.tolist() == ["a", "b", "a"]
    assert stored.further == {"price": [1, 2, 3]}


def test_embed_of_class_folders_carries_their_names(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2, "blue": 1})
    out = tmp_path / "photos.parquet"
    assert featx("embed", folder, "--out", out).code == 0
    assert read_embeddings(out).target.tolist() == ["blue", "red", "red"]
    assert featx("embed", folder / "red", "--out", tmp_path / "red.parquet").code == 0
    assert read_embeddings(tmp_path / "red.parquet").target is None


def test_several_images_and_folders_are_taken_one_after_the_other(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2, "blue": 1})
    out = tmp_path / "photos.parquet"
    single = folder / "red" / "000.png"
    assert featx("embed", folder / "blue", single, "--out", out).code == 0
    assert [Path(path).name for path in read_embeddings(out).paths] == ["000.png", "000.png"]
    done = featx("embed", folder / "red", "--out", out)
    assert done.code == 0
    assert "(1 new, 1 kept, 0 replaced, 1 of other images removed)" in " ".join(done.out.split())


def test_predictions_name_files_as_they_are_and_are_read_again(
    featx: Callable[..., Outcome],
    make_image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    train = make_image_folder({"red": 3, "blue": 3})
    (tmp_path / "new").mkdir()
    names = ["at 10.12\u202fAM.png", "two\nlines\t.png", os.fsdecode(b"no utf-8 \xff.png"), "ä.png"]
    for name in names:
        shutil.copy(next(train.rglob("*.png")), tmp_path / "new" / name)
    assert featx("select", train, "--cv", 2, "--out", "run", "--heads", "linear_svm").code == 0
    assert featx("predict", "run/model.skops", "new", "--out", "run/predictions.csv").code == 0
    with Path("run/predictions.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {f"new/{name}" for name in names}
    # As a table: it lies in another folder than the paths begin at.
    plain = tmp_path / "run" / "plain.csv"
    plain.write_text("path,label\nnew/ä.png,red\n")
    assert featx("embed", plain, "--out", "again.parquet").code == 0


def test_embed_and_predict_take_an_archive_and_a_list_on_standard_input(
    featx: Callable[..., Outcome],
    make_image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_image_folder({"red": 4, "green": 4})
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    model = tmp_path / "run" / "model.skops"
    select = ("--cv", 2, "--heads", "linear_svm", "--out", tmp_path / "run")
    assert featx("select", archive, *select).code == 0
    assert featx("embed", folder, "--out", tmp_path / "folder.parquet").code == 0
    assert featx("embed", archive, "--out", tmp_path / "archive.parquet").code == 0
    listing = "\n".join(str(path) for path in sorted(folder.rglob("*.png")))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listing.encode())))
    assert featx("embed", "-", "--out", tmp_path / "list.parquet").code == 0
    stored = [
        read_embeddings(tmp_path / f"{name}.parquet") for name in ("folder", "archive", "list")
    ]
    for other in stored[1:]:
        np.testing.assert_array_equal(other.data, stored[0].data)
    assert stored[1].paths[0] == f"{archive}/green/000.png"
    done = featx("predict", model, archive)
    assert done.out.splitlines()[1].startswith(f"{archive}/green/000.png,")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listing.encode())))
    assert len(featx("predict", model, "-").out.splitlines()) == 9


def test_the_labels_of_a_table_are_exported_without_being_asked_for(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2})
    (folder / "list.csv").write_text("path,label,note\nred/000.png,a,x\nred/001.png,b,y\n")
    out = tmp_path / "photos.parquet"
    assert featx("embed", folder / "list.csv", "--out", out).code == 0
    assert read_embeddings(out).target.tolist() == ["a", "b"]
    assert read_embeddings(out).further == {"note": ["x", "y"]}
    (folder / "list.csv").write_text("path,digest\nred/000.png,a\n")
    done = featx("embed", folder / "list.csv", "--out", tmp_path / "other.parquet")
    assert done.code == 2
    assert "'digest'" in done.err


def test_two_images_a_class_are_enough_for_two_folds(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2, "green": 2})
    done = featx("select", folder, "--out", tmp_path / "run", "--cv", 2)
    assert done.code == 0, done.err
    single = folder / "red" / "000.png"
    done = featx("predict", tmp_path / "run" / "model.skops", single)
    assert done.out.splitlines()[1].startswith(str(single))


@pytest.mark.parametrize("name", ["IMG.HEIC", "IMG.PNG", "photo", "photo.jpg_large", "a.zip/1.png"])
def test_any_single_image_is_embedded_whatever_its_name(
    featx: Callable[..., Outcome],
    make_image_folder: Callable[..., Path],
    tmp_path: Path,
    name: str,
) -> None:
    image = make_image_folder({"red": 1}) / "red" / "000.png"
    if "zip" in name:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(image, "1.png")
    else:
        shutil.copy(image, tmp_path / name)
    out = tmp_path / "photos.parquet"
    done = featx("embed", tmp_path / name, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert read_embeddings(out).paths.tolist() == [str(tmp_path / name)]


def test_a_link_to_nothing_is_an_unreadable_image(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2})
    (folder / "red" / "IMG.HEIC").symlink_to("../.git/annex/objects/IMG.HEIC")
    (tmp_path / "linked.jpg").symlink_to(folder)
    done = featx("embed", tmp_path / "linked.jpg", "--out", tmp_path / "linked.parquet")
    assert done.out.startswith("3 rows")
    done = featx("embed", folder, "--out", tmp_path / "photos.parquet")
    assert done.code == 1
    assert done.err.startswith(f"Unreadable: {folder}/red/IMG.HEIC: no such file; it is a link")


def test_what_is_doubtful_about_classes_is_said_and_what_is_wrong_is_refused(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 2, "Red": 2})
    command = ("--out", tmp_path / "run", "--cv", 2, "--heads", "linear_svm")
    done = featx("select", folder, *command)
    assert done.code == 0
    assert done.err == (
        "Warning: Classes that differ only in case, spaces or Unicode form: 'Red' and 'red'; give "
        "them one name if they are one class\n"
    )
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "data" / part)
    for name in ("select", "rank", "compare"):
        done = featx(name, tmp_path / "data", *(command if name == "select" else ()))
        assert done.code == 2
        advised = f"featx select {tmp_path}/data/train --test {tmp_path}/data/test\n"
        assert done.err.endswith(advised)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    featx: Callable[..., Outcome],
    make_image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_image_folder({"red": 6, "green": 6})
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("featx._embedder.ImageEmbedder.extract", None)
    for command in (
        ("select", folder, "--out", tmp_path / "file"),
        ("select", folder, "--out", tmp_path / "file" / "run"),
        ("embed", folder, "--out", tmp_path / "absent" / "photos.parquet"),
        ("embed", folder, "--out", tmp_path),
        ("predict", tmp_path / "no.skops", folder, "--out", tmp_path / "absent" / "a.csv"),
    ):
        done = featx(*command)
        assert done.code == 2, done.err
        assert len(done.err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_second_selection_leaves_no_file_of_the_first_beside_its_own(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 4, "green": 4})
    command = (
        "select",
        folder,
        "--out",
        tmp_path / "a" / "run",
        "--cv",
        2,
        "--heads",
        "linear_svm",
    )
    done = featx(*command, "--test", folder)
    assert done.code == 0
    assert "Held-out images that are also in the training set: 8" in done.err
    (tmp_path / "a" / "run" / "notes.txt").write_text("mine")
    assert featx(*command).code == 0
    names = {path.name for path in (tmp_path / "a" / "run").iterdir()}
    assert names == {
        "model.skops",
        "cv_results.csv",
        "summary.json",
        "embeddings.parquet",
        "notes.txt",
    }


def test_files_that_are_no_images_are_skipped_and_counted(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_image_folder({"red": 4, "green": 4})
    (folder / "red" / "notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("hidden")
    for command in (
        ("embed", folder, "--out", tmp_path / "photos.parquet"),
        ("select", folder, "--out", tmp_path / "run", "--cv", 2, "--heads", "linear_svm"),
        ("predict", tmp_path / "run" / "model.skops", folder),
    ):
        done = featx(*command)
        assert done.code == 0
        assert done.err.startswith("Skipped, as hidden, outside the class folders or no images")
        assert "names: 1 .txt, 1 hidden; the first is" in done.err


def test_predict_leaves_unreadable_images_out_only_when_asked(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    train = make_image_folder({"red": 4, "green": 4})
    featx("select", train, "--out", tmp_path / "run", "--cv", 2, "--heads", "linear_svm")
    break_image(train / "green" / "001.png")
    command = ("predict", tmp_path / "run" / "model.skops", train)
    assert featx(*command).code == 2
    done = featx(*command, "--skip-unreadable")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1 + 7
    assert "001.png" in done.err


def test_backbones_lists_the_default_as_installed(featx: Callable[..., Outcome]) -> None:
    done = featx("backbones")
    assert "efficientnet_lite0" in done.out
    entries = {entry["name"]: entry for entry in json.loads(featx("backbones", "--json").out)}
    assert entries["efficientnet_lite0"]["installed"]
    assert entries["efficientnet_lite0"]["dimension"] == 1280


def test_what_is_no_number_is_null_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"scores": [np.nan, (1.5, np.inf)], "best": {"knn": -np.inf, "rank": 1}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "scores": [None, [1.5, None]],
        "best": {"knn": None, "rank": 1},
    }


def test_a_narrow_terminal_shortens_no_name_and_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cells = ["efficientnet_lite0", *(f"{number / 7:.12f}" for number in range(9))]
    print_table([f"column {number}" for number in range(10)], [cells])
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == cells


def test_every_command_with_an_embedder_has_the_same_options(
    featx: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shared = {"--layers", "--pooling", "--views", "--image-size", "--device", "--cache"}
    for command in ("embed", "select", "rank", "compare"):
        assert shared <= set(featx(command, "--help").out.split()), command


def test_the_version_is_printed_and_the_package_can_be_run(
    featx: Callable[..., Outcome],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "featx.__main__", raising=False)  # another test may import it
    assert featx("--version") == (0, f"featx {__version__}\n", "")
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("featx", run_name="__main__", alter_sys=True)
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"featx {__version__}\n"


@pytest.fixture
def bad_input(make_image_folder: Callable[..., Path], tmp_path: Path) -> dict[str, list[object]]:
    """The arguments of select for each fault, but for --out."""
    good = make_image_folder({"red": 6, "green": 6})
    one_class = make_image_folder({"red": 6}, name="one-class")
    rare = make_image_folder({"red": 6, "green": 3}, name="rare")
    empty = tmp_path / "empty"
    empty.mkdir()
    notes = tmp_path / "notes"
    (notes / "red").mkdir(parents=True)
    (notes / "red" / "read-me.txt").write_text("no picture")
    manifest = good / "list.csv"
    manifest.write_text("path,lable\nred/000.png,red\n")
    prices, ages = good / "prices.csv", good / "ages.csv"
    paths = [path.relative_to(good) for path in sorted(good.rglob("*.png"))]
    for table, step in ((prices, 0.37), (ages, 3)):
        rows = [f"{path},{number * step}" for number, path in enumerate(paths)]
        table.write_text("\n".join(["path,label", *rows]))
    return {
        "prices": [prices],
        "ages": [ages],
        "a compressed archive": [shutil.make_archive(str(tmp_path / "photos"), "gztar", good)],
        "no such folder": [tmp_path / "absent"],
        "an empty folder": [empty],
        "no images": [notes],
        "one class only": [one_class],
        "fewer images than folds": [rare],
        "no such column": [manifest],
        "unknown backbone": [good, "--backbone", "efficentnet_lite0"],
        "unknown head": [good, "--heads", "logistic_regresion"],
        "a file for a folder": [good / "red" / "000.png"],
        "an unknown device": [good, "--device", "gpu7"],
    }


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("no such folder", ["absent"]),
        ("an empty folder", ["empty"]),
        ("no images", ["notes"]),
        ("one class only", ["'red'", "at least 2"]),
        ("fewer images than folds", ["class 'green' of 3 images", "at least 5"]),
        ("no such column", ["'label'", "did you mean 'lable'"]),
        ("prices", ["measurements, '0.0', '0.37'", "bin the numbers"]),
        ("ages", ["class '0' of 1 image", "bin the labels first if they are measurements"]),
        ("a compressed archive", ["photos.tar.gz", "unpack it"]),
        ("unknown backbone", ["did you mean 'efficientnet_lite0'"]),
        ("unknown head", ["did you mean 'logistic_regression'"]),
        ("a file for a folder", ["000.png"]),
        ("an unknown device", ["gpu7"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2_and_leaves_nothing(
    featx: Callable[..., Outcome],
    bad_input: dict[str, list[object]],
    tmp_path: Path,
    fault: str,
    parts: list[str],
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = featx("select", *bad_input[fault], "--out", tmp_path / "run")
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith("Error: ")
    for part in parts:
        assert part in done.err
    assert "np." not in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_option_that_cannot_be_parsed_has_exit_code_2(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path]
) -> None:
    done = featx("select", make_image_folder({"red": 2}), "--cv", "one", "--out", "run")
    assert done.code == 2
    assert "--cv" in done.err


def test_a_test_image_of_an_unknown_class_is_refused(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    train = make_image_folder({"red": 6, "green": 6})
    for name, part in (("blue", "'blue'"), ("Red", "'red' and 'Red' differ in form only")):
        test = make_image_folder({"green": 2, name: 2}, name=f"test-{name}")
        done = featx("select", train, "--test", test, "--out", tmp_path / "run", "--cv", 2)
        assert done.code == 2
        assert part in done.err


def test_predict_refuses_what_is_no_model(
    featx: Callable[..., Outcome], make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "model.skops").write_text("not a model")
    images = make_image_folder({"red": 1})
    for model in (tmp_path / "model.skops", tmp_path / "absent.skops"):
        done = featx("predict", model, images)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert model.name in done.err


def test_the_installed_command_is_quiet_in_a_pipe_and_fails_without_a_traceback(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from featx._cli import main; main()"]
    images = make_image_folder({"red": 2})
    out = tmp_path / "photos.parquet"
    done = subprocess.run(
        [*command, "embed", str(images), "--out", str(out)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 rows of 1280 columns, 0 without an embedding, in {out}\n"
    done = subprocess.run(
        [*command, "embed", str(tmp_path / "absent"), "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
