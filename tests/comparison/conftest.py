"""Fixtures of the comparisons' tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def short_searches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads choose among few settings in few folds, which takes most of the time otherwise."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("featx._comparison.strategies._INNER_FOLDS", 2)
        monkeypatch.setattr("featx._comparison.strategies._HEAD_LEARNING_RATES", [3.0])
        monkeypatch.setattr("featx._comparison.strategies._HEAD_EPOCHS", 5)
