"""The search: an Optuna study with two objectives over real generations, by any number of workers.

Every generation is recorded before the next one starts. When a worker is killed, another one starts its trial again
with the same parameters, and what had been measured for it is read from the store.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from calibrate import environment, memory
from calibrate.baseline import Baseline
from calibrate.claims import Worker
from calibrate.clips import ClipShelf
from calibrate.detail import describe
from calibrate.errors import CalibrateError
from calibrate.pictures import comparison_clip
from calibrate.progress import Narrator
from calibrate.quality import (
    METRIC_VERSION,
    PERFECT,
    Frames,
    Quality,
    at_best,
    compare,
    floor_figures,
    frame_errors,
    metric_version,
)
from calibrate.quiet import quiet_optuna
from calibrate.replay import Replay
from calibrate.replay_sampler import Measured, ReplaySampler
from calibrate.results import (
    BLOCKS,
    CHANGE_MAPS,
    ESTIMATE,
    MEMORY,
    RESULT,
    Result,
    fastest_feasible,
    of_metric,
    survey,
)
from calibrate.space import Space
from calibrate.store import DatabaseFailed, Generation, Heartbeat, Store
from calibrate.store.optuna_tables import OBJECTIVES
from calibrate.store.store import policy_digest
from calibrate.study_file import Case, Floors, Study
from calibrate.target import Target, Watch
from calibrate.trials import FAILURE, STOPPED, TURN, Tally, Upkeep, deaths
from scope_runtime import Policy, run_policy

# The floors that the first frames of a clip can show to be out of reach.
_PSNR_FLOORS = ("psnr_db", "psnr_worst_prompt_db", "psnr_worst_frame_db", "psnr_worst_block_db")
# Repeats of measured policies are free, but a small space consists of little else after a while.
_TRIALS_PER_CANDIDATE = 3
# A candidate over which so many workers died (out of host memory, say) is given up.
_MOST_DEATHS = 3
# User attribute of trials, beside `RESULT`: the trial whose candidate this one repeats.
_REPEATED = "repeated"


class _CandidateFailed(Exception):
    """A candidate could not be generated or judged; it is recorded, and the study goes on."""


class _CutShort(Exception):
    """A generation was ended in its midst; holds the frames that were complete, and why."""

    def __init__(self, frames: Frames, reason: str) -> None:
        super().__init__(reason)
        self.frames = frames
        self.reason = reason


class _TakenOver(Exception):
    """Another worker has this worker's trial, because this one was silent for too long."""


class _GivenBack(Exception):
    """The trial was started out of turn; it is ended without a reason, so that a planned one is queued again."""


