"""Fixtures for every package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_pipeline

TESTS = Path(__file__).parent
ON_RAY = TESTS / "calibrate" / "pool"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the tests, one has a file's, and one those of all clusters, with which it begins.

    Two clusters at once, a dozen processes each, keep each other waiting for longer than one waits for its nodes; and
    where the longest files are begun last, one process works while the others wait for it.
    """
    for item in items:
        group = ON_RAY if ON_RAY in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(group.relative_to(TESTS).as_posix()))
    items.sort(key=lambda item: ON_RAY not in item.path.parents)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two threads on such small tensors are 10 to 100 times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _shared_pipe() -> Any:
    return tiny_pipeline()


@pytest.fixture
def pipe(_shared_pipe: Any) -> Iterator[Any]:
    """A tiny random pipeline; a test that leaves it accelerated fails."""
    yield _shared_pipe
    assert "generate_timestep_matrix" not in vars(_shared_pipe), "a test left the pipeline accelerated"
