"""Learned weights: fitted gap by gap through the scheduler, in one accelerated run of several clips in lockstep.

Block b is recomputed at its step k and next at k + g. In all rows of the gap, the recomputed one included, its branches
hand over combinations of their newest m raw outputs v_j (those since a known jump) whose guided sum is

    out = sum_j W_j v_j

With A the state at k + g under a prior W0, and R_j what v_j adds to it (the scheduler is affine in an output that stays
the same, so both come from stepping copies of it), the weights are

    W = W0 + argmin_dW  sum over clips |X - A - sum_j dW_j R_j|^2 + lambda |dW|^2

where X is the state at k + g of the full run in a pipeline that is set up alike. They are applied, and the next gap
sees the error that is left.

Of a video of several windows, such as one made chunk by chunk, the first has weights of its own, for nothing comes
before it; those of the second hold for all that follow.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

import torch

from calibrate.errors import CalibrateError
from calibrate.families.lookahead import Lookahead
from calibrate.families.target import Target
from calibrate.measure import environment
from calibrate.measure.baseline import Baseline, unusable_told
from calibrate.replay.trace import kept_elements
from calibrate.spec.generation import Case
from scope_runtime import Policy, Preparation, Schedule, Settings
from scope_runtime.gap_weights import GapWeights
from scope_runtime.policy import Mode

# The first window, and the second in place of all further ones.
_FITTED_WINDOWS = 2
# What the prior's slope is damped by, and how strongly weights are held to it.
_DAMPING, _RIDGE = 0.75, 1e-4

Weights = Mapping[tuple[int, int, str], tuple[float, ...]]
"""By block, its step, and branch: newest output first."""


@dataclass(frozen=True)
class Truth:
    """States of full runs that a fit aims at, in a pipeline that is set up as that of the fit.

    Attributes:
        windows: After every step of every block [clips, steps, blocks, elements], for each window.
        elements: Which of a block's elements these are, in the order of its flattened latents [elements].
    """

    windows: tuple[torch.Tensor, ...]
    elements: torch.Tensor

    @classmethod
    def of(cls, baselines: Sequence[Baseline]) -> Truth:
        """From the baselines of the cases that weights are fitted on.

        Raises:
            CalibrateError: If their runs could not be looked at.
        """
        found: list[torch.Tensor] = []
        for windows in zip_longest(*(baseline.trace.windows for baseline in baselines)):
            states = [window.states for window in windows if window is not None and window.states is not None]
            if len(states) < len(baselines):
                raise CalibrateError("search.learned: weights cannot be fitted for these settings; leave it out.")
            found.append(torch.stack(states))
        frames = baselines[0].trace.windows[0].schedule.block_frames
        elements = baselines[0].latents[:, :, :frames].numel()
        return cls(tuple(found), kept_elements(elements))


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        policy: The plan with its weights.
        evaluations: Block evaluations of the run, all clips together.
        stock_evaluations: Of the stock pipeline.
        seconds: What it took.
        settings: What it ran with.
        hardware: What it ran on; see `calibrate.measure.environment`.
        versions: And with which libraries.
        started: UTC.
        finished: UTC.
    """

    policy: Policy
    evaluations: int
    stock_evaluations: int
    seconds: float
    settings: Settings
    hardware: dict[str, Any]
    versions: dict[str, str]
    started: datetime
    finished: datetime


@dataclass(frozen=True, eq=False)
class FitWeights:
    """The job of fitting weights to a plan.

    Attributes:
        trial: Whose candidate it is.
        policy: The plan, and whether its captures are separate; without weights.
        depth: Raw outputs that are combined.
        cases: Prompts and seeds.
        reference: What the states of these cases should be.
        preparation: What the pipeline is set up with.
    """

    trial: int
    policy: Policy
    depth: int
    cases: tuple[Case, ...]
    reference: Truth | None = None
    preparation: Preparation = Preparation()  # noqa: RUF009 - frozen

    def __str__(self) -> str:
        return f"candidate {self.trial}: fitting weights on {len(self.cases)} prompts"

    def run(self, target: Target, stopping: Callable[[], bool]) -> Fitted:
        """Runs all cases in lockstep under the plan, and fits on the way.

        Raises:
            CalibrateError: If the family's weights cannot be fitted.
            NotUsable: If the run fails in a pipeline that was set up otherwise: what clips do one by one, kernels and
                compilers may refuse of several.
        """
        with unusable_told(self.preparation, "fitting its weights: "):
            return self._run(target)

    def _run(self, target: Target) -> Fitted:
        assert self.reference is not None
        assert self.policy.plan is not None
        plan = self.policy.plan
        started, start = datetime.now(UTC), time.monotonic()
        with target.set_up(self.preparation), target.lookahead() as ahead:
            fit = GapFit(plan, self.reference, ahead, depth=self.depth)
            report = target.denoise_together(self.cases, self.policy, fit).report
        first, *later = [
            dataclasses.replace(
                self.policy,
                gap_weights=GapWeights.fitted(
                    plan, target.settings, depth=self.depth, classes=range(len(plan[0])), weights=weights
                ),
            )
            for weights in fit.weights
        ]
        clips = len(self.cases)
        return Fitted(
            policy=dataclasses.replace(later[0], first_window=first) if later else first,
            evaluations=clips * report.evaluations,
            stock_evaluations=clips * report.stock_evaluations,
            seconds=time.monotonic() - start,
            settings=dataclasses.replace(target.settings, preparation=self.preparation),
            hardware=environment.hardware(target.device),
            versions=environment.versions(),
            started=started,
            finished=datetime.now(UTC),
        )


