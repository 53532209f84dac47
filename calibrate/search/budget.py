"""When a search ends: so many candidates, so many full generations, so much time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping

from calibrate.measure.baseline import Timings
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import of_metric, survey
from calibrate.search.candidate import Candidate
from calibrate.spec.generation import Case
from calibrate.spec.running import Budget
from calibrate.store import Store

# Repeats of measured policies are free, but a small space consists of little else after a while.
_TRIALS_PER_CANDIDATE = 3


class Allowance:
    """What is left of a study's budget."""

    def __init__(self, budget: Budget, store: Store, timings: Mapping[Case, Timings], devices: int, deadline: float):
        """Reads nothing yet.

        Args:
            budget: The study's.
            store: Where what was spent is recorded.
            timings: Of the baselines of all search cases.
            devices: How many generations run at the same time.
            deadline: Value of `time.monotonic` by which the last candidate should be done.
        """
        self.budget = budget
        self._store = store
        self._timings = timings
        self._devices = devices
        self._deadline = deadline
        self._seconds: list[float] = []

    def took(self, seconds: float) -> None:
        """Notes what the generations of a candidate took, one after the other."""
        self._seconds.append(seconds)

    def spent(self, measured: int, ended: int, running: Iterable[Candidate]) -> str | None:
        """Why no further candidate may be started, in words where there is something to say; None if one may.

        Args:
            measured: Different candidates that were measured or failed.
            ended: Trials that ended, repeats included.
            running: Candidates that are being measured.
        """
        on_the_way = list(running)
        trials = self.budget.trials
        followed = sum(1 + len(candidate.followers) for candidate in on_the_way)
        if measured + len(on_the_way) >= trials or ended + followed >= _TRIALS_PER_CANDIDATE * trials:
            return ""
        if not self._affordable(on_the_way):
            return f"The budget of {self.budget.equivalents:g} full generations per prompt is spent."
        # On a machine that is slow beyond expectation the first candidate, a careful one, is still worth having.
        if measured and time.monotonic() + self._candidate_seconds() > self._deadline:
            return "The time budget is spent; going on with what has been measured."
        return None

    def equivalents(self) -> float:
        """Full generations spent per prompt, baselines included."""
        return self._store.equivalents(metric_version=METRIC_VERSION) / len(self._timings)

    def _affordable(self, running: Iterable[Candidate]) -> bool:
        """Whether `budget.equivalents` has room for one more candidate beside those that are running.

        Each is expected to take what the last ones took at the median. Before there are any, running ones are expected
        to take as much as an exact run, and the first one is free.
        """
        if self.budget.equivalents is None:
            return True
        each, measured = self._equivalents_each()
        coming = each * sum(candidate.open_share for candidate in running)
        return self.equivalents() + coming + (each if measured else 0.0) <= self.budget.equivalents

    def _equivalents_each(self) -> tuple[float, bool]:
        """Full generations per prompt that a candidate is expected to take, and whether any has been measured yet."""
        beside = 1 / len(self._timings)  # a stock run of one of the prompts
        results = of_metric(survey(self._store))
        if shares := [1 / result.speedup_evaluations + beside * result.paired for result in results]:
            return statistics.median(shares), True
        exact = sum(timings.exact_evaluations for timings in self._timings.values())
        return exact / sum(timings.stock_evaluations for timings in self._timings.values()), False

    def reachable(self, measured: int) -> int:
        """How many candidates will have been measured when the budget is spent, as far as can be told now."""
        more = [float(self.budget.trials - measured)]
        if self.budget.equivalents is not None:
            more.append((self.budget.equivalents - self.equivalents()) / self._equivalents_each()[0])
        if math.isfinite(self._deadline):
            more.append(self._devices * (self._deadline - time.monotonic()) / self._device_seconds())
        return measured + max(0, math.floor(min(more)))

    def seconds_left(self, measured: int) -> float:
        """How long that will take."""
        return (self.reachable(measured) - measured) * self._device_seconds() / self._devices

    def _device_seconds(self) -> float:
        """How long the next candidate takes one device; before the first, as long as exact runs of all cases."""
        if self._seconds:
            return max(self._seconds[-3:])
        return sum(timings.exact_seconds + timings.decode_seconds for timings in self._timings.values())

    def _candidate_seconds(self) -> float:
        return self._device_seconds() / min(self._devices, len(self._timings))
