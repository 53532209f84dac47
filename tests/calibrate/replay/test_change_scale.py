from __future__ import annotations

import numpy as np
import pytest

from calibrate.errors import CalibrateError
from calibrate.replay.change_scale import ChangeScale, Observations


def _observations(change: np.ndarray, output: np.ndarray, block: int = 0) -> Observations:
    """A block that comes down from noise level 1 in equal steps."""
    rows = np.arange(len(change), dtype=np.float64)
    levels = np.linspace(1, 0, len(change) + 1)
    return np.stack([rows, np.full_like(rows, block), levels[:-1], levels[1:], change, output], axis=1)


def test_the_map_is_monotone_never_negative_and_has_few_knots() -> None:
    rng = np.random.default_rng(0)
    change = rng.uniform(0, 1, 300)
    scale = ChangeScale.fit("modulated-input", [_observations(change, change**2 + rng.normal(0, 0.05, 300))], 3)
    assert len(scale.change_map.x) <= 24
    assert min(scale.change_map.y) >= 0
    assert list(scale.change_map.y) == sorted(scale.change_map.y)
    assert scale.change_map(0.8) == pytest.approx(0.64, abs=0.08)


def test_where_outputs_move_most_at_both_ends_of_the_way_the_noise_level_tells_so() -> None:
    """Which no monotone map of the drop in noise level can."""
    rng = np.random.default_rng(0)
    middle = np.linspace(-1, 1, 40)
    change = 0.02 + middle**2
    runs = [_observations(np.full(40, 0.1), change + rng.normal(0, 0.01, 40)) for _ in range(3)]
    scale = ChangeScale.fit("noise-level", runs, 3)
    assert scale.fit_quality.r_squared > 0.95
    assert scale.fit_quality.rank_correlation > 0.95
    path = scale.noise_map
    assert (path.x[0], path.x[-1]) == (0, 1)
    assert path.y[0] == 0
    assert list(path.y) == sorted(path.y)
    assert path(1.0) == pytest.approx(change.sum(), rel=0.02)
    assert path(0.55) - path(0.45) < 0.2 * (path(1.0) - path(0.9))


def test_thresholds_lie_within_what_was_observed_and_each_quantile_differs() -> None:
    change = np.linspace(0.1, 0.4, 12)
    scale = ChangeScale.fit("modulated-input", [_observations(change, 2 * change)], max_skip=2)
    # Windows of 1, 2 and 3 rows: 12 + 11 + 10 of them, of which the largest is the sum of the last three changes.
    assert len(scale.accumulated) == 33
    assert scale.threshold(1.0) == pytest.approx(2 * change[-3:].sum(), rel=1e-3)
    assert scale.threshold(0) == 0
    thresholds = [scale.threshold(q) for q in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)]
    assert thresholds == sorted(set(thresholds))


def test_windows_do_not_reach_from_one_block_into_another() -> None:
    one, two = np.full(3, 1.0), np.full(3, 10.0)
    both = np.concatenate([_observations(one, one, block=0), _observations(two, two, block=1)])
    scale = ChangeScale.fit("modulated-input", [both], max_skip=1)
    assert set(np.round(scale.accumulated, 6)) == {1.0, 2.0, 10.0, 20.0}


def test_windows_do_not_reach_across_a_row_that_is_missing_or_into_the_next_window_of_a_long_video() -> None:
    run = _observations(np.array([1.0, 1.0, 10.0, 10.0]), np.array([1.0, 1.0, 10.0, 10.0]))
    for rows in ([0, 1, 3, 4], [0, 1, 0, 1]):
        broken = np.column_stack([np.array(rows, dtype=np.float64), run[:, 1:]])
        scale = ChangeScale.fit("modulated-input", [broken], max_skip=3)
        assert set(np.round(scale.accumulated, 6)) == {1.0, 2.0, 10.0, 20.0}, rows


