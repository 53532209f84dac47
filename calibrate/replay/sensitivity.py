"""How much an error made at a noise level costs in the end: fitted per model from real runs.

Replay knows the errors that skipping makes in a full-compute run. In a real run every error also changes what the model
sees next, and the more so the earlier it is made. So the final squared error is modelled as

    mse = mean over blocks of  sum over channels  w(channel) * errors(block, channel)^2

with non-negative weights that do not fall with the noise level (staleness has a weight of its own): a non-negative
least squares problem in the weights' increments. Relative errors are minimised (what counts is dB), and a weak prior,
rising with sigma, stands in for levels that no run has tried: what is not known must not look cheap.

Large errors grow faster than small ones, and prompts differ; and errors of one size cost several dB more or less with
another order or axis, because magnitudes do not tell how far errors cancel from row to row. So the model's dB are then
fitted to the measured ones by a line with a positive slope, and each prompt and each way to extrapolate gets an offset,
drawn towards none while it has few runs. How far prompts lie apart is estimated from theirs, as if some more prompts
had been seen before: a few that are alike do not show that all are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import linregress, spearmanr

from calibrate.quality.metrics import PSNR_CEILING_DB, psnr
from calibrate.replay.replay import CHANNELS, LEVELS, Extrapolation, Replayed

_Key = TypeVar("_Key", bound=Hashable)

# Strength of the prior, in observations.
_PRIOR_WEIGHT = 0.3
# Reweighting rounds that turn relative errors into errors of the logarithm, nearly; and rounds of fitting offsets.
_ROUNDS = 8
# The scatter assumed before there are enough runs to measure it.
_DEFAULT_SPREAD_DB = 3.0
_FEW_RUNS = 6
# Runs after which an offset is believed by half.
_HALF_BELIEVED = 3
# The standard deviation between prompts that is assumed beforehand, and in how many prompts it counts as seen: on the
# reference pipeline fresh prompts lie 5.5 dB apart under one policy.
_PROMPTS_APART_DB, _PROMPTS_BEFORE = 5.0, 3


@dataclass(frozen=True)
class Observed:
    """One real run beside its replay.

    Attributes:
        case: The number of its case.
        errors: Replayed magnitudes [blocks, `CHANNELS`] of the blocks that were measured; see
            `calibrate.replay.replay.Replayed`.
        psnr_db: What the real run measured against the stock run: the PSNR of their mean squared error.
        extrapolation: How its skipped outputs were predicted.
    """

    case: int
    errors: NDArray[np.float64]
    psnr_db: float
    extrapolation: Extrapolation

    @classmethod
    def of(cls, replayed: Replayed, case: int, psnr_db: float, blocks: int | None = None) -> Self:
        """A run of one of the replayed cases; of one that was cut short, the number of blocks that it finished."""
        return cls(case, replayed.errors[case][:blocks], psnr_db, replayed.extrapolation)


@dataclass(frozen=True)
class Sensitivity:
    """A fitted model of the final error.

    Attributes:
        weights: Per channel [`CHANNELS`], non-negative; over the levels of sigma, lowest first, non-decreasing.
        slope: Measured dB per dB of the model, positive.
        intercept: Measured dB where the model says 0.
        offsets: What each case adds, by its number; a case that is not there adds nothing.
        of_extrapolation: What each way to extrapolate adds, likewise.
        spread_db: Root mean square of what the fit leaves unexplained.
        between_db: Standard deviation between prompts, of which the cases are a sample.
        rank_correlation: Spearman's, of estimated and measured PSNR over the runs fitted; None with fewer than three.
        runs: How many real runs it rests on.
    """

    weights: NDArray[np.float64]
    slope: float
    intercept: float
    offsets: Mapping[int, float]
    of_extrapolation: Mapping[Extrapolation, float]
    spread_db: float
    between_db: float
    rank_correlation: float | None
    runs: int

    @classmethod
    def fit(cls, observed: Sequence[Observed]) -> Self:
        """Fits the weights; with no usable run they stand for errors that cost the same at every level.

        Runs without an error (at the PSNR ceiling, or replayed without one) say nothing and are left out.
        """
        usable = [o for o in observed if o.psnr_db < PSNR_CEILING_DB and o.errors.any()]
        if not usable:
            return cls(np.ones(CHANNELS), 1.0, 0.0, {}, {}, _DEFAULT_SPREAD_DB, _PROMPTS_APART_DB, None, 0)
        energies = np.stack([_energies(o.errors) for o in usable])
        target = 10 ** (-np.array([o.psnr_db for o in usable]) / 10)
        weights = _fit_weights(energies, target)
        modelled, measured = psnr(energies @ weights), np.array([o.psnr_db for o in usable])
        cases, ways = [o.case for o in usable], [o.extrapolation for o in usable]
        of_cases, of_ways = np.zeros(len(usable)), np.zeros(len(usable))
        # Each of the three is fitted to what the others leave, until they agree.
        for _ in range(_ROUNDS):
            slope, intercept = _line(modelled, measured - of_cases - of_ways)
            residuals = measured - (intercept + slope * modelled)
            of_extrapolation = _offsets(ways, residuals - of_cases)
            of_ways = np.array([of_extrapolation[way] for way in ways])
            offsets = _offsets(cases, residuals - of_ways)
            of_cases = np.array([offsets[case] for case in cases])
        apart = between([float(own.mean()) for own in _grouped(cases, residuals - of_ways).values()])
        left = residuals - of_cases - of_ways
        spread = float(np.sqrt(np.mean(left**2)))
        if len(usable) < _FEW_RUNS:
            spread = max(spread, _DEFAULT_SPREAD_DB)
        correlation = float(spearmanr(measured - left, measured).statistic) if len(usable) > 2 else float("nan")
        return cls(
            weights, slope, intercept, offsets, of_extrapolation, spread, apart,
            correlation if np.isfinite(correlation) else None, len(usable),
        )  # fmt: skip

    def psnr_db(self, replayed: Replayed, cases: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Estimated PSNR [cases], at most 100 dB.

        Args:
            replayed: A candidate on these cases.
            cases: Their numbers, for what is known of each; None for cases that no run was made of.
        """
        offsets = np.array([self.offsets.get(case, 0.0) for case in cases]) if cases is not None else 0.0
        offsets = offsets + self.of_extrapolation.get(replayed.extrapolation, 0.0)
        errors = replayed.errors
        modelled = self.intercept + self.slope * psnr(_energies(errors) @ self.weights) + offsets
        return np.where(errors.any(axis=(-2, -1)), np.minimum(modelled, PSNR_CEILING_DB), PSNR_CEILING_DB)


