"""From what recorded runs showed to a change map and to a scale on which thresholds are searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, nnls
from scipy.stats import spearmanr

from calibrate.errors import CalibrateError
from scope_runtime import NOISE_LEVEL, ChangeMap

# One generation's observations as an array [n, columns], each column a field of `scope_runtime.Observation`.
Observations = NDArray[np.float64]
COLUMNS = ("row", "block", "sigma_before", "sigma", "modulated_input", "output_change")
_ROW, _BLOCK, _SIGMA_BEFORE, _SIGMA, _INPUT, _OUTPUT = range(len(COLUMNS))
_MAX_KNOTS = 24
# A map rises everywhere by at least this share of its mean slope: on a plateau, updates that differ in what they show
# would count as equal, and a threshold that fell on it would decide them all at once.
_LEAST_SLOPE = 0.05
# Accumulated changes closer than this, relative to their size, are one value: rounding tells them apart.
_SAME = 1e-4


@dataclass(frozen=True)
class FitQuality:
    """How well a change map tells what it was fitted to.

    Attributes:
        r_squared: Share of the output change's variance that the map explains; 0 or less is useless.
        rank_correlation: Spearman's, of expected and measured output change; None when either does not vary.
        pairs: Recorded updates.
        prompts: Full-compute runs that they come from.
    """

    r_squared: float
    rank_correlation: float | None
    pairs: int
    prompts: int

    @classmethod
    def of(cls, expected: NDArray[np.float64], measured: NDArray[np.float64], prompts: int) -> Self:
        """Judges a map by the output changes [n] that it makes expect and those that were measured."""
        left = float(np.sum((measured - expected) ** 2))
        spread = float(np.sum((measured - measured.mean()) ** 2))
        varied = np.ptp(expected) > 0 and np.ptp(measured) > 0
        return cls(
            r_squared=1 - left / spread if spread > 0 else 0.0,
            rank_correlation=float(spearmanr(expected, measured).statistic) if varied else None,
            pairs=len(measured),
            prompts=prompts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        rank = "none" if self.rank_correlation is None else f"{self.rank_correlation:.2f}"
        return f"R2 {self.r_squared:.2f}, rank correlation {rank}, {self.pairs} pairs from {self.prompts} prompts"


@dataclass(frozen=True)
class ChangeScale:
    """How much change to expect, for one indicator.

    Attributes:
        noise_map: The monotone map from noise level to output change, where that is the indicator; see
            `scope_runtime.Policy`.
        change_map: The monotone map from indicator to output change, where the indicator is another one.
        accumulated: Sorted sums of expected change over windows of consecutive updates of a block: the values that the
            scheduler's accumulated change can take between two recomputes.
        fit_quality: How well the map tells the output's change.
    """

    noise_map: ChangeMap | None
    change_map: ChangeMap | None
    accumulated: NDArray[np.float64]
    fit_quality: FitQuality

    @classmethod
    def fit(cls, indicator: str, recorded: Sequence[Observations], max_skip: int) -> ChangeScale:
        """Fits map and scale.

        Args:
            indicator: `noise-level` or `modulated-input`.
            recorded: One array per full-compute run.
            max_skip: The longest skip that the search may choose; windows are one row longer.

        Raises:
            CalibrateError: If the runs have fewer than two usable rows.
        """
        usable = [run[np.isfinite(run).all(axis=1)] for run in recorded]
        pooled = np.concatenate(usable)
        if len(pooled) < 2:
            raise CalibrateError(
                "generation.num_inference_steps: the baselines have too few rows to learn from; use more steps."
            )
        by_noise = indicator == NOISE_LEVEL
        fitted = _fit_noise_map(pooled) if by_noise else _fit_change_map(pooled)

        def expected(run: Observations) -> NDArray[np.float64]:
            if by_noise:
                return np.abs(_mapped(fitted, run[:, _SIGMA_BEFORE]) - _mapped(fitted, run[:, _SIGMA]))
            return _mapped(fitted, run[:, _INPUT])

        windows = [sums for run in usable for sums in _window_sums(expected(run), run, max_skip + 1)]
        return cls(
            noise_map=fitted if by_noise else None,
            change_map=None if by_noise else fitted,
            accumulated=np.sort(np.concatenate(windows)),
            fit_quality=FitQuality.of(expected(pooled), pooled[:, _OUTPUT], len(recorded)),
        )

    def threshold(self, quantile: float) -> float:
        """A change below which about the share `quantile` of all windows lies; 0 for quantile 0.

        It lies in the middle between two values that the accumulated change can take, of the gaps between such values
        the one nearest to the quantile: no decision on what was recorded hangs on how a sum is rounded. Many windows
        may share one value (the noise level falls alike in all blocks and prompts); then all of them lie on one side.
        """
        below, thresholds = self._gaps
        return float(thresholds[np.argmin(np.abs(below - quantile * len(self.accumulated)))])

    def share_below(self, threshold: float) -> float:
        """The share of all windows whose accumulated change lies below a threshold."""
        return float(np.searchsorted(self.accumulated, threshold)) / len(self.accumulated)

    @cached_property
    def _gaps(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Every place for a threshold: how many windows lie below it, and where it is. Both rise."""
        values = self.accumulated
        apart = np.flatnonzero(np.diff(values) > _SAME * values[1:]) + 1
        between = (values[apart - 1] + values[apart]) / 2
        return np.array([0, *apart, len(values)]), np.array([0.0, *between, values[-1] * (1 + _SAME)])


