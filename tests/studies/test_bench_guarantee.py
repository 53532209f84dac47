from __future__ import annotations

import numpy as np

from calibrate.spec.floors import Floors
from calibrate.spec.guarantee import Guarantee
from studies.bench.guarantee import Wish, simulate

WISH = Wish(Guarantee(share=0.9, confidence=0.9), Floors(psnr_db=None, psnr_worst_prompt_db=30.0, safety_margin_db=0.0))
SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 5.0)


def test_tests_keep_promises_that_a_margin_breaks() -> None:
    # Policies a few dB apart; prompts five, so that three search prompts say little.
    chance = np.random.default_rng(0)
    prompts = chance.normal(0, 5, 120)
    matrix = np.stack([mean + prompts + chance.normal(0, 1, 120) for mean in (48, 42, 37, 35, 33)])
    figures = simulate(matrix, SPEEDUPS, WISH, 200)
    assert figures["guarantee_prompts"] == 22
    assert figures["broken_share_of_all"] < 0.1
    assert figures["broken_share"] < 0.16
    assert figures["broken_share_of_margin_rule"] > 0.3
    assert figures["broken_share_of_population_rule"] < figures["broken_share_of_margin_rule"] / 2
    assert 1.5 <= figures["median_speedup"] < figures["median_speedup_of_margin_rule"]


def test_where_no_policy_holds_nothing_is_promised() -> None:
    figures = simulate(np.full((5, 60), 20.0), SPEEDUPS, WISH, 20)
    assert figures["nothing_promised"] == figures["nothing_promised_of_population_rule"] == 1
    assert figures["broken_share"] == 0
    assert figures["median_speedup"] == 1
