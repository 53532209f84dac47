from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from calibrate.quality.metrics import (
    ERRORS,
    METRIC_VERSION,
    METRICS,
    PERFECT,
    Frames,
    Quality,
    at_best,
    block_errors,
    compare,
    floor_figures,
    frame_errors,
    metric_version,
    psnr,
    psnr_meaning,
    summarise,
)


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
    assert quality.psnr_worst_block_db == PERFECT.psnr_worst_block_db == 100.0
    assert quality.ssim == pytest.approx(1.0, abs=1e-6)
    assert quality.flicker == 0
    assert quality.motion_error_px == 0


def test_psnr_is_that_of_a_known_error(clip: Frames) -> None:
    noisy = clip.copy()
    noisy[3] += 0.1
    quality = compare(clip, noisy)
    assert quality.psnr_worst_frame_db == pytest.approx(20.0, abs=1e-3)
    # A hundredth in one frame of 24; the mean of the frames' own figures would be 97 dB.
    assert quality.psnr_db == pytest.approx(20 + 10 * math.log10(24), abs=1e-3)
    # Without blocks the clip is one; the frame's own block has two frames.
    assert quality.psnr_worst_block_db == quality.psnr_db
    blocks = [(0, 2), (2, 4), (4, 24)]
    assert compare(clip, noisy, blocks).psnr_worst_block_db == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)


def test_an_exact_beginning_does_not_make_up_for_what_follows(clip: Frames) -> None:
    """Chunks of 100, 24.1, 12.5 and 12.3 dB: the mean of frame PSNR would be 37.2 dB."""
    chunks = [100.0, 24.1, 12.5, 12.3]
    blocks = [(6 * n, 6 * n + 6) for n in range(4)]
    candidate = clip.copy()
    for (start, end), decibel in zip(blocks[1:], chunks[1:], strict=True):
        candidate[start:end] += np.float32(10 ** (-decibel / 20))
    quality = compare(clip, candidate, blocks)
    assert np.mean(psnr(frame_errors(clip, candidate))) == pytest.approx(37.2, abs=0.05)
    assert quality.psnr_db == pytest.approx(-10 * math.log10(sum(10 ** (-c / 10) for c in chunks) / 4), abs=1e-3)
    assert 15 < quality.psnr_db < 15.6
    assert psnr(block_errors(frame_errors(clip, candidate), blocks)).tolist() == pytest.approx(chunks, abs=1e-3)
    assert quality.psnr_worst_block_db == pytest.approx(12.3, abs=1e-3)
    assert quality.psnr_worst_block_db < quality.psnr_db


@pytest.mark.parametrize("rest", ["perfect", "alike", "worse"])
def test_what_a_beginning_can_still_come_to_is_never_below_what_it_comes_to(clip: Frames, rest: str) -> None:
    candidate = clip.copy()
    candidate[:6] += np.random.default_rng(0).normal(0, 0.1, candidate[:6].shape).astype(np.float32)
    candidate[6:] += np.float32({"perfect": 0.0, "alike": 0.1, "worse": 0.3}[rest])
    blocks = [(0, 3), (3, 6), (6, 24)]
    best = at_best(frame_errors(clip[:6], candidate[:6]), blocks[:2], len(clip)).to_dict()
    whole = compare(clip, candidate, blocks).to_dict()
    for name in METRICS:
        if name not in ERRORS:
            assert best[name] >= whole[name] - 1e-9, name
    if rest == "perfect":
        for name in ("psnr_db", "psnr_worst_frame_db", "psnr_worst_block_db"):
            assert best[name] == pytest.approx(whole[name]), name


def test_a_record_without_a_version_is_of_the_first() -> None:
    assert metric_version({}) == 1
    assert metric_version({"metric_version": METRIC_VERSION}) == METRIC_VERSION == 2
    assert metric_version({"metric_version": {"of": "nonsense"}}) == 0
    assert psnr_meaning(1) == "mean of frame PSNR, before version 2"
    assert "7" in psnr_meaning(7)


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
    good = Quality(40.0, 35.0, 37.0, 0.99, 45.0, flicker=0.1, motion_error_px=0.2)
    bad = Quality(30.0, 28.0, 29.0, 0.90, 33.0, flicker=0.9, motion_error_px=1.0)
    summary = summarise({"good": good, "bad": bad})
    assert {entry["worst_case"] for entry in summary.values()} == {"bad"}
    assert summary["psnr_db"]["mean"] == 35.0
    assert summary["psnr_db"]["std"] == 5.0
    assert floor_figures([good, bad])["psnr_worst_prompt_db"] == 30.0
    assert floor_figures([good, bad])["psnr_worst_frame_db"] == 28.0
    assert floor_figures([good, bad])["psnr_worst_block_db"] == 29.0
