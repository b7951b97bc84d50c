"""The checks, each in an environment of its own: ``nox`` runs lint, types and tests.

``nox -s tests`` is one of them; ``nox -s slow`` and ``nox -s lowest`` take longer.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"


def lowest_requirements() -> list[str]:
    """Return every requirement of the package and its tests at the lowest version it allows."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = project["dependencies"] + [
        requirement for extra, group in extras.items() if extra != "dev" for requirement in group
    ]
    own = [requirement for requirement in named if not requirement.startswith("featx")]
    return [re.sub(">=", "==", requirement) for requirement in own]


@nox.session
def lint(session: nox.Session) -> None:
    """Check form and habits."""
    session.install("ruff>=0.9")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run what ``pytest`` runs, and show which lines it ran."""
    session.install("-e", ".[test]")
    session.run("pytest", "--cov", "--cov-fail-under=97", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the long versions of the tests."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests at the lowest versions that pyproject.toml allows."""
    session.install(*lowest_requirements())
    session.install("--no-deps", "-e", ".")
    session.run("pytest", *session.posargs)