def test_equal_outputs_make_no_plateau_in_the_map_of_content() -> None:
    """Isotonic regression alone would give 20 different inputs one value, at both ends and in the middle."""
    rng = np.random.default_rng(0)
    change = np.linspace(0.1, 1.0, 60)
    output = np.repeat([0.2, 0.5, 0.6], 20) + rng.uniform(-0.01, 0.01, 60)
    scale = ChangeScale.fit("modulated-input", [_observations(change, output)], max_skip=0)
    assert (np.diff(scale.change_map.y) > 1e-5).all()
    assert scale.fit_quality.r_squared > 0.98
    expected = np.array([scale.change_map(value) for value in change])
    assert len(np.unique(expected)) == len(change)
    decided = [(expected < scale.threshold(float(quantile))).sum() for quantile in np.arange(0.0, 1.001, 0.02)]
    assert np.diff(decided).max() <= 2, "a step of 0.02 decides 0.02 of the 60 updates"


def test_outputs_that_fall_to_nothing_keep_a_map_of_content_that_rises_and_is_not_negative() -> None:
    change = np.linspace(0.1, 1.0, 30)
    output = np.where(change < 0.5, 0.0, 1.0)
    scale = ChangeScale.fit("modulated-input", [_observations(change, output)], 3)
    assert scale.change_map.y[0] == 0
    assert (np.diff(scale.change_map.y) > 0).all()


def test_noise_levels_between_which_nothing_seems_to_change_still_make_the_map_rise() -> None:
    """Least squares alone would give the fall from one such level to the next no change at all."""
    change = np.array([0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5])
    run = _observations(np.full(8, 0.1), change)
    # Steps that overlap: their changes contradict each other, so that some are best explained by none.
    wide = run[1:].copy()
    wide[:, 2] = run[:-1, 2]
    scale = ChangeScale.fit("noise-level", [np.concatenate([run, wide])], 3)
    rise = np.diff(scale.noise_map.y) / np.diff(scale.noise_map.x)
    assert (rise > 0.01 * rise.mean()).all()


def test_a_threshold_keeps_clear_of_every_value_that_accumulated_change_can_take() -> None:
    rng = np.random.default_rng(0)
    runs = [_observations(rng.uniform(0.05, 0.4, 30), rng.uniform(0.05, 0.4, 30)) for _ in range(4)]
    for indicator in ("noise-level", "modulated-input"):
        scale = ChangeScale.fit(indicator, runs, 5)
        for quantile in np.arange(0.0, 1.001, 0.02):
            threshold = scale.threshold(float(quantile))
            if threshold:
                assert np.abs(scale.accumulated / threshold - 1).min() > 2e-5, (indicator, quantile)


def test_windows_of_one_value_lie_on_one_side_of_a_threshold() -> None:
    """They differ by rounding alone: 0.1 + 0.2 is not 0.3."""
    scale = ChangeScale.fit("modulated-input", [_observations(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]))], 1)
    assert len(np.unique(scale.accumulated)) == 5
    thresholds = [scale.threshold(quantile) for quantile in np.arange(0.0, 1.001, 0.05)]
    assert thresholds == sorted(thresholds)
    assert np.unique(np.round(thresholds, 3)).tolist() == [0.0, 0.15, 0.25, 0.4, 0.5]


def test_a_quantile_comes_back_from_its_threshold() -> None:
    rng = np.random.default_rng(0)
    change = rng.uniform(0.05, 0.4, 100)
    scale = ChangeScale.fit("modulated-input", [_observations(change, change)], 5)
    for quantile in (0.1, 0.35, 0.8):
        assert scale.share_below(scale.threshold(quantile)) == pytest.approx(quantile, abs=0.01)
    assert scale.share_below(scale.threshold(0.0)) == 0
    assert scale.share_below(scale.threshold(1.0)) == 1


def test_a_recording_without_usable_rows_is_explained() -> None:
    with pytest.raises(CalibrateError, match="num_inference_steps"):
        ChangeScale.fit("noise-level", [_observations(np.array([np.nan]), np.array([1.0]))], 2)
