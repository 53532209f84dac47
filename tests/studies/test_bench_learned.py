"""How a policy is held beside schedules on the same prompts."""

from __future__ import annotations

import pytest

from studies.bench.generations import Outcome
from studies.bench.learned import beside, speedup_at


def _outcomes(evaluations: int, *dbs: float) -> list[Outcome]:
    return [Outcome(evaluations, 240, db) for db in dbs]


def test_a_policy_is_as_fast_as_the_schedule_that_it_is_as_good_as() -> None:
    schedules = [_outcomes(40, 30.0, 26.0), _outcomes(60, 36.0, 32.0), _outcomes(50, 27.0, 25.0)]
    found = beside(_outcomes(40, 36.0, 32.0), schedules)
    assert (found["db"], found["speedup"], found["share_30"]) == (34.0, 6.0, 1.0)
    assert found["speedup_of_schedules"] == 4.0
    # The slower and worse one is no rival, but it is listed.
    assert found["over_schedules"] == [[4.0, 0.0, 0.0], [4.8, 8.0, 1.0], [6.0, 6.0, 0.0]]


def test_between_two_of_a_front_the_logarithm_of_the_speed_up_is_interpolated() -> None:
    assert speedup_at(33.0, [(4.0, 34.0), (9.0, 32.0), (5.0, 31.0)]) == pytest.approx(6.0)
    assert speedup_at(35.0, [(4.0, 34.0), (9.0, 32.0)]) is None
    assert speedup_at(31.0, []) is None
