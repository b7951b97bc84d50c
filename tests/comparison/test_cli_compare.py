"""`featx compare`: what a person reads, what a program reads, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from featx._cli.compare import compare
from featx._errors import ImageDecodeError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

pytestmark = pytest.mark.usefixtures("short_searches")

QUICK = [
    "--image-size", "64", "--device", "cpu", "--cv", "2", "--epochs", "1",
    "--strategies", "logistic_regression,last_stage",
]  # fmt: skip


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Path:
    return make_image_folder({"blue": 6, "red": 6})


def run_compare(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [*QUICK, *map(str, arguments)])


def test_tables_curves_and_a_verdict_are_printed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.csv"
    done = run_compare(photos, "--labels-per-class", "2,all", "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0].startswith("[1/8, ")
    assert "fold 1, 2 labels a class: frozen + logistic_regression:" in done.stderr
    assert "2 labels a class: 4 images to train on, 12 to test, in 2 folds" in done.stdout
    assert "All labels: 6 images to train on, 12 to test, in 2 folds" in done.stdout
    assert "Accuracy by labels of each class:" in done.stdout
    last = [line for line in done.stdout.splitlines() if line][-2:]
    assert last[0].startswith(("Frozen", "The network", "Training", "These images"))
    assert last[1] == f"Wrote {out}"
    runs = pd.read_csv(out)
    assert len(runs) == 8
    assert set(runs["labels_per_class"]) == {"2", "all"}


def test_a_held_out_set_and_json(photos: Path, make_image_folder: Callable[..., Path]) -> None:
    test = make_image_folder({"blue": 3, "red": 3}, name="test")
    done = run_compare(photos, "--test", test, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    rows = {row["strategy"]: row for row in printed["strategies"]}
    assert set(rows) == {"logistic_regression", "last_stage"}
    assert {row["test_images"] for row in rows.values()} == {6}
    assert rows["logistic_regression"]["std"] is None, "of one fold there is none"
    assert printed["verdict"]


def test_images_that_cannot_be_read_are_named(photos: Path) -> None:
    (photos / "blue" / "000.png").write_bytes(b"no image")
    done = run_compare(photos)
    assert isinstance(done.exception, ImageDecodeError)
    assert "--skip-unreadable goes on" in str(done.exception)
    done = run_compare(photos, "--skip-unreadable", "--strategies", "linear_head")
    assert done.exit_code == 0, done.output
    assert "Unreadable: " in done.stderr
    assert "11 to test" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels-per-class", "ten"], "Got --labels-per-class 'ten'"),
        (["--strategies", "last_stag"], "did you mean 'last_stage'"),
        (["--out", "nowhere/runs.csv"], "its folder does not exist"),
        (["--cv", "7"], "Got a class 'blue' of 6 images"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    photos: Path, arguments: list[str], message: str
) -> None:
    app = typer.Typer()
    app.command()(compare)
    done = CliRunner().invoke(app, [str(photos), *QUICK, *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert done.stdout == ""
