"""Stock, exact and SCOPE side by side: the measurement on which exported and verified figures rest.

All runs of a case follow each other in one process, so that whatever slows the machine down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.families.rounding import EXACT_MULTIPLE
from calibrate.families.target import Denoised, Target
from calibrate.measure.detail import decibels
from calibrate.measure.pictures import comparison_clip
from calibrate.quality.metrics import (
    METRIC_VERSION,
    Quality,
    Span,
    block_errors,
    compare,
    floor_figures,
    frame_errors,
    interval,
    summarise,
)
from calibrate.quality.score_figures import score_figures
from calibrate.quality.scores import Scores
from calibrate.spec.generation import Case
from calibrate.spec.running import Score
from scope_runtime import Profile, Report, Scope, apply_scope, exact


@dataclass(frozen=True)
class PairedCase:
    """One case, generated three times.

    Attributes:
        case: Prompt and seed.
        stock_seconds: Denoising by the stock pipeline.
        exact_seconds: Denoising by the exact mode.
        scope_seconds: Denoising under the policy.
        stock_decode_seconds: Decoding the stock latents.
        scope_decode_seconds: Decoding the policy's latents.
        encode_seconds: Encoding the prompt, which all three share.
        exact_report: What the exact mode did.
        scope_report: What the policy did.
        max_abs_diff: Largest absolute difference between exact and stock latents.
        quality: The policy's frames against the stock frames.
        errors: Mean squared error of every frame [T] against the stock frame.
        blocks: The frames of each block.
        scores: Further scores by name; see `calibrate.quality.scores.Scores.measure`.
        started: UTC.
        finished: UTC.
    """

    case: Case
    stock_seconds: float
    exact_seconds: float
    scope_seconds: float
    stock_decode_seconds: float
    scope_decode_seconds: float
    encode_seconds: float
    exact_report: Report
    scope_report: Report
    max_abs_diff: float
    quality: Quality
    errors: NDArray[np.float64]
    blocks: list[Span]
    scores: Mapping[str, float]
    started: datetime
    finished: datetime

    @property
    def stock_end_to_end(self) -> float:
        """Seconds from prompt to frames with the stock pipeline."""
        return self.encode_seconds + self.stock_seconds + self.stock_decode_seconds

    @property
    def scope_end_to_end(self) -> float:
        """Seconds from prompt to frames under the policy."""
        return self.encode_seconds + self.scope_seconds + self.scope_decode_seconds

    def __str__(self) -> str:
        return (
            f"{self.case.label}: {self.scope_report.speedup_evaluations:.2f}x fewer evaluations, "
            f"{self.stock_seconds / self.scope_seconds:.2f}x faster, {self.quality.psnr_db:.1f} dB"
        )

    def figures(self) -> dict[str, Any]:
        """The case's own line of evidence."""
        return {
            "prompt": self.case.prompt,
            "seed": self.case.seed,
            "speedup_evaluations": self.scope_report.speedup_evaluations,
            "speedup_denoise": self.stock_seconds / self.scope_seconds,
            "speedup_end_to_end": self.stock_end_to_end / self.scope_end_to_end,
            "exact_speedup_denoise": self.stock_seconds / self.exact_seconds,
            "max_abs_diff": self.max_abs_diff,
            **self.quality.to_dict(),
            "block_psnr_db": decibels(block_errors(self.errors, self.blocks)),
            **self.scores,
        }


@dataclass(frozen=True)
class Paired:
    """A case with what is only needed while the others are measured.

    Attributes:
        case: Its figures.
        stock_latents: By the stock pipeline [1, channels, latent frames, h, w].
        clip: Stock, SCOPE and their difference, as mp4.
    """

    case: PairedCase
    stock_latents: torch.Tensor
    clip: bytes


@dataclass(frozen=True)
class MeasurePair:
    """The job of generating a case by the stock pipeline, exactly, and under a profile, after a warm-up.

    Attributes:
        profile: As its JSON: attached as production does it.
        case: Prompt and seed.
        scores: What to measure beside the built-in proxies.
        fps: Of the clip.
    """

    profile: Mapping[str, Any]
    case: Case
    scores: Sequence[Score]
    fps: int

    def __str__(self) -> str:
        return f"held out: {self.case.label}"

    def run(self, target: Target, stopping: Callable[[], bool]) -> Paired:
        """Generates and compares.

        Raises:
            ProfileError: If the profile cannot be applied to the target.
            CalibrateError: If a score fails.
        """
        case, scores = self.case, Scores(self.scores)
        target.warm_up(case)
        started = datetime.now(UTC)
        stock = target.denoise(case)
        selective, exact_report = _denoise_under(target, case, lambda: exact(target.pipe))
        skipping, scope_report = _denoise_as_applied(target, case, self.profile)
        stock_frames, stock_decode_seconds = target.decode(stock.latents)
        scope_frames, scope_decode_seconds = target.decode(skipping.latents)
        blocks = target.block_spans(len(stock_frames))
        pair = PairedCase(
            case=case,
            stock_seconds=stock.seconds,
            exact_seconds=selective.seconds,
            scope_seconds=skipping.seconds,
            stock_decode_seconds=stock_decode_seconds,
            scope_decode_seconds=scope_decode_seconds,
            encode_seconds=target.encode_seconds(case.prompt),
            exact_report=exact_report,
            scope_report=scope_report,
            max_abs_diff=float((selective.latents - stock.latents).abs().max()),
            quality=compare(stock_frames, scope_frames, blocks),
            errors=frame_errors(stock_frames, scope_frames),
            blocks=blocks,
            scores=scores.measure(case.prompt, stock_frames, scope_frames),
            started=started,
            finished=datetime.now(UTC),
        )
        return Paired(pair, stock.latents, comparison_clip(stock_frames, scope_frames, self.fps))


