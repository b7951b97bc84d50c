"""What the documentation shows is what happens."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import featx
from featx._public import rooms_of_names

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
MODULES = [module.name for module in pkgutil.walk_packages(featx.__path__, prefix="featx.")]
README = (ROOT / "README.md").read_text(encoding="utf-8")


class PublicExamples(doctest.DocTestFinder):
    """Finds the examples of public names, too, whose address is not the module they stand in."""

    def _from_module(self, module: ModuleType, thing: object) -> bool:
        is_definition = inspect.isclass(thing) or inspect.isfunction(thing)
        if is_definition and thing.__module__ == "featx":
            return rooms_of_names().get(thing.__name__) == module.__name__
        return bool(super()._from_module(module, thing))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=flags)
    for example in PublicExamples(exclude_empty=True).find(module, name):
        runner.run(example)
    assert runner.summarize().failed == 0


def test_every_public_function_and_class_shows_an_example() -> None:
    for name in featx.__all__:
        documentation = getattr(featx, name).__doc__ or ""
        is_warning_or_text = name.startswith("__") or "Error" in name or "Warning" in name
        shown = ">>>" in documentation or "Returns it, with an example" in documentation
        assert is_warning_or_text or shown or "Failure" in name, name


def test_the_readme_has_the_two_commands() -> None:
    assert (
        "pip install -e . && featx select data/cifar10-sample/train "
        "--test data/cifar10-sample/test --out run" in README
    )
    assert "pip install -e '.[test]' && pytest" in README


def test_every_file_that_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_dependency_is_justified_by_a_comment() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    named = project["dependencies"] + [
        requirement for extra, group in extras.items() if extra != "dev" for requirement in group
    ]
    for requirement in named:
        (line,) = [line for line in text.splitlines() if f'"{requirement}"' in line]
        assert "#" in line, requirement


def test_upper_floors_know_lower_floors_and_never_the_other_way() -> None:
    floors = [
        {"_version", "_public"},
        {"_errors"},
        {"_checks"},
        {"_files", "_progress"},
        {"_images", "_labels"},
        {"_store", "_parquet"},
        {"_backbones"},
        {"_extraction"},
        {"_embedder", "_finetuning"},
        {"_export", "_prediction", "_persistence", "testing"},
        {"_selection"},
        {"_comparison"},
        {"_cli"},
        {"__main__"},
    ]
    height = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
    package = ROOT / "featx"
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for room in re.findall(r"(?:from|import) featx\.(\w+)", path.read_text(encoding="utf-8")):
            assert room == own or height[room] < height[own], f"{path} imports {room}"


def imports_of(path: Path) -> set[str]:
    """Return the modules of featx that a file imports, but for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # What is imported from a package may be a file in it.
            files = {f"{node.module}.{name.name}" for name in node.names}.intersection(MODULES)
            found.update(files or {node.module})
    return found.intersection(MODULES)


def test_no_file_imports_what_imports_it() -> None:
    graph = {}
    for module in MODULES:
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        graph[module] = imports_of(file) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle
