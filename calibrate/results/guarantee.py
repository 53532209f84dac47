"""Tests of a promise about prompts that nobody has seen, from what policies came to on prompts drawn like them.

Everything that a test looks at is fixed before anything is measured: how many cases, and how many of them may miss. So
it may end as soon as its outcome is known, and nothing that is measured beside it changes what it says. Policies are
tested one after the other in an order that the search prompts alone decide, each with the full error; the first that
fails ends the sequence (fixed-sequence testing; Learn then Test, Angelopoulos et al. 2021). With the confidence that
is asked for, then, the promise holds for all that passed at the same time, so that any of them may be picked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from calibrate.spec.floors import Floors

# What floating-point sums of probabilities may be off by.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ShareTest:
    """An exact binomial test of a share, as it is fixed before its cases are measured.

    Attributes:
        cases: How many of the cases it looks at: the first ones.
        misses: How many of these may miss at most.
    """

    cases: int
    misses: int

    def passed(self, held: Sequence[bool | None]) -> bool | None:
        """Its outcome; None as long as it depends on cases that are not known yet.

        Args:
            held: Whether each case holds, in order; None where that is not known yet.
        """
        looked_at = held[: self.cases]
        missed = sum(value is False for value in looked_at)
        if missed > self.misses:
            return False
        return True if missed + sum(value is None for value in looked_at) <= self.misses else None


@lru_cache(maxsize=4096)
def share_test(cases: int, share: float, confidence: float) -> ShareTest | None:
    """The test that at least a share of all prompts hold, with so many cases; None if they are too few for any.

    It allows as many misses as can be, and looks at as few cases as that takes: 0.9 with confidence 0.9 takes 22 cases
    for no miss and 38 for one.
    """
    needed = cases_needed(share, confidence)
    if cases < needed:
        return None
    misses = 0
    while (more := cases_needed(share, confidence, misses + 1)) <= cases:
        needed, misses = more, misses + 1
    return ShareTest(needed, misses)


@lru_cache(maxsize=4096)
def cases_needed(share: float, confidence: float, misses: int = 0) -> int:
    """The fewest cases of which so many may miss while the test of a share still passes."""
    few, many = misses, misses + 1
    while not _rules_out(misses, many, share, confidence):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        if _rules_out(misses, middle, share, confidence):
            many = middle
        else:
            few = middle
    return many


def largest_share(cases: int, confidence: float) -> float:
    """The largest share that so many cases without a miss can promise."""
    return (1 - confidence) ** (1 / cases) if cases else 0.0


def _rules_out(misses: int, cases: int, share: float, confidence: float) -> bool:
    """Whether so few misses would be too unlikely if less than the share held."""
    from scipy.stats import binom

    return float(binom.cdf(misses, cases, 1 - share)) <= (1 - confidence) * (1 + _ROUNDING)


def mean_bound(values: Sequence[float], confidence: float) -> float:
    """A lower confidence bound of a population's mean, from a sample of it.

    The lower one of two: Student's, and Hall's transformation of the same statistic (1992), which takes the sample's
    skewness into account, with Student's quantile. A bootstrap, or Student's alone, is too high too often where a few
    prompts come out far below the others; docs/method.md has the measured coverage.

    Args:
        values: One per case; fewer than two bound nothing.
        confidence: With which the mean is above the bound.
    """
    count = len(values)
    if count < 2:
        return -math.inf
    sample = np.asarray(values, dtype=np.float64)
    mean, spread = float(sample.mean()), float(sample.std(ddof=1))
    if spread == 0:
        return mean
    quantile = _student_quantile(confidence, count - 1)
    student = quantile / math.sqrt(count)
    # Of the sum of cubes an unbiased estimate, for samples of three or more.
    unbiased = count * count / ((count - 1) * (count - 2)) if count > 2 else 1.0
    skew = unbiased * float(((sample - mean) ** 3).mean()) / spread**3
    shifted = student - skew / (6 * count)
    hall = shifted if abs(skew) < 1e-6 else 3 / skew * (float(np.cbrt(1 + skew * shifted)) - 1)
    return mean - spread * max(student, hall)


@lru_cache(maxsize=1024)
def _student_quantile(confidence: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(confidence, freedom))


@dataclass(frozen=True)
class Tried:
    """A policy on the guarantee cases.

    Attributes:
        trial: Its trial number.
        speedup: Stock block evaluations over the ones made, of the cases that were measured; None before the first.
        figures: Of each case in order (see `calibrate.spec.floors.Floors.of_one`); None where it was not measured.
        failed: Why no more can be measured, which counts as a miss; or None.
        speedup_denoise: Denoising seconds of stock over its own, timed beside each other on a search case; None where
            the pipeline is only run as it is loaded.
        preparation: What the pipeline is set up with beyond how it is loaded, as JSON; None for nothing.
    """

    trial: int
    speedup: float | None
    figures: Sequence[Mapping[str, Any] | None]
    failed: str | None = None
    speedup_denoise: float | None = None
    preparation: Mapping[str, Any] | None = None

    @property
    def speed(self) -> float | None:
        """What the search ranks it by; see `calibrate.results.result.Result.speed`."""
        return self.speedup if self.speedup_denoise is None else self.speedup_denoise


@dataclass(frozen=True)
class Promise:
    """What is promised of prompts drawn like the cases.

    Attributes:
        share: Of the prompts, that hold every floor that is set per prompt.
        confidence: With which the promise holds.
        floors: Those per prompt, and those that the means over prompts reach.
    """

    share: float
    confidence: float
    floors: Floors

    def test(self, cases: int) -> ShareTest | None:
        """What is tested with so many cases; None if they are too few."""
        return share_test(cases, self.share, self.confidence)

    def holds(self, figures: Sequence[Mapping[str, Any] | None]) -> list[bool | None]:
        """Whether each case holds every floor that is set per prompt."""
        return [None if of_one is None else not self.floors.missed_by_prompt(of_one) for of_one in figures]

    def bounds(self, figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The lower bounds of the means that have a floor, over all cases."""
        return {
            name: mean_bound([self.floors.of_one(name, of_one) for of_one in figures], self.confidence)
            for name in self.floors.of_means
        }

    def passed(self, tried: Tried) -> bool | None:
        """Whether a policy passes the tests; None as long as that is not known."""
        test = self.test(len(tried.figures))
        if test is None or tried.failed is not None:
            return False
        share = test.passed(self.holds(tried.figures))
        if share is False or not self.floors.of_means:
            return share
        known = [of_one for of_one in tried.figures if of_one is not None]
        if len(known) < len(tried.figures):
            return None
        means = self.bounds(known)
        return False if any(not means[name] >= floor for name, floor in self.floors.of_means.items()) else share

    def told_failure(self, tried: Tried) -> str:
        """Why a policy does not pass, in words that go behind its name."""
        test = self.test(len(tried.figures))
        if tried.failed is not None:
            return f"failed ({tried.failed})"
        if test is None:
            return f"would have to be tested on {cases_needed(self.share, self.confidence)} cases"
        looked_at = self.holds(tried.figures)[: test.cases]
        if test.passed(looked_at) is False:
            return f"misses {looked_at.count(False)} of {test.cases} cases, of which {test.misses} may miss"
        known = [of_one for of_one in tried.figures if of_one is not None]
        if len(known) < len(tried.figures):
            return f"has been measured on {len(known)} of {len(tried.figures)} cases"
        bounds = self.bounds(known)
        low = [
            f"{name}, of which no more than {bounds[name]:.4g} can be promised"
            for name, floor in self.floors.of_means.items()
            if not bounds[name] >= floor
        ]
        return f"misses the mean of {' and '.join(low)}"


def passed_in_turn(promise: Promise, sequence: Sequence[Tried]) -> list[Tried]:
    """The policies that passed before the first one that did not, or of which it is not known yet."""
    passed = []
    for tried in sequence:
        if not promise.passed(tried):
            break
        passed.append(tried)
    return passed


def worth_measuring(promises: Sequence[Promise], sequence: Sequence[Tried]) -> bool:
    """Whether the last policy of a sequence may still pass for one of the promises, or has."""
    *before, last = sequence
    return any(
        promise.passed(last) is not False and len(passed_in_turn(promise, before)) == len(before)
        for promise in promises
    )
