"""From what recorded runs showed to a change map and to a scale on which thresholds are searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
_BLOCK, _SIGMA_BEFORE, _SIGMA, _INPUT, _OUTPUT = range(1, len(COLUMNS))
_MAX_KNOTS = 24


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
        accumulated: Sorted sums of expected change over windows of consecutive rows of a block: the values that the
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

        windows = [sums for run in usable for sums in _window_sums(expected(run), run[:, _BLOCK], max_skip + 1)]
        return cls(
            noise_map=fitted if by_noise else None,
            change_map=None if by_noise else fitted,
            accumulated=np.sort(np.concatenate(windows)),
            fit_quality=FitQuality.of(expected(pooled), pooled[:, _OUTPUT], len(recorded)),
        )

    def threshold(self, quantile: float) -> float:
        """The accumulated change below which the share `quantile` of all windows lies; 0 for quantile 0."""
        return float(np.quantile(self.accumulated, quantile)) if quantile > 0 else 0.0


def _mapped(fitted: ChangeMap, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([fitted(value) for value in values.tolist()])


def _fit_noise_map(recorded: Observations) -> ChangeMap:
    """Least squares for the change between knots, which is not negative.

    How far an output moves per unit of noise level is large at both ends of the way and small between them, so no
    monotone map of the drop alone can tell it.
    """
    before, after = recorded[:, _SIGMA_BEFORE], recorded[:, _SIGMA]
    ends = np.unique(np.concatenate([before, after]))
    knots = ends[np.unique(np.linspace(0, len(ends) - 1, min(_MAX_KNOTS, len(ends))).round().astype(int))]
    upper, lower = np.maximum(before, after)[:, None], np.minimum(before, after)[:, None]
    overlap = np.clip(np.minimum(upper, knots[1:]) - np.maximum(lower, knots[:-1]), 0.0, None)
    # In changes per segment, not per unit of noise level: segments differ in width by orders of magnitude.
    gained, _ = nnls(overlap / np.diff(knots), recorded[:, _OUTPUT])
    return ChangeMap(tuple(knots.tolist()), tuple(np.concatenate([[0.0], np.cumsum(gained)]).tolist()))


def _fit_change_map(recorded: Observations) -> ChangeMap:
    """Isotonic regression of output change on the modulated input's, thinned to at most `_MAX_KNOTS` knots."""
    change, output_change = recorded[:, _INPUT], recorded[:, _OUTPUT]
    order = np.argsort(change, kind="stable")
    x, first = np.unique(change[order], return_index=True)
    # Equal indicator values are one observation, weighted by how many they are.
    groups = np.split(output_change[order], first[1:])
    weights = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    y = isotonic_regression(means, weights=weights).x
    knots = np.unique(np.linspace(0, len(x) - 1, min(_MAX_KNOTS, len(x))).round().astype(int))
    return ChangeMap(tuple(x[knots].tolist()), tuple(np.maximum(y[knots], 0.0).tolist()))


def _window_sums(change: NDArray[np.float64], block: NDArray[np.float64], longest: int) -> list[NDArray[np.float64]]:
    """Sums of expected change over every run of 1 to `longest` consecutive rows of one block."""
    sums: list[NDArray[np.float64]] = []
    for number in np.unique(block):
        total = np.concatenate([[0.0], np.cumsum(change[block == number])])
        sums.extend(total[length:] - total[:-length] for length in range(1, min(longest, len(total) - 1) + 1))
    return sums