def _mapped(fitted: ChangeMap, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([fitted(value) for value in values.tolist()])


def _fit_noise_map(recorded: Observations) -> ChangeMap:
    """Least squares for the change between knots, which is positive.

    How far an output moves per unit of noise level is large at both ends of the way and small between them, so no
    monotone map of the drop alone can tell it.
    """
    before, after = recorded[:, _SIGMA_BEFORE], recorded[:, _SIGMA]
    ends = np.unique(np.concatenate([before, after]))
    knots = ends[np.unique(np.linspace(0, len(ends) - 1, min(_MAX_KNOTS, len(ends))).round().astype(int))]
    upper, lower = np.maximum(before, after)[:, None], np.minimum(before, after)[:, None]
    overlap = np.clip(np.minimum(upper, knots[1:]) - np.maximum(lower, knots[:-1]), 0.0, None)
    moved = overlap.sum(axis=1)
    least = _LEAST_SLOPE * recorded[:, _OUTPUT].mean() / moved.mean()
    # In changes per segment, not per unit of noise level: segments differ in width by orders of magnitude.
    gained, _ = nnls(overlap / np.diff(knots), recorded[:, _OUTPUT] - least * moved)
    path = np.concatenate([[0.0], np.cumsum(gained)]) + least * (knots - knots[0])
    return ChangeMap(tuple(knots.tolist()), tuple(path.tolist()))


def _fit_change_map(recorded: Observations) -> ChangeMap:
    """Least squares of output change on the modulated input's, under a least slope; at most `_MAX_KNOTS` knots.

    That is isotonic regression of what a line of that slope leaves over.
    """
    change, output_change = recorded[:, _INPUT], recorded[:, _OUTPUT]
    order = np.argsort(change, kind="stable")
    x, first = np.unique(change[order], return_index=True)
    # Equal indicator values are one observation, weighted by how many they are.
    groups = np.split(output_change[order], first[1:])
    weights = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    line = _LEAST_SLOPE * output_change.mean() * (x - x[0]) / max(np.ptp(x), np.finfo(np.float64).tiny)
    y = np.maximum(isotonic_regression(means - line, weights=weights).x, 0.0) + line
    knots = np.unique(np.linspace(0, len(x) - 1, min(_MAX_KNOTS, len(x))).round().astype(int))
    return ChangeMap(tuple(x[knots].tolist()), tuple(y[knots].tolist()))


def _window_sums(change: NDArray[np.float64], run: Observations, longest: int) -> list[NDArray[np.float64]]:
    """Sums of expected change over every run of 1 to `longest` consecutive rows of one block.

    They are added up as the scheduler does it, from the first row on. A row that is missing (a restart, where all is
    recomputed) ends a run, and so does the next window of a long video.
    """
    sums: list[NDArray[np.float64]] = []
    for number in np.unique(run[:, _BLOCK]):
        own = run[:, _BLOCK] == number
        starts = np.flatnonzero(np.diff(run[own, _ROW]) != 1) + 1
        for course in np.split(change[own], starts):
            total = course
            sums.append(total)
            for length in range(2, min(longest, len(course)) + 1):
                total = total[:-1] + course[length - 1 :]
                sums.append(total)
    return sums
