"""Fixtures of the tests of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from store_trials import Scripts, end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    yield scripts
    for process in scripts.started:
        process.kill()
        end(process)
