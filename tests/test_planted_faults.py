"""The planted faults can be planted, and the normal run finds each; see `planted_faults.py`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from planted_faults import FAULTS, ROOT, Fault, is_found, plant

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_stands_where_it_can_be_planted(fault: Fault, tmp_path: Path) -> None:
    file = fault.place.partition(":")[0]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "featx" / file, tmp_path / file)
    plant(fault, tmp_path)
    assert (tmp_path / file).read_text(encoding="utf-8") != (ROOT / "featx" / file).read_text(
        encoding="utf-8"
    )
    for test in fault.tests.split():
        assert (ROOT / test.partition("::")[0]).is_file(), test


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_normal_run_finds_a_planted_fault(fault: Fault) -> None:
    assert is_found(fault)
