from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from calibrate.errors import CalibrateError
from calibrate.results.guarantee import (
    Promise,
    ShareTest,
    Tried,
    cases_needed,
    largest_share,
    mean_bound,
    passed_in_turn,
    share_test,
    worth_measuring,
)
from calibrate.results.promises import refuse_too_few
from calibrate.spec.floors import Floors
from calibrate.spec.guarantee import Guarantee

WORST_30 = Floors(psnr_db=None, psnr_worst_prompt_db=30.0, safety_margin_db=0.0)


def test_known_numbers_of_cases() -> None:
    assert cases_needed(0.9, 0.9) == 22
    assert share_test(37, 0.9, 0.9) == ShareTest(22, 0)
    assert share_test(38, 0.9, 0.9) == ShareTest(38, 1)
    assert share_test(21, 0.9, 0.9) is None
    assert largest_share(22, 0.9) == pytest.approx(0.9006, abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.99])
def test_a_test_allows_what_the_binomial_distribution_allows_and_looks_at_no_more_cases_than_that_takes(
    share: float, confidence: float
) -> None:
    for cases in (1, 7, 24, 60):
        test = share_test(cases, share, confidence)
        allowed = [k for k in range(cases + 1) if binom.cdf(k, cases, 1 - share) <= 1 - confidence]
        if test is None:
            assert not allowed
            continue
        assert test.misses == allowed[-1]
        assert binom.cdf(test.misses, test.cases, 1 - share) <= 1 - confidence
        assert binom.cdf(test.misses, test.cases - 1, 1 - share) > 1 - confidence


def test_an_outcome_is_known_as_soon_as_nothing_can_change_it() -> None:
    test = ShareTest(4, 1)
    assert test.passed([True, True, True, None]) is True
    assert test.passed([True, True, None, None]) is None
    assert test.passed([False, None, False, None]) is False
    assert test.passed([True, False, True, True, False, False]) is True


def _tried(trial: int, psnr: list[float | None]) -> Tried:
    return Tried(trial, 1.0 + trial, [None if value is None else {"psnr_db": value} for value in psnr])


def test_the_first_failure_ends_the_sequence() -> None:
    promise = Promise(0.7, 0.8, WORST_30)
    good, bad, open_ = [35.0] * 5, [35.0, 20.0, 35.0, 35.0, 35.0], [35.0, None, None, None, None]
    assert promise.test(5) == ShareTest(5, 0)
    assert [t.trial for t in passed_in_turn(promise, [_tried(0, good), _tried(1, bad), _tried(2, good)])] == [0]
    assert [t.trial for t in passed_in_turn(promise, [_tried(0, good), _tried(1, open_), _tried(2, good)])] == [0]
    easier = Promise(0.7, 0.8, Floors(psnr_db=None, psnr_worst_prompt_db=15.0))
    assert worth_measuring([promise], [_tried(0, good), _tried(1, open_)])
    assert not worth_measuring([promise], [_tried(0, bad), _tried(1, open_)])
    assert worth_measuring([promise, easier], [_tried(0, bad), _tried(1, open_)])
    broken = Tried(0, 2.0, [{"psnr_db": 40.0}] * 5, failed="out of memory")
    assert promise.passed(broken) is False


def test_means_are_bounded_over_all_cases() -> None:
    psnr = [36.0, 38.0, 40.0, 37.0, 39.0]
    holds = Promise(0.5, 0.9, Floors(psnr_db=36.0, psnr_worst_prompt_db=30.0))
    misses = Promise(0.5, 0.9, Floors(psnr_db=37.5, psnr_worst_prompt_db=30.0))
    assert holds.passed(_tried(0, list(psnr))) is True
    assert holds.passed(_tried(0, [*psnr[:4], None])) is None  # though its share is decided
    assert np.mean(psnr) > 37.5
    assert misses.passed(_tried(0, list(psnr))) is False


def test_no_more_promises_are_broken_than_the_confidence_allows() -> None:
    """Policies from careful to bold, whose prompts miss more and more often, on one and the same prompts."""
    rng, draws, promise = np.random.default_rng(0), 4000, Promise(0.9, 0.9, WORST_30)
    misses = [0.01, 0.05, 0.095, 0.101, 0.13, 0.2]
    broken = 0
    for hardness in rng.random((draws, 24)):
        sequence = [_tried(number, list(np.where(hardness < miss, 20.0, 40.0))) for number, miss in enumerate(misses)]
        passed = passed_in_turn(promise, sequence)
        broken += bool(passed) and misses[passed[-1].trial] > 0.1
    # Three standard errors of so many draws.
    assert 0.02 < broken / draws <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / draws)


def test_bounds_of_means_cover_a_skewed_population_as_promised_where_student_and_bootstrap_do_not() -> None:
    """PSNR over prompts: a standard deviation of 5.5 dB, and a twelfth of the prompts far below the others."""
    from scipy.stats import t

    rng, draws, count = np.random.default_rng(1), 4000, 24
    chaotic = rng.random((draws, count)) < 1 / 12
    samples = np.where(chaotic, rng.normal(20, 2, (draws, count)), rng.normal(36, 3.5, (draws, count)))
    truth = 36 - 16 / 12
    covered = np.mean([mean_bound(list(sample), 0.9) <= truth for sample in samples])
    means, spreads = samples.mean(1), samples.std(1, ddof=1)
    student = np.mean(means - t.ppf(0.9, count - 1) * spreads / np.sqrt(count) <= truth)
    assert covered >= 0.87
    assert student < covered - 0.01


def test_bounds_of_few_or_equal_values() -> None:
    assert mean_bound([30.0], 0.9) == -np.inf
    assert mean_bound([30.0, 30.0, 30.0], 0.9) == 30.0
    assert mean_bound([30.0, 34.0], 0.9) < 30.0
    assert mean_bound([30.0, 32.0, 34.0], 0.9) == pytest.approx(32 - 2 * 1.8856 / np.sqrt(3), abs=1e-3)  # Student's


def test_too_few_cases_are_told_what_they_can_promise() -> None:
    with pytest.raises(CalibrateError) as refused:
        refuse_too_few(Guarantee(share=0.9, confidence=0.9), 5)
    assert str(refused.value) == (
        "guarantee_cases: 5 guarantee cases can promise at most a share of 0.63 with confidence 0.9, if none misses, "
        "and a share of 0.9 takes 22; add 17, or ask for less."
    )
    refuse_too_few(Guarantee(share=0.9, confidence=0.9), 22)
