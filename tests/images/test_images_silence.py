"""Warnings are dropped inside the block, on its thread, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from featx._images.silence import _SilencedWarning, warnings_silenced


@pytest.mark.parametrize("action", ["error", "always", "default", "ignore"])
def test_no_filter_lets_a_warning_out_of_the_block(action: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        with warnings_silenced():
            warnings.warn("quiet", UserWarning, stacklevel=1)
            warnings.warn("quiet", DeprecationWarning, stacklevel=1)
    assert caught == []


def test_filters_set_after_the_first_block_do_not_undo_the_next() -> None:
    with warnings_silenced():
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warnings_silenced():
            warnings.warn("quiet", UserWarning, stacklevel=1)


def test_warnings_outside_the_block_are_as_before() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warnings_silenced(), warnings_silenced():
            pass
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)


def test_an_error_leaves_the_block_and_ends_the_silence() -> None:
    with pytest.raises(KeyError), warnings_silenced():
        raise KeyError
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)


def test_another_thread_keeps_its_warnings() -> None:
    inside, done = threading.Event(), threading.Event()

    def silenced() -> None:
        with warnings_silenced():
            inside.set()
            done.wait()

    thread = threading.Thread(target=silenced)
    thread.start()
    try:
        inside.wait()
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)
    finally:
        done.set()
        thread.join()


def test_one_thread_finds_its_filters_as_they_were() -> None:
    # In a process of its own: the threads that other tests leave alive keep the filter.
    code = """
import threading, warnings
from featx._images.silence import _SilencedWarning, warnings_silenced
filters, before = warnings.filters, list(warnings.filters)
with warnings_silenced(), warnings_silenced():
    assert list(warnings.filters) != before
try:
    with warnings_silenced():
        raise KeyError
except KeyError:
    pass
assert warnings.filters is filters and filters == before and threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_beside_other_threads_one_filter_stays_that_matches_nothing() -> None:
    with warnings_silenced():
        pass
    before = [entry for entry in warnings.filters if entry[2] is not _SilencedWarning]
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        for _ in range(100):
            with warnings_silenced():
                pass
        assert list(warnings.filters[1:]) == before
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="loud"):
                warnings.warn("loud", UserWarning, stacklevel=1)
    finally:
        done.set()
        thread.join()


def test_a_warning_that_was_shown_once_is_not_shown_again() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("once for each place", UserWarning, stacklevel=1)
            with warnings_silenced():
                warnings.warn("quiet", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["once for each place"]


def test_a_warning_that_was_silenced_is_heard_outside() -> None:
    def warn() -> None:
        warnings.warn("sometimes quiet", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with warnings_silenced():
            warn()
        warn()
    assert len(caught) == 1
