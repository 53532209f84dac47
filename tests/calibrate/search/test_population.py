from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from calibrate.replay.sensitivity import Sensitivity
from calibrate.search.population import Population


def test_how_often_an_estimate_is_believed_is_how_often_it_is_right() -> None:
    # Means of prompts that were drawn around 34 dB, 5 dB apart; 90 % of all prompts reach 34 - 1.28 * 5 dB.
    chance = np.random.default_rng(0)
    truth = 34 - float(norm.ppf(0.9)) * 5
    for cases in (3, 8):
        drawn = [Population(float(chance.normal(34, 5, cases).mean()), 5.0, cases) for _ in range(1000)]
        believed = np.array([population.share_holds(truth, 0.9) for population in drawn])
        assert believed.mean() == pytest.approx(0.5, abs=0.03)
        # Of those that look good, hardly one is far too low in truth.
        assert np.mean([population.share_holds(truth + 6, 0.9) > 0.9 for population in drawn]) < 0.05


def test_a_share_asks_for_more_than_half_and_prompts_apart_for_more_still() -> None:
    near, far = Population(36.0, 2.0, 3), Population(36.0, 6.0, 3)
    assert near.share_holds(30, 0.9) > 0.9 > near.share_holds(34, 0.9)
    assert far.share_holds(30, 0.9) < 0.5
    assert near.share_holds(33, 0.5) > near.share_holds(33, 0.9)
    assert near.mean_holds(36) == pytest.approx(0.5)


def test_few_prompts_that_are_alike_do_not_show_that_all_are() -> None:
    unseen = Sensitivity.fit([])
    assert unseen.between_db == 5.0
    estimated = np.array([33.0, 34.0, 35.0])
    alike = dataclasses.replace(unseen, between_db=2.0)
    assert Population.of(estimated, alike).spread < Population.of(estimated, unseen).spread
    assert Population.of(estimated, unseen).mean == 34.0
