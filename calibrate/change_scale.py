"""From what recorded runs showed to a change map and to a scale on which thresholds are searched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

from calibrate.errors import CalibrateError
from scope_runtime import ChangeMap

# One generation's observations as an array [n, 5]; see `COLUMNS`.
Observations = NDArray[np.float64]
COLUMNS = ("row", "block", "noise_level", "modulated_input", "output_change")
_INDICATOR_COLUMN = {"noise-level": COLUMNS.index("noise_level"), "modulated-input": COLUMNS.index("modulated_input")}
_MAX_KNOTS = 16


@dataclass(frozen=True)
class FitQuality:
    """How well a change map tells what it was fitted to.

    Attributes:
        r_squared: Share of the output change's variance that the map explains; 0 or less is useless.
        rank_correlation: Spearman's, of indicator and output change; None when either does not vary.
        pairs: Recorded pairs of indicator and output change.
        prompts: Full-compute runs that they come from.
    """

    r_squared: float
    rank_correlation: float | None
    pairs: int
    prompts: int

    @classmethod
    def of(cls, change_map: ChangeMap, pairs: NDArray[np.float64], prompts: int) -> Self:
        """Judges a map by pairs [n, 2] of indicator and output change."""
        change, output = pairs.T
        left = float(np.sum((output - [change_map(value) for value in change]) ** 2))
        spread = float(np.sum((output - output.mean()) ** 2))
        varied = np.ptp(change) > 0 and np.ptp(output) > 0
        return cls(
            r_squared=1 - left / spread if spread > 0 else 0.0,
            rank_correlation=float(spearmanr(change, output).statistic) if varied else None,
            pairs=len(pairs),
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
        change_map: The monotone map g from indicator to output change.
        accumulated: Sorted sums of g over windows of consecutive rows of a block: the values that the scheduler's
            accumulated change can take between two recomputes.
        fit_quality: How well the map tells the output's change.
    """

    change_map: ChangeMap
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
        column = _INDICATOR_COLUMN[indicator]
        pairs = np.concatenate([run[:, [column, COLUMNS.index("output_change")]] for run in recorded])
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs) < 2:
            raise CalibrateError(
                "generation.num_inference_steps: the baselines have too few rows to learn from; use more steps."
            )
        change_map = _fit_map(pairs[:, 0], pairs[:, 1])
        windows = [
            sums for run in recorded for sums in _window_sums(run[:, column], run[:, 1], change_map, max_skip + 1)
        ]
        return cls(change_map, np.sort(np.concatenate(windows)), FitQuality.of(change_map, pairs, len(recorded)))

    def threshold(self, quantile: float) -> float:
        """The accumulated change below which the share `quantile` of all windows lies; 0 for quantile 0."""
        return float(np.quantile(self.accumulated, quantile)) if quantile > 0 else 0.0


def _fit_map(change: NDArray[np.float64], output_change: NDArray[np.float64]) -> ChangeMap:
    """Isotonic regression of output change on the indicator, thinned to at most 16 knots."""
    order = np.argsort(change, kind="stable")
    x, first = np.unique(change[order], return_index=True)
    # Equal indicator values are one observation, weighted by how many they are.
    groups = np.split(output_change[order], first[1:])
    weights = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    y = isotonic_regression(means, weights=weights).x
    knots = np.unique(np.linspace(0, len(x) - 1, min(_MAX_KNOTS, len(x))).round().astype(int))
    return ChangeMap(tuple(x[knots].tolist()), tuple(np.maximum(y[knots], 0.0).tolist()))


def _window_sums(
    change: NDArray[np.float64], block: NDArray[np.float64], change_map: ChangeMap, longest: int
) -> list[NDArray[np.float64]]:
    """Sums of mapped change over every run of 1 to `longest` consecutive rows of one block."""
    by_block: dict[float, list[float]] = defaultdict(list)
    for value, number in zip(change.tolist(), block.tolist(), strict=True):
        if np.isfinite(value):
            by_block[number].append(change_map(value))
    sums: list[NDArray[np.float64]] = []
    for mapped in by_block.values():
        total = np.concatenate([[0.0], np.cumsum(mapped)])
        sums.extend(total[length:] - total[:-length] for length in range(1, min(longest, len(mapped)) + 1))
    return sums
