from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from calibrate.results.guarantee import Tried
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import evidence_of
from calibrate.results.result import Result
from calibrate.results.sequence import sequence_of
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.guarantee import Guarantee
from calibrate.spec.score_floor import ScoreFloor, score_figure

CASES = [Case(prompt=f"prompt {number}", seed=number) for number in range(24)]
WISH = Guarantee(share=0.9, confidence=0.9, most_policies=4)
FLOORS = Floors(psnr_db=35.0, psnr_worst_prompt_db=30.0, safety_margin_db=0.0)


def _result(trial: int, speedup: float, psnr: float, worst: float, stopped: str | None = None) -> Result:
    figures = {"psnr_db": psnr, "psnr_worst_prompt_db": worst, "memory_bytes": 1e9 * trial}
    return Result(trial, {"warmup": trial}, speedup, speedup, figures, 3, stopped)


def _tried(trial: int, speedup: float, psnr: Sequence[float]) -> Tried:
    return Tried(trial, speedup, [{"psnr_db": value} for value in psnr])


def test_candidates_are_tested_from_careful_to_bold_between_safe_and_hopeless() -> None:
    results = [
        _result(0, 2.0, 55.0, 50.0),  # more careful than it need be
        _result(1, 2.5, 47.0, 46.0),
        _result(2, 2.6, 43.0, 39.0),
        _result(3, 3.5, 40.0, 37.0),
        _result(4, 4.4, 38.0, 33.0),
        _result(5, 4.5, 37.0, 32.0),
        _result(6, 9.0, 24.0, 18.0),  # hopeless
        _result(7, 4.0, 36.0, 35.0),  # beaten in both by 4
        _result(8, 5.0, 60.0, 60.0, stopped="stopped early"),
    ]
    assert [r.trial for r in sequence_of(results[::-1], WISH, FLOORS)] == [1, 3, 5]
    assert [r.trial for r in sequence_of(results[2:], WISH, FLOORS)] == [2, 3, 4, 5]
    assert [r.trial for r in sequence_of(results, WISH, FLOORS.model_copy(update={"max_memory": 4 * 10**9}))] == [
        1,
        2,
        3,
        4,
    ]
    assert [r.trial for r in sequence_of([results[6]], WISH, FLOORS)] == [6]
    assert sequence_of([], WISH, FLOORS) == []


def test_where_pipelines_are_set_up_differently_the_order_is_that_of_their_times() -> None:
    times = [(0, 5.0, 1.0, 45.0), (1, 3.0, 2.0, 44.0), (2, 4.0, 2.1, 43.0), (3, 2.0, 4.0, 42.0)]
    beaten = (4, 6.0, 1.5, 41.0)  # by 1 in both, though not in evaluations
    results = [
        replace(_result(trial, evaluations, psnr, psnr), speedup_denoise=time, paired=True)
        for trial, evaluations, time, psnr in (*times, beaten)
    ]
    assert [r.trial for r in sequence_of(results, WISH, FLOORS)] == [0, 1, 2, 3]
    few = WISH.model_copy(update={"most_policies": 3})
    assert [r.trial for r in sequence_of(results, few, FLOORS)] == [0, 2, 3]  # evenly by time


def test_with_floors_on_scores_no_policy_is_safe_and_psnr_makes_none_hopeless() -> None:
    floors = Floors(
        psnr_db=None, psnr_worst_prompt_db=None, safety_margin_db=0.0, scores={"viewer": ScoreFloor(at_least=0.6)}
    )
    results = [
        replace(result, figures={**result.figures, score_figure("viewer", "mean"): viewer})
        for result, viewer in (
            (_result(0, 2.0, 55.0, 50.0), 0.8),
            (_result(1, 4.0, 40.0, 36.0), 0.8),
            (_result(2, 8.0, 22.0, 16.0), 0.7),
            (_result(3, 9.0, 19.0, 14.0), 0.5),  # misses the score, and is far from the table's lowest floor
        )
    ]
    assert [r.trial for r in sequence_of(results, WISH, floors)] == [0, 1, 2]


def _table(sequence: Sequence[Tried], floors: Floors = FLOORS) -> PromiseTable:
    return PromiseTable(WISH, floors, CASES, sequence)


def test_the_fastest_that_passes_in_turn_is_promised_and_every_cell_by_itself() -> None:
    careful, bold = _tried(3, 2.0, [40.0] * 24), _tried(5, 4.0, [27.0] * 3 + [42.0] * 21)
    table = _table([careful, bold])
    assert table.best is careful
    for floor, share, best, corrected in (
        (25.0, 0.9, 5, None), (28.0, 0.9, 3, None), (25.0, 0.8, 5, 5), (28.0, 0.8, 3, 3), (28.0, 0.7, 5, 3),
        (30.0, 0.9, 3, None),
    ):  # fmt: skip
        cell = table.cell(floor, share)
        assert cell is not None
        assert cell.best is not None
        assert cell.best.trial == best
        assert (cell.corrected_best.trial if cell.corrected_best else None) == corrected
    assert len(table.cells) == 12
    assert table.corrected_confidence == pytest.approx(1 - 0.1 / 12)
    assert [cell.name for cell in table.nearest()] == ["32,0.8"]
    json.dumps(table.to_dict(), allow_nan=False)


def test_the_wish_is_no_cell_that_needs_a_correction() -> None:
    table = _table([_tried(3, 2.0, [40.0] * 24)], Floors(psnr_db=None, psnr_worst_prompt_db=30.0))
    assert table.cell(30.0, 0.9) is None
    assert len(table.cells) == 11
    assert table.best is not None


def test_a_wish_that_nothing_holds_names_the_nearest_that_hold() -> None:
    table = _table([_tried(3, 2.0, [29.0] * 2 + [40.0] * 22), _tried(5, 4.0, [27.0] * 9 + [42.0] * 15)])
    assert table.best is None
    assert table.told_nearest() == ("what holds is 28 dB for a share of 0.8 (trial 3, 2.00x: `--promise 28,0.8`)")
    nothing = _table([_tried(3, 2.0, [20.0] * 24)])
    assert nothing.told_nearest() == "none of the promises in the table holds"


def test_evidence_lists_every_case_and_its_misses() -> None:
    psnr = [29.0, *[40.0] * 23]
    tried = _tried(3, 2.0, psnr)
    table = _table([tried])
    cell = table.cell(30.0, 0.7)
    assert cell is not None
    evidence = evidence_of(cell.promise, tried, CASES, attempt=2, cells=12)
    assert (evidence["n"], evidence["misses"], evidence["tested"], evidence["allowed_misses"]) == (24, 1, 21, 3)
    assert [case["missed"] for case in evidence["cases"][:2]] == [["psnr_worst_prompt_db"], []]
    assert evidence["statement"] == (
        "With confidence 0.9, a share of at least 0.7 of all prompts drawn like the 24 guarantee cases have PSNR of at "
        "least 30 dB."
    )
    assert "picked from 12 promises after looking" in evidence["assumption"]
    assert "tested 1 earlier choice of policies" in evidence["assumption"]
    whole = evidence_of(table.wish, _tried(3, 2.0, [40.0] * 24), CASES, attempt=1, cells=None)
    assert whole["means"]["psnr_db"] == {"mean": 40.0, "bound": 40.0, "floor": 35.0}
    assert whole["statement"].endswith("have PSNR of at least 30 dB, and a mean PSNR of at least 35 dB.")
