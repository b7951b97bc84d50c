"""Progress: one line on a terminal or in a notebook, nothing in a pipe or in a worker."""

from __future__ import annotations

import multiprocessing
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from featx._checks import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator


class Advance(Protocol):
    """Tells a progress bar how far a loop has come."""

    def __call__(self, done: int, found: int = 0) -> None:
        """Add images that are done, and how many of them were there before."""
        ...


def no_progress(done: int, found: int = 0) -> None:
    """Show nothing."""


def check_progress(progress: bool | str) -> None:
    """Raise InputError unless ``progress`` is ``"auto"``, True or False."""
    if not (isinstance(progress, bool) or (isinstance(progress, str) and progress == "auto")):
        raise refuse("progress", progress, "'auto', True or False", ["auto"])


@contextmanager
def progress_bar(description: str, total: int, progress: bool | str = "auto") -> Iterator[Advance]:
    """Show how far a loop has come, with images a second, the time left and the share found.

    ``"auto"`` shows it on a terminal and in a notebook, in the main process only: the workers of a
    search would write over each other.
    """
    if total == 0 or not _is_shown(progress):
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[share]}"),
    )
    # On stderr, so that what a command prints can be piped while the bar is seen.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, rate="", share="")
        all_found = 0

        def advance(done: int, found: int = 0) -> None:
            nonlocal all_found
            all_found += found
            bar.update(task, advance=done)
            state = bar.tasks[0]
            rate = "" if state.speed is None else f"{state.speed:.0f} images/s"
            share = f"{all_found / state.completed:.0%} already there" if all_found else ""
            bar.update(task, rate=rate, share=share)

        yield advance


@contextmanager
def busy_line(description: str, progress: bool | str = "auto") -> Iterator[None]:
    """Show that something of unknown length is going on; parameters as of `progress_bar`."""
    if not _is_shown(progress):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


def _is_shown(progress: bool | str) -> bool:
    if progress != "auto":
        return bool(progress)
    is_main = multiprocessing.current_process().name == "MainProcess"
    return is_main and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
