"""A candidate on recorded traces: what it would cost, and how large its errors would be, without running the model.

The runtime's own `Engine` runs, with the trace in the model's place: decisions, guards, extrapolation and the count of
block evaluations are the runtime's code, not a copy. Where a candidate recomputes, the engine is handed what the
full-compute run computed there; that is what a replay cannot know better (in a real run the input has already been
changed by earlier errors), and what `calibrate.replay.sensitivity` makes up for from real runs.

What is accumulated are magnitudes: signed errors cancel on paper and not in a generation.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.replay.trace import Trace, WindowTrace
from scope_runtime import Phase, Policy, Schedule, plan_of
from scope_runtime.context import Pass
from scope_runtime.engine import Engine
from scope_runtime.policy import needs_stale_context

# Noise levels are told apart by as many bins of equal width in sigma.
LEVELS = 8
# The levels, staleness, and what the context leaves out.
STALENESS, CONTEXT = LEVELS, LEVELS + 1
CHANNELS = LEVELS + 2
# The relative errors that attending to none of the complete blocks, and a rounding error of 1, stand for until real
# runs have told: small, because on the reference pipeline attending to the newest block alone gave 63 dB and bfloat16
# 79 dB.
_LEFT_OUT, _ROUNDING = 0.02, 0.2
# Replays kept; a second look at a plan is free.
_REMEMBERED = 20_000

Modes = tuple[str, ...]
"""One string per row of a window, one letter per block."""

Extrapolation = tuple[object, object]
"""Order and axis of a prediction."""


@dataclass(frozen=True)
class Replayed:
    """What a candidate did on the traces; estimates, but for the counts of a candidate that does not look at content.

    Attributes:
        plans: Mode letters per case, over all windows.
        besides: What else decides the outputs: order and axis, step-ratio limit, context window, data type and
            captures, gap weights; and the same of the first window, where that has rules of its own.
        evaluations: Block evaluations per case.
        stock_evaluations: Of the stock pipeline, per case.
        errors: Magnitudes [cases, blocks, `CHANNELS`]: root mean square error of the outputs used, times the step in
            sigma that they were used for, summed over the skipped updates within a level of sigma (lowest first). Two
            more channels hold, times the recomputed blocks' steps, how far the outputs of others that they see in an
            older row have moved since, and what a context of bounded length or precision leaves out. Blocks are those
            of all windows.
    """

    plans: tuple[Modes, ...]
    besides: tuple[object, ...]
    evaluations: tuple[int, ...]
    stock_evaluations: tuple[int, ...]
    errors: NDArray[np.float64]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for candidates that are the same in effect, whatever their parameters."""
        order = self.besides[0]
        # Without an order to extrapolate with, predicting is caching.
        plans = self.plans if order else tuple(tuple(row.replace("C", "P") for row in plan) for plan in self.plans)
        return plans, self.besides

    @property
    def extrapolation(self) -> Extrapolation:
        """How skipped outputs are predicted: the order, and the axis where there is an order."""
        order, axis = self.besides[:2]
        return (order, axis if order else None)

    @property
    def speedup_evaluations(self) -> float:
        """Stock block evaluations over the ones made."""
        return sum(self.stock_evaluations) / sum(self.evaluations)


