"""One real generation under a policy, held against the stock clip of its case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from calibrate.families.target import Target, Watch
from calibrate.measure import environment, memory
from calibrate.measure.baseline import Reference
from calibrate.measure.detail import describe
from calibrate.measure.early_stop import beginnings_tell, out_of_reach
from calibrate.measure.pictures import comparison_clip
from calibrate.quality.metrics import METRIC_VERSION, Frames, Quality, at_best, compare, frame_errors
from calibrate.quality.score_figures import ClipScores
from calibrate.quality.score_figures import at_best as scores_at_best
from calibrate.quality.scores import Scores
from calibrate.results.result import BLOCKS, MEMORY
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.running import Score
from calibrate.spec.score_floor import SCORES, stock_name
from calibrate.store import PAIRED
from scope_runtime import Policy, Preparation, run_policy

UNWANTED = "stopped early: another prompt has ended the candidate"
"""The reason of a generation that was ended because nobody waited for it any more."""


class _CutShort(Exception):
    """A generation was ended in its midst; holds the frames that were complete, and why."""

    def __init__(self, frames: Frames, reason: str) -> None:
        super().__init__(reason)
        self.frames = frames
        self.reason = reason


@dataclass(frozen=True)
class Measurement:
    """What one generation came to.

    Attributes:
        fields: Of its row, by the names of `calibrate.store.Generation`, in which `state` says whether it failed.
        hardware: What it ran on; see `calibrate.measure.environment`.
        versions: And with which libraries.
        detail: What is drawn of it; see `calibrate.measure.detail`. None if it failed.
        clip: Stock, SCOPE and their difference as mp4; None if none was asked for, or it was not finished.
    """

    fields: Mapping[str, Any]
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    detail: dict[str, Any] | None = None
    clip: bytes | None = None

    @property
    def failure(self) -> str | None:
        """Why it failed, or None."""
        return str(self.fields["reason"]) if self.fields["state"] == "failed" else None


@dataclass(frozen=True, eq=False)
class Measure:
    """The job of measuring a policy on one case.

    Attributes:
        trial: Whose candidate it is, by which people know it.
        policy: What is attached.
        case: Prompt and seed.
        floors: What ends the generation as soon as its first frames show that it is out of reach.
        others: What the policy's clips of other cases came to.
        cases: How many cases there are.
        fps: Of the comparison clip; None if none is wanted.
        reference: The stock clip.
        scores: Those that floors are set on.
        stock_scores: Of the stock clip; see `calibrate.quality.score_figures`.
        other_scores: What the policy's clips of the other cases came to, or can still come to.
        preparation: What the pipeline is set up with.
        paired: Whether stock is timed once more beside it.
    """

    trial: int
    policy: Policy
    case: Case
    floors: Floors
    others: tuple[Quality, ...]
    cases: int
    fps: int | None
    reference: Reference | None = None
    scores: tuple[Score, ...] = ()
    stock_scores: ClipScores = field(default_factory=dict)
    other_scores: tuple[ClipScores, ...] = ()
    preparation: Preparation = Preparation()  # noqa: RUF009 - frozen
    paired: bool = False

    def __str__(self) -> str:
        return f"candidate {self.trial}: {self.case.label}"

    def run(self, target: Target, stopping: Callable[[], bool]) -> Measurement:
        """Generates and compares. What goes wrong is a result too: it depends on the policy, so another one may do."""
        assert self.reference is not None
        stock = self.reference
        started, start = datetime.now(UTC), time.monotonic()
        fields: dict[str, Any] = {
            "prompt": self.case.prompt,
            "seed": self.case.seed,
            "policy": self.policy.to_dict(),
            "settings": replace(target.settings, preparation=self.preparation).to_dict(),
            "metric_version": METRIC_VERSION,
            "stock_seconds_denoise": stock.stock_seconds,
            "started": started,
            "reason": None,
        }
        hardware, versions = environment.hardware(target.device), environment.versions()
        try:
            if self.paired:
                target.warm_up(self.case)
                fields["stock_seconds_denoise"] = target.denoise(self.case).seconds
            try:
                with ExitStack() as held:
                    held.enter_context(target.set_up(self.preparation))
                    if self.paired:
                        target.rehearse(self.case, self.preparation)
                    scope = held.enter_context(run_policy(target.pipe, self.policy))
                    denoised = target.denoise(self.case, self._watch(target, stock, stopping))
                frames, seconds_decode = target.decode(denoised.latents)
                seconds_denoise = denoised.seconds
            except _CutShort as cut:
                frames, fields["reason"] = cut.frames, cut.reason
                seconds_denoise, seconds_decode = time.monotonic() - start, 0.0
            reference, blocks = stock.frames[: len(frames)], target.block_spans(len(frames))
            metrics: dict[str, Any] = compare(reference, frames, blocks).to_dict()
            metrics[MEMORY] = target.memory_bytes(scope.report)
            metrics |= {PAIRED: True} if self.paired else {}
            if self.scores and len(frames) == len(stock.frames):
                metrics[SCORES] = self._scored(reference, frames, Quality.of(metrics), metrics[MEMORY])
        except Exception as error:
            # Whatever it is, out of memory included.
            memory.release()
            fields |= {"state": "failed", "reason": _reason(error), "finished": datetime.now(UTC)}
            return Measurement(fields, hardware, versions)
        report, whole = scope.report, len(frames) == len(stock.frames)
        if fields["reason"] is not None:
            metrics[BLOCKS] = len(blocks)
            # A ratio of like to like: stock's time for as much of the schedule.
            fields["stock_seconds_denoise"] *= report.stock_evaluations / stock.stock_evaluations
        fields |= {
            "metrics": metrics,
            "evaluations": report.evaluations,
            "stock_evaluations": report.stock_evaluations,
            "seconds_denoise": seconds_denoise,
            "seconds_decode": seconds_decode,
            "seconds_end_to_end": target.encode_seconds(self.case.prompt) + seconds_denoise + seconds_decode,
            "state": "complete",
        }
        clip = comparison_clip(reference, frames, self.fps, preset="veryfast") if self.fps and whole else None
        detail = describe(report, frame_errors(reference, frames), blocks)
        # Budgets count how long the device was taken.
        fields["finished"] = datetime.now(UTC)
        return Measurement(fields, hardware, versions, detail, clip)

    def _scored(self, reference: Frames, frames: Frames, quality: Quality, memory_bytes: float) -> dict[str, float]:
        """The clip's scores with those of the stock clip; the slow ones only where the others leave a chance."""
        slow = [score for score in self.scores if score.slow]
        found = self._measured([score for score in self.scores if not score.slow], reference, frames)
        if slow:
            cheap = self.floors.without_scores([score.name for score in slow])
            reason = out_of_reach(cheap, [*self.others, quality], self.cases, memory_bytes, [*self.other_scores, found])
            found |= {} if reason else self._measured(slow, reference, frames)
        return found

    def _measured(self, scores: Sequence[Score], reference: Frames, frames: Frames) -> dict[str, float]:
        own = Scores(scores).of_clip(self.case.prompt, reference, frames)
        stock = {stock_name(name): self.stock_scores.get(stock_name(name)) for name in own}
        return own | {name: value for name, value in stock.items() if value is not None}

    def _watch(self, target: Target, stock: Reference, stopping: Callable[[], bool]) -> Watch:
        """Looks at the first frames as soon as they are complete, and ends the generation where they are hopeless.

        Ends it too when nobody wants it any more.
        """
        looked = not beginnings_tell(self.floors)

        def watch(latents: torch.Tensor) -> None:
            nonlocal looked
            unwanted = stopping()
            if looked and not unwanted:
                return
            try:
                frames, _ = target.decode(latents)
            except (MemoryError, RuntimeError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                # Beside the model's own memory there is no room for a look; that is not the candidate's fault.
                looked = True
                memory.release()
                return
            looked = looked or len(frames) > 1
            if len(frames) <= 1:
                return
            whole = len(stock.frames)
            if unwanted:
                raise _CutShort(frames, f"{UNWANTED}, after {len(frames)} of {whole} frames")
            errors = frame_errors(stock.frames[: len(frames)], frames)
            best = at_best(errors, target.block_spans(len(frames)), whole)
            scores = [*self.other_scores, scores_at_best(self.scores, self.stock_scores)]
            reason = out_of_reach(self.floors, [*self.others, best], self.cases, scores=scores)
            if reason:
                raise _CutShort(frames, f"{reason}, in the first {len(frames)} of {whole} frames")

        return watch


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
