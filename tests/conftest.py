"""Fixtures every test room uses."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# One thread of BLAS, torch and ONNX Runtime, here and in what tests start, before any of them is
# imported: there is a process of pytest for each core. Tests about threads ask for theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from graph_memo import remember_exports
from hypothesis import settings
from PIL import Image
from small_networks import Notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent

# Few examples of each law in the normal run; many with --hypothesis-profile=long.
settings.register_profile("normal", max_examples=6)
settings.register_profile("long", max_examples=300)
settings.load_profile("normal")

# No network, neither here nor in the processes that tests start.
OFFLINE = ROOT / "tests" / "offline"
runpy.run_path(os.fspath(OFFLINE / "sitecustomize.py"))
sys.path.insert(0, os.fspath(OFFLINE))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.fspath(OFFLINE), os.environ.get("PYTHONPATH")])
)

SLOW_TIMEOUT = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than pyproject.toml gives a test."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Each test gets a cache folder of its own, never the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEATX_CACHE", os.fspath(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def exported_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The networks that were exported in this run, shared by its workers; see `graph_memo`."""
    from featx._extraction import onnx_runtime

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "exported-graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            onnx_runtime, "export_onnx", remember_exports(onnx_runtime.export_onnx, folder)
        )
        yield folder


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """A network that notes which images pass through it, in whatever process."""
    return Notes(tmp_path / "forwards.txt")


@pytest.fixture(scope="session")
def sample_folder() -> Path:
    """The photographs that come with the project: 10 classes of CIFAR-10."""
    return ROOT / "data" / "cifar10-sample"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Photographs beside the project; tests that need them are skipped where they are absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the shared photographs are not beside this checkout")
    return folder


@pytest.fixture
def make_image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes labelled PNGs, each class with a colour of its own."""

    def make(classes: dict[str, int], *, name: str = "photos", seed: int = 0) -> Path:
        random = np.random.default_rng(seed)
        folder = tmp_path / name
        for label, count in classes.items():
            (folder / label).mkdir(parents=True)
            colour = random.integers(0, 256, 3)
            for number in range(count):
                noise = random.integers(-40, 40, (40, 48, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / label / f"{number:03}.png")
        return folder

    return make
