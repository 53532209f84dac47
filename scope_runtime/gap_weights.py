"""Learned weights: what a recompute and the rows skipped after it hand over, as one sum of the newest raw outputs.

A gap is a recompute with the skipped rows up to the next one. The sum is the same tensor in all of its rows, so a
skipped row costs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scope_runtime import _check
from scope_runtime.digest import config_digest
from scope_runtime.errors import ProfileError, ProfileMismatch, named, shown

if TYPE_CHECKING:
    import torch

    from scope_runtime.settings import Scheduler, Settings

_WHERE = "policy.gap_weights"
_MOST_STEPS = 10_000
_MOST_BLOCKS = 10_000
_DEEPEST = 16
_MOST_ENTRIES = 100_000
# A sum with such a weight is no prediction any more; in float16 it would not even be finite.
_LARGEST_WEIGHT = 1e3

NEWEST = (1.0,)
"""The weights of a gap that none were fitted for: the newest output, as it is."""

Entry = tuple[int, int, str, tuple[float, ...]]
"""Class of the block, step of the recompute, guidance branch, and the weights, newest output first."""


@dataclass(frozen=True)
class GapWeights:
    """Weights by block class, step and guidance branch, for one plan, scheduler, number of steps and guidance.

    Attributes:
        depth: How many raw outputs are combined at most: that many tensors are kept per block and branch.
        classes: Class of each block of a window; blocks beyond its length have the last entry's.
        weights: ``(class, step, branch, weights)`` each, sorted, no key twice. The step is the recomputed block's own
            count of updates, 0 at its first. Weights are of raw outputs, newest first, at most ``depth`` of them; those
            of outputs that there are not yet are left aside. A gap without an entry repeats its newest output.
        num_inference_steps: That they were fitted for, as in `scope_runtime.Settings`.
        guidance_scale: The same.
        scheduler: The same, as `scheduler_digest`.
        plan: `plan_digest` of the policy's frozen plan.

    Raises:
        ProfileError: Naming the field or the entry, if a value is out of range.
    """

    depth: int
    classes: tuple[int, ...]
    weights: tuple[Entry, ...]
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    plan: str

    def __post_init__(self) -> None:
        data = vars(self)
        _check.integer(data, "depth", _WHERE, minimum=1, maximum=_DEEPEST)
        _check.integer(data, "num_inference_steps", _WHERE, minimum=1, maximum=_MOST_STEPS)
        _check.string(data, "scheduler", _WHERE)
        _check.string(data, "plan", _WHERE)
        guidance = _check.number(data, "guidance_scale", _WHERE, minimum=0)
        object.__setattr__(self, "guidance_scale", guidance)
        object.__setattr__(self, "classes", _classes(data))
        object.__setattr__(self, "weights", self._entries(_check.array(data, "weights", _WHERE)))

    def _entries(self, entries: Sequence[Any]) -> tuple[Entry, ...]:
        if len(entries) > _MOST_ENTRIES:
            raise ProfileError(f"{_WHERE}.weights", f"must hold at most {_MOST_ENTRIES} entries, not {len(entries)}")
        found: list[Entry] = []
        for i, entry in enumerate(entries):
            where = f"{_WHERE}.weights.{i}"
            found.append(self._entry(entry, where))
            if i and found[-1][:3] <= found[-2][:3]:
                raise ProfileError(where, "must come after the entry before it, by class, step and branch")
        return tuple(found)

    def _entry(self, entry: Any, where: str) -> Entry:
        if not isinstance(entry, (list, tuple)) or len(entry) != 4:
            raise ProfileError(where, f"must be a list of class, step, branch and weights, not {shown(entry)}")
        parts = dict(zip(("class", "step", "branch", "weights"), entry, strict=True))
        kind = _check.integer(parts, "class", where, minimum=0)
        if kind not in self.classes:
            raise ProfileError(f"{where}.class", f"is {kind}, but no block is of that class")
        step = _check.integer(parts, "step", where, minimum=0, maximum=self.num_inference_steps - 1)
        branch = _check.string(parts, "branch", where)
        weights = _check.array_of_numbers(parts, "weights", where)
        if not 1 <= len(weights) <= self.depth:
            raise ProfileError(f"{where}.weights", f"must be 1 to {self.depth} numbers, not {len(weights)}")
        for number, weight in enumerate(weights):
            if abs(weight) > _LARGEST_WEIGHT:
                raise ProfileError(f"{where}.weights.{number}", f"must be within +-{_LARGEST_WEIGHT:g}, not {weight:g}")
        return kind, step, branch, weights

    @classmethod
    def fitted(
        cls,
        plan: Sequence[str],
        settings: Settings,
        *,
        depth: int,
        classes: Sequence[int],
        weights: Mapping[tuple[int, int, str], Sequence[float]],
    ) -> GapWeights:
        """Weights by (class, step, branch), in any order, for a plan and the settings that they were fitted under."""
        return cls(
            depth=depth,
            classes=tuple(classes),
            weights=tuple((*key, tuple(weights[key])) for key in sorted(weights)),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            scheduler=scheduler_digest(settings.scheduler),
            plan=plan_digest(plan),
        )

    @cached_property
    def _by_key(self) -> dict[tuple[int, int, str], tuple[float, ...]]:
        return {(kind, step, branch): weights for kind, step, branch, weights in self.weights}

    def of(self, block: int, step: int, branch: str) -> tuple[float, ...]:
        """Weights of the gap that begins with a block's recompute at its ``step``, newest output first."""
        kind = self.classes[min(block, len(self.classes) - 1)]
        return self._by_key.get((kind, step, branch), NEWEST)

    def check_settings(self, actual: Settings) -> None:
        """Refuses settings that these weights do not hold for.

        Raises:
            ProfileMismatch: Naming the first field that differs.
        """
        for name in ("num_inference_steps", "guidance_scale"):
            mine, theirs = getattr(self, name), getattr(actual, name)
            if mine != theirs:
                raise ProfileMismatch(
                    f"{_WHERE}.{name}", f"is {mine!r}, but {name} is {theirs!r}: fit weights for these settings"
                )
        theirs = scheduler_digest(actual.scheduler)
        if self.scheduler != theirs:
            raise ProfileMismatch(
                f"{_WHERE}.scheduler",
                f"is {shown(self.scheduler)}, but that of {named(str(actual.scheduler))} is {theirs!r}: fit weights "
                "for these settings",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            **asdict(self),
            "classes": list(self.classes),
            "weights": [[kind, step, branch, list(weights)] for kind, step, branch, weights in self.weights],
        }

    @classmethod
    def from_dict(cls, data: Any) -> GapWeights:
        """Inverse of `to_dict`; every field must be there."""
        return cls(**_check.complete(data, [f.name for f in fields(cls)], _WHERE))


