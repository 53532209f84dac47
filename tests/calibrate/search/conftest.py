"""Processes that drive a study, for tests that kill them."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from tests.calibrate.search import driver_process


@pytest.fixture
def forkserver() -> Any:
    """Processes that have the imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([driver_process.__name__])
    return context