class Replay:
    """Replays candidates on the traces of some cases; keeps what it has replayed."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        """Prepares the traces.

        Args:
            traces: One per case, all of the same settings.
        """
        self.traces = tuple(traces)
        self._known: OrderedDict[object, Replayed] = OrderedDict()

    def run(self, policy: Policy) -> Replayed:
        """Replays a policy on every case."""
        found = self._known.get(policy)
        if found is None:
            key = self._shared_key(policy) or policy
            found = self._known.get(key) or self._replay(policy)
            self._known[key] = self._known[policy] = found
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _replay(self, policy: Policy) -> Replayed:
        # Cases with one plan are replayed at once.
        groups = [self.traces] if _is_shared(policy) else [(trace,) for trace in self.traces]
        with _one_thread():
            parts = [_replay_together(policy, group, combined=_is_one_for_all_branches(policy)) for group in groups]
        return Replayed(
            plans=tuple(plan for part in parts for plan in part.plans),
            besides=parts[0].besides,
            evaluations=tuple(count for part in parts for count in part.evaluations),
            stock_evaluations=tuple(count for part in parts for count in part.stock_evaluations),
            errors=np.concatenate([part.errors for part in parts]),
        )

    def _shared_key(self, policy: Policy) -> object | None:
        """A name for what a policy does that is known without replaying it."""
        if not _is_shared(policy):
            return None
        windows = self.traces[0].windows
        plans = tuple(plan_of(policy.of_window(number), window.schedule) for number, window in enumerate(windows))
        return plans, *_besides(policy), policy.stale_tolerance is None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Has PyTorch compute by itself: on tensors as small as a trace's, threads cost many times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_shared(policy: Policy) -> bool:
    """Whether decisions are the same for every case: made from the schedule alone."""
    return not any(rules.needs_content or _looks_at_outputs(rules) for rules in _rules_of(policy))


def _rules_of(policy: Policy) -> tuple[Policy, ...]:
    """A policy, and that of its first window where it has one."""
    return (policy, policy.first_window) if policy.first_window is not None else (policy,)


def _besides(policy: Policy) -> tuple[object, ...]:
    # Of order 0 nothing is extrapolated along any axis.
    axis = policy.axis if policy.order else None
    context = policy.context_window, policy.context_dtype, policy.captures
    own = policy.order, axis, policy.max_step_ratio, *context, policy.gap_weights
    return own if policy.first_window is None else (*own, _besides(policy.first_window))


def _looks_at_outputs(policy: Policy) -> bool:
    """Whether decisions depend on each branch's outputs."""
    return policy.magnitude_bound is not None or policy.error_budget is not None


def _is_one_for_all_branches(policy: Policy) -> bool:
    """Whether the branches' guided combination can stand for them, because nothing is decided or weighed by branch."""
    return not any(_looks_at_outputs(rules) or rules.gap_weights is not None for rules in _rules_of(policy))


def _replay_together(policy: Policy, traces: Sequence[Trace], *, combined: bool) -> Replayed:
    windows = list(zip(*(trace.windows for trace in traces), strict=True))
    played = [
        _replay_window(policy.of_window(number), traces, window, combined=combined)
        for number, window in enumerate(windows)
    ]
    plan = tuple(row for engine, _ in played for row in engine.report.modes)
    # A combined branch stands for all of them.
    calls = len(traces[0].branches) if combined else 1
    cases = len(traces)
    return Replayed(
        plans=(plan,) * cases,
        besides=_besides(policy),
        evaluations=(calls * sum(engine.report.evaluations for engine, _ in played),) * cases,
        stock_evaluations=(calls * sum(engine.report.stock_evaluations for engine, _ in played),) * cases,
        errors=np.concatenate([errors for _, errors in played], axis=1),
    )


def _replay_window(
    policy: Policy, traces: Sequence[Trace], windows: Sequence[WindowTrace], *, combined: bool
) -> tuple[Engine, NDArray[np.float64]]:
    """Runs the engine over one window of cases that share their decisions; errors are [cases, blocks, channels]."""
    schedule = windows[0].schedule
    branched = [_pad(window.outputs, max(w.outputs.shape[-1] for w in windows)) for window in windows]
    guided = torch.stack([_guide(trace, outputs) for trace, outputs in zip(traces, branched, strict=True)])
    names = ("guided",) if combined else traces[0].branches
    sources = [guided] if combined else [torch.stack(outputs) for outputs in zip(*branched, strict=True)]
    inputs = _inputs_with(windows[0].changes)

    engine = Engine(schedule, policy, volatile=windows[0].volatile)
    used = torch.zeros(len(sources), *guided.shape)
    for row in range(schedule.rows):
        for index, (name, source) in enumerate(zip(names, sources, strict=True)):
            for block, output in engine.run(name, _Recorded(source[:, row], inputs[row])).items():
                used[index, :, row, block] = output
    outputs = used[0] if combined else _guide(traces[0], used)
    # Idle blocks are zero on one side only.
    outputs = torch.where(_active_mask(schedule), outputs, guided)
    errors = _accumulate(schedule, (outputs - guided).norm(dim=-1).double().numpy())
    if needs_stale_context(policy, schedule):
        errors[..., STALENESS] = _staleness(schedule, engine.report.modes, guided)
    errors[..., CONTEXT] = _left_out(schedule, engine.report.modes, policy)
    return engine, errors


