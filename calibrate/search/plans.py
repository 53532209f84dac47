"""Frozen plans for learned weights: what is tried first, and what after what was measured.

A plan recomputes every block at its own steps 0, p, 2p, ... and at its last one; with p = ar_step, or a whole part of
it, all blocks are recomputed in the same rows, so that every context is fresh. Beside that, extra rows are recomputed
up to some block; so are rows in which a block's history begins anew, up to that block. Plans are told apart by their
period, their extra rows and their captures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from calibrate.results.result import Result, front, results_of
from calibrate.spec.search_space import Learned
from scope_runtime import Policy, Schedule

# User attributes of trials with learned weights: the extra rows, and the policy once weights have been fitted to it.
EXTRAS, FITTED = "extras", "fitted"

# Extra rows (row, last block) that held up on the reference pipeline at 36 steps and 5 blocks, and none at all.
_STEPS, _BLOCKS = 36, 5
_FIRST: tuple[tuple[tuple[int, int], ...], ...] = (
    ((1, 0), (3, 0), (8, 1), (13, 2), (18, 3)),
    ((2, 0), (8, 0), (9, 0), (18, 2)),
    ((1, 0), (3, 0), (8, 1), (13, 2), (18, 3), (23, 4)),
    (
        (1, 0),
        (2, 0),
        (3, 0),
        (7, 1),
        (8, 1),
        (12, 2),
        (13, 2),
        (17, 3),
        (18, 3),
        (22, 4),
        (23, 4),
        (28, 4),
    ),
    (),
)
# Of all steps, the share that a period takes at most, unless the study says otherwise.
_LONGEST = 1 / 6
# Neighbours of measured plans that are looked at before one is run.
_NEIGHBOURS = 60
_TRIES = 20

Captures = Literal["clean", "last"]
Extras = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """A plan to fit weights to.

    Attributes:
        period: Steps between the recomputes of every block.
        extras: Further rows in which blocks are recomputed, up to and with which one; ascending.
        captures: See `scope_runtime.Policy`.
        depth: Raw outputs that are combined.
    """

    period: int
    extras: Extras
    captures: Captures
    depth: int

    def policy(self, schedule: Schedule) -> Policy:
        """The policy without weights."""
        return Policy(plan=rows_of(schedule, self.period, self.extras), captures=self.captures)

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        """What Optuna is told of it: numbers that importance plots can use. The extra rows are kept beside them."""
        return {
            "kind": "learned",
            "period": self.period,
            "extra_evaluations": _cost(schedule, self.extras),
            "extra_rows": len(self.extras),
            "captures": self.captures,
            "depth": self.depth,
        }


class Plans:
    """The plans that a study searches."""

    def __init__(self, spec: Learned, schedule: Schedule, period: int, seed: int) -> None:
        """Prepares the search.

        Args:
            spec: What the study says.
            schedule: Of its generations, the same for each window.
            period: The study's ``ar_step``; 0 where all blocks go through their steps together.
            seed: Of the draws.
        """
        self.spec = spec
        self.schedule = schedule
        self.period = spec.period or _period(period, _updates(schedule))
        # Complete blocks that are offered once are captured by the model itself, and where blocks see all others,
        # none are.
        possible: list[Captures] = ["last", "clean"] if schedule.causal and not schedule.offered_once else ["clean"]
        self.captures = spec.captures or possible
        self._seed = seed

    def suggest(self, trial: optuna.Trial) -> Plan:
        """The plan of a trial that `propose` or `first` has queued."""
        most = self.schedule.rows * self.schedule.blocks
        trial.suggest_categorical("kind", ["learned"])
        trial.suggest_int("extra_evaluations", 0, most)
        trial.suggest_int("extra_rows", 0, self.schedule.rows)
        return Plan(
            period=trial.suggest_int("period", 1, self.schedule.rows),
            extras=tuple((row, last) for row, last in trial.user_attrs[EXTRAS]),
            captures=cast(Captures, trial.suggest_categorical("captures", ["clean", "last"])),
            depth=trial.suggest_int("depth", 1, 16),
        )

    def of(self, trial: FrozenTrial) -> Plan:
        """The plan of a trial that was queued, whatever became of it."""
        asked = trial.system_attrs.get("fixed_params", trial.params)
        extras = tuple((row, last) for row, last in trial.user_attrs[EXTRAS])
        return Plan(asked["period"], extras, asked["captures"], asked["depth"])

    def queue(self, study: optuna.Study, plan: Plan) -> None:
        """Has a plan tried, unless it was."""
        if plan not in self._tried(study).values():
            extras = [list(extra) for extra in plan.extras]
            study.enqueue_trial(plan.parameters(self.schedule), user_attrs={EXTRAS: extras})

    def take_turn(self, study: optuna.Study, score: Callable[[Policy], float] | None) -> None:
        """Queues another plan if nothing waits and it is the turn of plans.

        Args:
            study: With all trials so far.
            score: How much a policy with a plan promises; None if nothing can be said.
        """
        trials, tried = study.get_trials(deepcopy=False), self._tried(study)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return
        if len(tried) < self.spec.share * (len(trials) + 1):
            results = {result.trial: result for result in results_of(study)}
            measured = [(plan, results[number]) for number, plan in tried.items() if number in results]
            self.queue(study, self._propose(len(trials), measured, set(tried.values()), score))

    def _tried(self, study: optuna.Study) -> dict[int, Plan]:
        """Plans by the numbers of their trials."""
        trials = study.get_trials(deepcopy=False)
        return {trial.number: self.of(trial) for trial in trials if EXTRAS in trial.user_attrs}

    def first(self, *, careful: bool = False) -> list[Plan]:
        """What is tried before anything is known.

        Args:
            careful: Whether to begin with those that compute most, of each kind of captures in turn, for a study that
                is to promise something of all prompts.
        """
        found = []
        for extras in _FIRST:
            for captures in self.captures:
                found.append(self._plan(self._scaled(extras, _STEPS, _BLOCKS), captures, self.spec.depth[0]))
        if careful:
            found.sort(key=lambda p: (self.captures.index(p.captures), -_cost(self.schedule, p.extras)))
        return found

    def like(self, policy: Policy) -> Plan:
        """The plan of a policy with learned weights, from another setting perhaps; its weights are to be fitted anew.

        Its extra rows stay where they are among a block's steps. What the study does not search becomes what it does.

        Args:
            policy: With `Policy.plan` and `Policy.gap_weights`.
        """
        assert policy.plan is not None
        assert policy.gap_weights is not None
        extras, steps = _extras_of(policy.plan, self.period / _updates(self.schedule))
        return self._plan(
            self._scaled(extras, steps, len(policy.plan[0])),
            policy.captures if policy.captures in self.captures else self.captures[0],
            policy.gap_weights.depth if policy.gap_weights.depth in self.spec.depth else self.spec.depth[0],
        )

    def _propose(
        self,
        number: int,
        measured: Sequence[tuple[Plan, Result]],
        known: Collection[Plan],
        score: Callable[[Policy], float] | None,
    ) -> Plan:
        """A neighbour of a plan on the front that nobody has tried; the number of the trial fixes the draw."""
        chance = np.random.default_rng([self._seed, number])
        best = front([result for _, result in measured])
        parents = [plan for plan, result in measured if result in best] or self.first()
        neighbours: dict[Plan, None] = {}
        for _ in range(_NEIGHBOURS):
            plan = self._neighbour(parents[chance.integers(len(parents))], chance)
            if plan not in known:
                neighbours[plan] = None
        if not neighbours:
            return self._neighbour(parents[0], chance)
        candidates = list(neighbours)
        if score is None:
            return candidates[chance.integers(len(candidates))]
        return max(candidates, key=lambda plan: score(plan.policy(self.schedule)))

    def _plan(self, extras: Iterable[tuple[int, int]], captures: Captures, depth: int) -> Plan:
        """A plan whose extra rows are those that add something to the period's: plans that do the same are equal."""
        base = rows_of(self.schedule, self.period, ())
        last_of: dict[int, int] = {}
        for row, last in extras:
            added = [block for block in self.schedule.active(row) if block <= last and base[row][block] != "R"]
            if added:
                last_of[row] = max(added[-1], last_of.get(row, -1))
        return Plan(self.period, tuple(sorted(last_of.items())), captures, depth)

    def _scaled(self, extras: Extras, steps: int, blocks: int) -> Extras:
        """Extra rows of a schedule with so many steps and blocks as those of this one."""
        first = sum(any(block == 0 for block in self.schedule.active(row)) for row in range(self.schedule.rows))
        rows, blocks_here = first / steps, max(self.schedule.blocks - 1, 0) / max(blocks - 1, 1)
        return tuple((round(row * rows), round(last * blocks_here)) for row, last in extras)

    def _neighbour(self, plan: Plan, chance: np.random.Generator) -> Plan:
        """One or two extra rows less, others in their place, more of them or fewer; now and then other captures."""
        extras = list(plan.extras)
        for _ in range(int(chance.integers(1, 3))):
            if extras and chance.random() < 0.6:
                extras.pop(int(chance.integers(len(extras))))
            if chance.random() < 0.7:
                extras.append(self._extra(chance))
        captures, depth = plan.captures, plan.depth
        if chance.random() < 0.1:
            captures = self.captures[chance.integers(len(self.captures))]
        if chance.random() < 0.1:
            depth = int(chance.choice(self.spec.depth))
        return self._plan(extras, captures, depth)

    def _extra(self, chance: np.random.Generator) -> tuple[int, int]:
        """A row in which something would be computed anew, and the last block of it."""
        for _ in range(_TRIES):
            row = int(chance.integers(1, self.schedule.rows))
            active = self.schedule.active(row)
            if active:
                return row, int(chance.choice(active))
        return 1, 0


