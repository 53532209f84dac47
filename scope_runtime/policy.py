"""Which block is cached, predicted or recomputed in a row. Pure: numbers in, modes out; no model, no pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

from scope_runtime import _check
from scope_runtime.errors import ProfileError, shown
from scope_runtime.gap_weights import GapWeights, plan_digest
from scope_runtime.indicator import INDICATORS, MODULATED_INPUT, NOISE_LEVEL, ChangeMap
from scope_runtime.schedule import AXES, NOISE_LEVEL_AXIS, Schedule

if TYPE_CHECKING:
    from scope_runtime.settings import Settings

GRANULARITIES = ("prefix", "step", "block")
CONTEXT_DTYPES = ("float32", "bfloat16", "float16")
CLEAN, LAST = "clean", "last"
CAPTURES = (CLEAN, LAST)


class Mode(IntEnum):
    """What happens to an active block in a row, ordered by cost."""

    CACHE = 0
    """The last recomputed output is used again."""
    PREDICT = 1
    """The output is extrapolated, along the policy's axis."""
    RECOMPUTE = 2
    """The block goes through the transformer."""


IDLE = "."
LETTERS = {Mode.CACHE: "C", Mode.PREDICT: "P", Mode.RECOMPUTE: "R"}
_MAPS = ("noise_map", "change_map")
_EXTRAPOLATION = ("order", "axis", "max_step_ratio")
# Fields that came later: policies at their defaults are written as they were before.
_LATER = ("captures", "gap_weights", "first_window")
_GUARDS = ("magnitude_bound", "error_budget")
_MODE_OF = {letter: mode for mode, letter in LETTERS.items()}


