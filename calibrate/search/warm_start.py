"""From the profile or the study of another setting to first candidates of this study, as far as thresholds go.

Counts of rows (warm-up, skips, tail) carry over as they are. A threshold carries over as the share of this study's
recorded changes that lie below it, because that is how this study searches thresholds. Whatever the space does not
offer becomes the nearest that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from calibrate.search.space import Space, nearest_quantile, with_axis, with_first_window, within
from scope_runtime import Policy

Choice = TypeVar("Choice")

# How far (in warm-up rows, in rows skipped) neighbours lie from the profile's policy, that one first.
_NEIGHBOURS = ((0, 0), (1, 0), (0, -1), (0, 1), (-1, 0))
# Of a study's front, so many are tried, evenly spread over it: there should be budget left for the search.
_FROM_A_FRONT = 5


def first_candidates(policies: Sequence[Policy], space: Space) -> list[dict[str, Any]]:
    """Parameters of what to try first: a single policy with its neighbours, of several these alone.

    Args:
        policies: A profile's, or those of a study's front.
        space: The study's.
    """
    if len(policies) == 1:
        return neighbours_of(policies[0], space)
    found: list[dict[str, Any]] = []
    for index in np.unique(np.linspace(0, len(policies) - 1, _FROM_A_FRONT).round().astype(int)) if policies else ():
        parameters = neighbours_of(policies[index], space)[0]
        if parameters not in found:
            found.append(parameters)
    return found


def neighbours_of(policy: Policy, space: Space) -> list[dict[str, Any]]:
    """Parameters of a policy and of its neighbours in warm-up and skips, each within the space.

    Args:
        policy: From a profile of another setting. Of a frozen plan only the other fields are used; see
            `calibrate.search.plans.Plans.like` for learned ones.
        space: The study's.
    """
    centre = _nearest(policy, space)
    spec = space.spec
    found: list[dict[str, Any]] = []
    for warmup, skip in _NEIGHBOURS:
        parameters = centre | {
            "warmup": within(policy.warmup + warmup, spec.warmup),
            "max_skip": within(policy.max_skip + skip, spec.max_skip),
        }
        parameters = with_first_window(parameters, spec, policy.first_window)
        if parameters not in found:
            found.append(parameters)
    return found


def _nearest(policy: Policy, space: Space) -> dict[str, Any]:
    spec = space.spec
    indicator = _one_of(spec.indicator, policy.indicator)
    scale = space.scales[indicator]
    cache = nearest_quantile(scale.share_below(policy.cache_threshold), spec.cache_quantile)
    limited = policy.predict_threshold is not None
    parameters: dict[str, Any] = {
        "indicator": indicator,
        "cache_quantile": cache,
        "predict_threshold": _one_of(spec.predict_threshold, "searched" if limited else "never"),
        "granularity": _one_of(spec.granularity, policy.granularity),
        "order": _one_of(spec.order, policy.order),
        "tail": within(policy.tail, spec.tail),
        "max_step_ratio": _one_of(spec.max_step_ratio, policy.max_step_ratio),
        "magnitude_bound": _one_of(spec.magnitude_bound, policy.magnitude_bound),
        "error_budget": _one_of(spec.error_budget, policy.error_budget),
        "context_window": _one_of(spec.context_window, policy.context_window),
        "context_dtype": _one_of(spec.context_dtype, policy.context_dtype),
        "stale_quantile": spec.stale_quantile[0],
    }
    if parameters["predict_threshold"] == "searched":
        reached = 1.0 if policy.predict_threshold is None else scale.share_below(policy.predict_threshold)
        share = (reached - cache) / (1 - cache) if cache < 1 else 0.0
        parameters["predict_quantile"] = nearest_quantile(share, spec.predict_quantile)
    return with_axis(parameters, spec, policy.axis)


def _one_of(choices: Sequence[Choice], wanted: object) -> Choice:
    return next((choice for choice in choices if choice == wanted), choices[0])
