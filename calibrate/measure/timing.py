"""Wall-clock times that can be trusted: measured again until they agree, or until a limit.

All cases of a study do the same kind of work, so what is compared is the time per block evaluation, over cases and
repeats alike. The warm-up before the first case is not part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.measure.paired import PairedCase
from calibrate.progress import Narrator
from calibrate.spec.generation import Case
from calibrate.spec.running import Timing

# The three ways in which a case is generated; of each, PairedCase has the seconds.
_KINDS = ("stock", "exact", "scope")


@dataclass(frozen=True)
class Steadiness:
    """How well repeated times agree.

    Attributes:
        samples: Times taken of each kind, repeats included.
        variation: Per kind, the coefficient of variation of the seconds per block evaluation; None for one sample.
        limit: What was asked for.
    """

    samples: int
    variation: dict[str, float | None]
    limit: float

    @property
    def steady(self) -> bool:
        """Whether all kinds agree as well as was asked for."""
        return all(value is not None and value <= self.limit for value in self.variation.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**dataclasses.asdict(self), "steady": self.steady}


def repeat_until_steady(
    pairs: Sequence[PairedCase], times: Callable[[Case], Mapping[str, float]], timing: Timing, narrator: Narrator
) -> tuple[list[PairedCase], Steadiness]:
    """Times cases again, in turn, until the times agree.

    Args:
        pairs: All cases, each measured once.
        times: Takes the times of a case again; see `calibrate.measure.paired.TimeAgain`.
        timing: When to stop.
        narrator: Told of every repeat.

    Returns:
        The cases with the mean of their times, and how well these agree.
    """
    samples: list[dict[str, list[float]]] = [
        {kind: [getattr(pair, f"{kind}_seconds")] for kind in _KINDS} for pair in pairs
    ]
    steadiness = _steadiness(pairs, samples, timing)
    for repeat in range(timing.max_repeats):
        if steadiness.steady:
            break
        number = repeat % len(pairs)
        for kind, seconds in times(pairs[number].case).items():
            samples[number][kind].append(seconds)
        steadiness = _steadiness(pairs, samples, timing)
        narrator.say(f"Timed once more: {_describe(steadiness)}")
    timed = [
        dataclasses.replace(
            pair,
            stock_seconds=float(np.mean(taken["stock"])),
            exact_seconds=float(np.mean(taken["exact"])),
            scope_seconds=float(np.mean(taken["scope"])),
        )
        for pair, taken in zip(pairs, samples, strict=True)
    ]
    return timed, steadiness


def _steadiness(pairs: Sequence[PairedCase], samples: Sequence[dict[str, list[float]]], timing: Timing) -> Steadiness:
    evaluations = [
        {
            "stock": pair.scope_report.stock_evaluations,
            "exact": pair.exact_report.evaluations,
            "scope": pair.scope_report.evaluations,
        }
        for pair in pairs
    ]
    per_evaluation = {
        kind: [s / count[kind] for count, taken in zip(evaluations, samples, strict=True) for s in taken[kind]]
        for kind in _KINDS
    }
    return Steadiness(
        samples=len(per_evaluation["stock"]),
        variation={kind: _variation(values) for kind, values in per_evaluation.items()},
        limit=timing.max_variation,
    )


def _variation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 else None


def _describe(steadiness: Steadiness) -> str:
    worst = max((value for value in steadiness.variation.values() if value is not None), default=0.0)
    return f"{steadiness.samples} times vary by {worst:.0%}, {steadiness.limit:.0%} asked for"