@dataclass(frozen=True)
class TimeAgain:
    """The job of taking the times of a case once more.

    Attributes:
        profile: As its JSON.
        case: Prompt and seed.
    """

    profile: Mapping[str, Any]
    case: Case

    def __str__(self) -> str:
        return f"times of {self.case.label}"

    def run(self, target: Target, stopping: Callable[[], bool]) -> dict[str, float]:
        """Seconds of denoising by the stock pipeline, exactly, and under the profile."""
        return {
            "stock": target.denoise(self.case).seconds,
            "exact": _denoise_under(target, self.case, lambda: exact(target.pipe))[0].seconds,
            "scope": _denoise_as_applied(target, self.case, self.profile)[0].seconds,
        }


@dataclass(frozen=True)
class StockRounding:
    """The job of finding how far stock is from itself when only its rounding changes; takes one more generation.

    Attributes:
        case: Prompt and seed.
        stock_latents: Of the case, by the stock pipeline.
    """

    case: Case
    stock_latents: torch.Tensor

    def __str__(self) -> str:
        return f"rounding of {self.case.label}"

    def run(self, target: Target, stopping: Callable[[], bool]) -> float | None:
        """The largest absolute difference; None where the rounding cannot be changed or shows in nothing."""
        rounded = target.denoise_otherwise(self.case)
        return None if rounded is None else float((rounded - self.stock_latents).abs().max()) or None


def verdict(pairs: Sequence[PairedCase], rounding: float | None) -> dict[str, Any]:
    """The figures that `scope-calibrate verify` prints and a profile's evidence starts with.

    Speed-ups are ratios of sums over all cases, `exact` included; quality is against the stock pipeline.

    Args:
        pairs: All cases.
        rounding: From `StockRounding`.
    """
    qualities = [pair.quality for pair in pairs]
    floors = floor_figures(qualities)
    worst = min(pairs, key=lambda pair: pair.quality.psnr_db)
    stock_seconds = sum(pair.stock_seconds for pair in pairs)
    furthest = max(pair.max_abs_diff for pair in pairs)
    return {
        "speedup_evaluations": sum(pair.scope_report.stock_evaluations for pair in pairs)
        / sum(pair.scope_report.evaluations for pair in pairs),
        "speedup_denoise": stock_seconds / sum(pair.scope_seconds for pair in pairs),
        "speedup_end_to_end": sum(pair.stock_end_to_end for pair in pairs)
        / sum(pair.scope_end_to_end for pair in pairs),
        **floors,
        **score_figures([pair.scores for pair in pairs]),
        "flicker": _mean([quality.flicker for quality in qualities]),
        "motion_error_px": _mean([quality.motion_error_px for quality in qualities]),
        "scores": {name: _mean([pair.scores[name] for pair in pairs]) for name in pairs[0].scores},
        "metric_version": METRIC_VERSION,
        "intervals": _intervals(pairs),
        "n": len(pairs),
        "exact": {
            "speedup_denoise": stock_seconds / sum(pair.exact_seconds for pair in pairs),
            "max_abs_diff": furthest,
            "stock_rounding": rounding,
            "holds": None if rounding is None else furthest <= EXACT_MULTIPLE * rounding,
        },
        "worst_prompt": {
            "prompt": worst.case.prompt,
            "seed": worst.case.seed,
            "speedup_evaluations": worst.scope_report.speedup_evaluations,
            **worst.quality.to_dict(),
        },
    }


def _intervals(pairs: Sequence[PairedCase]) -> dict[str, dict[str, float]]:
    """Bootstrap intervals of the means over cases, per figure; empty for a single case."""
    cases = [pair.figures() for pair in pairs]
    names = [name for name, value in cases[0].items() if isinstance(value, float) and name != "max_abs_diff"]
    found = {name: interval([case[name] for case in cases]) for name in names}
    return {name: ends for name, ends in found.items() if ends}


def spread(pairs: Sequence[PairedCase]) -> Mapping[str, Any]:
    """Mean, standard deviation, extremes and worst case of every metric."""
    return summarise({pair.case.label: pair.quality for pair in pairs})


def _denoise_as_applied(target: Target, case: Case, profile: Mapping[str, Any]) -> tuple[Denoised, Report]:
    """Generates a case under a profile as production applies it, and what that did.

    A pipeline that was set up just now is slow once (kernels are chosen, blocks compiled): that time is not taken.
    """
    applied = Profile.from_dict(profile)
    with apply_scope(target.pipe, applied, on_mismatch="raise", prepare=True) as scope:
        if applied.settings.preparation:
            target.denoise(case)
        denoised = target.denoise(case)
    return denoised, scope.report


def _denoise_under(target: Target, case: Case, attach: Callable[[], Scope]) -> tuple[Denoised, Report]:
    """Generates a case while something is attached, and what that did."""
    with attach() as scope:
        denoised = target.denoise(case)
    return denoised, scope.report


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
