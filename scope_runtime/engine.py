"""One window of a generation: decide -> compute what must be -> predict or reuse the rest -> assemble.

The engine knows blocks, rows and branches; what a block looks like inside a model is the adapter's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from scope_runtime.context import Context, Pass
from scope_runtime.indicator import relative_l1
from scope_runtime.policy import LAST, LETTERS, Decider, Mode, Policy, needs_stale_context, plan_of
from scope_runtime.prediction import Guard, Prediction, predictions_of
from scope_runtime.report import Observation, WindowReport
from scope_runtime.schedule import Phase, Schedule


class Model(Protocol):
    """What an adapter offers the engine for one model call."""

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """Runs the requested blocks and captures context; returns the raw output of each computed block."""

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """First transformer block's input after timestep modulation, for each of ``blocks``."""

    def state(self, block: int) -> torch.Tensor:
        """The latents that a block comes with, of the shape of its output."""


class Recorder(Protocol):
    """What is told of every row of a full-compute run; calibration keeps traces with it."""

    def begin(self, schedule: Schedule, volatile: frozenset[int]) -> None:
        """A window begins; its rows follow."""

    def record(self, row: int, branch: str, changes: Mapping[int, float], outputs: Mapping[int, torch.Tensor]) -> None:
        """One model call: how far each active block's modulated input moved (where known), and its raw output."""


class Pilot(Protocol):
    """Says in a policy's place what blocks hand over; calibration fits weights with it."""

    def begin(self, schedule: Schedule) -> None:
        """A window begins; its rows follow."""

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Mapping[int, torch.Tensor],
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        """The outputs of one model call.

        Args:
            row: Number.
            branch: Guidance branch; they take turns within a row.
            modes: Of all active blocks.
            outputs: What the policy would hand over; of recomputed blocks, what the model gave.
            state: The latents that a block comes with.
        """


@dataclass
class _Branch:
    """State of one guidance branch."""

    predictions: Sequence[Prediction]  # per block; none in exact mode
    guards: Sequence[Guard]  # per block, where a policy asks for them
    context: Context
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)  # previous row's, only when observing
    row: int = 0