def between(offsets: Sequence[float]) -> float:
    """The standard deviation between prompts in dB, from the mean residual of each that has been seen.

    A few of them are hardly known to be alike: some prompts count as seen beforehand.
    """
    squares = float(np.square(np.array(offsets) - np.mean(offsets)).sum())
    return float(np.sqrt((squares + _PROMPTS_BEFORE * _PROMPTS_APART_DB**2) / (len(offsets) - 1 + _PROMPTS_BEFORE)))


def _grouped(keys: Sequence[_Key], values: NDArray[np.float64]) -> dict[_Key, NDArray[np.float64]]:
    """Values [n] by their keys [n]."""
    return {key: values[[other == key for other in keys]] for key in dict.fromkeys(keys)}


def _offsets(keys: Sequence[_Key], residuals: NDArray[np.float64]) -> dict[_Key, float]:
    """What each key adds by the residuals [n] of its runs."""
    return {key: float(own.sum() / (len(own) + _HALF_BELIEVED)) for key, own in _grouped(keys, residuals).items()}


def _energies(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., blocks, channels] to mean squares over blocks [..., channels]."""
    return np.square(errors).mean(axis=-2)


def _fit_weights(energies: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [channels] with energies [runs, channels] @ weights close to target [runs] in ratio."""
    # A level's weight is the sum of the increments up to it; increments are not negative.
    levels = np.cumsum(energies[:, LEVELS - 1 :: -1], axis=1)[:, ::-1]
    design = np.hstack([levels, energies[:, LEVELS:]])
    # Scaled so that, before any fitting, the typical run is met by equal increments.
    scale = np.exp(np.mean(np.log(target) - np.log(design.sum(axis=1))))
    prior = np.sqrt(_PRIOR_WEIGHT / CHANNELS) * np.eye(CHANNELS)
    divisor = target.copy()
    increments = np.ones(CHANNELS)
    for _ in range(_ROUNDS):
        rows = scale * design / divisor[:, None]
        increments, _ = nnls(np.vstack([rows, prior]), np.concatenate([target / divisor, prior.sum(axis=1)]))
        # Dividing by the target alone would favour estimates that are too low.
        divisor = np.sqrt(target * np.maximum(scale * design @ increments, 0.05 * target))
    return scale * np.concatenate([np.cumsum(increments[:LEVELS]), increments[LEVELS:]])


def _line(modelled: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of measured over modelled dB; a mere shift while runs are too few or too alike to tell."""
    if len(modelled) >= _FEW_RUNS and np.ptp(modelled) > 1.0:
        fitted = linregress(modelled, measured)
        if fitted.slope > 0:
            return float(fitted.slope), float(fitted.intercept)
    return 1.0, float(np.mean(measured - modelled))
