"""Warnings are dropped inside the block, on its thread, and nowhere else."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest

from featx.images.silence import warnings_silenced


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


def test_the_filter_is_installed_once_however_often_the_block_runs() -> None:
    with warnings_silenced():
        before = len(warnings.filters)
    for _ in range(100):
        with warnings_silenced():
            pass
    assert len(warnings.filters) == before
