"""Extrapolation of the model output by Newton divided differences on points of any spacing.

A position is a plain number; what it counts is the caller's choice (`scope_runtime.schedule.Schedule.position`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

_MIN_GAP = 1e-5
"""Two positions closer than this are one point: a divided difference across them would only amplify noise."""


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
        self._positions: list[float] = []
        self._coefficients: list[torch.Tensor] = []
        self._norms: list[float] | None = None

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(c.numel() * c.element_size() for c in self._coefficients)

    def record(self, position: float, value: torch.Tensor) -> None:
        """Adds a recomputed output ``value`` (any shape, the same at every call) at ``position``."""
        coefficients = [value.float()]
        positions, old = self._positions, self._coefficients
        if positions and abs(position - positions[0]) < _MIN_GAP:
            # The block did not move: the new output replaces the newest. The differences through the old one no
            # longer hold, and rebuilding them would need outputs that are not kept.
            positions, old = [], []
        for k in range(min(self.order, len(positions))):
            coefficients.append((coefficients[k] - old[k]) / (position - positions[k]))
        self._coefficients = coefficients
        self._positions = [position, *positions][: self.order + 1]
        self._norms = None

    def clear(self) -> None:
        """Forgets every recorded output: what follows does not continue it."""
        self._positions, self._coefficients, self._norms = [], [], None

    def step_ratio(self, position: float) -> float:
        """How far an extrapolation reaches: rho = |s - s0| / |s0 - s1|; infinite with fewer than two points."""
        if len(self._positions) < 2:
            return math.inf
        return abs(position - self._positions[0]) / abs(self._positions[0] - self._positions[1])

    def usable_order(self, position: float, order: int, max_step_ratio: float | None = None) -> int:
        """The order really used at ``position``: limited by the points there are, one less when it reaches too far."""
        order = min(order, len(self._positions) - 1)
        if order >= 1 and max_step_ratio is not None and self.step_ratio(position) > max_step_ratio:
            order -= 1
        return order

    def displacement(self, position: float, order: int) -> float:
        """Upper bound of ``|v_hat - v0| / |v0|`` at ``position``: exact for order 0 and 1, triangle inequality for 2.

        Uses norms taken when the points were recorded, so the check costs no tensor work in a skipped row. Not finite
        when the recorded outputs were not.
        """
        base, *norms = self.norms
        total, reach = 0.0, 1.0
        for k in range(order):
            reach *= abs(position - self._positions[k])
            total += reach * norms[k]
        if not math.isfinite(base + total):
            return math.nan
        return total / base if base > 0 else (0.0 if total == 0 else math.inf)

    def reach(self, position: float, order: int) -> float:
        """Product of the distances to the points extrapolated from: the first term left out grows with it."""
        return math.prod(abs(position - point) for point in self._positions[: order + 1])

    def remainder(self, position: float, order: int) -> float:
        """Estimated relative error of the extrapolation at ``position``: the first term that it leaves out.

        For order 0 that is ``|s - s0| |[v0, v1]| / |v0|``, for order 1 ``|s - s0| |s - s1| |[v0, v1, v2]| / |v0|``.
        Infinite while there are too few points to tell.
        """
        norms = self.norms
        if len(norms) < order + 2:
            return math.inf
        error = self.reach(position, order) * norms[order + 1] / norms[0] if norms[0] > 0 else math.inf
        return error if math.isfinite(error) else math.inf

    def extrapolate(self, position: float, order: int) -> torch.Tensor:
        """The output expected at ``position``, float32, the shape of the recorded outputs.

        Args:
            position: Where the output is asked for.
            order: 0 (the newest output itself) to 2; must not exceed `usable_order`.
        """
        result = self._coefficients[0]
        reach = 1.0
        for k in range(order):
            reach *= position - self._positions[k]
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


class Extrapolation:
    """A block that is predicted or cached by its `History`; see `scope_runtime.prediction.Prediction`.

    Args:
        kept: Order of the history.
        order: Order that predictions have, where the history and ``max_step_ratio`` allow it; at most ``kept``.
        max_step_ratio: Above this ratio of gap to history spacing the order drops by one. None: no such limit.
        position: Where a row stands on the axis of the extrapolation.
    """

    def __init__(self, kept: int, order: int, max_step_ratio: float | None, position: Callable[[int], float]) -> None:
        self._history = History(kept)
        self._wanted = order
        self._max_step_ratio = max_step_ratio
        self._position = position

    def _order(self, position: float, cached: bool) -> int:
        return 0 if cached else self._history.usable_order(position, self._wanted, self._max_step_ratio)

    @property
    def empty(self) -> bool:
        """Whether nothing has been recorded since the beginning or the last `clear`."""
        return not len(self._history)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return self._history.bytes

    def clear(self) -> None:
        """Forgets every recorded output."""
        self._history.clear()

    def record(self, row: int, output: torch.Tensor) -> torch.Tensor:
        """Adds a recomputed output, which is what the row hands over."""
        self._history.record(self._position(row), output)
        return output

    def output(self, row: int, *, cached: bool) -> torch.Tensor:
        """The newest output, or the one expected in ``row``, in float32."""
        position = self._position(row)
        return self._history.extrapolate(position, self._order(position, cached))

    def foreseen(self, row: int) -> tuple[torch.Tensor, int, float]:
        """The output expected in ``row``, the order of the extrapolation, and its reach."""
        position = self._position(row)
        order = self._order(position, cached=False)
        return self._history.extrapolate(position, order), order, self._history.reach(position, order)

    def displacement(self, row: int, *, cached: bool) -> float:
        """How far the output in ``row`` is from the newest; see `History.displacement`."""
        position = self._position(row)
        return self._history.displacement(position, self._order(position, cached))

    def remainder(self, row: int, *, cached: bool) -> float:
        """Estimated relative error of the output in ``row``; see `History.remainder`."""
        position = self._position(row)
        return self._history.remainder(position, self._order(position, cached))

    @property
    def pending_norms(self) -> torch.Tensor | None:
        """As of the history."""
        return self._history.pending_norms

    @property
    def norms(self) -> list[float]:
        """As of the history."""
        return self._history.norms

    @norms.setter
    def norms(self, values: list[float]) -> None:
        self._history.norms = values