class _Recorded:
    """A row of a trace in the model's place; see `scope_runtime.engine.Model`."""

    def __init__(self, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        self.outputs = outputs  # [cases, blocks, rank]
        self.inputs = inputs  # [blocks]

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """What the full-compute run computed; complete blocks, which are only captured, give zeros."""
        return {block: self.outputs[:, block] for block in request.blocks}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """Numbers that move from row to row as far as the modulated inputs did."""
        return {block: self.inputs[block] for block in blocks}

    def state(self, block: int) -> torch.Tensor:
        """Refused: a trace's coordinates are no latents. Only a pilot asks, and a replay has none."""
        raise TypeError(f"a replay has no latents of block {block}")


def _inputs_with(changes: NDArray[np.float64]) -> torch.Tensor:
    """Numbers [rows, blocks] whose relative change since the row before is `changes`."""
    return torch.from_numpy(np.cumprod(1.0 + np.nan_to_num(changes), axis=0))


def _guide(trace: Trace, branches: torch.Tensor) -> torch.Tensor:
    """The guided output from the branches', of which there are one or two, along the first dimension."""
    if len(branches) == 1:
        return branches[0]
    named = dict(zip(trace.branches, branches, strict=True))
    return named["uncond"] + trace.guidance_scale * (named["cond"] - named["uncond"])


def _pad(outputs: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.nn.functional.pad(outputs, (0, rank - outputs.shape[-1]))


def _active_mask(schedule: Schedule) -> torch.Tensor:
    """[rows, blocks, 1]."""
    return (torch.tensor(schedule.phase) == Phase.ACTIVE).unsqueeze(-1)


def _accumulate(schedule: Schedule, error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums errors [cases, rows, blocks] times step size within levels: [cases, blocks, channels]."""
    total = np.zeros((len(error), schedule.blocks, CHANNELS))
    for row in range(schedule.rows):
        for block in schedule.active(row):
            level = min(int(schedule.sigma[row][block] * LEVELS), LEVELS - 1)
            total[:, block, level] += error[:, row, block] * schedule.step_size(row, block)
    return total


def _left_out(schedule: Schedule, modes: Sequence[str], policy: Policy) -> NDArray[np.float64]:
    """What the context leaves out of what recomputed blocks should see: [blocks]."""
    total = np.zeros(schedule.blocks)
    rounding = 0.0
    if policy.context_dtype is not None:
        rounding = _ROUNDING * torch.finfo(getattr(torch, policy.context_dtype)).eps
    for row, letters in enumerate(modes):
        complete = len(schedule.complete(row))
        if complete and schedule.causal:
            kept = complete if policy.context_window is None else min(complete, policy.context_window)
            error = _LEFT_OUT * (1 - kept / complete) + rounding
            for block in schedule.active(row):
                if letters[block] == "R":
                    total[block] += error * schedule.step_size(row, block)
    return total


def _staleness(schedule: Schedule, modes: Sequence[str], guided: torch.Tensor) -> NDArray[np.float64]:
    """How far the blocks that recomputed ones see in an older row have moved since: [cases, blocks]."""
    total = np.zeros((len(guided), schedule.blocks))
    newest = [0] * schedule.blocks
    for row, letters in enumerate(modes):
        active = schedule.active(row)
        drift = np.zeros(len(guided))
        for block in active:
            if letters[block] == "R":
                newest[block] = row
                total[:, block] += drift * schedule.step_size(row, block)
            else:
                moved = guided[:, row, block] - guided[:, newest[block], block]
                drift = drift + moved.norm(dim=-1).double().numpy()
    return total
