"""Importing featx and asking for help cost next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "pandas", "sklearn", "pyarrow", "onnxruntime")


def loaded_after(code: str) -> set[str]:
    report = f"{code}\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import featx",
        "import featx; dir(featx)",
        "import sys; sys.argv = ['featx', '--help']\n"
        "from featx._cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['featx', 'select', '--help']\n"
        "from featx._cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_neither_torch_nor_pandas_nor_scikit_learn_is_loaded(code: str) -> None:
    assert loaded_after(code).isdisjoint(HEAVY)


def test_every_public_name_can_be_imported() -> None:
    import featx

    for name in featx.__all__:
        assert getattr(featx, name) is not None
    assert set(featx.__all__) <= set(dir(featx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        featx.nothing  # noqa: B018


def test_the_runtime_comes_with_the_embedder_while_the_collector_is_paused() -> None:
    # Imported at the first image it would have the collector walk through all that is there.
    assert "onnxruntime" in loaded_after("from featx import ImageEmbedder")


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_importing_leaves_the_garbage_collector_as_it_was(before: str) -> None:
    code = f"import gc; gc.{before}(); from featx import list_backbones; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{before == 'enable'}\n"
