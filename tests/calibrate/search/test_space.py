"""What a study may choose from reaches the policy that is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from calibrate.search.replay_sampler import draw
from calibrate.search.space import Space
from calibrate.search.warm_start import neighbours_of
from calibrate.spec.search_space import SearchSpace
from scope_runtime import Policy


def _space(**choices: object) -> Space:
    change = np.linspace(0.1, 0.4, 12)
    rows = np.arange(12, dtype=np.float64)
    levels = np.append(change[::-1].cumsum()[::-1], 0.0)
    recorded = np.stack([rows, np.zeros(12), levels[:-1], levels[1:], change, 2 * change], axis=1)
    return Space(SearchSpace.model_validate({"indicator": ["noise-level"], **choices}), [recorded])


def test_an_error_budget_is_searched_where_the_study_allows_some() -> None:
    space = _space(error_budget=[None, 0.05])
    assert all(candidate["error_budget"] is None for candidate in space.first_candidates())
    given = space.first_candidates()[0]
    assert space.suggest(FixedTrial(given)).error_budget is None
    assert space.suggest(FixedTrial(given | {"error_budget": 0.05})).error_budget == 0.05


def test_what_bounds_the_context_is_searched_where_the_study_allows_it() -> None:
    space = _space(context_window=[None, 2], context_dtype=[None, "bfloat16"])
    given = space.first_candidates()[0]
    policy = space.suggest(FixedTrial(given))
    assert (policy.context_window, policy.context_dtype) == (None, None)
    policy = space.suggest(FixedTrial(given | {"context_window": 2, "context_dtype": "bfloat16"}))
    assert (policy.context_window, policy.context_dtype) == (2, "bfloat16")


def test_a_stale_tolerance_is_a_threshold_on_the_scale_of_what_was_recorded() -> None:
    space = _space(stale_quantile=[None, 0.5])
    given = space.first_candidates()[0]
    assert space.suggest(FixedTrial(given)).stale_tolerance is None
    tolerance = space.suggest(FixedTrial(given | {"stale_quantile": 0.5})).stale_tolerance
    assert tolerance == space.scales["noise-level"].threshold(0.5)


def _extrapolations(**choices: Any) -> set[tuple[int, str]]:
    """What the search draws: orders and axes."""
    return {(policy.order, policy.axis) for policy in draw(_space(**choices), RandomSampler(seed=0), 40)}


def test_both_axes_are_searched_but_order_two_along_the_noise_level_is_left_to_those_who_ask_for_it() -> None:
    assert _extrapolations() == {(1, "noise-level"), (1, "step"), (2, "step")}
    assert _extrapolations(axis=["noise-level"]) == {(1, "noise-level"), (2, "noise-level")}
    assert _extrapolations(axis=["noise-level", "step"]) == {(o, a) for o in (1, 2) for a in ("noise-level", "step")}
    assert _extrapolations(axis=["step"]) == {(1, "step"), (2, "step")}
    assert _extrapolations(order=[0, 1]) == {(0, Policy.axis), (1, "noise-level"), (1, "step")}


def test_the_axis_is_a_parameter_only_where_there_is_a_choice() -> None:
    space = _space()
    given = space.first_candidates()[0]
    assert (given["order"], given["axis"]) == (1, "step")
    assert space.suggest(FixedTrial(given | {"axis": "noise-level"})).axis == "noise-level"
    rest = {name: value for name, value in given.items() if name != "axis"}
    assert space.suggest(FixedTrial(rest | {"order": 2})).axis == "step"
    assert "axis" not in _space(axis=["step"]).first_candidates()[0]


def test_candidates_name_an_axis_or_take_the_first_that_their_order_has() -> None:
    rows = {"warmup": 2, "max_skip": 3}
    space = _space(
        candidates=[rows, {**rows, "axis": "noise-level"}, {**rows, "order": 2}, {**rows, "order": 2, "axis": "step"}]
    )
    policies = [space.suggest(FixedTrial(candidate)) for candidate in space.first_candidates()]
    assert [(policy.order, policy.axis) for policy in policies] == [
        (1, "step"), (1, "noise-level"), (2, "step"), (2, "step"),
    ]  # fmt: skip
    asked = {**rows, "order": 2, "axis": "noise-level"}
    with pytest.raises(ValueError, match=r"candidates.0.axis is 'noise-level', which search.axis .* for order 2"):
        _space(candidates=[asked])
    space = _space(candidates=[asked], axis=["step", "noise-level"])
    assert space.suggest(FixedTrial(space.first_candidates()[0])).axis == "noise-level"


@pytest.mark.parametrize(("order", "axis", "tried"), [(1, "step", "step"), (1, "noise-level", "noise-level")])
def test_a_policy_from_elsewhere_is_tried_along_its_axis(order: int, axis: str, tried: str) -> None:
    space = _space()
    found = neighbours_of(Policy(order=order, axis=axis), space)
    assert {space.suggest(FixedTrial(parameters)).axis for parameters in found} == {tried}


def test_of_what_the_space_does_not_offer_the_nearest_is_tried() -> None:
    space = _space()
    found = neighbours_of(Policy(order=2, axis="noise-level"), space)[0]
    policy = space.suggest(FixedTrial(found))
    assert (policy.order, policy.axis) == (2, "step")


def test_a_policy_comes_back_from_its_own_study_with_thresholds_that_decide_the_same() -> None:
    space = _space(max_skip={"low": 1, "high": 6})
    scale = space.scales["noise-level"]
    for quantile in (0.1, 0.2, 0.4):
        policy = Policy(noise_map=scale.noise_map, cache_threshold=scale.threshold(quantile))
        back = space.suggest(FixedTrial(neighbours_of(policy, space)[0]))
        assert scale.share_below(back.cache_threshold) == pytest.approx(
            scale.share_below(policy.cache_threshold), abs=0.02
        )
