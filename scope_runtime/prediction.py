"""Ways to go on without computing a block, behind what the engine asks of any of them.

A way is one file: `scope_runtime.taylor` extrapolates, `scope_runtime.gap_weights` weighs the newest outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from scope_runtime.gap_weights import GapWeights, WeightedOutputs
from scope_runtime.policy import Policy
from scope_runtime.schedule import Schedule
from scope_runtime.taylor import Extrapolation


class Prediction(Protocol):
    """What one block hands over on one guidance branch, from what was recorded at its recomputes.

    The block is active in every row that is asked about, and rows are asked about in order.
    """

    @property
    def empty(self) -> bool:
        """Whether nothing has been recorded since the beginning or the last `clear`."""

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""

    def clear(self) -> None:
        """Forgets every recorded output: what follows does not continue it."""

    def record(self, row: int, output: torch.Tensor) -> torch.Tensor:
        """Adds the raw output of a recompute; returns what the row hands over: the same shape and type."""

    def output(self, row: int, *, cached: bool) -> torch.Tensor:
        """What a row without recompute hands over.

        Args:
            row: The row.
            cached: Whether the plan says to cache and not to predict.
        """

    def foreseen(self, row: int) -> tuple[torch.Tensor, int, float]:
        """What ``row`` would hand over without the recompute that it is about to record.

        Returns:
            The output, the order that it was extrapolated with, and how far that reaches (errors grow with it; 0 where
            that is not known).
        """


class Guard(Protocol):
    """What the magnitude guard and the error budget ask, where a policy has them."""

    norms: list[float]

    @property
    def empty(self) -> bool:
        """As in `Prediction`."""

    @property
    def pending_norms(self) -> torch.Tensor | None:
        """Norms not read from the device yet, or None; whoever reads them sets ``norms``."""

    def displacement(self, row: int, *, cached: bool) -> float:
        """How far what ``row`` would hand over is from the newest output, relative to it."""

    def remainder(self, row: int, *, cached: bool) -> float:
        """Estimated relative error of what ``row`` would hand over."""


def predictions_of(policy: Policy, schedule: Schedule, branch: str) -> tuple[Sequence[Prediction], Sequence[Guard]]:
    """The way that a policy goes on, per block of a window, and what guards it, where something does.

    Args:
        policy: The rules.
        schedule: The window's plan.
        branch: Guidance branch.
    """
    blocks = range(schedule.blocks)
    if policy.gap_weights is not None:
        return [_weighted(policy.gap_weights, schedule, block, branch) for block in blocks], ()
    extrapolated = [_extrapolated(policy, schedule, block) for block in blocks]
    return extrapolated, extrapolated if policy.needs_guard else ()


def _weighted(weights: GapWeights, schedule: Schedule, block: int, branch: str) -> WeightedOutputs:
    return WeightedOutputs(weights.depth, lambda row: weights.of(block, schedule.step(row, block), branch))


def _extrapolated(policy: Policy, schedule: Schedule, block: int) -> Extrapolation:
    return Extrapolation(
        policy.history_order,
        policy.order,
        policy.max_step_ratio,
        lambda row: schedule.position(row, block, policy.axis),
    )
