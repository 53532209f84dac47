"""What a policy will come to on prompts that nobody has seen, of which the search prompts are a small sample.

A policy's PSNR is taken to be normal over prompts. Its mean is estimated from a few of them, and how far prompts lie
apart from what all runs showed (`calibrate.replay.sensitivity`): three easy search prompts do not look like all of
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from calibrate.replay.sensitivity import Sensitivity


@dataclass(frozen=True)
class Population:
    """One policy over all prompts, in dB.

    Attributes:
        mean: Of its PSNR, as estimated.
        spread: Standard deviation of its PSNR over prompts.
        cases: Of how many prompts the mean is known.
    """

    mean: float
    spread: float
    cases: int

    @classmethod
    def of(cls, estimated: NDArray[np.float64], sensitivity: Sensitivity) -> Self:
        """From the estimated PSNR of each search case [cases]."""
        spread = math.hypot(sensitivity.between_db, sensitivity.spread_db)
        return cls(float(estimated.mean()), spread, len(estimated))

    def share_holds(self, floor: float, share: float) -> float:
        """The probability that at least a share of all prompts reach a floor on each prompt's PSNR."""
        quantile = float(ndtri(share))
        reached = self.mean - self.needed_mean(0.0, share)
        # The mean is that of a sample, and the spread hardly better known.
        error = self.spread * math.sqrt((1 + quantile**2 / 2) / self.cases)
        return float(ndtr((reached - floor) / error))

    def needed_mean(self, floor: float, share: float) -> float:
        """The mean at which just that share of all prompts reaches a floor on each prompt's PSNR."""
        return floor + float(ndtri(share)) * self.spread

    def mean_holds(self, floor: float) -> float:
        """The probability that the mean over all prompts reaches a floor."""
        return float(ndtr((self.mean - floor) / (self.spread / math.sqrt(self.cases))))
