"""What a generation did, per row and block, and what it saved."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from scope_runtime.schedule import Schedule

LEGEND = "R recompute, P predict, C cache, K clean pass that captures context, # computed without need, . idle"


@dataclass(frozen=True)
class Observation:
    """What one update of one block looked like in a full-compute run, relative to the row before.

    Attributes:
        row: Row number.
        block: Block number.
        sigma_before: Noise level of the block in its previous row.
        sigma: Noise level of the block in this row.
        modulated_input: Relative L1 change of the modulated input.
        output_change: Relative L1 change of the model output, the larger of the guidance branches.
    """

    row: int
    block: int
    sigma_before: float
    sigma: float
    modulated_input: float
    output_change: float


@dataclass(frozen=True)
class PredictionError:
    """A-posteriori check of one recompute: what skipping it would have handed over against what the model gave.

    With gap weights that is what the gap before hands over, against the raw output.

    Attributes:
        row: Row number.
        block: Block number.
        branch: Guidance branch.
        sigma: Noise level.
        order: Order the extrapolation would have used; 0 with gap weights.
        error: Relative L2 error.
        predicted: The error to expect beforehand, by the first term that the extrapolation leaves out; its divided
            difference is the one that the check before this one measured. None where there was no such check, and with
            gap weights.
    """

    row: int
    block: int
    branch: str
    sigma: float
    order: int
    error: float
    predicted: float | None = None


@dataclass
class WindowReport:
    """One generation window (a long video has several).

    Attributes:
        schedule: The window's noise levels and active intervals.
        modes: One string per row, one letter per block; see `LEGEND`.
        evaluations: Block evaluations made, guidance branches counted separately.
        stock_evaluations: Block evaluations of the stock pipeline for the same rows.
        fallbacks: Blocks recomputed because their history could not be trusted.
        over_budget: Blocks recomputed because skipping them would have gone over the error budget.
        max_skip_seen: Longest run of rows that a block went without recompute.
        note: Why the window ran slower than asked for, or an empty string.
        plan: The whole plan as known before the first row, or None in exact mode and when it depends on content.
        context_bytes: Most memory that captured K/V took.
        history_bytes: Most memory that recorded outputs took.
    """

    schedule: Schedule
    modes: list[str] = field(default_factory=list)
    evaluations: int = 0
    stock_evaluations: int = 0
    fallbacks: int = 0
    over_budget: int = 0
    max_skip_seen: int = 0
    note: str = ""
    plan: tuple[str, ...] | None = None
    context_bytes: int = 0
    history_bytes: int = 0
    _observations: dict[tuple[int, int], Observation] = field(default_factory=dict, repr=False)
    _errors: list[tuple[int, int, str, int, float, torch.Tensor]] = field(default_factory=list, repr=False)

    def observe(self, observation: Observation) -> None:
        """Adds an observation; of several branches' for one row and block the larger output change stays."""
        key = observation.row, observation.block
        known = self._observations.get(key)
        if known is None or observation.output_change > known.output_change:
            self._observations[key] = observation

    @property
    def observations(self) -> list[Observation]:
        """What was observed, by row and block; empty unless observing was asked for."""
        return list(self._observations.values())

    def add_prediction_error(
        self, row: int, block: int, branch: str, order: int, reach: float, error: torch.Tensor
    ) -> None:
        """Adds an a-posteriori error as a scalar tensor, which stays on its device until somebody reads it.

        ``reach`` is `scope_runtime.History.reach` of the prediction: errors are compared per reach, so they have to be
        of one axis. 0 where nothing is extrapolated: then no error is expected beforehand.
        """
        self._errors.append((row, block, branch, order, reach, error))

    @property
    def prediction_errors(self) -> list[PredictionError]:
        """The a-posteriori errors; read from the device only when asked for."""
        if not self._errors:
            return []
        values = torch.stack([e[-1] for e in self._errors]).tolist()
        found = []
        before: dict[tuple[int, str], tuple[int, float]] = {}  # order, and error over reach
        for (row, block, branch, order, reach, _), error in zip(self._errors, values, strict=True):
            key = block, branch
            known, per_reach = before.get(key, (None, 0.0))
            foreseen = per_reach * reach if known == order else None
            sigma = self.schedule.sigma[row][block]
            found.append(PredictionError(row, block, branch, sigma, order, error, foreseen))
            before.pop(key, None)
            if reach > 0 and math.isfinite(error / reach):
                before[key] = order, error / reach
        return found