class GapFit:
    """The pilot of the run that weights are fitted in; see `scope_runtime.engine.Pilot`."""

    def __init__(self, plan: Sequence[str], truth: Truth, ahead: Lookahead, *, depth: int) -> None:
        """Prepares the fit.

        Args:
            plan: Frozen: one string per row, one letter per block.
            truth: What the states should be.
            ahead: Where the run's states lead.
            depth: Raw outputs that are combined.
        """
        self._plan = plan
        self._truth = truth
        self._ahead = ahead
        self._depth = depth
        self._branches = tuple(ahead.shares)
        self._shares = tuple(ahead.shares.values())
        self._raw: dict[tuple[int, str], list[torch.Tensor]] = {}
        self._at: dict[int, list[int]] = {}
        self._handed: dict[tuple[int, str], torch.Tensor] = {}
        self._schedule: Schedule | None = None
        self._window = -1
        self.weights: list[dict[tuple[int, int, str], tuple[float, ...]]] = []

    def begin(self, schedule: Schedule) -> None:
        """A window begins, and knows nothing of the one before."""
        self._schedule = schedule
        self._window += 1
        if self._window < _FITTED_WINDOWS:
            self.weights.append({})
        self._raw, self._at, self._handed = {}, {}, {}
        self._ahead.begin(schedule.blocks * schedule.block_frames)

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Mapping[int, torch.Tensor],
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        """The outputs of one model call; weights are found with the last branch of a row."""
        answered = {}
        for block, mode in modes.items():
            if mode is not Mode.RECOMPUTE:
                answered[block] = self._handed[block, branch]
                continue
            raw = self._raw.setdefault((block, branch), [])
            if self._restarts(row, block):
                raw.clear()
            raw.insert(0, outputs[block])
            del raw[self._depth :]
            answered[block] = outputs[block]
            if branch == self._branches[-1]:
                answered[block] = self._fit(row, block, state(block))
        return answered

    def _fit(self, row: int, block: int, state: torch.Tensor) -> torch.Tensor:
        """Weights from this recompute to the next; gives what the last branch hands over in this row.

        The other branches have handed over their raw outputs in this row, so that the last one makes up for them: only
        what is guided counts.
        """
        step, gap = self._step(row, block), self._gap(row, block)
        times = self._at.setdefault(block, [])
        times.insert(0, step)
        count = len(self._raw[block, self._branches[-1]])
        del times[count:]
        known = self.weights[-1]
        if self._window >= _FITTED_WINDOWS:
            found = torch.cat([share * torch.tensor(known[block, step, b]) for b, share in self._ahead.shares.items()])
        elif row == 0 and self._ahead.opens_raw:
            found = torch.tensor(self._shares)
        else:
            prior = torch.tensor([share * weight for share in self._shares for weight in _prior(times, gap)])
            # Outputs may be of a type in which what one of them adds to a state would be lost.
            vectors = torch.stack([v.float() for branch in self._branches for v in self._raw[block, branch]])
            base = torch.einsum("j,j...->...", prior.to(vectors), vectors)
            updates, outputs = range(step, step + gap), torch.stack([base, *(base + vectors)])
            ends = self._ahead.ahead(self._frames(block), state.float(), updates, outputs)
            found = self._solve(block, updates[-1], prior, ends)
        last = self._raw[block, self._branches[-1]][0]
        missing = torch.zeros_like(last, dtype=torch.float32)
        for number, (branch, share) in enumerate(self._ahead.shares.items()):
            own = found[number * count : (number + 1) * count] / share
            known[block, step, branch] = tuple(own.tolist())
            raw = torch.stack(self._raw[block, branch]).float()
            # As the runtime does it: summed in float32, handed over in the type of the outputs.
            self._handed[block, branch] = torch.einsum("j,j...->...", own.to(raw), raw).to(last.dtype)
            missing += share * (self._handed[block, branch] - raw[0])
        return (last + missing / self._shares[-1]).to(last.dtype)

    def _solve(self, block: int, last: int, prior: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """The weights [n] from the states [1 + n, clips, ...] that the prior, and each output beside it, lead to."""
        picked = ends.flatten(2)[:, :, self._truth.elements.to(ends.device)].double().cpu()
        reached, added = picked[0], picked[1:] - picked[0]
        missing = self._truth.windows[self._window][:, last, block].double() - reached
        normal = torch.einsum("ipe,jpe->ij", added, added)
        right = torch.einsum("ipe,pe->i", added, missing)
        ridge = _RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype)
        return prior.double() + torch.linalg.solve(normal + ridge, right)

    def _restarts(self, row: int, block: int) -> bool:
        """Whether the block's history begins anew."""
        assert self._schedule is not None
        return (row, block) in self._schedule.restarts

    def _frames(self, block: int) -> range:
        assert self._schedule is not None
        width = self._schedule.block_frames
        return range(block * width, (block + 1) * width)

    def _step(self, row: int, block: int) -> int:
        """The block's own count of updates before this row."""
        assert self._schedule is not None
        return sum(block in self._schedule.active(before) for before in range(row))

    def _gap(self, row: int, block: int) -> int:
        """Updates from this row until the next recompute, this one included."""
        later = [letters[block] for letters in self._plan[row + 1 :]]
        updates = 1
        for letter in later:
            if letter not in "PC":
                break
            updates += 1
        return updates


def _prior(times: Sequence[int], gap: int) -> list[float]:
    """Weights of the newest output and older ones: Taylor of order 1 in the steps, damped, averaged over the gap."""
    if len(times) < 2:
        return [1.0]
    slope = _DAMPING * (gap - 1) / 2 / (times[0] - times[1])
    return [1.0 + slope, -slope] + [0.0] * (len(times) - 2)
