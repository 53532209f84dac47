from __future__ import annotations

import numpy as np
import pytest

from calibrate.change_scale import ChangeScale, Observations
from calibrate.errors import CalibrateError


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
    assert scale.threshold(1.0) == pytest.approx(2 * change[-3:].sum())
    assert scale.threshold(0) == 0
    thresholds = [scale.threshold(q) for q in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)]
    assert thresholds == sorted(set(thresholds))


def test_windows_do_not_reach_from_one_block_into_another() -> None:
    one, two = np.full(3, 1.0), np.full(3, 10.0)
    both = np.concatenate([_observations(one, one, block=0), _observations(two, two, block=1)])
    scale = ChangeScale.fit("modulated-input", [both], max_skip=1)
    assert set(np.round(scale.accumulated, 6)) == {1.0, 2.0, 10.0, 20.0}


def test_a_recording_without_usable_rows_is_explained() -> None:
    with pytest.raises(CalibrateError, match="num_inference_steps"):
        ChangeScale.fit("noise-level", [_observations(np.array([np.nan]), np.array([1.0]))], 2)
