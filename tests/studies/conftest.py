"""A small study for benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tiny import CALL, save_tiny_pipeline


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study with a tiny pipeline and one prompt of every kind; generations are kept beside it."""
    folder = tmp_path_factory.mktemp("bench")
    save_tiny_pipeline(folder / "pipe")
    study = {
        "name": "tiny",
        "model": {"path": "pipe", "threads": 1},
        "generation": CALL,
        "search_cases": [{"prompt": "a red circle moving left", "seed": 1}],
        "held_out_cases": [{"prompt": "a green circle moving up", "seed": 3}],
        "fit_cases": [{"prompt": "a blue square moving down", "seed": 5}],
        "search": {"indicator": ["noise-level"], "warmup": {"low": 1, "high": 3}, "learned": {}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path
