"""What a search may choose from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from calibrate.spec.strict import FloatRange, IntRange, Strict
from scope_runtime import Policy, Preparation, ProfileError

Axis = Literal["noise-level", "step"]
# Those that a profile may ask for: `scope_runtime.preparation.ATTENTION_BACKENDS` and `WEIGHTS`.
Backend = Literal[
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flex", "flash", "_flash_3",
    "sage", "xformers",
]  # fmt: skip
Weights = Literal["bfloat16", "int8", "float8", "dynamic-int8"]


class Quantiles(FloatRange):
    """A range within [0, 1]."""

    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class Candidate(Strict):
    """A point of the search space to try before the search draws its own; what is left out is the space's first choice.

    A `predict_quantile` asks for a searched `predict_threshold`; without one there is none.
    """

    warmup: int
    max_skip: int
    tail: int | None = None
    order: int | None = None
    axis: str | None = None
    cache_quantile: float | None = None
    predict_quantile: float | None = None
    granularity: str | None = None
    indicator: str | None = None
    context_window: int | None = None
    context_dtype: str | None = None

    def given(self) -> dict[str, Any]:
        """The parameters that are given, the kind of predict threshold included."""
        kind = "never" if self.predict_quantile is None else "searched"
        return {"predict_threshold": kind, **self.model_dump(exclude_none=True)}


class Learned(Strict):
    """Plans with weights that are fitted to them, on the study's `fit_cases`.

    `share` of the candidates are of this kind. `period` is the number of steps between the recomputes of every block
    (null: `ar_step`, with which all blocks are recomputed in the same rows, or a part of it where that is long).
    `captures` says where the keys and values that later blocks attend to come from: a pass of their own at the clean
    level, or the block's last recompute (null: whatever the family can do). `depth` is the number of outputs that
    weights combine.
    """

    share: float = Field(default=0.5, gt=0, le=1)
    period: int | None = Field(default=None, ge=1)
    captures: Annotated[list[Literal["clean", "last"]], Field(min_length=1)] | None = None
    depth: Annotated[list[Annotated[int, Field(ge=1, le=8)]], Field(min_length=1)] = [3]


class FirstWindow(Strict):
    """Rules of a generation's first window that may be others than those of all further ones.

    What goes wrong in the first chunk of a video is part of what every later one sees.
    """

    warmup: IntRange = IntRange(low=1, high=6)
    max_skip: IntRange = IntRange(low=1, high=6)


class SearchSpace(Strict):
    """What the search may choose from.

    `axis` is what predictions are extrapolated along, whatever their `order`. By default (null) order 1 is tried along
    the steps and along the noise level, and order 2 along the steps alone: along the noise level it is ruinous.

    Thresholds are searched as quantiles of the accumulated change that recorded runs showed, so that every value within
    [0, 1] makes a difference: `cache_quantile` 0 never caches, and `predict_quantile` is the share of the way from the
    cache threshold up to the largest change. With `predict_threshold: never` there is no such limit, and `warmup` and
    `max_skip` alone give a periodic schedule. `stale_quantile` is on the same scale (null is strict), and
    `error_budget` is taken as it is (null is none). `context_window` and `context_dtype` bound the context's memory
    (null is exact), which is for studies with `floors.max_memory`. `candidates` are tried first, in place of the
    periodic schedules that every study begins with; with as many as `budget.trials` the study consists of them.
    With `learned`, plans with learned weights are tried beside them. With `first_window`, a video's first window has a
    warm-up and a longest skip of its own, for families that make videos chunk by chunk.
    `attention_backend`, `weights` and `compile` change the pipeline in place of the policy (null: as it was loaded).
    All combinations of them are searched, each with traces of its own; those that do not load, or that are slower than
    the first one, are dropped after one case. With such a choice, speed is the time of denoising, beside stock.
    `method` may change while a study lasts: `replay` screens candidates on recorded traces and runs the promising ones,
    `plain` draws them from the results of real runs alone.
    """

    method: Literal["replay", "plain"] = "replay"
    cache_quantile: Quantiles = Quantiles(low=0.0, high=0.4)
    predict_threshold: Annotated[list[Literal["never", "searched"]], Field(min_length=1)] = ["never", "searched"]
    predict_quantile: Quantiles = Quantiles(low=0.3, high=1.0)
    max_skip: IntRange = IntRange(low=1, high=6)
    warmup: IntRange = IntRange(low=1, high=6)
    tail: IntRange = IntRange(low=0, high=1)
    order: Annotated[list[Literal[0, 1, 2]], Field(min_length=1)] = [1, 2]
    axis: Annotated[list[Axis], Field(min_length=1)] | None = None
    granularity: Annotated[list[Literal["prefix", "step"]], Field(min_length=1)] = ["prefix"]
    indicator: Annotated[list[Literal["noise-level", "modulated-input"]], Field(min_length=1)] = [
        "noise-level",
        "modulated-input",
    ]
    max_step_ratio: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    magnitude_bound: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    stale_quantile: Annotated[list[Annotated[float, Field(ge=0, le=1)] | None], Field(min_length=1)] = [None]
    error_budget: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    context_window: Annotated[list[Annotated[int, Field(ge=1)] | None], Field(min_length=1)] = [None]
    context_dtype: Annotated[list[Literal["float32", "bfloat16", "float16"] | None], Field(min_length=1)] = [None]
    candidates: Annotated[list[Candidate], Field(min_length=1)] | None = None
    learned: Learned | None = None
    first_window: FirstWindow | None = None
    attention_backend: Annotated[list[Backend | None], Field(min_length=1)] = [None]
    weights: Annotated[list[Weights | None], Field(min_length=1)] = [None]
    compile: Annotated[list[bool], Field(min_length=1)] = [False]

    @model_validator(mode="after")
    def _policies_allow(self) -> Self:
        """What is offered must make a policy; what a policy refuses is for `Policy` alone to say."""
        for name in SearchSpace.model_fields:
            if name in Policy.__dataclass_fields__ and name not in ("predict_threshold", "first_window"):
                offered = getattr(self, name)
                values: Sequence[Any] = (offered.low, offered.high) if isinstance(offered, IntRange) else offered or ()
                for value in values:
                    try:
                        Policy(**{name: value})
                    except ProfileError as error:
                        raise ValueError(f"{name} {error.problem}") from error
        return self

    @model_validator(mode="after")
    def _candidates_within(self) -> Self:
        for number, candidate in enumerate(self.candidates or ()):
            order = self.first_order if candidate.order is None else candidate.order
            for name, value in candidate.given().items():
                allowed = self.axes(order) if name == "axis" else getattr(self, name)
                within = value in allowed if isinstance(allowed, list) else allowed.low <= value <= allowed.high
                if not within:
                    of_order = f" for order {order} (only {' and '.join(allowed) or 'none'})" if name == "axis" else ""
                    raise ValueError(
                        f"candidates.{number}.{name} is {value!r}, which search.{name} does not allow{of_order}"
                    )
        return self

    @property
    def preparations(self) -> list[Preparation]:
        """What the pipeline may be set up with, the one that the others must not be slower than first."""
        choices = product(self.attention_backend, self.weights, self.compile)
        return list(dict.fromkeys(Preparation(*choice) for choice in choices))

    @property
    def prepares(self) -> bool:
        """Whether the pipeline may be set up in another way than it is loaded."""
        return any(self.preparations)

    @property
    def first_order(self) -> int:
        """The order of candidates that name none."""
        return 1 if 1 in self.order else self.order[0]

    def axes(self, order: int) -> list[Axis]:
        """The axes to choose from for predictions of an order; of order 0 nothing is extrapolated along any."""
        if order == 0:
            return []
        if self.axis is not None:
            return self.axis
        return ["step", "noise-level"] if order == 1 else ["step"]
