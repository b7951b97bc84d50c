"""The number of torch's threads is what it was, however many fit at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from featx._finetuning.base import fitting_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL, LARGE = nn.Linear(1280, 10), nn.Linear(1280, 1000)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_head_takes_one_thread_and_a_large_one_all() -> None:
    with fitting_threads(SMALL):
        assert torch.get_num_threads() == 1
    with fitting_threads(LARGE):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), fitting_threads(SMALL):
        1 / 0  # noqa: B018 - any error
    assert torch.get_num_threads() == 2


def test_fits_that_overlap_leave_the_number_as_it_was() -> None:
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def second() -> None:
        with fitting_threads(SMALL):
            second_is_in.set()
            first_is_out.wait(60)

    other = threading.Thread(target=second)
    with fitting_threads(SMALL):
        other.start()
        assert second_is_in.wait(60)
    first_is_out.set()
    other.join(60)
    assert torch.get_num_threads() == 2


FORKED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import torch
from networks import OWN, make_images
from featx import FineTunedClassifier
torch.set_num_threads(2)
images, labels = make_images(12)
first = FineTunedClassifier(**OWN, epochs=1).fit(images, labels).predict_proba(images)
torch.ones(500, 500) @ torch.ones(500, 500)  # OpenMP's threads are there now
if os.fork() == 0:
    signal.alarm(60)
    threads = torch.get_num_threads()
    again = FineTunedClassifier(**OWN, epochs=1).fit(images, labels).predict_proba(images)
    print(threads, abs(again - first).max() < 0.05, torch.get_num_threads(), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_fits_and_keeps_its_number_of_threads() -> None:
    text = FORKED.format(folder=os.fspath(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2 True 2\n"), done.stderr
