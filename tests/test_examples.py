"""The examples and what the README shows run: on a small part here, as they stand in slow tests."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from small_networks import TINY

from featx import FineTunedClassifier, ImageEmbedder
from featx import _cli as cli

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings(
    # Of a few pictures nothing much can be learnt.
    "ignore::sklearn.exceptions.ConvergenceWarning",
)


@pytest.fixture(scope="module")
def few_pictures(tmp_path_factory: pytest.TempPathFactory, sample_folder: Path) -> Path:
    """Some pictures of each class of the sample, laid out like all of them."""
    folder = tmp_path_factory.mktemp("data") / "cifar10-sample"
    for part, count in (("train", 6), ("test", 5)):
        for label in (sample_folder / part).iterdir():
            (folder / part / label.name).mkdir(parents=True)
            for picture in sorted(label.iterdir())[:count]:
                shutil.copy(picture, folder / part / label.name)
    return folder


@pytest.fixture(autouse=True)
def common_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all of them, so that the sample is embedded once."""
    folder = tmp_path_factory.getbasetemp() / "cache-of-the-examples"
    monkeypatch.setenv("FEATX_CACHE", str(folder))


def load(name: str) -> Any:
    """Return an example as a module, without running it."""
    specification = importlib.util.spec_from_file_location(
        f"few_{name}", ROOT / "examples" / f"{name}.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def quick_training(*args: Any, **params: Any) -> FineTunedClassifier:
    return FineTunedClassifier(*args, **params | {"epochs": 1})


def few_digits(example: Any) -> None:
    example.train_test_split = lambda *arrays, **_: train_test_split(
        *arrays, train_size=60, test_size=30, stratify=arrays[1], random_state=0
    )
    example.ImageEmbedder = functools.partial(ImageEmbedder, runtime="torch")


def one_short_draw(example: Any) -> None:
    example.LABELS_AND_EPOCHS = {10: 1}
    example.DRAWS = 1
    example.FineTunedClassifier = quick_training


def one_epoch(example: Any) -> None:
    digits = load_digits()
    example.load_digits = lambda: digits
    example.FineTunedClassifier = quick_training


# What makes each example small beside its pictures; `find_label_issues` is run by tests/readers.
SMALLER: dict[str, Callable[[Any], None]] = {
    "digits_with_cnn_features": few_digits,
    "freeze_first_layers": one_epoch,
    "source_to_target": one_short_draw,
}
RANDOM = ["--backbone", TINY["backbone"], "--random-weights"]
ARGUMENTS = {"new_linear_layer": RANDOM, "flatten_and_dense": [*RANDOM, "--layer", "conv_head"]}
TO_OTHER_TESTS = {"find_label_issues"}


@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES} - TO_OTHER_TESTS))
def test_the_examples_run_on_a_few_pictures(
    name: str, few_pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load(name)
    folders = ["--train", str(few_pictures / "train"), "--test", str(few_pictures / "test")]
    arguments = ARGUMENTS[name] + folders if name in ARGUMENTS else []
    example.SAMPLE = few_pictures
    SMALLER.get(name, lambda _: None)(example)
    takes_arguments = "arguments" in inspect.signature(example.main).parameters
    example.main(*([arguments] if takes_arguments else []))
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run_as_they_stand(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:featx", str(example)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def run_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """Run the first command of the README, and all its Python in one process."""
    (command,) = re.findall(r"```bash\npip install -e \. && featx (select .*)\n```", README)
    with pytest.raises(SystemExit) as ended:
        cli.app(shlex.split(command))
    assert ended.value.code == 0
    assert "Held-out accuracy of" in capsys.readouterr().out
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert Path("run", "linear.skops").is_file()


def test_the_readme_runs_on_a_few_pictures(
    few_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").symlink_to(few_pictures.parent)
    monkeypatch.chdir(tmp_path)
    run_the_readme(capsys)


@pytest.mark.slow
def test_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    run_the_readme(capsys)
