"""Timing that holds on a noisy machine: interleaved runs, medians, ratios within one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(work: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Runs every piece in turn, ``repeats`` times over, and returns the median seconds of each.

    Args:
        work: What to time, by name.
        repeats: Counted rounds.
        warm_up: Rounds before the counted ones.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(warm_up + repeats):
        for name, run in work.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
