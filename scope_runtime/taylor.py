"""Extrapolation of the model output in the noise level, by Newton divided differences on non-uniform levels."""

from __future__ import annotations

import math

import torch

_MIN_GAP = 1e-5
"""Two noise levels closer than this are one point: a divided difference across them would only amplify noise."""


class History:
    """The newest recomputed outputs of one block on one guidance branch, kept as divided differences.

    With ``c[0] = v0``, ``c[1] = [v0, v1]``, ``c[2] = [v0, v1, v2]`` (newest first), the extrapolation is
    ``c[0] + (s - s0) c[1] + (s - s0)(s - s1) c[2]``. Keeping the differences instead of the outputs makes a skipped
    row cost one multiply-add per order.

    Args:
        order: Highest difference kept; ``order + 1`` tensors of the output's size are held, in float32. One more than
            is extrapolated with, if `remainder` is to be known.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._sigmas: list[float] = []
        self._coefficients: list[torch.Tensor] = []
        self._norms: list[float] | None = None

    def __len__(self) -> int:
        return len(self._sigmas)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(c.numel() * c.element_size() for c in self._coefficients)

    def record(self, sigma: float, value: torch.Tensor) -> None:
        """Adds a recomputed output ``value`` (any shape, the same at every call) at noise level ``sigma``."""
        coefficients = [value.float()]
        sigmas, old = self._sigmas, self._coefficients
        if sigmas and abs(sigma - sigmas[0]) < _MIN_GAP:
            # The block did not move: the new output replaces the newest. The differences through the old one no
            # longer hold, and rebuilding them would need outputs that are not kept.
            sigmas, old = [], []
        for k in range(min(self.order, len(sigmas))):
            coefficients.append((coefficients[k] - old[k]) / (sigma - sigmas[k]))
        self._coefficients = coefficients
        self._sigmas = [sigma, *sigmas][: self.order + 1]
        self._norms = None

    def clear(self) -> None:
        """Forgets every recorded output: what follows does not continue it."""
        self._sigmas, self._coefficients, self._norms = [], [], None

    def step_ratio(self, sigma: float) -> float:
        """How far an extrapolation reaches: rho = |s - s0| / |s0 - s1|; infinite with fewer than two points."""
        if len(self._sigmas) < 2:
            return math.inf
        return abs(sigma - self._sigmas[0]) / abs(self._sigmas[0] - self._sigmas[1])

    def usable_order(self, sigma: float, order: int, max_step_ratio: float | None = None) -> int:
        """The order really used at ``sigma``: limited by the points there are, one less when it reaches too far."""
        order = min(order, len(self._sigmas) - 1)
        if order >= 1 and max_step_ratio is not None and self.step_ratio(sigma) > max_step_ratio:
            order -= 1
        return order

    def displacement(self, sigma: float, order: int) -> float:
        """Upper bound of ``|v_hat - v0| / |v0|`` at ``sigma``: exact for order 0 and 1, triangle inequality for 2.

        Uses norms taken when the points were recorded, so the check costs no tensor work in a skipped row. Not finite
        when the recorded outputs were not.
        """
        base, *norms = self.norms
        total, reach = 0.0, 1.0
        for k in range(order):
            reach *= abs(sigma - self._sigmas[k])
            total += reach * norms[k]
        if not math.isfinite(base + total):
            return math.nan
        return total / base if base > 0 else (0.0 if total == 0 else math.inf)

    def remainder(self, sigma: float, order: int) -> float:
        """Estimated relative error of the extrapolation at ``sigma``: the first term that it leaves out.

        For order 0 that is ``|s - s0| |[v0, v1]| / |v0|``, for order 1 ``|s - s0| |s - s1| |[v0, v1, v2]| / |v0|``.
        Infinite while there are too few points to tell.
        """
        norms = self.norms
        if len(norms) < order + 2:
            return math.inf
        reach = math.prod(abs(sigma - s) for s in self._sigmas[: order + 1])
        error = reach * norms[order + 1] / norms[0] if norms[0] > 0 else math.inf
        return error if math.isfinite(error) else math.inf

    def extrapolate(self, sigma: float, order: int) -> torch.Tensor:
        """The output expected at ``sigma``, float32, the shape of the recorded outputs.

        Args:
            sigma: Noise level asked for.
            order: 0 (the newest output itself) to 2; must not exceed `usable_order`.
        """
        result = self._coefficients[0]
        reach = 1.0
        for k in range(order):
            reach *= sigma - self._sigmas[k]
            result = result + reach * self._coefficients[k + 1]
        return result

    @property
    def pending_norms(self) -> torch.Tensor | None:
        """Norms not read from the device yet, or None: whoever has several histories reads them in one copy."""
        if self._norms is not None or not self._coefficients:
            return None
        return torch.stack([torch.linalg.vector_norm(c) for c in self._coefficients])

    @property
    def norms(self) -> list[float]:
        """Norms of the divided differences, newest output first."""
        if self._norms is None:
            pending = self.pending_norms
            self._norms = [] if pending is None else pending.tolist()
        return self._norms

    @norms.setter
    def norms(self, values: list[float]) -> None:
        self._norms = values
