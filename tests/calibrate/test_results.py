from __future__ import annotations

import pytest

from calibrate.errors import CalibrateError
from calibrate.results import Result, front, pick
from calibrate.study_file import Floors

FLOORS = Floors(psnr_db=35, psnr_worst_prompt_db=30, safety_margin_db=1)


def _result(trial: int, speedup: float, psnr: float, worst: float = 40.0, stopped: str | None = None) -> Result:
    figures = {"psnr_db": psnr, "psnr_worst_prompt_db": worst}
    return Result(trial, {"warmup": trial}, speedup, speedup, figures, 3, stopped)


RESULTS = [
    _result(0, 2.0, 50.0),
    _result(1, 3.5, 47.0),
    _result(2, 4.0, 37.0),
    _result(3, 3.0, 42.0),
    _result(4, 4.5, 35.5),
    _result(5, 6.0, 40.0, worst=30.5),
    _result(6, 9.0, 60.0, stopped="stopped early"),
]


def test_the_fastest_holds_both_floors_with_their_margin() -> None:
    assert pick(RESULTS, FLOORS, "fastest", None).trial == 2


def test_the_best_quality_is_asked_for_above_a_speedup() -> None:
    assert pick(RESULTS, FLOORS, "best-quality", 2.5).trial == 1
    assert pick(RESULTS, FLOORS, "best-quality", 3.6).trial == 2


def test_the_knee_is_where_both_are_good() -> None:
    assert pick(RESULTS, FLOORS, "knee", None).trial == 1


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    assert [result.trial for result in front(RESULTS[:4])] == [2, 1, 0]


def test_a_goal_that_was_not_met_is_answered_with_how_close_it_came() -> None:
    with pytest.raises(CalibrateError, match=r"min_speedup.* fastest \(trial 2\) gives 4\.00x"):
        pick(RESULTS, FLOORS, "fastest", 5.0)
    with pytest.raises(CalibrateError, match=r"best that reaches it \(trial 5\) 6\.00x"):
        pick(RESULTS, FLOORS, "best-quality", 5.0)
    with pytest.raises(CalibrateError, match=r"closest \(trial 4, .*misses psnr_db by 0\.5"):
        pick([RESULTS[4]], FLOORS, "fastest", None)
    with pytest.raises(CalibrateError, match="no policy was measured on all search cases"):
        pick([RESULTS[6]], FLOORS, "fastest", None)
