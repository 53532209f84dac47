"""Real generations of the benchmarks, each made once: what is interrupted or repeated reads them from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from optuna.samplers import RandomSampler
from safetensors.torch import save

from calibrate.families import load_target
from calibrate.files import digest, write_atomically
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION, Frames, compare
from calibrate.replay.change_scale import Observations
from calibrate.replay.replay import Replay, Replayed
from calibrate.replay.trace import TRACE_FORMAT, Trace, TraceRecorder
from calibrate.search.replay_sampler import draw
from calibrate.search.space import Space
from calibrate.spec.generation import Case
from calibrate.study.study_file import StudyFile
from scope_runtime import Policy, exact, run_policy


@dataclass(frozen=True)
class Size:
    """How large a benchmark is.

    Attributes:
        study: The study whose pipeline, cases and space are used.
        frames: Frames of a clip, or None for the study's.
        steps: Denoising steps, or None for the study's.
        cases: Most search cases, and most held-out cases.
        cache: Folder of the files.
    """

    study: Path
    frames: int | None
    steps: int | None
    cases: int
    cache: Path


@dataclass(frozen=True)
class Run:
    """One real generation under a policy.

    Attributes:
        evaluations: Block evaluations.
        stock_evaluations: Of the stock pipeline.
        seconds: Of denoising.
        metrics: Against the full-compute run.
    """

    evaluations: int
    stock_evaluations: int
    seconds: float
    metrics: dict[str, float]


class Bench:
    """A pipeline with full-compute runs of some cases, and real runs of policies on them."""

    def __init__(self, size: Size, narrator: Narrator) -> None:
        """Loads the pipeline and makes the full-compute runs that are not there yet."""
        file = StudyFile(size.study)
        changes = {"num_frames": size.frames, "num_inference_steps": size.steps}
        generation = file.study.generation.model_copy(update={k: v for k, v in changes.items() if v is not None})
        self.study = file.study
        self.cache = size.cache
        self.narrator = narrator
        self.target = load_target(file.model_path, file.study.model, generation)
        self.searched = self.study.search_cases[: size.cases]
        self.held_out = self.study.held_out_cases[: size.cases]
        narrator.stage("Full-compute runs", len(self.searched) + len(self.held_out))
        self._references = {case: self._reference(case) for case in (*self.searched, *self.held_out)}
        self.space = Space(self.study.search, [observations(self.trace(case)) for case in self.searched])

    def trace(self, case: Case) -> Trace:
        """The full-compute run's trace."""
        return self._references[case][0]

    def replay(self, cases: Sequence[Case]) -> Replay:
        """Replay on the traces of some cases."""
        return Replay([self.trace(case) for case in cases])

    def run(self, policy: Policy, case: Case) -> Run:
        """A policy's real run, made unless it is there."""
        path = self._path("run", case, policy=self._effect(policy, case), metric_version=METRIC_VERSION)
        try:
            return Run(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            pass
        with run_policy(self.target.pipe, policy) as scope:
            denoised = self.target.denoise(case)
        frames, _ = self.target.decode(denoised.latents)
        metrics = compare(self._references[case][1], frames, self.target.block_spans(len(frames))).to_dict()
        run = Run(scope.report.evaluations, scope.report.stock_evaluations, denoised.seconds, metrics)
        write_atomically(path, json.dumps(asdict(run), allow_nan=False).encode())
        return run

    def runs(self, policy: Policy, cases: Sequence[Case]) -> list[Run]:
        """A policy's real runs of some cases."""
        return [self.run(policy, case) for case in cases]

    def draw(self, replay: Replay, count: int, seed: int, speedup: tuple[float, float] | None = None) -> list[Policy]:
        """Random policies of the space, no two of which do the same.

        Args:
            replay: Tells what a policy does.
            count: How many; fewer if the space does not seem to hold as many.
            seed: Of the draw.
            speedup: Bounds on the speed-up in block evaluations, or None.
        """
        found: dict[object, Policy] = {}
        for policy in draw(self.space, RandomSampler(seed=seed), 10 * count):
            replayed = replay.run(policy)
            if speedup is None or speedup[0] <= replayed.speedup_evaluations <= speedup[1]:
                found.setdefault(replayed.key, policy)
            if len(found) == count:
                break
        return list(found.values())

    def _effect(self, policy: Policy, case: Case) -> Any:
        """Equal for policies that do the same; those that look at content or have weights are known by their fields."""
        looks_at_outputs = policy.magnitude_bound is not None or policy.error_budget is not None
        if policy.needs_content or looks_at_outputs or policy.gap_weights is not None:
            return policy.to_dict()
        replayed: Replayed = self.replay([case]).run(policy)
        return [replayed.plans, replayed.besides]

    def _reference(self, case: Case) -> tuple[Trace, Frames]:
        path = self._path("reference", case, trace=TRACE_FORMAT).with_suffix(".safetensors")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
                found = Trace.from_tensors(tensors, file.metadata()["trace"]), tensors["frames"].numpy()
            self.narrator.advance(f"{case.label} (kept from before)")
            return found
        except (FileNotFoundError, safetensors.SafetensorError, KeyError, ValueError):
            pass
        recorder = TraceRecorder(self.target.generation.guidance_scale)
        with exact(self.target.pipe, observe=True, recorder=recorder):
            denoised = self.target.denoise(case)
        frames, _ = self.target.decode(denoised.latents)
        tensors, about = recorder.trace().to_tensors()
        write_atomically(path, save({**tensors, "frames": torch.from_numpy(frames)}, metadata={"trace": about}))
        self.narrator.advance(f"{case.label}: {denoised.seconds:.1f} s")
        return recorder.trace(), frames

    def _path(self, kind: str, case: Case, **more: Any) -> Path:
        key = {
            "kind": kind,
            "model": self.target.model,
            "settings": self.target.settings.to_dict(),
            "case": case.model_dump(mode="json"),
            **more,
        }
        return self.cache / f"{digest(key)}.json"


def observations(trace: Trace) -> Observations:
    """What `calibrate.replay.change_scale` learns from, read from a trace."""
    rows = []
    for window in trace.windows:
        schedule = window.schedule
        for row in range(1, schedule.rows):
            for block in schedule.active(row):
                levels = schedule.noise_levels(row, block)
                if levels is None or not np.isfinite(window.changes[row, block]):
                    continue
                new, old = window.outputs[:, row, block], window.outputs[:, row - 1, block]
                moved = ((new - old).norm(dim=-1) / old.norm(dim=-1)).max()
                rows.append([row, block, *levels, window.changes[row, block], float(moved)])
    return np.array(rows, dtype=np.float64)
