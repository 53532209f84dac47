"""Which block is cached, predicted or recomputed in a row. Pure: numbers in, modes out; no model, no pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from scope_runtime import _check
from scope_runtime.errors import ProfileError
from scope_runtime.indicator import INDICATORS, MODULATED_INPUT, NOISE_LEVEL, ChangeMap
from scope_runtime.schedule import Schedule

GRANULARITIES = ("prefix", "step")


class Mode(IntEnum):
    """What happens to an active block in a row, ordered by cost."""

    CACHE = 0
    """The last recomputed output is used again."""
    PREDICT = 1
    """The output is extrapolated in the noise level."""
    RECOMPUTE = 2
    """The block goes through the transformer."""


@dataclass(frozen=True)
class Policy:
    """Everything that decides between the modes.

    Attributes:
        granularity: ``"prefix"``: when a block is recomputed, every active block before it is too, so that it sees
            fresh context only. ``"step"``: one mode for the whole row, the most expensive that any block asks for.
        indicator: ``"noise-level"`` (drop of sigma since the previous row; no tensor work) or ``"modulated-input"``
            (relative L1 change of the first transformer block's input after timestep modulation).
        change_map: Map from the indicator to expected output change; None takes the indicator as it is.
        cache_threshold: Below this accumulated change a block is cached.
        predict_threshold: Below this it is predicted, from it on recomputed. None is never reached: then ``warmup``
            and ``max_skip`` alone make a periodic schedule.
        max_skip: Most consecutive rows in which a block may go without being recomputed.
        order: Order of the extrapolation, 0 to 2.
        warmup: First updates of every block that are always recomputed, at least 1.
        tail: Last updates of every block that are always recomputed.
        max_step_ratio: Above this ratio of gap to history spacing the order drops by one. None: no such limit.
        magnitude_bound: Above this relative distance from the newest output the block is recomputed. None: no bound
            (outputs that are not finite are never reused all the same).

    Raises:
        ProfileError: Naming the field, if a value is out of range.
    """

    granularity: str = "prefix"
    indicator: str = NOISE_LEVEL
    change_map: ChangeMap | None = None
    cache_threshold: float = 0.0
    predict_threshold: float | None = None
    max_skip: int = 3
    order: int = 1
    warmup: int = 4
    tail: int = 0
    max_step_ratio: float | None = None
    magnitude_bound: float | None = None

    def __post_init__(self) -> None:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        where = "policy"
        _check.choice(data, "granularity", where, GRANULARITIES)
        _check.choice(data, "indicator", where, INDICATORS)
        if self.change_map is not None and not isinstance(self.change_map, ChangeMap):
            raise ProfileError("policy.change_map", "must be a ChangeMap or None")
        _check.number(data, "cache_threshold", where, minimum=0)
        _check.number(data, "predict_threshold", where, minimum=0, optional=True)
        if self.predict_threshold is not None and self.predict_threshold < self.cache_threshold:
            raise ProfileError(
                "policy.predict_threshold",
                f"must not be below cache_threshold ({self.cache_threshold:g}), not {self.predict_threshold:g}",
            )
        _check.integer(data, "max_skip", where, minimum=0, maximum=10_000)
        _check.integer(data, "order", where, minimum=0, maximum=2)
        _check.integer(data, "warmup", where, minimum=1, maximum=10_000)
        _check.integer(data, "tail", where, minimum=0, maximum=10_000)
        _check.number(data, "max_step_ratio", where, minimum=0, optional=True)
        _check.number(data, "magnitude_bound", where, minimum=0, optional=True)

    @property
    def needs_content(self) -> bool:
        """Whether the indicator has to look at tensors."""
        return self.indicator == MODULATED_INPUT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, every field written out."""
        return {**asdict(self), "change_map": self.change_map.to_dict() if self.change_map else None}

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """Inverse of `to_dict`; fields left out take their defaults, unknown ones are refused by name."""
        _check.reject_unknown(data, cls.__dataclass_fields__, "policy")
        fields = dict(data)
        if fields.get("change_map") is not None:
            fields["change_map"] = ChangeMap.from_dict(fields["change_map"])
        return cls(**fields)


class Decider:
    """Turns indicator values into modes, row after row, for one generation window.

    Args:
        policy: The rules.
        schedule: The window's plan.
    """

    def __init__(self, policy: Policy, schedule: Schedule) -> None:
        self.policy = policy
        self.schedule = schedule
        # Under bidirectional attention a recomputed block sees all others, so none may be left out.
        self.granularity = policy.granularity if schedule.causal else "step"
        self.fallbacks = 0
        self._accumulated = [0.0] * schedule.blocks
        self._skipped = [0] * schedule.blocks

    def decide(
        self,
        row: int,
        content_change: Mapping[int, float],
        trusted: Callable[[int, Mode], bool] = lambda block, mode: True,
    ) -> dict[int, Mode]:
        """Decides one row. Rows must come in order.

        Args:
            row: Row number.
            content_change: Change of the modulated input since the previous row, per active block; read only if the
                policy's indicator is the content. A block without a value is recomputed.
            trusted: Says whether a block's history bears the given mode; if not, the block is recomputed and counted
                in ``fallbacks``.

        Returns:
            The mode of each active block.
        """
        modes = {block: self._wish(row, block, content_change) for block in self.schedule.active(row)}
        modes = self._spread(modes)
        distrusted = {b for b, mode in modes.items() if mode is not Mode.RECOMPUTE and not trusted(b, mode)}
        if distrusted:
            self.fallbacks += len(distrusted)
            modes = self._spread({b: Mode.RECOMPUTE if b in distrusted else m for b, m in modes.items()})
        for block, mode in modes.items():
            if mode is Mode.RECOMPUTE:
                self._accumulated[block], self._skipped[block] = 0.0, 0
            else:
                self._skipped[block] += 1
        return modes

    def _wish(self, row: int, block: int, content_change: Mapping[int, float]) -> Mode:
        """The mode that the block would choose for itself."""
        policy, schedule = self.policy, self.schedule
        change = content_change.get(block) if policy.needs_content else schedule.noise_change(row, block)
        if change is not None and math.isfinite(change):
            self._accumulated[block] += policy.change_map(change) if policy.change_map else change
        else:
            self._accumulated[block] = math.inf
        if (
            schedule.step(row, block) < policy.warmup
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

    def _spread(self, modes: dict[int, Mode]) -> dict[int, Mode]:
        """Applies the granularity: raises modes, never lowers one."""
        if not modes:
            return modes
        if self.granularity == "step":
            return dict.fromkeys(modes, max(modes.values()))
        last = max((b for b, mode in modes.items() if mode is Mode.RECOMPUTE), default=-1)
        return {b: Mode.RECOMPUTE if b <= last else mode for b, mode in modes.items()}
