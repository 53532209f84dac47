"""The search space: from an Optuna trial to a policy, and the schedules worth trying first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import optuna

from calibrate.replay.change_scale import ChangeScale, Observations
from calibrate.spec.search_space import Axis, SearchSpace
from calibrate.spec.strict import FloatRange, IntRange
from scope_runtime import Policy

Choice = TypeVar("Choice")

# (warmup, max_skip) of periodic schedules that held up on every model tried so far; from careful to bold.
_PERIODIC_SCHEDULES = ((4, 3), (3, 4), (2, 4), (5, 2), (4, 5), (2, 3))
# Neighbouring quantiles give the same plan more often than not; a grid lets repeats be recognised.
_QUANTILE_STEP = 0.02
_TINY = 1e-9


class Space:
    """What a study may choose from, on the scale of what its recorded runs showed."""

    def __init__(self, spec: SearchSpace, recorded: Sequence[Observations]) -> None:
        """Fits the scales of the indicators that may be chosen.

        Args:
            spec: The ranges.
            recorded: Observations of the search cases' full-compute runs.
        """
        self.spec = spec
        self.scales: Mapping[str, ChangeScale] = {
            indicator: ChangeScale.fit(indicator, recorded, spec.max_skip.high) for indicator in spec.indicator
        }

    def suggest(self, trial: optuna.trial.BaseTrial) -> Policy:
        """The policy that the trial's parameters stand for."""
        spec = self.spec
        indicator = _choose(trial, "indicator", spec.indicator)
        scale = self.scales[indicator]
        cache_quantile = _suggest_quantile(trial, "cache_quantile", spec.cache_quantile)
        predict_threshold = None
        if _choose(trial, "predict_threshold", spec.predict_threshold) == "searched":
            share = _suggest_quantile(trial, "predict_quantile", spec.predict_quantile)
            predict_threshold = scale.threshold(cache_quantile + share * (1 - cache_quantile))
        stale_quantile = _choose(trial, "stale_quantile", spec.stale_quantile)
        order = _choose(trial, "order", spec.order)
        policy = Policy(
            granularity=_choose(trial, "granularity", spec.granularity),
            indicator=indicator,
            noise_map=scale.noise_map,
            change_map=scale.change_map,
            cache_threshold=scale.threshold(cache_quantile),
            predict_threshold=predict_threshold,
            max_skip=_suggest_int(trial, "max_skip", spec.max_skip),
            order=order,
            axis=_suggest_axis(trial, spec.axes(order)),
            warmup=_suggest_int(trial, "warmup", spec.warmup),
            tail=_suggest_int(trial, "tail", spec.tail),
            max_step_ratio=_choose(trial, "max_step_ratio", spec.max_step_ratio),
            magnitude_bound=_choose(trial, "magnitude_bound", spec.magnitude_bound),
            stale_tolerance=None if stale_quantile is None else scale.threshold(stale_quantile),
            error_budget=_choose(trial, "error_budget", spec.error_budget),
            context_window=_choose(trial, "context_window", spec.context_window),
            context_dtype=_choose(trial, "context_dtype", spec.context_dtype),
        )
        if spec.first_window is None:
            return policy
        warmup = _suggest_int(trial, "first_warmup", spec.first_window.warmup)
        max_skip = _suggest_int(trial, "first_max_skip", spec.first_window.max_skip)
        return replace(policy, first_window=replace(policy, warmup=warmup, max_skip=max_skip))

    def first_candidates(self) -> list[dict[str, Any]]:
        """Parameters of the study's own candidates, or else of strong known schedules that lie within the space."""
        spec = self.spec
        shared = {
            "cache_quantile": spec.cache_quantile.low,
            "predict_threshold": "never",
            "tail": spec.tail.low,
            "order": spec.first_order,
        }
        first_choices = {
            name: getattr(spec, name)[0]
            for name in (
                "indicator",
                "granularity",
                "max_step_ratio",
                "magnitude_bound",
                "stale_quantile",
                "error_budget",
                "context_window",
                "context_dtype",
            )
        }
        if spec.candidates is not None:
            given = [{**shared, **first_choices, **candidate.given()} for candidate in spec.candidates]
            return [with_first_window(with_axis(parameters, spec), spec) for parameters in given]
        if "never" not in spec.predict_threshold:
            return []
        return [
            with_first_window(
                with_axis({**shared, **first_choices, "warmup": warmup, "max_skip": max_skip}, spec), spec
            )
            for warmup, max_skip in _PERIODIC_SCHEDULES
            if _holds(spec.warmup, warmup) and _holds(spec.max_skip, max_skip)
        ]


def with_axis(parameters: Mapping[str, Any], spec: SearchSpace, wanted: str | None = None) -> dict[str, Any]:
    """Parameters with the axis that they name, or else the one wanted, or else the first that their order has.

    Where an order has a single axis there is nothing to choose, and the parameter does not exist.
    """
    axes = spec.axes(parameters["order"])
    rest = {name: value for name, value in parameters.items() if name != "axis"}
    if len(axes) < 2:
        return rest
    wanted = parameters.get("axis", wanted)
    return {**rest, "axis": wanted if wanted in axes else axes[0]}


def with_first_window(parameters: Mapping[str, Any], spec: SearchSpace, wanted: Policy | None = None) -> dict[str, Any]:
    """Parameters with those of the first window, if the space has any: a policy's, or else the same as of all others.

    Args:
        parameters: With `warmup` and `max_skip`.
        spec: The space.
        wanted: The policy of a first window.
    """
    if spec.first_window is None:
        return dict(parameters)
    warmup, max_skip = (wanted.warmup, wanted.max_skip) if wanted else (parameters["warmup"], parameters["max_skip"])
    return {
        **parameters,
        "first_warmup": within(warmup, spec.first_window.warmup),
        "first_max_skip": within(max_skip, spec.first_window.max_skip),
    }


def within(value: int, allowed: IntRange) -> int:
    """The allowed value nearest to one."""
    return min(max(value, allowed.low), allowed.high)


def _suggest_axis(trial: optuna.trial.BaseTrial, axes: Sequence[Axis]) -> str:
    """The axis of the extrapolation, asked for only where there is a choice."""
    if len(axes) > 1:
        return _choose(trial, "axis", axes)
    return axes[0] if axes else Policy.axis


def _holds(allowed: IntRange, value: int) -> bool:
    return allowed.low <= value <= allowed.high


def _choose(trial: optuna.trial.BaseTrial, name: str, choices: Sequence[Choice]) -> Choice:
    return cast(Choice, trial.suggest_categorical(name, cast(Sequence[str], choices)))


def _suggest_int(trial: optuna.trial.BaseTrial, name: str, allowed: IntRange) -> int:
    return trial.suggest_int(name, allowed.low, allowed.high)


def _suggest_quantile(trial: optuna.trial.BaseTrial, name: str, allowed: FloatRange) -> float:
    return trial.suggest_float(name, allowed.low, allowed.high, step=_step(allowed))


def nearest_quantile(value: float, allowed: FloatRange) -> float:
    """The value that a search over `allowed` can suggest nearest to the given one."""
    step = _step(allowed)
    if step is not None:
        value = allowed.low + round((value - allowed.low) / step) * step
        highest = allowed.low + (allowed.high - allowed.low + _TINY) // step * step
        return min(max(value, allowed.low), highest)
    return min(max(value, allowed.low), allowed.high)


def _step(allowed: FloatRange) -> float | None:
    return _QUANTILE_STEP if allowed.high - allowed.low >= _QUANTILE_STEP else None
