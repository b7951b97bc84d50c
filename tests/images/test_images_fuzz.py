"""Of thousands of damaged files each gives pixels or an `ImageDecodeError`, and nothing else.

Every file is made of a number, its seed. A failure names the seed it was at, also when the process
died of a signal; ``mutated_file(seed)`` of `decoding_trials` makes the file again.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from decoding_trials import mutated_file, run_trials

if TYPE_CHECKING:
    from pathlib import Path

# Files that once did what they should not: to be kept, so that they never do it again.
FOUND: list[int] = []

GROWTH_MB = 200


def seeds(first: int, count: int) -> list[str]:
    return [f"seed:{seed}" for seed in (*FOUND, *range(first, first + count))]


def survive(jobs: list[str]) -> None:
    trials = run_trials(jobs, seconds_each=5)
    refused = [trial for trial in trials if trial.reason is not None]
    assert all(trial.shape is not None for trial in trials if trial.reason is None)
    assert all(trial.reason and "\n" not in trial.reason for trial in refused)
    # Neither may be all: then nothing would have been tried.
    assert 0.2 < len(refused) / len(trials) < 0.9
    # While it works it may need more, as much as an image of the size that a header claims.
    assert max(trial.resident_mb for trial in trials) < GROWTH_MB


def test_500_damaged_files_give_pixels_or_a_decode_error() -> None:
    survive(seeds(0, 500))


@pytest.mark.slow
def test_20_000_damaged_files_give_pixels_or_a_decode_error() -> None:
    survive(seeds(0, 20_000))


def test_a_seed_makes_one_file_and_different_seeds_different_ones() -> None:
    files = [mutated_file(seed) for seed in range(200)]
    assert files == [mutated_file(seed) for seed in range(200)]
    assert len(set(files)) > 190


# The watch itself -------------------------------------------------------------------------------


def test_a_crash_is_seen_with_the_job_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "faulthandler._sigsegv()")
    with pytest.raises(
        AssertionError, match=rf"ended with -{signal.SIGSEGV:d} at seed:7"
    ) as failure:
        run_trials(["seed:7"])
    assert "Segmentation fault" in str(failure.value)


def test_a_hang_is_seen_with_the_job_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "time.sleep(60)")
    with pytest.raises(AssertionError, match="at seed:7") as failure:
        run_trials(["seed:7"], seconds_each=0.1)
    assert "Timeout" in str(failure.value)


def test_another_exception_is_seen_with_the_job_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "raise ValueError('ours')")
    for each_in_a_process in (False, True):
        with pytest.raises(AssertionError, match="at seed:7") as failure:
            run_trials(["seed:7"], each_in_a_process=each_in_a_process)
        assert "ValueError: ours" in str(failure.value)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    """Put a decoder before featx's that does something wrong."""
    package = folder / "featx" / "_images"
    package.mkdir(parents=True)
    for module in (folder / "featx", package):
        (module / "__init__.py").touch()
    (folder / "featx" / "_errors.py").write_text("class ImageDecodeError(Exception): ...\n")
    (package / "sources.py").write_text("def read_content(item): return item\n")
    (package / "decode.py").write_text(
        f"import faulthandler, time\ndef decode_content(content, source):\n    {deed}\n"
    )
    for module_name in ("torch", "torchvision", "timm"):  # which would take seconds to import
        (folder / f"{module_name}.py").touch()
    monkeypatch.syspath_prepend(folder)
