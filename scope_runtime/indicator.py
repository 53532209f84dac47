"""What the scheduler looks at: the change of a block since the previous row, and the map to expected output change."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from scope_runtime._check import array_of_numbers, reject_unknown
from scope_runtime.errors import ProfileError

if TYPE_CHECKING:
    import torch

MODULATED_INPUT = "modulated-input"
NOISE_LEVEL = "noise-level"
INDICATORS = (NOISE_LEVEL, MODULATED_INPUT)


@dataclass(frozen=True)
class ChangeMap:
    """Monotone, never negative map to output change, from an indicator's value or from the noise level.

    Piecewise linear through calibrated knots and clamped at both ends, so it can neither turn negative nor explode
    outside the range it was fitted on, as the polynomials usual for this purpose do.

    Attributes:
        x: Indicator values or noise levels, strictly increasing, at least one.
        y: Output changes, non-decreasing, not negative, as many as ``x``.

    Raises:
        ProfileError: If the knots break one of these rules, naming ``where`` the map stands.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    where: InitVar[str] = "policy.change_map"

    def __post_init__(self, where: str) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise ProfileError(where, "x and y must hold the same number of knots, at least one")
        if not all(math.isfinite(v) and v >= 0 for v in (*self.x, *self.y)):
            raise ProfileError(where, "knots must be finite numbers, not negative")
        if any(b <= a for a, b in pairwise(self.x)):
            raise ProfileError(f"{where}.x", "knots must increase strictly")
        if any(b < a for a, b in pairwise(self.y)):
            raise ProfileError(f"{where}.y", "knots must not decrease: refit the map (isotonic regression)")

    def __call__(self, value: float) -> float:
        """Expected relative output change for one indicator value or noise level."""
        if value <= self.x[0]:
            return self.y[0]
        if value >= self.x[-1]:
            return self.y[-1]
        i = bisect_right(self.x, value)
        x0, x1, y0, y1 = self.x[i - 1], self.x[i], self.y[i - 1], self.y[i]
        return y0 + (y1 - y0) * (value - x0) / (x1 - x0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"x": list(self.x), "y": list(self.y)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> ChangeMap:
        """Inverse of `to_dict`; raises `ProfileError` naming the field, which stands at ``where``."""
        reject_unknown(data, ("x", "y"), where)
        return cls(array_of_numbers(data, "x", where), array_of_numbers(data, "y", where), where)


def relative_l1(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Mean absolute change relative to the mean absolute old value; a scalar tensor on the inputs' device.

    Computed in float32, or in float64 where both are: replay states changes as exactly as decisions compare them.
    """
    import torch  # Not above: policies are also read where no tensor is in sight, and torch takes seconds to load.

    dtype = torch.promote_types(torch.promote_types(new.dtype, old.dtype), torch.float32)
    old = old.to(dtype)
    return (new - old).abs().mean() / old.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)
