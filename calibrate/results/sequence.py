"""Which policies are tested on the guarantee cases, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.results.promises import FLOORS_DB
from calibrate.results.result import Result, front
from calibrate.spec.floors import Floors
from calibrate.spec.guarantee import Guarantee

# The study's user attribute that holds which policies were tested in which order; see `Sequenced`.
SEQUENCES = "guarantee_sequences"

# The worst of a few search prompts is far from the worst of the guarantee prompts, none or one of which may miss. With
# 10 dB one sequence in six of a benchmark failed at its first policy, with 16 one in twenty; docs/method.md.
_SAFE_DB = 16.0
# On fresh prompts the mean comes out 4 to 6 dB below that of a few search prompts.
_SAFE_MEAN_DB = 6.0
# Whoever misses the lowest floor on the search prompts by more than this will not hold it on others.
_HOPELESS_DB = 3.0


@dataclass(frozen=True)
class Sequenced:
    """A choice of policies to test, as it is kept before the first of them is measured.

    Attributes:
        trials: Their numbers, from careful to bold.
        wish: What the study asked for then; see `declared_wish`.
        finished: Whether all that was worth measuring has been measured.
    """

    trials: list[int]
    wish: dict[str, Any]
    finished: bool = False


def sequences_in(attribute: Any) -> list[Sequenced]:
    """The sequences that a study's attribute `SEQUENCES` holds, oldest first."""
    return [Sequenced(**entry) for entry in attribute or ()]


def sequence_of(results: Sequence[Result], guarantee: Guarantee, floors: Floors) -> list[Result]:
    """The policies to test, from careful to bold, by what the search prompts show alone.

    Of the front (of results that were measured on all search cases) it leaves out what is more careful than it need be
    and what is hopeless, and takes what is left evenly by speed-up (`Result.speed`). The first one is as good as sure
    to hold, if there is such a one, because a sequence that fails at its first policy promises nothing.

    Args:
        results: All of one metric version.
        guarantee: The wish.
        floors: The study's.
    """
    whole = [
        r for r in results if r.stopped is None and floors.shortfalls(r.figures, margin=False).get("max_memory", 0) <= 0
    ]
    careful_first = front(whole)[::-1]
    if not careful_first:
        return []
    lowest = min(FLOORS_DB[0], floors.psnr_worst_prompt_db or math.inf)
    promising = [
        r for r in careful_first if r.figures["psnr_worst_prompt_db"] >= lowest - _HOPELESS_DB or _holds(r, floors)
    ] or careful_first[:1]
    safe = [number for number, result in enumerate(promising) if _safe(result, floors)]
    promising = promising[max(safe, default=0) :]
    most = guarantee.most_policies
    if len(promising) <= most:
        return promising
    speeds = [result.speed for result in promising]
    wanted = [speeds[0] + (speeds[-1] - speeds[0]) * step / max(1, most - 1) for step in range(most)]
    chosen = {min(range(len(speeds)), key=lambda number: abs(speeds[number] - speed)) for speed in wanted}
    return [promising[number] for number in sorted(chosen)]


def _holds(result: Result, floors: Floors) -> bool:
    """Whether a policy holds the floors on the search prompts."""
    return all(missed <= 0 for missed in floors.shortfalls(result.figures, margin=False).values())


def _safe(result: Result, floors: Floors) -> bool:
    """Whether a policy is as good as certain to hold the floors on prompts like the search prompts."""
    if floors.scores:
        return False  # how far scores scatter nobody knows beforehand
    figures = result.figures
    each = (figures[name] >= floor + _SAFE_DB for name, floor in floors.of_each_prompt.items())
    means = (
        figures[name] >= floor + _SAFE_MEAN_DB if name.endswith("_db") else 1 - figures[name] <= (1 - floor) / 2
        for name, floor in floors.of_means.items()
    )
    return all(each) and all(means)
