"""When a candidate need not be measured to the end: its floors are out of reach even if all that is left is perfect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrate.quality.metrics import PERFECT, Quality, floor_figures
from calibrate.quality.score_figures import ClipScores, score_figures_at_best
from calibrate.results.result import MEMORY
from calibrate.spec.floors import Floors

# The floors that the first frames of a clip can show to be out of reach.
_PSNR_FLOORS = ("psnr_db", "psnr_worst_prompt_db", "psnr_worst_frame_db", "psnr_worst_block_db")


def beginnings_tell(floors: Floors) -> bool:
    """Whether the first frames of a clip can show that a floor is out of reach."""
    return any(getattr(floors, name) is not None for name in _PSNR_FLOORS)


def out_of_reach(
    floors: Floors,
    known: Sequence[Quality],
    cases: int,
    memory: float | None = None,
    scores: Sequence[ClipScores] = (),
) -> str | None:
    """Why a candidate cannot hold the floors even if its further clips are perfect, or None.

    Args:
        floors: What is asked for; their safety margin is not.
        known: Of the clips that it has made: their figures, or the best that they can still come to.
        cases: How many clips there will be.
        memory: The most bytes that one of them took.
        scores: Of every clip, or what they can still come to; what is left out can be anything.
    """
    figures = floor_figures([*known, *[PERFECT] * (cases - len(known))]) | ({} if memory is None else {MEMORY: memory})
    open_scores = {demand.figure: math.nan for demand in floors.score_demands()}
    figures |= open_scores | score_figures_at_best(scores)
    missed = floors.told_missed(figures, margin=False)
    return f"stopped early: at best it misses {missed[0]}" if missed else None
