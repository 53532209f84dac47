"""Fixtures for every package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadFileScheduling

from tests.tiny import tiny_pipeline

ROOT = Path(__file__).parent.parent
ON_RAY = Path(__file__).parent / "calibrate" / "pool"


class OneClusterAtATime(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
    """Where several processes run the tests, one of them has a file's, and one those of all clusters.

    Two clusters at once, a dozen processes each, keep each other waiting for longer than one waits for its nodes.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return str(path.parent if path.parent == ON_RAY.relative_to(ROOT) else path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneClusterAtATime:
    return OneClusterAtATime(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters come first: where the longest are begun last, one process works while the others wait for it."""
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
