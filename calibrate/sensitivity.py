"""How much an error made at a noise level costs in the end: fitted per model from real runs.

Replay knows the errors that skipping makes in a full-compute run. In a real run every error also changes what the model
sees next, and the more so the earlier it is made. So the final squared error is modelled as

    mse = mean over blocks of  sum over levels  w(level) * errors(block, level)^2

with non-negative weights that do not fall with the noise level: a non-negative least squares problem in the weights'
increments. Relative errors are minimised (what counts is dB), and a weak prior, rising with sigma, stands in for
levels that no run has tried: what is not known must not look cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from calibrate.quality import PSNR_CEILING_DB
from calibrate.replay import LEVELS

# Strength of the prior, in observations.
_PRIOR_WEIGHT = 0.3
# Reweighting rounds that turn relative errors into errors of the logarithm, nearly.
_ROUNDS = 8
# The scatter assumed before there are enough runs to measure it.
_DEFAULT_SPREAD_DB = 3.0
_FEW_RUNS = 6


@dataclass(frozen=True)
class Observed:
    """One real run beside its replay.

    Attributes:
        errors: Replayed magnitudes [blocks, `LEVELS`]; see `calibrate.replay.Replayed`.
        psnr_db: What the real run measured against the stock run.
    """

    errors: NDArray[np.float64]
    psnr_db: float


@dataclass(frozen=True)
class Sensitivity:
    """A fitted model of the final error.

    Attributes:
        weights: Per level of sigma, lowest first [`LEVELS`]; non-negative and non-decreasing.
        spread_db: Root mean square of what the fit leaves unexplained.
        rank_correlation: Spearman's, of estimated and measured PSNR over the runs fitted; None with fewer than three.
        runs: How many real runs it rests on.
    """

    weights: NDArray[np.float64]
    spread_db: float
    rank_correlation: float | None
    runs: int

    @classmethod
    def fit(cls, observed: Sequence[Observed]) -> Self:
        """Fits the weights; with no usable run they stand for errors that cost the same at every level.

        Runs without an error (at the PSNR ceiling, or replayed without one) say nothing and are left out.
        """
        usable = [o for o in observed if o.psnr_db < PSNR_CEILING_DB and o.errors.any()]
        if not usable:
            return cls(np.ones(LEVELS), _DEFAULT_SPREAD_DB, None, 0)
        energies = np.stack([_energies(o.errors) for o in usable])
        target = 10 ** (-np.array([o.psnr_db for o in usable]) / 10)
        weights = _fit_weights(energies, target)
        estimated = _to_psnr(energies @ weights)
        measured = np.array([o.psnr_db for o in usable])
        spread = float(np.sqrt(np.mean((estimated - measured) ** 2)))
        if len(usable) < _FEW_RUNS:
            spread = max(spread, _DEFAULT_SPREAD_DB)
        correlation = float(spearmanr(estimated, measured).statistic) if len(usable) > 2 else float("nan")
        return cls(weights, spread, correlation if np.isfinite(correlation) else None, len(usable))

    def psnr_db(self, errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated PSNR [...] for replayed errors [..., blocks, levels], at most 100 dB."""
        return _to_psnr(_energies(errors) @ self.weights)


def _energies(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., blocks, levels] to mean squares over blocks [..., levels]."""
    return np.square(errors).mean(axis=-2)


def _to_psnr(mse: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(-10 * np.log10(np.maximum(mse, 10 ** (-PSNR_CEILING_DB / 10))), PSNR_CEILING_DB)


def _fit_weights(energies: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [levels] with energies [runs, levels] @ weights close to target [runs] in ratio."""
    # A weight is the sum of the increments up to its level; increments are not negative.
    design = np.cumsum(energies[:, ::-1], axis=1)[:, ::-1]
    # Scaled so that, before any fitting, the typical run is met by equal increments.
    scale = np.exp(np.mean(np.log(target) - np.log(design.sum(axis=1))))
    prior = np.sqrt(_PRIOR_WEIGHT / LEVELS) * np.eye(LEVELS)
    divisor = target.copy()
    increments = np.ones(LEVELS)
    for _ in range(_ROUNDS):
        rows = scale * design / divisor[:, None]
        increments, _ = nnls(np.vstack([rows, prior]), np.concatenate([target / divisor, prior.sum(axis=1)]))
        # Dividing by the target alone would favour estimates that are too low.
        divisor = np.sqrt(target * np.maximum(scale * design @ increments, 0.05 * target))
    return scale * np.cumsum(increments)