def _classes(data: Mapping[str, Any]) -> tuple[int, ...]:
    found = _check.array(data, "classes", _WHERE)
    if not 1 <= len(found) <= _MOST_BLOCKS:
        raise ProfileError(f"{_WHERE}.classes", f"must hold 1 to {_MOST_BLOCKS} blocks' classes, not {len(found)}")
    items = {str(i): value for i, value in enumerate(found)}
    return tuple(_check.integer(items, i, f"{_WHERE}.classes", minimum=0) for i in items)


def plan_digest(plan: Sequence[str]) -> str:
    """A short name for a frozen plan."""
    return config_digest({"plan": list(plan)})


def scheduler_digest(scheduler: Scheduler) -> str:
    """A short name for all that settings say of a scheduler."""
    return config_digest(asdict(scheduler))


class WeightedOutputs:
    """The newest recomputed outputs of one block on one guidance branch, and their weighted sum.

    See `scope_runtime.prediction.Prediction`.

    Args:
        depth: How many outputs are combined at most. The sum is kept in place of the oldest of them, which no later
            sum needs, so that ``depth`` tensors are held, in the type of the outputs.
        weights: The weights of the gap that begins with a recompute in the given row, newest output first.
    """

    def __init__(self, depth: int, weights: Callable[[int], Sequence[float]]) -> None:
        self._depth = depth
        self._weights = weights
        self._outputs: list[torch.Tensor] = []
        self._combined: torch.Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing that a skipped row could hand over."""
        return self._combined is None

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        held = [*self._outputs, *([] if self._combined is None else [self._combined])]
        return sum(
            tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in held}.values()
        )

    def clear(self) -> None:
        """Forgets every recorded output: what follows does not continue it."""
        self._outputs, self._combined = [], None

    def record(self, row: int, output: torch.Tensor) -> torch.Tensor:
        """Adds a recomputed output (any shape, the same at every call); what the row hands over for it, of its type."""
        # A view of a pass's output would keep all of it alive.
        outputs = [output.clone(), *self._outputs]
        self._combined = _weighted_sum(self._weights(row), outputs)
        self._outputs = outputs[: self._depth - 1]
        return self._combined

    def output(self, row: int, *, cached: bool) -> torch.Tensor:
        """What a skipped row hands over, however it is called: what its gap began with."""
        assert self._combined is not None
        return self._combined

    def foreseen(self, row: int) -> tuple[torch.Tensor, int, float]:
        """What ``row`` would hand over if the gap went on; nothing is extrapolated: order 0, a reach of 0."""
        return self.output(row, cached=False), 0, 0.0


def _weighted_sum(weights: Sequence[float], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of as many outputs as have weights, in float32, of the newest output's type."""
    if tuple(weights) == NEWEST:
        return outputs[0]
    total = None
    for weight, output in zip(weights, outputs, strict=False):
        if weight:  # what does not count may be anything, also not finite
            term = weight * output.float()
            total = term if total is None else total.add_(term)
    return outputs[0] * 0 if total is None else total.to(outputs[0].dtype)
