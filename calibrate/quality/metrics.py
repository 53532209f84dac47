"""Full-reference quality proxies between two decoded clips.

No single proxy decides: PSNR and SSIM compare frame by frame and miss a good deal of what moves, so two temporal
proxies stand beside them. PSNR of the frame differences and the luma flicker see brightness that jumps; the
optical-flow error sees motion that stalls. Clips are compared as decoded floats, never as encoded files.

Squared errors are averaged before they become dB: a mean of dB over frames takes a clip whose beginning is exact and
whose rest is poor for a good one, because the exact frames count with the ceiling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

# What measures is loaded where it measures: whoever only looks at figures does not wait for it.
if TYPE_CHECKING:
    import torch

Frames = NDArray[np.float32]

# The frames [start, end) that a block's latent frames are decoded to; see `Target.block_spans`.
Span = tuple[int, int]

# Which definition of the figures is measured here. Figures of different versions are never compared.
METRIC_VERSION = 2
# What a record without a version was measured by.
FIRST_METRIC_VERSION = 1
# The figures that mean something else than they did in an earlier version.
REDEFINED = ("psnr_db", "psnr_worst_prompt_db")
_MEANINGS = {
    FIRST_METRIC_VERSION: "mean of frame PSNR, before version 2",
    METRIC_VERSION: "PSNR of the clip's mean squared error",
}

# Identical frames have an infinite PSNR, which neither JSON nor an average can hold.
PSNR_CEILING_DB = 100.0
# Frames per SSIM call: enough to keep the cores busy, little enough at 544x960.
_BATCH = 8


@dataclass(frozen=True)
class Quality:
    """How close a clip is to its reference.

    Attributes:
        psnr_db: Peak signal-to-noise ratio of the clip's mean squared error, at most 100 dB.
        psnr_worst_frame_db: The lowest frame's.
        psnr_worst_block_db: The lowest block's, of the mean squared error of its frames.
        ssim: Mean structural similarity over frames; 1 is identical.
        temporal_psnr_db: PSNR of the differences between neighbouring frames, at most 100 dB; sees flicker and freezes.
        flicker: Root mean square error of the frame-to-frame change of mean luma, in steps of 1/255; sees flicker.
        motion_error_px: Mean end-point error of the optical flow between neighbouring frames, in pixels; sees freezes.
    """

    psnr_db: float
    psnr_worst_frame_db: float
    psnr_worst_block_db: float
    ssim: float
    temporal_psnr_db: float
    flicker: float
    motion_error_px: float

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Self:
        """The inverse of `to_dict`; further metrics are left out."""
        return cls(**{field.name: metrics[field.name] for field in dataclasses.fields(cls)})

    def to_dict(self) -> dict[str, float]:
        """Plain floats by metric name."""
        return dataclasses.asdict(self)


# Of a clip that equals its reference.
PERFECT = Quality(
    PSNR_CEILING_DB, PSNR_CEILING_DB, PSNR_CEILING_DB, 1.0, PSNR_CEILING_DB, flicker=0.0, motion_error_px=0.0
)
METRICS = tuple(field.name for field in dataclasses.fields(Quality))
# For these, less is better: their worst case is the largest.
ERRORS = frozenset({"flicker", "motion_error_px"})


def metric_version(record: Mapping[str, Any]) -> int:
    """The version that the figures of a result or of a profile's evidence were measured by.

    Without one it is the first, and 0 where it is no version at all.
    """
    version = record.get("metric_version", FIRST_METRIC_VERSION)
    return version if isinstance(version, int) and not isinstance(version, bool) else 0


def psnr_meaning(version: int) -> str:
    """What `psnr_db` means in figures of a version."""
    return _MEANINGS.get(version, f"figure of a version that this program does not know ({version})")


def compare(reference: Frames, candidate: Frames, blocks: Sequence[Span] | None = None) -> Quality:
    """Measures `candidate` against `reference`.

    Args:
        reference: Frames [T, H, W, 3] in [0, 1], T >= 2, H and W >= 16.
        candidate: The same shape.
        blocks: The frames of each block, all T of them; None where the clip counts as one block.

    Raises:
        ValueError: If the shapes differ, the clips are too small, or a value is not finite.
    """
    if reference.shape != candidate.shape or reference.ndim != 4 or len(reference) < 2:
        raise ValueError(f"clips must share one shape [T >= 2, H, W, 3], not {reference.shape} and {candidate.shape}")
    if not np.isfinite(candidate).all():
        raise ValueError("the clip holds values that are not finite")
    errors = frame_errors(reference, candidate)
    return Quality(
        psnr_db=float(psnr(errors.mean())),
        psnr_worst_frame_db=float(psnr(errors.max())),
        psnr_worst_block_db=float(psnr(block_errors(errors, blocks or [(0, len(errors))]).max())),
        ssim=_ssim(reference, candidate),
        temporal_psnr_db=float(psnr(frame_errors(np.diff(reference, axis=0), np.diff(candidate, axis=0)).mean())),
        flicker=_flicker(reference, candidate),
        motion_error_px=_motion_error(reference, candidate),
    )


def at_best(errors: NDArray[np.float64], blocks: Sequence[Span], frames: int) -> Quality:
    """The best figures that a clip can still come to whose beginning is known.

    Its further frames may be perfect, and no frame of the beginning will be another one. What PSNR does not tell is
    taken for perfect.

    Args:
        errors: Of the frames of the beginning; see `frame_errors`.
        blocks: Their blocks.
        frames: Of the whole clip.
    """
    return dataclasses.replace(
        PERFECT,
        psnr_db=float(psnr(errors.sum() / frames)),
        psnr_worst_frame_db=float(psnr(errors.max())),
        psnr_worst_block_db=float(psnr(block_errors(errors, blocks).max())),
    )


def frame_errors(reference: Frames, candidate: Frames) -> NDArray[np.float64]:
    """Mean squared error of every frame [T]; both clips [T, H, W, 3] in [0, 1]."""
    # Frame by frame, because doubles of a whole clip take gigabytes.
    return np.array([np.square(a.astype(np.float64) - b).mean() for a, b in zip(reference, candidate, strict=True)])


def block_errors(errors: NDArray[np.float64], blocks: Sequence[Span]) -> NDArray[np.float64]:
    """Mean squared error of every block.

    Args:
        errors: Of every frame [T]; see `frame_errors`.
        blocks: The frames of each block.
    """
    return np.array([errors[start:end].mean() for start, end in blocks])


def psnr(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """PSNR in dB, at most 100, of each of some mean squared errors of values in [0, 1]."""
    return -10 * np.log10(np.maximum(errors, 10 ** (-PSNR_CEILING_DB / 10)))


def summarise(cases: Mapping[str, Quality]) -> dict[str, dict[str, float | str]]:
    """Per metric the mean with its interval, standard deviation, extremes and the name of the worst case.

    Args:
        cases: Measurements by case name, at least one.

    Returns:
        ``{metric: {"mean", "mean_low", "mean_high", "std", "min", "max", "worst_case"}}``; see `interval`.
    """
    summary: dict[str, dict[str, float | str]] = {}
    for metric in METRICS:
        values = {name: quality.to_dict()[metric] for name, quality in cases.items()}
        pick_worst = max if metric in ERRORS else min
        summary[metric] = {
            "mean": float(np.mean(list(values.values()))),
            **interval(list(values.values())),
            "std": float(np.std(list(values.values()))),
            "min": min(values.values()),
            "max": max(values.values()),
            "worst_case": pick_worst(values, key=lambda name: values[name]),
        }
    return summary


def interval(values: Sequence[float]) -> dict[str, float]:
    """The 95 % bootstrap interval of a mean as `mean_low` and `mean_high`; empty for fewer than two values.

    With a handful of prompts it is narrower than it should be: the bootstrap cannot know of prompts unlike them all.
    """
    if len(values) < 2:
        return {}
    from scipy.stats import bootstrap

    found = bootstrap((np.asarray(values),), np.mean, method="percentile", rng=0).confidence_interval
    return {"mean_low": float(found.low), "mean_high": float(found.high)}


def floor_figures(cases: Sequence[Quality]) -> dict[str, float]:
    """The figures that quality floors are set on: means over cases, and the PSNR of the worst case, frame and block."""
    return {
        "psnr_db": float(np.mean([quality.psnr_db for quality in cases])),
        "psnr_worst_prompt_db": min(quality.psnr_db for quality in cases),
        "psnr_worst_frame_db": min(quality.psnr_worst_frame_db for quality in cases),
        "psnr_worst_block_db": min(quality.psnr_worst_block_db for quality in cases),
        "ssim": float(np.mean([quality.ssim for quality in cases])),
        "temporal_psnr_db": float(np.mean([quality.temporal_psnr_db for quality in cases])),
    }


def mean_over_frames(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], reference: Frames, candidate: Frames
) -> float:
    """The mean of a score of pairs of frames, taken a few frames at a time to bound its memory.

    Args:
        score: Of two batches of frames [n, 3, H, W] in [0, 1]; gives [n].
        reference: Frames [T, H, W, 3] in [0, 1].
        candidate: The same shape.
    """
    import torch

    scores = []
    with torch.no_grad():
        for start in range(0, len(reference), _BATCH):
            a, b = (
                torch.from_numpy(np.ascontiguousarray(clip[start : start + _BATCH])).permute(0, 3, 1, 2)
                for clip in (reference, candidate)
            )
            scores.append(score(a, b))
    return float(torch.cat(scores).mean())


def _ssim(reference: Frames, candidate: Frames) -> float:
    from pytorch_msssim import ssim

    return mean_over_frames(partial(ssim, data_range=1.0, size_average=False), reference, candidate)


def _luma(frames: Frames) -> Frames:
    import cv2

    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def _flicker(reference: Frames, candidate: Frames) -> float:
    change = [np.diff(_luma(clip).mean(axis=(1, 2), dtype=np.float64)) * 255 for clip in (reference, candidate)]
    return float(np.sqrt(np.mean(np.square(change[0] - change[1]))))


def _motion_error(reference: Frames, candidate: Frames) -> float:
    errors = [np.linalg.norm(a - b, axis=-1).mean() for a, b in zip(_flow(reference), _flow(candidate), strict=True)]
    return float(np.mean(errors))


def _flow(frames: Frames) -> list[NDArray[np.float32]]:
    """Optical flow [H, W, 2] in pixels between neighbouring frames."""
    import cv2

    algorithm = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    luma = np.round(_luma(frames) * 255).clip(0, 255).astype(np.uint8)
    rest = np.zeros((*luma.shape[1:], 2), dtype=np.float32)
    return [np.asarray(algorithm.calc(a, b, rest.copy())) for a, b in pairwise(luma)]