def rows_of(schedule: Schedule, period: int, extras: Extras) -> tuple[str, ...]:
    """A plan as `scope_runtime.Policy` has it: one string per row, one letter per block."""
    last_of = dict(extras)
    updates = [sum(block in schedule.active(row) for row in range(schedule.rows)) for block in range(schedule.blocks)]
    steps = [0] * schedule.blocks
    rows = []
    for row in range(schedule.rows):
        letters = ["."] * schedule.blocks
        # What restarts sees fresh keys and values of the blocks before it: some families keep no others.
        last = max([last_of.get(row, -1), *(b for r, b in schedule.restarts if r == row)])
        for block in schedule.active(row):
            due = steps[block] % period == 0 or steps[block] == updates[block] - 1
            letters[block] = "R" if due or block <= last else "P"
            steps[block] += 1
        rows.append("".join(letters))
    return tuple(rows)


def _extras_of(plan: Sequence[str], likely: float) -> tuple[Extras, int]:
    """The rows of a plan in which blocks are recomputed out of turn, their last steps apart; and a block's steps.

    Args:
        plan: As `scope_runtime.Policy` has it.
        likely: Of all steps, the share that its period takes, unless it cannot be.
    """
    steps = [[row for row, letters in enumerate(plan) if letters[block] != "."] for block in range(len(plan[0]))]
    computed = [[plan[row][block] == "R" for row in rows] for block, rows in enumerate(steps)]
    longest = max(map(len, steps))
    # Else the shortest period of which no recompute is missing: extra rows add to longer ones.
    periods = (max(1, round(likely * longest)), *range(1, longest + 1))
    period = next(p for p in periods if all(all(own[::p]) for own in computed))
    last_of: dict[int, int] = {}
    for block, rows in enumerate(steps):
        for step, row in enumerate(rows[:-1]):
            if computed[block][step] and step % period:
                last_of[row] = block
    return tuple(sorted(last_of.items())), max(1, len(steps[0]))


def _updates(schedule: Schedule) -> int:
    """Updates of a block, those of the one that has most."""
    active = [schedule.active(row) for row in range(schedule.rows)]
    return max((sum(block in blocks for blocks in active) for block in range(schedule.blocks)), default=0)


def _period(stride: int, steps: int) -> int:
    """The longest period that keeps blocks in the same rows, as far as it is not too long; 2 steps at least.

    Args:
        stride: Steps by which a block lags behind the one before it; none if 0.
        steps: Of a block.
    """
    fitting = [period for period in range(2, steps + 1) if (stride or steps) % period == 0]
    short = [period for period in fitting if period <= steps * _LONGEST]
    return max(short) if short else min(fitting, default=1)


def _cost(schedule: Schedule, extras: Extras) -> int:
    """Blocks that extra rows compute."""
    return sum(block <= last for row, last in extras for block in schedule.active(row))
