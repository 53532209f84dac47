"""Fixtures for every package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.tiny import tiny_pipeline


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
