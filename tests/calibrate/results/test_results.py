from __future__ import annotations

from typing import Any

import pytest

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import Result, front, of_metric, pick
from calibrate.spec.floors import Floors

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
    with pytest.raises(CalibrateError, match=r"closest \(trial 4, .*misses psnr_db by 0\.5 dB \(floor 35 dB with"):
        pick([RESULTS[4]], FLOORS, "fastest", None)
    with pytest.raises(CalibrateError, match="no policy was measured on all search cases"):
        pick([RESULTS[6]], FLOORS, "fastest", None)


def test_a_refusal_names_the_margin_that_decided() -> None:
    floors = Floors(psnr_db=41, psnr_worst_prompt_db=35, safety_margin_db=2)
    with pytest.raises(CalibrateError) as refused:
        pick([_result(12, 4.6, 42.2)], floors, "fastest", None)
    told = str(refused.value)
    assert "with their safety margin of 2 dB" in told
    assert "misses psnr_db by 0.8 dB (floor 41 dB with its margin of 2 dB)" in told
    assert "holds the floors themselves" in told
    assert "safety_margin_db" in told
    with pytest.raises(CalibrateError) as refused:
        pick([_result(0, 2.0, 50.0), _result(1, 6.0, 40.0)], floors, "fastest", 5.0)
    assert "misses psnr_db by 3 dB (floor 41 dB with its margin of 2 dB)" in str(refused.value)
    assert "worst prompt 40.0 dB), above them with their safety margin of 2 dB" in str(refused.value)


@pytest.mark.parametrize(
    ("floors", "figures", "told"),
    [
        ({"ssim": 0.95}, {"ssim": 0.93}, "ssim by 0.02 (floor 0.95)"),
        ({"psnr_worst_block_db": 30.0}, {"psnr_worst_block_db": 28.5}, "psnr_worst_block_db by 1.5 dB (floor 30 dB)"),
        ({"psnr_worst_block_db": 30.0}, {}, "psnr_worst_block_db unmeasured (floor 30 dB)"),
        ({"max_memory": "40GB"}, {"memory_bytes": 45e9}, "max_memory by 5 GB (at most 40 GB)"),
        ({"psnr_db": 35.0, "safety_margin_db": 0.0}, {"psnr_db": 34.0}, "psnr_db by 1 dB (floor 35 dB)"),
    ],
)
def test_every_missed_floor_is_told_with_what_it_asks_for(
    floors: dict[str, Any], figures: dict[str, float], told: str
) -> None:
    none = {"psnr_db": None, "psnr_worst_prompt_db": None}
    assert Floors.model_validate(none | floors).told_missed(figures, margin=True) == [told]


def test_results_of_another_metric_version_are_told_apart() -> None:
    new = RESULTS[0]
    old = Result.from_dict({name: value for name, value in new.to_dict().items() if name != "metric_version"})
    assert (new.metric_version, old.metric_version) == (METRIC_VERSION, 1)
    assert of_metric([new, old]) == [new]
    assert of_metric([new, old], 1) == [old]
    assert str(old) == f"{new}, mean of frame PSNR, before version 2"


def test_a_candidate_with_weights_is_learned_and_any_other_is_not() -> None:
    policies: tuple[dict[str, Any], ...] = ({}, {"plan": ["R"]}, {"gap_weights": {"depth": 1}})
    told = [Result(0, policy, 2.0, 2.0, {}, 1, None).kind for policy in policies]
    assert told == ["thresholds", "thresholds", "learned"]
    assert "kind" not in RESULTS[0].to_dict()