class Engine:
    """State and flow of one window; born with its plan, dropped with it.

    Args:
        schedule: The window's plan.
        policy: Rules for skipping, or None for exact mode: every active block is computed in every row.
        observe: Record indicator and output changes (exact mode only makes sense of them).
        recorder: Told of every row when observing.
        volatile: Blocks whose input changes although they are complete (a prefix that is noised anew in every row).
            They and all blocks after them, which attend to them, are computed whenever a later block is and are never
            captured.
        offload: Keep context in host memory.
        share: Makes the numbers that decisions rest on the same on all processes that compute one generation, in place;
            float32 ``[n]``. Without it, processes that round differently could decide differently.
        pilot: Says what blocks hand over, in place of the policy.
    """

    def __init__(
        self,
        schedule: Schedule,
        policy: Policy | None,
        *,
        observe: bool = False,
        recorder: Recorder | None = None,
        volatile: frozenset[int] = frozenset(),
        offload: bool = False,
        share: Callable[[torch.Tensor], None] | None = None,
        pilot: Pilot | None = None,
    ) -> None:
        self.schedule = schedule
        self.policy = policy
        self.report = WindowReport(schedule)
        self._observe = observe
        self._recorder = recorder
        self._volatile = frozenset(range(min(volatile), schedule.blocks)) if volatile else volatile
        self._offload = offload
        self._share = share
        self._pilot = pilot
        self._decider = Decider(policy, schedule) if policy else None
        self._keep_stale = policy is not None and needs_stale_context(policy, schedule)
        self._keeps_last = policy is not None and policy.captures == LAST
        self.report.plan = plan_of(policy, schedule) if policy else None
        self._branches: dict[str, _Branch] = {}
        self._modulated: dict[int, torch.Tensor] = {}
        self._modes: dict[int, Mode] = {}
        self._changes: dict[int, float] = {}
        self._last_recompute = [0] * schedule.blocks
        if recorder:
            recorder.begin(schedule, volatile)
        if pilot:
            pilot.begin(schedule)

    @property
    def row(self) -> int:
        """The row that the furthest branch will compute next."""
        return max((b.row for b in self._branches.values()), default=0)

    def run(self, branch_name: str, model: Model) -> dict[int, torch.Tensor]:
        """Answers one model call.

        Args:
            branch_name: Guidance branch of the call. Branches take turns within a row; the first decides for all.
            model: The adapter's view of this call.

        Returns:
            Raw output per active block (a computed block that is not active is left out: nobody reads it).
        """
        branch = self._branches.get(branch_name) or self._new_branch(branch_name)
        row = branch.row
        if row >= self.schedule.rows:
            raise IndexError(f"the plan has {self.schedule.rows} rows, but row {row} was asked for")
        if len(self.report.modes) == row:
            self._decide(row, model)
        branch.row += 1

        request = self._request(row, branch)
        computed = model.forward(request) if request.blocks else {}
        if request.keep:
            complete = self.schedule.complete(row)
            branch.context.close_pass(request.keep, [b for b in request.keep if b in complete])
        self.report.evaluations += self.schedule.evaluations(row, request.blocks)
        self.report.stock_evaluations += self.schedule.stock_evaluations(row)

        outputs = {}
        for block, mode in self._modes.items():
            if not self.policy:
                outputs[block] = computed[block]
                continue
            prediction = branch.predictions[block]
            if mode is Mode.RECOMPUTE:
                if (row, block) in self.schedule.restarts:
                    prediction.clear()
                self._check_prediction(row, block, branch_name, prediction, computed[block])
                outputs[block] = prediction.record(row, computed[block])
            else:
                outputs[block] = prediction.output(row, cached=mode is Mode.CACHE)
        if self._pilot:
            outputs = self._pilot.hand_over(row, branch_name, self._modes, outputs, model.state)
        if self._observe:
            self._observe_outputs(row, branch, outputs)
            if self._recorder:
                self._recorder.record(row, branch_name, self._changes, outputs)
        branches = self._branches.values()
        self.report.context_bytes = max(self.report.context_bytes, sum(b.context.bytes for b in branches))
        held = sum(p.bytes for b in branches for p in b.predictions)
        self.report.history_bytes = max(self.report.history_bytes, held)
        return outputs

    def _new_branch(self, name: str) -> _Branch:
        policy = self.policy
        predictions, guards = predictions_of(policy, self.schedule, name) if policy else ((), ())
        context = Context(
            window=policy.context_window if policy else None,
            dtype=getattr(torch, policy.context_dtype) if policy and policy.context_dtype else None,
            offload=self._offload,
        )
        branch = _Branch(predictions, guards, context)
        self._branches[name] = branch
        return branch

    def _decide(self, row: int, model: Model) -> None:
        active = self.schedule.active(row)
        if self._keeps_last:
            self._take_as_final(row)
        looks = self._observe or (self.policy is not None and self.policy.needs_content)
        self._read_device(active, model.modulated_input(active) if looks else {})
        if self._decider:
            self._modes = self._decider.decide(
                row,
                self._changes,
                trusted=lambda b, mode: self._trusted(row, b, mode),
                local_error=lambda b, mode: self._local_error(row, b, mode),
            )
            self.report.fallbacks = self._decider.fallbacks
            self.report.over_budget = self._decider.over_budget
        else:
            self._modes = dict.fromkeys(active, Mode.RECOMPUTE)
        self._note_row(row)

    def _take_as_final(self, row: int) -> None:
        """Lets the K/V of their last recompute stand for blocks that are complete by now."""
        complete = set(self.schedule.complete(row))
        for branch in self._branches.values():
            context = branch.context
            context.close_pass((), [b for b in context.blocks if b in complete])

    def _read_device(self, active: tuple[int, ...], modulated: Mapping[int, torch.Tensor]) -> None:
        """Brings everything that the row's decision needs to the host, in one small copy.

        That is how far each block's modulated input moved since the previous row, and the norms of the outputs
        recorded since the last decision.
        """
        previous, self._modulated = self._modulated, dict(modulated)
        moved = [b for b in modulated if b in previous]
        guards = [branch.guards[b] for branch in self._branches.values() if branch.guards for b in active]
        pending = [(guard, norms) for guard in guards if (norms := guard.pending_norms) is not None]
        self._changes = {}
        if not moved and not pending:
            return
        parts = [relative_l1(modulated[b], previous[b]).reshape(1) for b in moved] + [norms for _, norms in pending]
        gathered = torch.cat(parts)
        if self._share:
            self._share(gathered)
        values = gathered.tolist()
        self._changes = dict(zip(moved, values, strict=False))
        start = len(moved)
        for guard, norms in pending:
            guard.norms = values[start : start + len(norms)]
            start += len(norms)

    def _trusted(self, row: int, block: int, mode: Mode) -> bool:
        """Whether the block's history bears reuse or extrapolation, on every branch (the magnitude guard)."""
        assert self.policy is not None
        if not self.policy.needs_guard:
            return True
        bound = self.policy.magnitude_bound
        for branch in self._branches.values():
            guard = branch.guards[block]
            if guard.empty:
                return False
            moved = guard.displacement(row, cached=mode is Mode.CACHE)
            if not (moved <= bound if bound is not None else moved < math.inf):
                return False
        return True

    def _local_error(self, row: int, block: int, mode: Mode) -> float:
        """Estimated relative error of the block's output, the larger of the branches'."""
        cached = mode is Mode.CACHE
        return max(branch.guards[block].remainder(row, cached=cached) for branch in self._branches.values())

    def _request(self, row: int, branch: _Branch) -> Pass:
        """The blocks that must go through the transformer for this row's recomputes to be right."""
        recompute = [b for b, mode in self._modes.items() if mode is Mode.RECOMPUTE]
        if not self.schedule.causal:
            return Pass(tuple(range(self.schedule.blocks)) if recompute else (), branch.context, causal=False)
        missing = self._missing(row, branch.context)
        keep = {b for b in missing if b not in self._volatile}
        if self._keep_stale:
            keep |= {b for b in recompute if b + 1 < self.schedule.blocks}  # nothing attends to the last
        return Pass(blocks=tuple(sorted({*recompute, *missing})), context=branch.context, keep=tuple(sorted(keep)))

    def _missing(self, row: int, context: Context) -> list[int]:
        """Complete blocks that this row must compute, because their K/V are needed and nobody has captured them."""
        complete = [b for b in self.schedule.complete(row) if b not in context.captured]
        if self.schedule.offered_once:
            return complete
        last = max((b for b, mode in self._modes.items() if mode is Mode.RECOMPUTE), default=-1)
        return [b for b in complete if b < last]

    def _check_prediction(
        self, row: int, block: int, branch_name: str, prediction: Prediction, truth: torch.Tensor
    ) -> None:
        if prediction.empty:
            return
        expected, order, reach = prediction.foreseen(row)
        truth = truth.float()
        norm = torch.linalg.vector_norm(truth).clamp_min(torch.finfo(torch.float32).tiny)
        error = torch.linalg.vector_norm(expected.float() - truth) / norm
        self.report.add_prediction_error(row, block, branch_name, order, reach, error)

    def _observe_outputs(self, row: int, branch: _Branch, outputs: dict[int, torch.Tensor]) -> None:
        """Measures how far each output moved since the branch's previous row."""
        for block, output in outputs.items():
            # Across a restart no policy has a choice, so how far outputs move there says nothing about one.
            if block not in branch.outputs or (row, block) in self.schedule.restarts:
                continue
            levels = self.schedule.noise_levels(row, block)
            assert levels is not None  # the row before updated the block
            change = float(relative_l1(output, branch.outputs[block]))
            self.report.observe(
                Observation(
                    row=row,
                    block=block,
                    sigma_before=levels[0],
                    sigma=levels[1],
                    modulated_input=self._changes[block],
                    output_change=change,
                )
            )
        branch.outputs = outputs

    def _note_row(self, row: int) -> None:
        """Writes the row's letters; which complete blocks it computes is the same on every branch."""
        missing = self._missing(row, next(iter(self._branches.values())).context)
        recomputes = Mode.RECOMPUTE in self._modes.values()
        letters = []
        for block, phase in enumerate(self.schedule.phase[row]):
            if phase is Phase.ACTIVE:
                letters.append(LETTERS[self._modes[block]])
            elif not self.schedule.causal:
                letters.append("#" if recomputes else ".")
            elif block in missing:
                letters.append("#" if block in self._volatile else "K")
            else:
                letters.append(".")
        self.report.modes.append("".join(letters))
        for block, mode in self._modes.items():
            if mode is Mode.RECOMPUTE:
                self._last_recompute[block] = row
            else:
                skipped = row - self._last_recompute[block]
                self.report.max_skip_seen = max(self.report.max_skip_seen, skipped)
