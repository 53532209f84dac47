from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibrate.replay.replay import CHANNELS, LEVELS, Extrapolation, Replayed
from calibrate.replay.sensitivity import Observed, Sensitivity

TRUE = np.array([1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 20.0, 20.0, 3.0, 3.0])


WAYS: tuple[Extrapolation, ...] = ((0, None), (1, "step"))


def _replayed(errors: Any, way: Extrapolation = WAYS[1]) -> Replayed:
    return Replayed((), way, (), (), np.asarray(errors))


def _runs(count: int, cases: int = 1, shift: float = 0.0, way_apart: float = 0.0) -> list[Observed]:
    rng = np.random.default_rng(0)
    runs = []
    for number in range(count):
        errors = rng.gamma(0.5, 0.05, size=(3, CHANNELS))
        mse = (np.square(errors) @ TRUE).mean()
        case = number % cases
        way = number // cases % 2
        psnr = float(-10 * np.log10(mse)) + shift * case + way_apart * way
        runs.append(Observed(case, errors, psnr, WAYS[way]))
    return runs


def test_a_known_sensitivity_is_recovered() -> None:
    fitted = Sensitivity.fit(_runs(400))
    assert fitted.weights == pytest.approx(TRUE, rel=0.25)
    assert fitted.slope == pytest.approx(1.0, abs=0.03)
    assert fitted.spread_db < 0.5
    assert fitted.rank_correlation is not None
    assert fitted.rank_correlation > 0.99
    fresh = _runs(420)[400:]
    estimated = fitted.psnr_db(_replayed(np.stack([run.errors for run in fresh])))
    assert estimated == pytest.approx([run.psnr_db for run in fresh], abs=1.0)


def test_weights_never_fall_with_the_noise_level_and_are_never_negative() -> None:
    rng = np.random.default_rng(1)
    noisy = [
        Observed(0, rng.gamma(0.5, 0.05, size=(2, CHANNELS)), float(rng.uniform(10, 50)), WAYS[0]) for _ in range(12)
    ]
    weights = Sensitivity.fit(noisy).weights
    assert (weights >= 0).all()
    assert (np.diff(weights[:LEVELS]) >= 0).all()


def test_levels_that_no_run_has_tried_do_not_look_cheap() -> None:
    runs = _runs(30)
    for run in runs:
        run.errors[:, 4:LEVELS] = 0
    weights = Sensitivity.fit(runs).weights
    assert weights[LEVELS - 1] > weights[3]


def test_prompts_get_their_offset_by_and_by() -> None:
    few, many = (Sensitivity.fit(_runs(count, cases=2, shift=4.0)) for count in (4, 80))
    assert many.offsets[1] - many.offsets[0] == pytest.approx(4.0, abs=0.6)
    assert few.offsets[1] - few.offsets[0] < many.offsets[1] - many.offsets[0]


def test_ways_to_extrapolate_get_their_offset_by_and_by() -> None:
    errors = np.full((1, 3, CHANNELS), 0.05)

    def apart(runs: int) -> float:
        fitted = Sensitivity.fit(_runs(runs, cases=2, shift=3.0, way_apart=4.0))
        return float((fitted.psnr_db(_replayed(errors, WAYS[1])) - fitted.psnr_db(_replayed(errors, WAYS[0])))[0])

    assert apart(80) == pytest.approx(4.0, abs=0.6)
    assert 0.5 < apart(4) < apart(80)
    unknown = Sensitivity.fit(_runs(80)).psnr_db(_replayed(errors, (2, "step")))
    assert unknown == pytest.approx(Sensitivity.fit(_runs(80)).psnr_db(_replayed(errors)), abs=0.5)


def test_how_far_prompts_lie_apart_is_learnt() -> None:
    alike, apart = (Sensitivity.fit(_runs(200, cases=8, shift=shift)) for shift in (0.0, 3.0))
    assert alike.between_db < 3.5
    assert apart.between_db > 5.5


def test_without_runs_more_error_is_worse_and_no_error_is_the_ceiling() -> None:
    prior = Sensitivity.fit([])
    small, large = np.full((1, 2, CHANNELS), 0.01), np.full((1, 2, CHANNELS), 0.1)
    assert prior.runs == 0
    assert prior.psnr_db(_replayed(small))[0] > prior.psnr_db(_replayed(large))[0]
    assert prior.psnr_db(_replayed(np.zeros((1, 2, CHANNELS))))[0] == 100