@dataclass
class Report:
    """One generation.

    Attributes:
        windows: Its windows, in order.
        seconds: Wall clock from the plan to the end of the last row's model call. The host's clock without a device
            synchronisation: on a GPU it is meaningful for the whole, not for a single row.
        peak_memory_bytes: Most device memory allocated while the generation ran, or None where the device does not
            count (CPU).
    """

    windows: list[WindowReport] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    _started: float = field(default_factory=time.perf_counter, repr=False)

    @classmethod
    def begin(cls, device: torch.device) -> Report:
        """The empty report of a generation that starts now on ``device``."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return cls()

    def mark(self, device: torch.device) -> None:
        """Takes time and memory after a model call on ``device``."""
        self.seconds = time.perf_counter() - self._started
        if device.type == "cuda":
            # A callback may have reset the device's count, to leave out memory of its own.
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, torch.cuda.max_memory_allocated(device))

    @property
    def evaluations(self) -> int:
        """Block evaluations made."""
        return sum(w.evaluations for w in self.windows)

    @property
    def stock_evaluations(self) -> int:
        """Block evaluations of the stock pipeline for the same rows."""
        return sum(w.stock_evaluations for w in self.windows)

    @property
    def speedup_evaluations(self) -> float:
        """Stock block evaluations over the ones made: the deterministic speed-up."""
        return self.stock_evaluations / self.evaluations if self.evaluations else 1.0

    @property
    def fallbacks(self) -> int:
        """Blocks recomputed because their history could not be trusted."""
        return sum(w.fallbacks for w in self.windows)

    @property
    def over_budget(self) -> int:
        """Blocks recomputed because skipping them would have gone over the error budget."""
        return sum(w.over_budget for w in self.windows)

    @property
    def max_skip_seen(self) -> int:
        """Longest run of rows that a block went without recompute."""
        return max((w.max_skip_seen for w in self.windows), default=0)

    @property
    def context_bytes(self) -> int:
        """Most memory that captured K/V took."""
        return max((w.context_bytes for w in self.windows), default=0)

    @property
    def history_bytes(self) -> int:
        """Most memory that recorded outputs took."""
        return max((w.history_bytes for w in self.windows), default=0)

    @property
    def modes(self) -> list[str]:
        """Mode letters of all rows of all windows."""
        return [row for w in self.windows for row in w.modes]

    @property
    def observations(self) -> list[Observation]:
        """Observations of all windows (only when observing was asked for)."""
        return [o for w in self.windows for o in w.observations]

    @property
    def prediction_errors(self) -> list[PredictionError]:
        """A-posteriori errors of all windows."""
        return [e for w in self.windows for e in w.prediction_errors]

    @property
    def notes(self) -> list[str]:
        """Why windows ran slower than asked for."""
        return [w.note for w in self.windows if w.note]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form without the per-row measurements."""
        return {
            "evaluations": self.evaluations,
            "stock_evaluations": self.stock_evaluations,
            "speedup_evaluations": self.speedup_evaluations,
            "seconds": self.seconds,
            "fallbacks": self.fallbacks,
            "over_budget": self.over_budget,
            "max_skip_seen": self.max_skip_seen,
            "context_bytes": self.context_bytes,
            "history_bytes": self.history_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "modes": self.modes,
            "notes": self.notes,
        }

    def _errors_line(self) -> list[str]:
        errors = [e for e in self.prediction_errors if math.isfinite(e.error)]
        if not errors:
            return []
        worst = max(errors, key=lambda e: e.error)
        return [
            f"relative error that predicting would have made at recomputes: median "
            f"{statistics.median(e.error for e in errors):.3g}, largest {worst.error:.3g} (row {worst.row}, block "
            f"{worst.block})"
        ]

    def __str__(self) -> str:
        if not self.windows:
            return "No generation yet."
        counts = Counter("".join(self.modes))
        lines = [
            f"{self.evaluations} of {self.stock_evaluations} block evaluations "
            f"({self.speedup_evaluations:.2f}x fewer) in {self.seconds:.2f} s",
            f"recompute {counts['R']}, predict {counts['P']}, cache {counts['C']}, context captures {counts['K']}, "
            f"fallbacks {self.fallbacks}, over budget {self.over_budget}, longest skip {self.max_skip_seen}",
            f"context {self.context_bytes / 2**20:.1f} MiB, histories {self.history_bytes / 2**20:.1f} MiB"
            + (f", device peak {self.peak_memory_bytes / 2**20:.0f} MiB" if self.peak_memory_bytes else ""),
            *self._errors_line(),
            *self.notes,
        ]
        for i, window in enumerate(self.windows):
            if len(self.windows) > 1:
                lines.append(f"window {i}")
            # One line per block reads from left to right as time does.
            for block, letters in enumerate(zip(*window.modes, strict=True)):
                lines.append(f"  block {block:2d} {''.join(letters)}")
        lines.append(f"  ({LEGEND})")
        return "\n".join(lines)
