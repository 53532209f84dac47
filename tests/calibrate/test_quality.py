from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from calibrate.quality import Frames, Quality, compare, floor_figures, summarise


@pytest.fixture(scope="module")
def clip() -> Frames:
    """A camera that pans over a smooth random texture by one pixel per frame, [24, 64, 64, 3] in [0.2, 0.8]."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64)), 2.5, mode="wrap")
    texture = 0.2 + 0.6 * (texture - texture.min()) / np.ptp(texture)
    frames = np.stack([np.roll(texture, t, axis=1) for t in range(24)])
    return np.repeat(frames[..., None], 3, axis=-1).astype(np.float32)


def test_identical_clips_have_finite_best_figures(clip: Frames) -> None:
    quality = compare(clip, clip.copy())
    assert quality.psnr_db == quality.psnr_worst_frame_db == quality.temporal_psnr_db == 100.0
    assert quality.ssim == pytest.approx(1.0, abs=1e-6)
    assert quality.flicker == 0
    assert quality.motion_error_px == 0


def test_psnr_is_that_of_a_known_error(clip: Frames) -> None:
    noisy = clip.copy()
    noisy[3] += 0.1
    quality = compare(clip, noisy)
    assert quality.psnr_worst_frame_db == pytest.approx(20.0, abs=1e-3)
    assert quality.psnr_db == pytest.approx((23 * 100 + 20) / 24, abs=1e-3)


def test_flicker_is_seen_as_flicker_and_a_freeze_as_stalled_motion(clip: Frames) -> None:
    flickering = clip + (0.03 * (np.arange(24) % 2 * 2 - 1))[:, None, None, None].astype(np.float32)
    frozen = clip.copy()
    frozen[8:] = frozen[8]
    seen, stalled = compare(clip, flickering), compare(clip, frozen)
    assert seen.flicker == pytest.approx(0.06 * 255, rel=0.01)
    assert seen.flicker > 5 * stalled.flicker
    assert stalled.motion_error_px > 3 * seen.motion_error_px
    # Frame by frame the flicker is the lesser evil of a constant offset, but not in time.
    offset = compare(clip, clip + np.float32(0.03))
    assert seen.psnr_db == pytest.approx(offset.psnr_db, abs=1e-3)
    assert seen.temporal_psnr_db < offset.temporal_psnr_db - 20


def test_a_shift_costs_structure_but_not_motion(clip: Frames) -> None:
    shifted = compare(clip, np.roll(clip, 3, axis=2))
    assert shifted.ssim < 0.9
    assert shifted.psnr_db < 30


def test_figures_that_are_not_finite_are_refused(clip: Frames) -> None:
    broken = clip.copy()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        compare(clip, broken)
    with pytest.raises(ValueError, match="share one shape"):
        compare(clip, clip[1:])


def test_the_worst_case_is_named_and_counts_the_right_way_round() -> None:
    good = Quality(40.0, 35.0, 0.99, 45.0, flicker=0.1, motion_error_px=0.2)
    bad = Quality(30.0, 28.0, 0.90, 33.0, flicker=0.9, motion_error_px=1.0)
    summary = summarise({"good": good, "bad": bad})
    assert {entry["worst_case"] for entry in summary.values()} == {"bad"}
    assert summary["psnr_db"]["mean"] == 35.0
    assert summary["psnr_db"]["std"] == 5.0
    assert floor_figures([good, bad])["psnr_worst_prompt_db"] == 30.0
    assert floor_figures([good, bad])["psnr_worst_frame_db"] == 28.0
