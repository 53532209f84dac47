"""Generations of a study's pipeline under policies, each kept in a file: an interrupted benchmark goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save

from calibrate.families import load_target
from calibrate.families.target import Target
from calibrate.files import digest, write_atomically
from calibrate.measure.baseline import Baseline, MakeBaseline, read_baseline, write_baseline
from calibrate.measure.gap_fit import FitWeights, Truth
from calibrate.quality.metrics import METRIC_VERSION, frame_errors, psnr
from calibrate.replay.trace import TRACE_FORMAT
from calibrate.spec.generation import Case
from calibrate.study.study_file import Study, StudyFile
from scope_runtime import Policy, exact
from studies.reference.world import held_out_prompts

_LOCKSTEP = 6


@dataclass(frozen=True)
class Outcome:
    """One generation under a policy.

    Attributes:
        evaluations: Block evaluations.
        stock_evaluations: Of the stock pipeline.
        db: PSNR against the full-compute run, of latents (of range 1) or of the clip.
    """

    evaluations: int
    stock_evaluations: int
    db: float


def speedup_of(outcomes: Sequence[Outcome]) -> float:
    """Stock block evaluations over the ones made."""
    return sum(o.stock_evaluations for o in outcomes) / sum(o.evaluations for o in outcomes)


def fresh_cases(study: Study, count: int, prompt_seed: int, first_seed: int) -> list[Case]:
    """So many prompts that a study has nowhere.

    Args:
        study: Whose prompts are left out.
        count: How many.
        prompt_seed: Of the draw.
        first_seed: Of the first one's generation; the others' follow.
    """
    used = {c.prompt for c in (*study.search_cases, *study.held_out_cases, *study.fit_cases, *study.guarantee_cases)}
    drawn = [prompt for prompt in held_out_prompts(count + len(used), seed=prompt_seed) if prompt not in used]
    return [Case(prompt=prompt, seed=first_seed + number) for number, prompt in enumerate(drawn[:count])]


def mean_db(outcomes: Sequence[Outcome]) -> float:
    """Their mean PSNR."""
    return float(np.mean([outcome.db for outcome in outcomes]))


class Generations:
    """What a study's pipeline generates."""

    def __init__(self, study: Path, cache: Path, target: Target | None = None, *, beside_stock: bool = False) -> None:
        """Loads the pipeline, unless it is given.

        Args:
            study: Whose pipeline and settings are used.
            cache: Where everything is kept.
            target: Its pipeline.
            beside_stock: Whether full-compute runs are the stock pipeline's own; else they are made in exact mode,
                which takes less time.
        """
        file = StudyFile(study)
        self.study, self.cache = file.study, cache
        self._beside = {"reference": "stock"} if beside_stock else {}
        self.target = target or load_target(file.model_path, file.study.model, file.study.generation)

    def clips(self, policy: Policy, cases: Sequence[Case]) -> list[Outcome]:
        """A policy's clips, held against those of full-compute runs."""
        return self._outcomes("clip", policy, cases, self._clip_db)

    def latents(self, policy: Policy, cases: Sequence[Case]) -> list[Outcome]:
        """A policy's latents, held against those of full-compute runs."""
        return self._outcomes("latent", policy, cases, self._db_of_latents)

    def clips_of(
        self, technique: str, cases: Sequence[Case], generate: Callable[[Case], tuple[torch.Tensor, int, int]]
    ) -> list[Outcome]:
        """Clips that another technique makes, held against those of full-compute runs.

        Args:
            technique: Its name and settings, by which its clips are kept.
            cases: Prompts and seeds.
            generate: Gives a case's final latents, the evaluations that it took, and those of the stock pipeline.
        """

        def outcome(case: Case) -> dict[str, Any]:
            self._full(case)
            latents, evaluations, stock = generate(case)
            return dataclasses.asdict(Outcome(evaluations, stock, self._clip_db(case, latents)))

        known = {"technique": technique, "metric_version": METRIC_VERSION, **self._beside}
        return [Outcome(**self.kept("other", partial(outcome, case), case=_named([case]), **known)) for case in cases]

    def kept(self, kind: str, make: Callable[[], Any], **key: Any) -> Any:
        """What was made before under this kind and key; else what is made now, which JSON can hold."""
        path = self._path(kind, **key)
        found = _read(path)
        if found is None:
            found = make()
            write_atomically(path, json.dumps(found, allow_nan=False).encode())
        return found

    def fitted(self, policy: Policy, depth: int, baselines: Sequence[Baseline]) -> tuple[Policy, float]:
        """A plan's policy with weights, and how many full generations fitting them took.

        Args:
            policy: Without weights.
            depth: Raw outputs that are combined.
            baselines: Of the prompts that weights are fitted on.
        """
        cases = tuple(baseline.case for baseline in baselines)

        def fit() -> dict[str, Any]:
            made = FitWeights(0, policy, depth, cases, Truth.of(baselines)).run(self.target, lambda: False)
            equivalents = len(cases) * made.evaluations / made.stock_evaluations
            return {"policy": made.policy.to_dict(), "equivalents": equivalents}

        kept = self.kept("weights", fit, policy=policy.to_dict(), depth=depth, fitted_on=_named(cases))
        return Policy.from_dict(kept["policy"]), kept["equivalents"]

    def baseline(self, case: Case) -> Baseline:
        """The full-compute run of a case, with its trace."""
        path = self._path("baseline", case=_named([case]), trace=TRACE_FORMAT).with_suffix(".safetensors")
        found = read_baseline(path, case)
        if found is None:
            found = MakeBaseline(case).run(self.target, lambda: False)
            write_baseline(path, found)
        return found

    def _outcomes(
        self, kind: str, policy: Policy, cases: Sequence[Case], db: Callable[[Case, torch.Tensor], float]
    ) -> list[Outcome]:
        """Generations under a policy; those that are not there yet are made in lockstep."""
        paths = {
            case: self._path(
                kind, policy=policy.to_dict(), case=_named([case]), metric_version=METRIC_VERSION, **self._beside
            )
            for case in cases
        }
        found = {case: _read(path) for case, path in paths.items()}
        missing = [case for case in cases if found[case] is None]
        for batch in (missing[start : start + _LOCKSTEP] for start in range(0, len(missing), _LOCKSTEP)):
            # Before the policy is attached: these are made where they are missing.
            for case in batch:
                self._full(case)
            together = self.target.denoise_together(batch, policy)
            for case, own in zip(batch, together.latents.split(1), strict=True):
                report = together.report
                made = Outcome(report.evaluations, report.stock_evaluations, db(case, own))
                found[case] = dataclasses.asdict(made)
                write_atomically(paths[case], json.dumps(found[case], allow_nan=False).encode())
        return [Outcome(**kept) for kept in found.values() if kept is not None]

    def _db_of_latents(self, case: Case, latents: torch.Tensor) -> float:
        error = (latents.double() - self._full(case)["latents"].double()).square().mean()
        return float(psnr(np.array(float(error))))

    def _clip_db(self, case: Case, latents: torch.Tensor) -> float:
        full = self._full(case)
        if "frames" not in full:
            full = self._keep_full(case, {**full, "frames": self._decoded(full["latents"])})
        # The `psnr_db` of `calibrate.quality.metrics.compare`, without the figures that take longer.
        return float(psnr(frame_errors(full["frames"].numpy(), self._decoded(latents).numpy()).mean()))

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.target.decode(latents)[0])

    def _full(self, case: Case) -> dict[str, torch.Tensor]:
        """Latents of the full-compute run, and its frames where they were needed."""
        try:
            with safetensors.safe_open(self._full_path(case), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except (FileNotFoundError, safetensors.SafetensorError):
            pass
        with nullcontext() if self._beside else exact(self.target.pipe):
            return self._keep_full(case, {"latents": self.target.denoise(case).latents})

    def _keep_full(self, case: Case, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        write_atomically(self._full_path(case), save({name: t.contiguous() for name, t in tensors.items()}))
        return tensors

    def _full_path(self, case: Case) -> Path:
        return self._path("full", case=_named([case]), **self._beside).with_suffix(".safetensors")

    def _path(self, kind: str, **more: Any) -> Path:
        key = {"kind": kind, "model": self.target.model, "settings": self.target.settings.to_dict(), **more}
        return self.cache / f"generation-{digest(key)}.json"


def _named(cases: Sequence[Case]) -> list[Any]:
    return [case.model_dump(mode="json") for case in cases]


def _read(path: Path) -> Any:
    """What a file of the cache holds, or None."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
