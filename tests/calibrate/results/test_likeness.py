from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from calibrate.results.likeness import likeness
from calibrate.spec.generation import Case
from calibrate.store import Generation

SEARCH = [Case(prompt=f"search {number}", seed=number) for number in range(3)]
GUARANTEE = [Case(prompt=f"guarantee {number}", seed=number) for number in range(24)]


def _rows(trial: int, cases: Sequence[Case], psnr: Sequence[float]) -> list[Generation]:
    return [
        Generation(trial_number=trial, prompt=case.prompt, seed=case.seed, metrics={"psnr_db": value})
        for case, value in zip(cases, psnr, strict=True)
    ]


def test_prompts_that_all_come_out_higher_are_told() -> None:
    low = np.linspace(28, 34, 24)
    rows = [row for trial in (4, 7) for row in _rows(trial, SEARCH, [36, 37, 38]) + _rows(trial, GUARANTEE, low)]
    found = likeness([4, 7], SEARCH, GUARANTEE, rows)
    assert found is not None
    assert (found.policies, found.gap_db, found.alike) == (2, pytest.approx(6.0), False)
    # Of 2,925 ways to choose three of 27 two are as extreme.
    assert found.probability == pytest.approx(2 / 2925)
    assert found.told() == (
        "search prompts are not like guarantee prompts: under 2 policies the guarantee prompts come out 6.0 dB lower "
        "(p = 0.00068), so that the search aims too high; draw search_cases as guarantee_cases are drawn, or take more "
        "of them"
    )


def test_prompts_that_all_come_out_lower_are_told_as_well() -> None:
    rows = _rows(1, SEARCH, [20, 21, 22]) + _rows(1, GUARANTEE, np.linspace(28, 34, 24))
    found = likeness([1], SEARCH, GUARANTEE, rows)
    assert found is not None
    assert "come out 10.0 dB higher (p = 0.00068), so that slower policies pass than" in found.told()


def test_prompts_drawn_alike_are_told_apart_as_rarely_as_promised() -> None:
    chance = np.random.default_rng(0)
    apart = 0
    for _ in range(400):
        drawn = chance.normal(33, 5, 27)
        found = likeness([1], SEARCH, GUARANTEE, _rows(1, SEARCH, drawn[:3]) + _rows(1, GUARANTEE, drawn[3:]))
        assert found is not None
        apart += not found.alike
    assert 0.02 <= apart / 400 <= 0.07


def test_policies_that_were_given_up_say_nothing() -> None:
    whole = _rows(1, SEARCH, [33, 34, 35]) + _rows(1, GUARANTEE, [33.5] * 12 + [34.5] * 12)
    given_up = _rows(2, SEARCH, [33, 34, 35]) + _rows(2, GUARANTEE[:5], [12.0] * 5)
    untested = _rows(3, SEARCH, [50, 50, 50]) + _rows(3, GUARANTEE, [10.0] * 24)
    found = likeness([1, 2], SEARCH, GUARANTEE, whole + given_up + untested)
    assert found is not None
    assert (found.policies, found.gap_db) == (1, pytest.approx(0.0))
    assert found.alike
    assert found.told().startswith("search prompts and guarantee prompts are not told apart: under 1 policy the")
    assert likeness([2], SEARCH, GUARANTEE, given_up) is None


@pytest.mark.parametrize("place", list(combinations(range(5), 2)))
def test_so_few_prompts_tell_nothing(place: tuple[int, int]) -> None:
    order = [n for n in range(5) if n not in place]
    values = dict(zip([*place, *order], [1.0, 2.0, 30.0, 31.0, 32.0], strict=True))
    rows = _rows(1, SEARCH[:2], [values[n] for n in place]) + _rows(1, GUARANTEE[:3], [values[n] for n in order])
    found = likeness([1], SEARCH[:2], GUARANTEE[:3], rows)
    assert found is not None
    assert found.alike
