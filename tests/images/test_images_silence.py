"""Warnings are dropped inside the block, on its thread, and nowhere else."""

from __future__ import annotations

import pickle
import threading
import warnings
from typing import Any

import pytest
from sklearn.utils.parallel import Parallel, delayed

from featx._images.faults import no_warnings


@pytest.mark.parametrize("action", ["error", "always", "default", "ignore"])
def test_no_filter_lets_a_warning_out_of_the_block(action: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        with no_warnings:
            warnings.warn("quiet", UserWarning, stacklevel=1)
            warnings.warn("quiet", DeprecationWarning, stacklevel=1)
    assert caught == []


def test_filters_set_after_the_first_block_do_not_undo_the_next() -> None:
    with no_warnings:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with no_warnings:
            warnings.warn("quiet", UserWarning, stacklevel=1)


def test_warnings_outside_the_block_are_as_before() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with no_warnings, no_warnings:
            pass
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)


def test_an_error_leaves_the_block_and_ends_the_silence() -> None:
    with pytest.raises(KeyError), no_warnings:
        raise KeyError
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)


def test_another_thread_keeps_its_warnings() -> None:
    inside, done = threading.Event(), threading.Event()

    def silenced() -> None:
        with no_warnings:
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


def test_one_filter_is_put_before_the_others_however_often_they_change() -> None:
    with warnings.catch_warnings():
        filters, before = warnings.filters, list(warnings.filters)
        with no_warnings:
            pass
        others = [entry for entry in before if entry[1] is not no_warnings]
        assert list(filters) == [("ignore", no_warnings, Warning, None, 0), *others]
        for number in range(20):
            warnings.filterwarnings("ignore", f"number {number}")
            with no_warnings:
                pass
        assert warnings.filters is filters
        assert len(filters) == len(others) + 1 + 20


def warn_loudly() -> int:
    with no_warnings:
        warnings.warn("quiet", UserWarning, stacklevel=1)
    warnings.warn("loud", UserWarning, stacklevel=1)
    return len(warnings.filters)


def test_scikit_learn_takes_the_filters_over_into_its_workers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with no_warnings:
            pass
        with pytest.raises(UserWarning, match="loud"):
            Parallel(n_jobs=1)([delayed(warn_loudly)()])
        assert pickle.loads(pickle.dumps(warnings.filters)) == warnings.filters


def test_a_warning_that_was_shown_once_is_not_shown_again() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("once for each place", UserWarning, stacklevel=1)
            with no_warnings:
                warnings.warn("quiet", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["once for each place"]


def test_a_warning_that_was_silenced_is_heard_outside() -> None:
    def warn() -> None:
        warnings.warn("sometimes quiet", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with no_warnings:
            warn()
        warn()
    assert len(caught) == 1
