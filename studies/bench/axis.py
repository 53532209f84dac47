"""Along what to extrapolate: orders and axes against each other, by real runs of periodic schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibrate.progress import Narrator
from scope_runtime import Policy
from studies.bench.real_runs import Bench, Size

EXTRAPOLATIONS = ((0, "noise-level"), (1, "noise-level"), (1, "step"), (2, "noise-level"), (2, "step"))


def measure(size: Size, schedules: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The figures of ``python -m studies.bench axis``.

    Args:
        size: Of the generations, which are those of the search cases.
        schedules: Warm-up and most skips in a row of each schedule; no threshold decides anything.

    Returns:
        One line per schedule, order and axis: ``speedup_evaluations``, and ``psnr_db`` of the mean and of the worst
        prompt.
    """
    lines = []
    with Narrator() as narrator:
        bench = Bench(size, narrator)
        narrator.stage("Schedules", len(schedules) * len(EXTRAPOLATIONS))
        for warmup, max_skip in schedules:
            for order, axis in EXTRAPOLATIONS:
                runs = bench.runs(Policy(warmup=warmup, max_skip=max_skip, order=order, axis=axis), bench.searched)
                psnr = [run.metrics["psnr_db"] for run in runs]
                lines.append(
                    {
                        "warmup": warmup,
                        "max_skip": max_skip,
                        "order": order,
                        "axis": axis,
                        "speedup_evaluations": round(runs[0].stock_evaluations / runs[0].evaluations, 2),
                        "psnr_db": round(float(np.mean(psnr)), 1),
                        "psnr_worst_prompt_db": round(min(psnr), 1),
                    }
                )
                narrator.advance(f"warm-up {warmup}, at most {max_skip} skips, order {order}, {axis}")
    return lines
