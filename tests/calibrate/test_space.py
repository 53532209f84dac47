"""What a study may choose from reaches the policy that is run."""

from __future__ import annotations

import numpy as np
from optuna.trial import FixedTrial

from calibrate.space import Space
from calibrate.study_file import SearchSpace


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