class Search:
    """One worker's part in the search of a study."""

    def __init__(
        self,
        study: Study,
        store: Store,
        optuna_study: optuna.Study,
        target: Target,
        baselines: Mapping[Case, Baseline],
        worker: Worker,
        narrator: Narrator,
    ) -> None:
        """Prepares the search.

        Args:
            study: The study file's content.
            store: Where generations are recorded.
            optuna_study: Where trials are recorded; see `open_optuna_study`.
            target: The pipeline.
            baselines: Of all search cases.
            worker: This process, which claims the candidates that it measures.
            narrator: Told of every candidate.
        """
        self.study = study
        self.store = store
        self.target = target
        self.baselines = baselines
        self.narrator = narrator
        self.space = Space(study.search, [baseline.observations for baseline in baselines.values()])
        self.optuna_study = optuna_study
        self.worker = worker
        self.upkeep = Upkeep(optuna_study, worker)
        self.clips = ClipShelf(study.clip_folder, study.clip_megabytes)
        self._seconds: list[float] = []

    def run(self, deadline: float) -> None:
        """Searches until the budget is spent, by this worker and the others together.

        Args:
            deadline: Value of `time.monotonic` by which the last candidate should be done.
        """
        with quiet_optuna():
            tally = Tally.of(self.optuna_study)
            self.narrator.stage("Candidates", self.study.budget.trials, tally.measured)
            # The seed moves on with trials and workers: none must draw what another has drawn before.
            trials = len(self.optuna_study.get_trials(deepcopy=False))
            self.optuna_study.sampler = self._sampler(self.study.seed + trials + self.worker.id - 1)
            with self.worker.claimed("first-candidates"):
                self._keep_change_maps()
                self.enqueue(self.space.first_candidates())
            waited = False
            while not self._spent(tally, deadline):
                ran = self._take_turn()
                if not ran:
                    if not waited:
                        self.narrator.say(
                            "The last candidates are with other workers; waiting, in case one of them dies."
                        )
                    self.worker.wait()
                waited = not ran
                tally = Tally.of(self.optuna_study)
                self.narrator.reached(tally.measured, self._reachable(tally.measured, deadline))

    def _take_turn(self) -> bool:
        """Runs the next candidate if the budget has a place for it; says whether it did.

        Workers count and start trials one at a time, by a claim that is held until the trial is there: between counting
        and starting, none of what was counted can be started by another worker and be missed.
        """
        with ExitStack() as turn:
            turn.enter_context(self.worker.claimed(TURN))
            self.upkeep.run()
            tally = Tally.of(self.optuna_study)
            if not tally.has_place(self.study.budget.trials) or not self._affordable(tally.running):
                return False
            self._run_trial(turn)
        return True

    def _run_trial(self, turn: ExitStack) -> None:
        """Starts a trial, ends the turn, and runs the trial."""

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            in_turn = self.worker.holds(TURN)
            turn.close()
            if not in_turn:
                trial.set_user_attr(STOPPED, trial.number)
                raise _GivenBack
            return self._objective(trial)

        try:
            self.optuna_study.optimize(objective, n_trials=1, catch=(_CandidateFailed, _GivenBack))
        except ValueError as error:
            if not isinstance(error.__context__, _TakenOver) and "Cannot tell a" not in str(error):
                raise
            self.narrator.say("Another worker took over the last candidate, because this one had not been heard of.")

    def _keep_change_maps(self) -> None:
        for indicator, scale in self.space.scales.items():
            self.narrator.say(f"Change map of {indicator}: {scale.fit_quality}")
        self.optuna_study.set_user_attr(
            CHANGE_MAPS, {indicator: scale.fit_quality.to_dict() for indicator, scale in self.space.scales.items()}
        )

    def enqueue(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Queues candidates to be tried before the search draws its own; ones that it already has are left out.

        What it has from before the present metric version is tried again.
        """
        for parameters in candidates:
            self.optuna_study.enqueue_trial(dict(parameters), skip_if_exists=True)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.study.search.method == "plain":
            return plain_sampler(seed)
        return ReplaySampler(
            self.space,
            Replay([self.baselines[case].trace for case in self.study.search_cases]),
            self._measured,
            self.study.floors,
            min_speedup=self.study.export.min_speedup,
            seed=seed,
        )

    def _measured(self) -> list[Measured]:
        """All real runs of candidates so far."""
        numbers = {(case.prompt, case.seed): number for number, case in enumerate(self.study.search_cases)}
        return [
            Measured(Policy.from_dict(row.policy), numbers[row.prompt, row.seed], row.metrics or {})
            for row in self.store.complete("candidate", metric_version=METRIC_VERSION)
        ]

    def _objective(self, trial: optuna.Trial) -> tuple[float, float]:
        try:
            policy = self.space.suggest(trial)
            with self.worker.claimed(f"policy:{policy_digest(policy.to_dict())}"):
                result = self._result(trial, policy)
                for name, shortfall in self.study.floors.shortfalls(result.figures, margin=True).items():
                    trial.set_constraint(name, shortfall)
                trial.set_user_attr(RESULT, result.to_dict())
            self._refuse_taken_over(trial)
        except KeyboardInterrupt:
            with suppress(DatabaseFailed):
                trial.set_user_attr(STOPPED, trial.number)
            raise
        except UpdateFinishedTrialError as error:
            raise _TakenOver from error
        return result.speedup_evaluations, result.figures["psnr_db"]

    def _refuse_taken_over(self, trial: optuna.Trial) -> None:
        if self._frozen(trial).state != TrialState.RUNNING:
            raise _TakenOver

    def _result(self, trial: optuna.Trial, policy: Policy) -> Result:
        """What the policy came to in an earlier trial, or else in this one."""
        result = self._known(policy)
        if result is None:
            return self._measure_and_tell(trial, policy)
        trial.set_user_attr(_REPEATED, result.trial)
        return result

    def _known(self, policy: Policy) -> Result | None:
        """What a trial with the same policy came to; a result counts as soon as it is written down.

        A trial whose worker died after that hands its result on with everything else when it is queued again.
        """
        trials = self.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        wanted = policy.to_dict()
        for trial in trials:
            found = trial.user_attrs.get(RESULT)
            if found is not None and found["policy"] == wanted and metric_version(found) == METRIC_VERSION:
                return Result.from_dict(found)
        return None

    def _measure_and_tell(self, trial: optuna.Trial, policy: Policy) -> Result:
        start = time.monotonic()
        try:
            if deaths(self.optuna_study, self._frozen(trial)) >= _MOST_DEATHS:
                raise _CandidateFailed(f"{_MOST_DEATHS} workers died while they measured it")
            self._keep_estimate(trial, policy)
            result = self._measure(trial.number, policy)
        except _CandidateFailed as failure:
            trial.set_user_attr(FAILURE, str(failure))
            self.narrator.advance(f"Candidate {trial.number} failed: {failure}", self._progress())
            raise
        self._seconds.append(time.monotonic() - start)
        self.narrator.advance(_line(result, self.study.floors), self._progress(result))
        return result

    def _keep_estimate(self, trial: optuna.Trial, policy: Policy) -> None:
        """Writes down what replay expects of a policy before it is run, to be set beside what comes of it."""
        sampler = self.optuna_study.sampler
        expected = sampler.expect(policy) if isinstance(sampler, ReplaySampler) else None
        if expected is not None:
            speedup, by_case = expected
            figures = {"psnr_db": float(by_case.mean()), "psnr_worst_prompt_db": float(by_case.min())}
            trial.set_user_attr(
                ESTIMATE, {"speedup_evaluations": speedup, "figures": figures, "metric_version": METRIC_VERSION}
            )

    def _measure(self, trial: int, policy: Policy) -> Result:
        """Measures a policy on the search cases; what a killed run measured for it is read from the store."""
        rows: list[Generation] = []
        stopped = None
        for case in self.study.search_cases:
            row = self.store.measured(
                "candidate", policy.to_dict(), case.prompt, case.seed, metric_version=METRIC_VERSION
            )
            if row is None:
                row = self._generate(trial, policy, case, rows)
            rows.append(row)
            stopped = None
            if _cut_short(row, self.baselines[case]):
                stopped = row.reason
            elif len(rows) < len(self.study.search_cases):
                stopped = self._hopeless(rows)
            if stopped:
                break
        return Result.of(trial, policy.to_dict(), rows, stopped)

    def _generate(self, trial: int, policy: Policy, case: Case, before: Sequence[Generation]) -> Generation:
        """One real generation under the policy, recorded whether it succeeds or fails, after those of other cases."""
        baseline = self.baselines[case]
        row = Generation(
            kind="candidate",
            trial_number=trial,
            environment_id=environment.record(self.store, self.target.device),
            prompt=case.prompt,
            seed=case.seed,
            policy=policy.to_dict(),
            settings=self.target.settings.to_dict(),
            metric_version=METRIC_VERSION,
            stock_seconds_denoise=baseline.timings.stock_seconds,
            started=datetime.now(UTC),
        )
        start = time.monotonic()
        try:
            try:
                with run_policy(self.target.pipe, policy) as scope:
                    denoised = self.target.denoise(case, self._watch(baseline, before))
                frames, seconds_decode = self.target.decode(denoised.latents)
                seconds_denoise, row.reason = denoised.seconds, None
            except _CutShort as cut:
                frames, row.reason = cut.frames, cut.reason
                seconds_denoise, seconds_decode = time.monotonic() - start, 0.0
            reference, blocks = baseline.frames[: len(frames)], self.target.block_spans(len(frames))
            taken = self.target.memory_bytes(scope.report)
            row.metrics = compare(reference, frames, blocks).to_dict() | {MEMORY: taken}
            if row.reason is not None:
                row.metrics[BLOCKS] = len(blocks)
        except Exception as error:
            # Whatever it is, out of memory included: it depends on the candidate's choices, so the next one may do.
            row.state, row.reason, row.finished = "failed", _reason(error), datetime.now(UTC)
            self.store.add(row)
            memory.release()
            raise _CandidateFailed(row.reason) from error
        row.evaluations = scope.report.evaluations
        row.stock_evaluations = scope.report.stock_evaluations
        row.seconds_denoise = seconds_denoise
        row.seconds_decode = seconds_decode
        row.seconds_end_to_end = self.target.encode_seconds(case.prompt) + seconds_denoise + seconds_decode
        if row.reason is None:
            row.reason = self._hopeless([*before, row])
        else:
            # A ratio of like to like: stock's time for as much of the schedule.
            share = row.stock_evaluations / baseline.timings.stock_evaluations
            row.stock_seconds_denoise = share * baseline.timings.stock_seconds
        row.state, row.finished = "complete", datetime.now(UTC)
        recorded = self.store.record(row, describe(scope.report, frame_errors(reference, frames), blocks))
        if len(frames) == len(baseline.frames):
            # Only now: a full disk must not cost the measurement.
            self._keep_clip(policy, case, frames)
        return recorded

    def _watch(self, baseline: Baseline, before: Sequence[Generation]) -> Watch | None:
        """Looks at the first frames as soon as they are complete, and ends the generation where they are hopeless."""
        floors = self.study.floors
        if all(getattr(floors, name) is None for name in _PSNR_FLOORS):
            return None
        looked = False

        def watch(latents: torch.Tensor) -> None:
            nonlocal looked
            if looked:
                return
            try:
                frames, _ = self.target.decode(latents)
            except (MemoryError, RuntimeError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                # Beside the model's own memory there is no room for a look; that is not the candidate's fault.
                looked = True
                memory.release()
                return
            looked = len(frames) > 1
            if looked:
                errors = frame_errors(baseline.frames[: len(frames)], frames)
                best = at_best(errors, self.target.block_spans(len(frames)), len(baseline.frames))
                reason = self._out_of_reach([*map(_quality, before), best])
                if reason:
                    raise _CutShort(frames, f"{reason}, in the first {len(frames)} of {len(baseline.frames)} frames")

        return watch

    def _keep_clip(self, policy: Policy, case: Case, frames: Frames) -> None:
        stock, fps = self.baselines[case].frames, self.study.generation.fps
        self.clips.keep(
            policy.to_dict(), case.prompt, case.seed, lambda: comparison_clip(stock, frames, fps, preset="veryfast")
        )

    def _hopeless(self, rows: Sequence[Generation]) -> str | None:
        """Why the prompts that are left need not be tried after those of `rows`, or None."""
        taken = max((row.metrics or {})[MEMORY] for row in rows)
        return self._out_of_reach([_quality(row) for row in rows], taken)

    def _out_of_reach(self, known: Sequence[Quality], taken: float | None = None) -> str | None:
        """Why a candidate cannot hold the floors even if its further clips are perfect, or None.

        Args:
            known: Of the clips that it has made: their figures, or the best that they can still come to.
            taken: The most bytes of memory that one of them took.
        """
        floors, left = self.study.floors, len(self.study.search_cases) - len(known)
        figures = floor_figures([*known, *[PERFECT] * left]) | ({} if taken is None else {MEMORY: taken})
        missed = floors.told_missed(figures, margin=False)
        return f"stopped early: at best it misses {missed[0]}" if missed else None

    def _frozen(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
        return self.optuna_study._storage.get_trial(trial._trial_id)

    def _spent(self, tally: Tally, deadline: float) -> bool:
        budget = self.study.budget.trials
        # What runs elsewhere may come to less than it is counted for, or be left by a worker that dies.
        if not tally.running and not self._affordable(running=0):
            self.narrator.say(f"The budget of {self.study.budget.equivalents:g} full generations per prompt is spent.")
            return True
        if (tally.measured >= budget and not tally.free) or tally.finished >= _TRIALS_PER_CANDIDATE * budget:
            return True
        if time.monotonic() + self._expected_seconds() > deadline:
            self.narrator.say("The time budget is spent; going on with what has been measured.")
            return True
        return False

    def _equivalents(self) -> float:
        """Full generations spent per prompt, baselines included."""
        return self.store.equivalents(metric_version=METRIC_VERSION) / len(self.study.search_cases)

    def _affordable(self, running: int) -> bool:
        """Whether `budget.equivalents` has room for one more candidate beside those that are running.

        Each is expected to take what the last ones took at the median. Before there are any, running ones are expected
        to take as much as an exact run, and the first one is free.
        """
        equivalents = self.study.budget.equivalents
        if equivalents is None:
            return True
        each, measured = self._equivalents_each()
        return self._equivalents() + running * each + (each if measured else 0.0) <= equivalents

    def _equivalents_each(self) -> tuple[float, bool]:
        """Full generations per prompt that a candidate is expected to take, and whether any has been measured yet."""
        if shares := [1 / result.speedup_evaluations for result in of_metric(survey(self.store))]:
            return statistics.median(shares), True
        exact = [baseline.timings.exact_evaluations for baseline in self.baselines.values()]
        stock = [baseline.timings.stock_evaluations for baseline in self.baselines.values()]
        return sum(exact) / sum(stock), False

    def _reachable(self, measured: int, deadline: float) -> int:
        """How many candidates will have been measured when the budget is spent, as far as can be told now."""
        more = [float(self.study.budget.trials - measured)]
        if self.study.budget.equivalents is not None:
            more.append((self.study.budget.equivalents - self._equivalents()) / self._equivalents_each()[0])
        if math.isfinite(deadline):
            workers = max(1, self.store.workers(self.worker.heartbeat))
            more.append(workers * (deadline - time.monotonic()) / self._expected_seconds())
        return measured + max(0, math.floor(min(more)))

    def _expected_seconds(self) -> float:
        """How long the next candidate will take; before the first, as long as exact runs of all cases."""
        if self._seconds:
            return max(self._seconds[-3:])
        return sum(b.timings.exact_seconds + b.timings.decode_seconds for b in self.baselines.values())

    def _progress(self, latest: Result | None = None) -> str:
        """What was spent and the best so far, for the progress bar."""
        equivalents = self.study.budget.equivalents
        spent = f"{self._equivalents():.1f}" + (f" of {equivalents:g}" if equivalents is not None else "")
        return f"{spent} full generations spent, {self._best(latest)}"

    def _best(self, latest: Result | None) -> str:
        results = of_metric(survey(self.store)) + ([latest] if latest else [])
        best = fastest_feasible(results, self.study.floors)
        if best is None:
            return f"none above the floors{self.study.floors.with_margin}"
        return f"best {best.speedup_evaluations:.2f}x, {best.figures['psnr_db']:.1f} dB"


def _cut_short(row: Generation, baseline: Baseline) -> bool:
    """Whether a generation was ended before its last row."""
    return (row.stock_evaluations or 0) < baseline.timings.stock_evaluations


def _quality(row: Generation) -> Quality:
    return Quality.of(row.metrics or {})


class ComparableTrials(optuna.Study):
    """Optuna's study without the complete trials whose figures have another metric version.

    They stay in the database; but counting, sampling and looking for repeats go by trials that can be compared.
    """

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in super()._get_trials(deepcopy, states, use_cache) if not _measured_otherwise(trial)]


def _measured_otherwise(trial: FrozenTrial) -> bool:
    return (
        trial.state == TrialState.COMPLETE
        and RESULT in trial.user_attrs
        and metric_version(trial.user_attrs[RESULT]) != METRIC_VERSION
    )


def open_optuna_study(store: Store, *, create: bool, heartbeat: Heartbeat | None = None) -> optuna.Study:
    """Optuna's study of the same name in the same database, with the trials that can be compared.

    Args:
        store: Our records of the study.
        create: Whether to make it if it is not there.
        heartbeat: How running trials show that they live, for those who run some.

    Raises:
        CalibrateError: If it is not there and must not be made.
    """
    with quiet_optuna():
        storage = store.storage.optuna(heartbeat)
        if create:
            study = optuna.create_study(
                study_name=store.study.name,
                storage=storage,
                directions=["maximize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            if study.metric_names is None:
                study.set_metric_names(list(OBJECTIVES))
        try:
            return ComparableTrials(study_name=store.study.name, storage=storage)
        except KeyError as error:
            raise CalibrateError(
                f"name: study {store.study.name!r} has hardly been started; continue it with `scope-calibrate run`."
            ) from error


def plain_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's own, which learns from real runs alone."""
    with quiet_optuna():
        # Trials that run elsewhere count as poor ones, so that workers keep away from each other's candidates.
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
        )


def _line(result: Result, floors: Floors) -> str:
    missed = " and ".join(floors.told_missed(result.figures, margin=True))
    remark = result.stopped or (f"misses {missed}" if missed else "")
    return f"Candidate {result.trial}: {result}" + (f" - {remark}" if remark else "")


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
