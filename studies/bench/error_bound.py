"""How far skipping can take the latents from a full-compute run: the error analysis, with constants from recorded runs.

Two runs of the same prompt and seed, one computed in full and one with skips, solve ``dx = v dsigma`` from the same
noise. With the norm of a block taken as its root mean square, E the distance of the two runs' latents in a block, and
s0, s1 the positions of the block's newest recomputes on the axis of the extrapolation, one row adds at most

    |dsigma| L max E                                                                    where the block is recomputed,
    |dsigma| (M1 |s - s0| + L max E(s0))                                                where it is cached,
    |dsigma| (M2 / 2 |s - s0| |s - s1| + (1 + 2 rho) L max(E(s0), E(s1)))               where it is predicted.

The maximum runs over the block and everything that it attends to; ``L max E`` at a recompute is the error eta that it
brings into the history, and ``rho = |s - s0| / |s0 - s1|``. For Euler's method this is a bound. A multistep solver
weighs a few outputs beside the newest one, so there it holds up to the sum of its weights.

On the axis of the noise level M1 and M2 bound the output's derivatives by sigma, on that of the steps its derivatives
by the block's count of updates. The solver moves in sigma on either, so dsigma, E and L are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from scope_runtime.schedule import NOISE_LEVEL_AXIS, Phase, Schedule

_SAME = 1e-4
"""Latents closer than this, relative to the noise, say nothing about a Lipschitz constant: rounding decides there."""


@dataclass(frozen=True)
class Course:
    """One recorded generation window.

    Attributes:
        schedule: The window's plan.
        modes: One string per row, one letter per block: R, P, C; anything else was not updated.
        latents: ``[rows, blocks, values]``, before each row.
        outputs: ``[rows, blocks, values]``, what the solver was given; read where the row updates the block only.
    """

    schedule: Schedule
    modes: Sequence[str]
    latents: torch.Tensor
    outputs: torch.Tensor

    def updates(self, block: int) -> list[int]:
        """The rows that update ``block``."""
        return [row for row in range(self.schedule.rows) if self.schedule.phase[row][block] is Phase.ACTIVE]


@dataclass(frozen=True)
class Constants:
    """The constants of the bound, each the largest seen within a bin of the noise level.

    Attributes:
        edges: Upper ends of the bins, rising; the last is 1.
        growth: L, change of the output per change of the latents.
        first: M1, change of the output along the axis.
        second: M2, its second derivative.
        axis: What M1 and M2 count in; see `scope_runtime.Policy`.
    """

    edges: tuple[float, ...]
    growth: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    axis: str = NOISE_LEVEL_AXIS

    def bin(self, sigma: float) -> int:
        """The bin of a noise level."""
        return next((i for i, edge in enumerate(self.edges) if sigma <= edge), len(self.edges) - 1)

    def within(self, values: tuple[float, ...], *sigmas: float) -> float:
        """The largest of ``values`` over the bins from the lowest to the highest of ``sigmas``."""
        return max(values[self.bin(min(sigmas)) : self.bin(max(sigmas)) + 1])


def distances(course: Course, full: Course) -> torch.Tensor:
    """Distance of two courses' latents, ``[rows, blocks]``: the root mean square over a block's values."""
    return (course.latents - full.latents).square().mean(-1).sqrt()


def estimate(
    full: Sequence[Course], skipped: Sequence[Course], bins: int = 1, axis: str = NOISE_LEVEL_AXIS
) -> Constants:
    """Constants of the bound from recorded runs.

    Args:
        full: Full-compute runs: their outputs' differences give M1 and M2.
        skipped: Runs with skips of the same prompts and seeds, in the same order: where they recompute, the change
            of output against the full run over the change of latents gives L.
        bins: Number of equal bins of the noise level; 1 gives the textbook's constants.
        axis: Of the extrapolation that the bound is for.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    edges = tuple((i + 1) / bins for i in range(bins))
    none = (0.0,) * bins
    empty = Constants(edges, none, none, none)
    growth, first, second = ([0.0] * bins for _ in range(3))

    def raise_to(values: list[float], value: float, *sigmas: float) -> None:
        for i in range(empty.bin(min(sigmas)), empty.bin(max(sigmas)) + 1):
            values[i] = max(values[i], value)

    for course in full:
        for points in _histories(course, axis):
            (sigma0, s0, v0), (sigma1, s1, v1) = points[:2]
            slope = (v0 - v1) / (s0 - s1)
            raise_to(first, _norm(slope), sigma0, sigma1)
            if len(points) == 3:
                sigma2, s2, v2 = points[2]
                bend = (slope - (v1 - v2) / (s1 - s2)) / (s0 - s2)
                raise_to(second, 2 * _norm(bend), sigma0, sigma2)
    for course, reference in zip(skipped, full, strict=True):
        moved = distances(course, reference)
        for block in range(course.schedule.blocks):
            for row in course.updates(block):
                distance = float(moved[row, : block + 1].max())
                if course.modes[row][block] == "R" and distance > _SAME:
                    change = _norm(course.outputs[row, block] - reference.outputs[row, block])
                    raise_to(growth, change / distance, course.schedule.sigma[row][block])
    return Constants(edges, tuple(growth), tuple(first), tuple(second), axis)


def bound(schedule: Schedule, modes: Sequence[str], constants: Constants) -> torch.Tensor:
    """The bound on `distances` of a run with ``modes`` from a full-compute run.

    Returns:
        ``[rows + 1, blocks]``: before each row, and after the last.
    """
    error = [0.0] * schedule.blocks
    # Newest first: noise level, position on the axis, error of the output.
    history: list[list[tuple[float, float, float]]] = [[] for _ in error]
    table = [list(error)]
    for row in range(schedule.rows):
        after = list(error)
        for block in schedule.active(row):
            sigma, s = schedule.sigma[row][block], schedule.position(row, block, constants.axis)
            letter = modes[row][block]
            known = history[block]
            if letter == "R":
                wrong = constants.within(constants.growth, sigma) * max(error[: block + 1])
                history[block] = [(sigma, s, wrong), *known[:1]]
            elif letter == "P" and len(known) == 2:
                (sigma0, s0, e0), (sigma1, s1, e1) = known
                reach = abs(s - s0) * abs(s - s1)
                rho = abs(s - s0) / abs(s0 - s1)
                bend = constants.within(constants.second, sigma, sigma0, sigma1)
                wrong = bend / 2 * reach + (1 + 2 * rho) * max(e0, e1)
            else:
                sigma0, s0, e0 = known[0]
                wrong = constants.within(constants.first, sigma, sigma0) * abs(s - s0) + e0
            after[block] = error[block] + schedule.step_size(row, block) * wrong
        error = after
        table.append(list(error))
    return torch.tensor(table, dtype=torch.float64)


def _histories(course: Course, axis: str) -> Iterator[list[tuple[float, float, torch.Tensor]]]:
    """Up to three consecutive (noise level, position, output) points of a block, newest first, wherever it moved."""
    for block in range(course.schedule.blocks):
        points: list[tuple[float, float, torch.Tensor]] = []
        for row in course.updates(block):
            position = course.schedule.position(row, block, axis)
            point = (course.schedule.sigma[row][block], position, course.outputs[row, block])
            points = [point, *points[:2]]
            if len(points) > 1 and all(not math.isclose(a[0], b[0], abs_tol=1e-6) for a, b in pairwise(points)):
                yield points


def _norm(value: torch.Tensor) -> float:
    return float(value.square().mean().sqrt())
