"""The search: an Optuna study with two objectives over real generations, which can be killed and continued.

Every generation is recorded before the next one starts. When a run is killed, its trial is started again with the same
parameters, and what had been measured for it is read from the store.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from calibrate import environment
from calibrate.baseline import Baseline
from calibrate.clips import ClipShelf
from calibrate.detail import describe
from calibrate.errors import CalibrateError
from calibrate.pictures import comparison_clip
from calibrate.progress import Narrator
from calibrate.quality import Frames, compare, frame_psnr
from calibrate.results import RESULT, Result, fastest_feasible, load_results
from calibrate.space import Space
from calibrate.store import Generation, Store
from calibrate.study_file import Case, Floors, Study
from calibrate.target import Target
from scope_runtime import Policy, run_policy

# A candidate whose first prompt is this far below the floor for the worst one is not measured any further.
_HOPELESS_DB = 6.0
# Repeats of measured policies are free, but a small space consists of little else after a while.
_TRIALS_PER_CANDIDATE = 3
# User attributes of trials, beside `RESULT`.
_FAILURE, _REPEATED, _CONTINUES = "failure", "repeated", "continues"


class _CandidateFailed(Exception):
    """A candidate could not be generated or judged; it is recorded, and the study goes on."""


class Search:
    """The search of one study, by one process at a time: a trial that is found running is taken for orphaned."""

    def __init__(
        self,
        study: Study,
        store: Store,
        optuna_study: optuna.Study,
        target: Target,
        baselines: Mapping[Case, Baseline],
        narrator: Narrator,
    ) -> None:
        """Prepares the search.

        Args:
            study: The study file's content.
            store: Where generations are recorded.
            optuna_study: Where trials are recorded; see `open_optuna_study`.
            target: The pipeline.
            baselines: Of all search cases.
            narrator: Told of every candidate.
        """
        self.study = study
        self.store = store
        self.target = target
        self.baselines = baselines
        self.narrator = narrator
        self.space = Space(study.search, [baseline.observations for baseline in baselines.values()])
        self.optuna_study = optuna_study
        self.clips = ClipShelf(study.clip_folder, study.clip_megabytes)
        self._seconds: list[float] = []

    def run(self, deadline: float) -> None:
        """Searches until the budget is spent.

        Args:
            deadline: Value of `time.monotonic` by which the last candidate should be done.
        """
        self._take_over()
        done = self._candidates_done()
        self.narrator.stage("Candidates", self.study.budget.trials, done)
        self.optuna_study.sampler = _sampler(self.study.seed + len(self.optuna_study.get_trials(deepcopy=False)))
        for parameters in self.space.first_candidates():
            self.optuna_study.enqueue_trial(parameters, skip_if_exists=True)
        if self._spent(deadline):
            return
        with _quiet_optuna():
            self.optuna_study.optimize(
                self._objective,
                callbacks=[lambda study, trial: study.stop() if self._spent(deadline) else None],
                catch=(_CandidateFailed,),
            )

    def _objective(self, trial: optuna.Trial) -> tuple[float, float]:
        policy = self.space.suggest(trial)
        result = self._known(policy)
        if result is not None:
            trial.set_user_attr(_REPEATED, result.trial)
        else:
            result = self._measure_and_tell(trial, policy)
        for name, shortfall in self.study.floors.shortfalls(result.figures, margin=True).items():
            trial.set_constraint(name, shortfall)
        trial.set_user_attr(RESULT, result.to_dict())
        return result.speedup_evaluations, result.figures["psnr_db"]

    def _known(self, policy: Policy) -> Result | None:
        """What an earlier trial with the same policy came to."""
        return next((r for r in load_results(self.optuna_study) if r.policy == policy.to_dict()), None)

    def _measure_and_tell(self, trial: optuna.Trial, policy: Policy) -> Result:
        start = time.monotonic()
        try:
            result = self._measure(trial.number, policy)
        except _CandidateFailed as failure:
            trial.set_user_attr(_FAILURE, str(failure))
            self.narrator.advance(f"Candidate {trial.number} failed: {failure}", self._best())
            raise
        self._seconds.append(time.monotonic() - start)
        self.narrator.advance(_line(result, self.study.floors), self._best(result))
        return result

    def _measure(self, trial: int, policy: Policy) -> Result:
        """Measures a policy on the search cases; what a killed run measured for it is read from the store."""
        rows: list[Generation] = []
        stopped = None
        for case in self.study.search_cases:
            row = self.store.measured("candidate", policy.to_dict(), case.prompt, case.seed)
            if row is None:
                row = self._generate(trial, policy, case)
            rows.append(row)
            stopped = self._hopeless(row) if len(rows) < len(self.study.search_cases) else None
            if stopped:
                break
        return Result.of(trial, policy.to_dict(), rows, stopped)

    def _generate(self, trial: int, policy: Policy, case: Case) -> Generation:
        """One real generation under the policy, recorded whether it succeeds or fails."""
        baseline = self.baselines[case]
        row = Generation(
            kind="candidate",
            trial_number=trial,
            environment_id=environment.record(self.store, self.target.device),
            prompt=case.prompt,
            seed=case.seed,
            policy=policy.to_dict(),
            settings=self.target.settings.to_dict(),
            stock_seconds_denoise=baseline.timings.stock_seconds,
            started=datetime.now(UTC),
        )
        try:
            with run_policy(self.target.pipe, policy) as scope:
                denoised = self.target.denoise(case)
            frames, seconds_decode = self.target.decode(denoised.latents)
            row.metrics = compare(baseline.frames, frames).to_dict()
        except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
            # Out of memory included: what a candidate needs depends on its choices, so the next one may fit.
            row.state, row.reason, row.finished = "failed", _reason(error), datetime.now(UTC)
            self.store.add(row)
            _release_memory()
            raise _CandidateFailed(row.reason) from error
        row.evaluations = scope.report.evaluations
        row.stock_evaluations = scope.report.stock_evaluations
        row.seconds_denoise = denoised.seconds
        row.seconds_decode = seconds_decode
        row.seconds_end_to_end = self.target.encode_seconds(case.prompt) + denoised.seconds + seconds_decode
        row.reason = self._hopeless(row)
        row.state, row.finished = "complete", datetime.now(UTC)
        self.store.add(row, describe(scope.report, frame_psnr(baseline.frames, frames)))
        self._keep_clip(policy, case, frames)
        return row

    def _keep_clip(self, policy: Policy, case: Case, frames: Frames) -> None:
        stock, fps = self.baselines[case].frames, self.study.generation.fps
        self.clips.keep(
            policy.to_dict(), case.prompt, case.seed, lambda: comparison_clip(stock, frames, fps, preset="veryfast")
        )

    def _hopeless(self, row: Generation) -> str | None:
        """Why the other prompts need not be tried, or None."""
        floors = self.study.floors
        floor = floors.psnr_db if floors.psnr_worst_prompt_db is None else floors.psnr_worst_prompt_db
        psnr = (row.metrics or {})["psnr_db"]
        if floor is None or psnr >= floor - _HOPELESS_DB:
            return None
        return f"stopped early: {psnr:.1f} dB on one prompt, {floor:g} dB asked for"

    def _take_over(self) -> None:
        """Ends trials that a killed process left behind and queues their parameters once more."""
        trials = self.optuna_study.get_trials(deepcopy=False)
        continued = {trial.user_attrs.get(_CONTINUES) for trial in trials}
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                self.optuna_study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state != TrialState.FAIL or _FAILURE in trial.user_attrs:
                continue
            parameters = trial.system_attrs.get("fixed_params", {}) | trial.params
            if trial.number not in continued and parameters:
                self.optuna_study.enqueue_trial(parameters, user_attrs={_CONTINUES: trial.number})

    def _candidates_done(self) -> int:
        """Candidates that count towards the budget: measured or failed, but not repeats."""
        return sum(
            _FAILURE in trial.user_attrs or (trial.state == TrialState.COMPLETE and _REPEATED not in trial.user_attrs)
            for trial in self.optuna_study.get_trials(deepcopy=False)
        )

    def _spent(self, deadline: float) -> bool:
        budget = self.study.budget.trials
        finished = self.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        if self._candidates_done() >= budget or len(finished) >= _TRIALS_PER_CANDIDATE * budget:
            return True
        if time.monotonic() + self._expected_seconds() > deadline:
            self.narrator.say("The time budget is spent; going on with what has been measured.")
            return True
        return False

    def _expected_seconds(self) -> float:
        """How long the next candidate will take; before the first, as long as exact runs of all cases."""
        if self._seconds:
            return max(self._seconds[-3:])
        return sum(b.timings.exact_seconds + b.timings.decode_seconds for b in self.baselines.values())

    def _best(self, latest: Result | None = None) -> str:
        results = load_results(self.optuna_study) + ([latest] if latest else [])
        best = fastest_feasible(results, self.study.floors)
        if best is None:
            return "none above the floors"
        return f"best {best.speedup_evaluations:.2f}x, {best.figures['psnr_db']:.1f} dB"


def open_optuna_study(store: Store, *, create: bool) -> optuna.Study:
    """Optuna's study of the same name in the same database.

    Raises:
        CalibrateError: If it is not there and must not be made.
    """
    with _quiet_optuna():
        storage = store.storage.optuna()
        if create:
            return optuna.create_study(
                study_name=store.study.name,
                storage=storage,
                directions=["maximize", "maximize"],
                load_if_exists=True,
            )
        try:
            return optuna.load_study(study_name=store.study.name, storage=storage)
        except KeyError as error:
            raise CalibrateError(
                f"name: study {store.study.name!r} has hardly been started; continue it with `scope-calibrate run`."
            ) from error


@contextlib.contextmanager
def _quiet_optuna() -> Any:
    """Keeps Optuna's own log and its notices about experimental features off the screen."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    # The seed moves on with the trials: a continued study must not draw its first random candidates again.
    with _quiet_optuna():
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=8)


def _line(result: Result, floors: Floors) -> str:
    remark = result.stopped or ("" if result.feasible(floors) else "below the floors")
    return f"Candidate {result.trial}: {result}" + (f" - {remark}" if remark else "")


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
