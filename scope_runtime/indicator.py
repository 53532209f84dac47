"""What the scheduler looks at: the change of a block since the previous row, and the map from it to output change."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scope_runtime._check import array_of_numbers, reject_unknown
from scope_runtime.errors import ProfileError

MODULATED_INPUT = "modulated-input"
NOISE_LEVEL = "noise-level"
INDICATORS = (NOISE_LEVEL, MODULATED_INPUT)


@dataclass(frozen=True)
class ChangeMap:
    """Monotone, never negative map g from indicator change to expected output change.

    Piecewise linear through calibrated knots and clamped at both ends, so it can neither turn negative nor explode
    outside the range it was fitted on, as the polynomials usual for this purpose do.

    Attributes:
        x: Indicator values, strictly increasing, at least one.
        y: Output changes, non-decreasing, not negative, as many as ``x``.

    Raises:
        ProfileError: If the knots break one of these rules.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        where = "policy.change_map"
        if not self.x or len(self.x) != len(self.y):
            raise ProfileError(where, "x and y must hold the same number of knots, at least one")
        if not all(math.isfinite(v) and v >= 0 for v in (*self.x, *self.y)):
            raise ProfileError(where, "knots must be finite numbers, not negative")
        if any(b <= a for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ProfileError(f"{where}.x", "knots must increase strictly")
        if any(b < a for a, b in zip(self.y, self.y[1:], strict=False)):
            raise ProfileError(f"{where}.y", "knots must not decrease: refit the map (isotonic regression)")

    def __call__(self, change: float) -> float:
        """Expected relative output change for one indicator value."""
        if change <= self.x[0]:
            return self.y[0]
        if change >= self.x[-1]:
            return self.y[-1]
        i = bisect_right(self.x, change)
        x0, x1, y0, y1 = self.x[i - 1], self.x[i], self.y[i - 1], self.y[i]
        return y0 + (y1 - y0) * (change - x0) / (x1 - x0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"x": list(self.x), "y": list(self.y)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChangeMap:
        """Inverse of `to_dict`; raises `ProfileError` naming the field."""
        reject_unknown(data, ("x", "y"), "policy.change_map")
        return cls(array_of_numbers(data, "x", "policy.change_map"), array_of_numbers(data, "y", "policy.change_map"))


def relative_l1(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Mean absolute change relative to the mean absolute old value; a scalar tensor on the inputs' device."""
    old = old.float()
    return (new.float() - old).abs().mean() / old.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)