@dataclass(frozen=True)
class Policy:
    """Everything that decides between the modes.

    Attributes:
        granularity: ``"prefix"``: when a block is recomputed, every active block before it is too, so that it sees
            fresh context only. ``"step"``: one mode for the whole row, the most expensive that any block asks for.
            ``"block"``: only the blocks that ask, which then see stale K/V of the others: quality collapses; it is
            here for comparison.
        stale_tolerance: Relaxes ``"prefix"``: an earlier active block whose accumulated change is at most this keeps
            its own mode, and the recomputed block sees its K/V of the older row. None is strict. It makes warm-up
            cheap: a block that starts does not drag all others along in each of its first rows.
        indicator: ``"noise-level"`` (how far sigma moved since the previous row, by ``noise_map``; no tensor work) or
            ``"modulated-input"`` (relative L1 change of the first transformer block's input after timestep modulation).
        noise_map: From sigma to how much the output should change in all between noise level 0 and sigma: the scale on
            which ``"noise-level"`` measures. None: sigma itself.
        change_map: Map from the indicator to expected output change; None takes the indicator as it is.
        cache_threshold: Below this accumulated change a block is cached.
        predict_threshold: Below this it is predicted, from it on recomputed. None is never reached: then ``warmup``
            and ``max_skip`` alone make a periodic schedule.
        max_skip: Most consecutive rows in which a block may go without being recomputed.
        order: Order of the extrapolation, 0 to 2.
        axis: What the extrapolation counts in. ``"noise-level"``: sigma, in which the error analysis is stated.
            ``"step"``: the block's own updates, 0 at its first, which weighs the short steps at high noise like all
            others. ``max_step_ratio``, ``magnitude_bound`` and the ``e`` of ``error_budget`` go by the same axis.
        warmup: First updates of every block that are always recomputed, at least 1.
        tail: Last updates of every block that are always recomputed.
        max_step_ratio: Above this ratio of gap to history spacing the order drops by one. None: no such limit.
        magnitude_bound: Above this relative distance from the newest output the block is recomputed. None: no bound
            (outputs that are not finite are never reused all the same).
        error_budget: Bound on the estimated error that skipping may add up to over a block's whole course, relative to
            the output and in units of noise level: a skip that would go over it is recomputed instead. The estimate
            is ``E <- (1 + error_growth |dsigma|) E + |dsigma| e`` with e the first term that the extrapolation leaves
            out. None: no budget.
        error_growth: How fast an error once made grows while the noise level falls (the L of the error analysis).
        context_window: Complete blocks to attend to, the newest ones; None attends to all, which is exact.
        context_dtype: What the context is stored in; None stores it as it is computed, which is exact.
        plan: A frozen plan: one string per row, one letter per block, R, P, C or ``.`` for idle. It takes the place
            of indicator, thresholds, granularity, ``max_skip``, ``warmup`` and ``tail``; nothing is decided while it
            runs, and only a ``magnitude_bound`` or an ``error_budget`` makes it look at outputs at all.
        captures: Which K/V of a complete block later ones attend to. ``"clean"``: those of a pass at its clean level,
            which is exact. ``"last"``: those of its last recompute, so that no such pass is made; blocks that are
            complete from the start are captured all the same.
        gap_weights: Learned weights of the newest raw outputs: what a recompute hands over, and every row that is
            skipped after it, predicted or cached. They hold for one ``plan``, which must be given. Nothing is
            extrapolated then, and nothing may force a recompute that the plan does not have: ``order``, ``axis``,
            ``max_step_ratio``, ``magnitude_bound`` and ``error_budget`` must be left at their defaults.
        first_window: The rules of a generation's first window, where they are others: a chunk that no clean history
            precedes, say. None: those of all windows.

    Raises:
        ProfileError: Naming the field, if a value is out of range.
    """

    granularity: str = "prefix"
    stale_tolerance: float | None = None
    indicator: str = NOISE_LEVEL
    noise_map: ChangeMap | None = None
    change_map: ChangeMap | None = None
    cache_threshold: float = 0.0
    predict_threshold: float | None = None
    max_skip: int = 3
    order: int = 1
    axis: str = NOISE_LEVEL_AXIS
    warmup: int = 4
    tail: int = 0
    max_step_ratio: float | None = None
    magnitude_bound: float | None = None
    error_budget: float | None = None
    error_growth: float = 0.0
    context_window: int | None = None
    context_dtype: str | None = None
    plan: tuple[str, ...] | None = None
    captures: Literal["clean", "last"] = "clean"
    gap_weights: GapWeights | None = None
    first_window: Policy | None = None

    def __post_init__(self) -> None:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        where = "policy"
        _check.choice(data, "granularity", where, GRANULARITIES)
        _check.number(data, "stale_tolerance", where, minimum=0, optional=True)
        _check.choice(data, "indicator", where, INDICATORS)
        for name in _MAPS:
            if data[name] is not None and not isinstance(data[name], ChangeMap):
                raise ProfileError(f"policy.{name}", "must be a ChangeMap or None")
        _check.number(data, "cache_threshold", where, minimum=0)
        _check.number(data, "predict_threshold", where, optional=True)  # its minimum is cache_threshold
        if self.predict_threshold is not None and self.predict_threshold < self.cache_threshold:
            raise ProfileError(
                "policy.predict_threshold",
                f"must not be below cache_threshold ({self.cache_threshold:g}), not {self.predict_threshold:g}",
            )
        _check.integer(data, "max_skip", where, minimum=0, maximum=10_000)
        _check.integer(data, "order", where, minimum=0, maximum=2)
        _check.choice(data, "axis", where, AXES)
        _check.integer(data, "warmup", where, minimum=1, maximum=10_000)
        _check.integer(data, "tail", where, minimum=0, maximum=10_000)
        _check.number(data, "max_step_ratio", where, minimum=0, optional=True)
        _check.number(data, "magnitude_bound", where, minimum=0, optional=True)
        _check.number(data, "error_budget", where, minimum=0, optional=True)
        _check.number(data, "error_growth", where, minimum=0)
        _check.integer(data, "context_window", where, minimum=1, optional=True)
        if self.context_dtype is not None:
            _check.choice(data, "context_dtype", where, CONTEXT_DTYPES)
        if self.plan is not None:
            _check_plan_form(self.plan)
        _check.choice(data, "captures", where, CAPTURES)
        if self.gap_weights is not None:
            self._check_gap_weights(self.gap_weights)
        if self.first_window is not None and not isinstance(self.first_window, Policy):
            raise ProfileError("policy.first_window", "must be a Policy or None")
        if self.first_window is not None and self.first_window.first_window is not None:
            raise ProfileError("policy.first_window.first_window", "must be null: there is one first window")

    def _check_gap_weights(self, weights: Any) -> None:
        if not isinstance(weights, GapWeights):
            raise ProfileError("policy.gap_weights", "must be GapWeights or None")
        if self.plan is None:
            raise ProfileError("policy.gap_weights", "must be null without a plan: weights hold for one frozen plan")
        if weights.plan != plan_digest(self.plan):
            raise ProfileError(
                "policy.gap_weights.plan",
                f"is {shown(weights.plan)}, but this policy's plan is {plan_digest(self.plan)!r}: the weights were "
                "fitted for another one",
            )
        for name in _EXTRAPOLATION:
            if getattr(self, name) != getattr(Policy, name):
                raise ProfileError(
                    f"policy.{name}", f"must be {getattr(Policy, name)!r} with gap_weights, which extrapolate nothing"
                )
        for name in _GUARDS:
            if getattr(self, name) is not None:
                raise ProfileError(
                    f"policy.{name}",
                    "must be null with gap_weights: the weights after a recompute that the plan does not have would be "
                    "wrong",
                )

    def of_window(self, number: int) -> Policy:
        """The rules of a generation's window, counted from 0."""
        return self.first_window if number == 0 and self.first_window is not None else self

    def check_settings(self, actual: Settings) -> None:
        """Refuses settings that its weights do not hold for; raises `ProfileMismatch`."""
        for rules in (self, self.first_window):
            if rules is not None and rules.gap_weights is not None:
                rules.gap_weights.check_settings(actual)

    @property
    def needs_content(self) -> bool:
        """Whether the indicator has to look at tensors."""
        return self.plan is None and self.indicator == MODULATED_INPUT

    @property
    def needs_guard(self) -> bool:
        """Whether reused outputs are checked before use; a frozen plan has to ask for it."""
        return self.plan is None or self.magnitude_bound is not None or self.error_budget is not None

    @property
    def history_order(self) -> int:
        """Highest divided difference to keep: one more than is extrapolated with where its remainder is needed."""
        return self.order + (self.error_budget is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, every field written out but for later ones at their defaults.

        Those are left out so that who does not know them reads every policy that does without.
        """
        nested = (*_MAPS, "gap_weights", "first_window")
        data = {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            **{name: found.to_dict() if (found := getattr(self, name)) else None for name in nested},
            "plan": None if self.plan is None else list(self.plan),
        }
        return {name: value for name, value in data.items() if name not in _LATER or value != getattr(Policy, name)}

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """Inverse of `to_dict`; fields left out take their defaults, unknown ones are refused by name."""
        _check.reject_unknown(data, cls.__dataclass_fields__, "policy")
        given = dict(data)
        for name in _MAPS:
            if given.get(name) is not None:
                given[name] = ChangeMap.from_dict(given[name], f"policy.{name}")
        if isinstance(given.get("plan"), list):
            given["plan"] = tuple(given["plan"])
        if given.get("gap_weights") is not None:
            given["gap_weights"] = GapWeights.from_dict(given["gap_weights"])
        if given.get("first_window") is not None:
            given["first_window"] = cls._nested(given["first_window"])
        return cls(**given)

    @classmethod
    def _nested(cls, data: Any) -> Policy:
        """The policy of the first window; what is wrong with it is named by where it stands."""
        try:
            return cls.from_dict(data)
        except ProfileError as error:
            place = error.field.removeprefix("policy").removeprefix(".")
            raise ProfileError(".".join(filter(None, ("policy.first_window", place))), error.problem) from error


def _check_plan_form(plan: Any) -> None:
    if not isinstance(plan, tuple) or not plan or not all(isinstance(row, str) and row for row in plan):
        raise ProfileError("policy.plan", "must be a list of strings, one per row, or null")
    if len({len(row) for row in plan}) > 1:
        raise ProfileError("policy.plan", "every row must have one letter per block")
    for row, letters in enumerate(plan):
        if not set(letters) <= {*_MODE_OF, IDLE}:
            raise ProfileError(f"policy.plan[{row}]", f"letters must be R, P, C or '.', not {shown(letters)}")


class Decider:
    """Turns indicator values into modes, row after row, for one generation window.

    Args:
        policy: The rules.
        schedule: The window's plan.

    Raises:
        ProfileError: If the policy holds a frozen plan that does not fit the schedule, or keeps what no schedule of
            this kind has.
    """

    def __init__(self, policy: Policy, schedule: Schedule) -> None:
        if policy.plan is not None:
            _check_plan_fits(policy.plan, schedule)
        if policy.captures == LAST and not schedule.causal:
            raise ProfileError(
                "policy.captures", "must be 'clean' under bidirectional attention, where nothing is captured"
            )
        self.policy = policy
        self.schedule = schedule
        # Under bidirectional attention a recomputed block sees all others, so none may be left out.
        self.granularity = policy.granularity if schedule.causal else "step"
        self.fallbacks = 0
        self.over_budget = 0
        self._accumulated = [0.0] * schedule.blocks
        self._skipped = [0] * schedule.blocks
        self._error = [0.0] * schedule.blocks

    def decide(
        self,
        row: int,
        content_change: Mapping[int, float],
        trusted: Callable[[int, Mode], bool] = lambda block, mode: True,
        local_error: Callable[[int, Mode], float] = lambda block, mode: 0.0,
    ) -> dict[int, Mode]:
        """Decides one row. Rows must come in order.

        Args:
            row: Row number.
            content_change: Change of the modulated input since the previous row, per active block; read only if the
                policy's indicator is the content. A block without a value is recomputed.
            trusted: Says whether a block's history bears the given mode; if not, the block is recomputed and counted
                in ``fallbacks``.
            local_error: Estimated relative error of a block's output under the given mode, for the error budget; a
                block recomputed because of it is counted in ``over_budget``.

        Returns:
            The mode of each active block.
        """
        active = self.schedule.active(row)
        if self.policy.plan is not None:
            modes = {block: _MODE_OF[self.policy.plan[row][block]] for block in active}
        else:
            modes = self._spread({block: self._wish(row, block, content_change) for block in active})
        skipping = {b: mode for b, mode in modes.items() if mode is not Mode.RECOMPUTE}
        distrusted = {b for b, mode in skipping.items() if not trusted(b, mode)}
        too_dear = set()
        if self.policy.error_budget is not None:
            errors = {b: self._error_after(row, b, local_error(b, mode)) for b, mode in skipping.items()}
            too_dear = {b for b, error in errors.items() if error > self.policy.error_budget} - distrusted
        if distrusted or too_dear:
            self.fallbacks += len(distrusted)
            self.over_budget += len(too_dear)
            forced = distrusted | too_dear
            modes = self._spread({b: Mode.RECOMPUTE if b in forced else mode for b, mode in modes.items()})
        for block, mode in modes.items():
            if self.policy.error_budget is not None:
                local = 0.0 if mode is Mode.RECOMPUTE else local_error(block, mode)
                self._error[block] = self._error_after(row, block, local)
            if mode is Mode.RECOMPUTE:
                self._accumulated[block], self._skipped[block] = 0.0, 0
            else:
                self._skipped[block] += 1
        return modes

    def _error_after(self, row: int, block: int, local_error: float) -> float:
        """The block's accumulated error after an update with the given relative output error."""
        step = self.schedule.step_size(row, block)
        return (1 + self.policy.error_growth * step) * self._error[block] + step * local_error

    def _wish(self, row: int, block: int, content_change: Mapping[int, float]) -> Mode:
        """The mode that the block would choose for itself."""
        policy, schedule = self.policy, self.schedule
        change = content_change.get(block) if policy.needs_content else self._noise_change(row, block)
        if change is not None and math.isfinite(change):
            self._accumulated[block] += policy.change_map(change) if policy.change_map else change
        else:
            self._accumulated[block] = math.inf
        if (
            (row, block) in schedule.restarts
            or schedule.step(row, block) < policy.warmup
            or schedule.steps_left(row, block) < policy.tail
            or self._skipped[block] >= policy.max_skip
            or math.isinf(self._accumulated[block])
        ):
            return Mode.RECOMPUTE
        if self._accumulated[block] < policy.cache_threshold:
            return Mode.CACHE
        if policy.predict_threshold is None or self._accumulated[block] < policy.predict_threshold:
            return Mode.PREDICT
        return Mode.RECOMPUTE

    def _noise_change(self, row: int, block: int) -> float | None:
        """How far the noise level moved since the block's previous update, or None at its first."""
        levels = self.schedule.noise_levels(row, block)
        if levels is None:
            return None
        before, now = map(self.policy.noise_map, levels) if self.policy.noise_map else levels
        return abs(before - now)

    def _spread(self, modes: dict[int, Mode]) -> dict[int, Mode]:
        """Applies the granularity: raises modes, never lowers one."""
        if not modes:
            return modes
        if self.granularity == "block":
            return modes
        if self.granularity == "step":
            return dict.fromkeys(modes, max(modes.values()))
        last = max((b for b, mode in modes.items() if mode is Mode.RECOMPUTE), default=-1)
        return {b: Mode.RECOMPUTE if b <= last and not self._bears_staleness(b) else mode for b, mode in modes.items()}

    def _bears_staleness(self, block: int) -> bool:
        """Whether later blocks may see the block's K/V of its last recompute."""
        tolerance = self.policy.stale_tolerance
        return tolerance is not None and self._accumulated[block] <= tolerance


def _check_plan_fits(plan: tuple[str, ...], schedule: Schedule) -> None:
    if (len(plan), len(plan[0])) != (schedule.rows, schedule.blocks):
        raise ProfileError(
            "policy.plan",
            f"has {len(plan)} rows of {len(plan[0])} blocks, but this generation has {schedule.rows} rows of "
            f"{schedule.blocks}: it was made for other settings",
        )
    for row, letters in enumerate(plan):
        active = schedule.active(row)
        for block, letter in enumerate(letters):
            if (letter != IDLE) != (block in active):
                should = "update" if block in active else "leave idle"
                raise ProfileError(f"policy.plan[{row}]", f"must {should} block {block} in this generation")
            if letter in "PC" and schedule.step(row, block) == 0:
                raise ProfileError(f"policy.plan[{row}]", f"must recompute block {block} at its first update")
            if letter in "PC" and (row, block) in schedule.restarts:
                raise ProfileError(
                    f"policy.plan[{row}]", f"must recompute block {block}, whose guidance or context changes there"
                )


def needs_stale_context(policy: Policy, schedule: Schedule) -> bool:
    """Whether a block is recomputed while an earlier one is not, and so sees its K/V of an older row."""
    if not schedule.causal:
        return False
    if policy.captures == LAST:
        return True
    if policy.plan is None:
        return policy.granularity == "block" or (policy.granularity == "prefix" and policy.stale_tolerance is not None)
    return any({"P", "C"} & set(row[: row.rindex("R")]) for row in policy.plan if "R" in row)


def plan_of(policy: Policy, schedule: Schedule) -> tuple[str, ...] | None:
    """The whole plan of a window before it runs, or None when it depends on content.

    Fallbacks by the magnitude guard are not in it: they depend on content too.

    Returns:
        One string per row, one letter per block: the form of `Policy.plan`.
    """
    if policy.needs_content:
        return None
    decider = Decider(policy, schedule)
    rows = []
    for row in range(schedule.rows):
        modes = decider.decide(row, {})
        rows.append("".join(LETTERS[modes[b]] if b in modes else IDLE for b in range(schedule.blocks)))
    return tuple(rows)
