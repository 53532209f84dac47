"""Whether the prompts of a search are like those that promises are tested on, by what policies come to on both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.spec.generation import Case
from calibrate.store import Generation

# Two sets of prompts drawn alike look less alike than this once in so many times.
_UNLIKELY = 0.05


@dataclass(frozen=True)
class Likeness:
    """Search prompts beside guarantee prompts.

    Attributes:
        policies: How many were measured on all of both.
        gap_db: How much lower the guarantee prompts come out in the mean, in dB of PSNR.
        probability: Of a difference of ranks as large as theirs, or larger, between prompts drawn alike: the exact
            two-sided test of Mann and Whitney on every prompt's mean over the policies.
    """

    policies: int
    gap_db: float
    probability: float

    @property
    def alike(self) -> bool:
        """Whether nothing speaks against it."""
        return self.probability >= _UNLIKELY

    def told(self) -> str:
        """In one sentence, with what it means for the study."""
        policies = f"{self.policies} polic{'y' if self.policies == 1 else 'ies'}"
        measured = f"under {policies} the guarantee prompts come out {abs(self.gap_db):.1f} dB "
        measured += f"{'lower' if self.gap_db > 0 else 'higher'} (p = {self.probability:.2g})"
        if self.alike:
            return f"search prompts and guarantee prompts are not told apart: {measured}"
        means = "slower policies pass than the search aims at" if self.gap_db < 0 else "the search aims too high"
        return (
            f"search prompts are not like guarantee prompts: {measured}, so that {means}; draw search_cases as "
            "guarantee_cases are drawn, or take more of them"
        )


def likeness(
    trials: Sequence[int], search: Sequence[Case], guarantee: Sequence[Case], rows: Iterable[Generation]
) -> Likeness | None:
    """Compares the prompts of a search with those of its guarantee.

    A policy that was given up before all cases were measured says nothing: it was given up for cases that it misses.

    Args:
        trials: Numbers of the policies that were tested on guarantee cases.
        search: The search cases.
        guarantee: The guarantee cases.
        rows: The complete generations of candidates and guarantee tests, of one metric version.

    Returns:
        None if no policy was measured on all of both.
    """
    found: dict[int, dict[Case, float]] = defaultdict(dict)
    known = {(case.prompt, case.seed): case for case in (*search, *guarantee)}
    for row in rows:
        case = known.get((row.prompt, row.seed))
        if case is not None and row.trial_number is not None and row.trial_number in trials:
            found[row.trial_number][case] = float((row.metrics or {})["psnr_db"])
    whole = [of_one for of_one in found.values() if of_one.keys() >= {*search, *guarantee}]
    if not whole:
        return None
    searched, guaranteed = _means(whole, search), _means(whole, guarantee)
    return Likeness(len(whole), float(searched.mean() - guaranteed.mean()), _probability(searched, guaranteed))


def _means(policies: Sequence[Mapping[Case, float]], cases: Sequence[Case]) -> NDArray[np.float64]:
    """Every prompt's mean over the policies [cases]."""
    return np.array([[of_one[case] for case in cases] for of_one in policies]).mean(axis=0)


def _probability(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy.stats import mannwhitneyu

    tested: Any = mannwhitneyu(first, second, alternative="two-sided", method="exact")
    return float(tested.pvalue)
