"""The driver: asks Optuna for candidates, has a pool measure them, records what came of it, and tells Optuna.

One process per study drives. It alone decides what is tried, keeps the budget and writes to the database; a pool runs
pure jobs. Every generation is recorded as soon as it is known. A driver that was killed leaves trials that are running:
the next one goes on with them, and reads from the store what had been measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import Baseline, NotUsable, Reference
from calibrate.measure.candidate import Measure, Measurement
from calibrate.measure.clips import ClipShelf
from calibrate.measure.gap_fit import Fitted, FitWeights, Truth
from calibrate.pool.pool import GIVEN_UP, Deaths, Done, Pool
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.quality.score_figures import ClipScores, score_figures
from calibrate.replay.replay import Replay
from calibrate.results.result import (
    CHANGE_MAPS,
    ESTIMATE,
    Result,
    change_map_name,
    fastest_feasible,
    of_metric,
    results_of,
    survey,
)
from calibrate.search.budget import Allowance
from calibrate.search.candidate import Candidate
from calibrate.search.optuna_study import (
    DEATHS,
    FAILURE,
    REPEATED,
    count,
    enqueue,
    known_result,
    plain_sampler,
    take_up,
    tell,
)
from calibrate.search.plans import EXTRAS, FITTED, Plans
from calibrate.search.presence import keep_presence
from calibrate.search.quiet import quiet_optuna
from calibrate.search.replay_sampler import Measured, ReplaySampler
from calibrate.search.space import Space
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.running import Budget
from calibrate.spec.score_floor import SCORES
from calibrate.store import CANDIDATE, PREPARATION, DatabaseFailed, Generation, Store
from calibrate.store.lock import StudyLock
from calibrate.study.study_file import Study
from scope_runtime import Policy, Preparation


class Driver:
    """The search of a study."""

    def __init__(
        self,
        study: Study,
        store: Store,
        lock: StudyLock,
        optuna_study: optuna.Study,
        pool: Pool,
        baselines: Mapping[Case, Baseline],
        references: Mapping[Case, Reference],
        narrator: Narrator,
        truth: Truth | None = None,
        stock_scores: Mapping[Case, ClipScores] | None = None,
        preparation: Preparation = Preparation(),
    ) -> None:
        """Prepares the search.

        Args:
            study: The study file's content.
            store: Where generations are recorded.
            lock: On the study, held.
            optuna_study: Where trials are recorded; see `open_optuna_study`.
            pool: Where candidates are measured.
            baselines: Of all search cases.
            references: What candidates are held against, of the same cases.
            narrator: Told of every candidate.
            truth: What weights are fitted to, where the study asks for learned ones.
            stock_scores: Of the stock clips, where floors are set on scores; see `calibrate.quality.score_figures`.
            preparation: What the pipeline is set up with for all candidates; the baselines are of the same.
        """
        self.study = study
        self.store = store
        self.lock = lock
        self.optuna_study = optuna_study
        self.pool = pool
        self.baselines = baselines
        self.references = references
        self.narrator = narrator
        self.truth = truth
        self.stock_scores = stock_scores or {}
        self.preparation = preparation
        self.space = Space(study.search, [baseline.observations for baseline in baselines.values()])
        self.plans = self._plans()
        self.clips = ClipShelf(study.clip_folder, study.clip_megabytes)
        self.candidates: list[Candidate] = []
        self._jobs: dict[Measure | FitWeights, Candidate] = {}

    def run(self, deadline: float, budget: Budget | None = None) -> None:
        """Searches until the budget is spent.

        Args:
            deadline: Value of `time.monotonic` by which the last candidate should be done.
            budget: What may be spent of the study's; all of it by default.
        """
        budget = budget or self.study.budget
        timings = {case: baseline.timings for case, baseline in self.baselines.items()}
        self.allowance = Allowance(budget, self.store, timings, self.pool.size, deadline)
        with quiet_optuna():
            measured, _ = count(self.optuna_study)
            told = f", {self.preparation}" if self.study.search.prepares else ""
            self.narrator.stage(f"Candidates{told}", budget.trials, measured)
            self._keep_change_maps()
            self._keep_scores()
            # The seed moves on with the trials: none must draw what an earlier process has drawn.
            trials = len(self.optuna_study.get_trials(deepcopy=False))
            self.optuna_study.sampler = sampler = self._sampler(self.study.seed + trials)
            enqueue(self.optuna_study, self.space.first_candidates())
            self._queue_unmeasured()
            if self.plans:
                for plan in self.plans.first(careful=self.study.guarantee is not None):
                    self.plans.queue(self.optuna_study, plan)
            try:
                self._drive()
            except KeyboardInterrupt:
                self._stopped_by_hand()
                raise
            finally:
                if isinstance(sampler, ReplaySampler):
                    sampler.close()

    def _drive(self) -> None:
        left = take_up(self.optuna_study)
        while True:
            self._fill(left)
            if not self._jobs:
                # A database that was lost while it answered may have started a trial of which nobody heard.
                left = take_up(self.optuna_study)
                if not left:
                    return
                continue
            measured, _ = count(self.optuna_study)
            self.narrator.reached(measured, self.allowance.reachable(measured))
            self.pool.changed = partial(
                keep_presence, self.store, self.pool, "candidates", self.allowance.seconds_left(measured)
            )
            done = self.pool.next()
            # A server that was started again has forgotten who holds the study.
            self.lock.require()
            self._take(done)

    def _fill(self, left: list[optuna.Trial]) -> None:
        """Gives free devices jobs: of candidates that were begun, else of new ones, as far as the budget goes.

        Where devices work while this process does, the next candidate is chosen before one of them is free.
        """
        while True:
            waiting = next(((c, job) for c in self.candidates if (job := self._job_of(c)) is not None), None)
            busy = len(self._jobs) >= self.pool.size
            if waiting is not None and not busy:
                self._submit(*waiting)
            elif busy and (waiting is not None or self.pool.here):
                return
            elif left:
                self._start(left.pop(0))
            elif (reason := self.allowance.spent(*count(self.optuna_study), self.candidates)) is not None:
                if reason and not self._jobs:
                    self.narrator.say(reason)
                return
            else:
                if self.plans:
                    sampler = self.optuna_study.sampler
                    score = sampler.promise if isinstance(sampler, ReplaySampler) else None
                    self.plans.take_turn(self.optuna_study, score)
                self._start(self.optuna_study.ask())

    def _job_of(self, candidate: Candidate) -> Measure | FitWeights | None:
        """The next job of a candidate that was begun, or None."""
        if candidate.plan is not None:
            assert self.truth is not None
            return candidate.fit(tuple(self.study.fit_cases), self.truth)
        case = candidate.next_case()
        fps = self.study.generation.fps if self.study.clip_megabytes else None
        return None if case is None else candidate.job(case, self.references[case], fps)

    def _start(self, trial: optuna.Trial) -> None:
        """Begins with a trial, or goes on with it, unless its policy is known already."""
        plan, fitted = None, trial.user_attrs.get(FITTED)
        if self.plans is None and EXTRAS in trial.user_attrs:
            # Queued or begun when the study still asked for plans; its parameters mean nothing to the other space.
            self.optuna_study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        if self.plans and EXTRAS in trial.user_attrs:
            plan = self.plans.suggest(trial)
            policy = plan.policy(self.plans.schedule)
            if fitted is not None:
                plan, policy = None, Policy.from_dict(fitted)
        else:
            policy = self.space.suggest(trial)
        result = known_result(self.optuna_study, policy)
        # One of a study that asked for less has to be measured on.
        if result is not None and (result.stopped or not self.study.floors.unmeasured(result.figures)):
            self._tell(trial, result)
            return
        leader = next((c for c in self.candidates if c.policy == policy and c.plan == plan), None)
        if leader is not None:
            leader.followers.append(trial)
            return
        candidate = Candidate(
            trial, policy, self.study.search_cases, self.study.floors,
            deaths=Deaths(trial.user_attrs.get(DEATHS, 0)), plan=plan,
            scores=self.study.floor_scores, stock_scores=self.stock_scores, preparation=self.preparation,
            paired=self.study.search.prepares,
        )  # fmt: skip
        if ESTIMATE not in trial.user_attrs and EXTRAS not in trial.user_attrs:
            self._keep_estimate(trial, policy)
        for case in candidate.cases:
            row = None if candidate.stopped or plan else self._measured_before(policy, case)
            stock_evaluations = self.references[case].stock_evaluations
            if row is not None and not candidate.lacks_scores(case, row, stock_evaluations):
                candidate.take(case, row, stock_evaluations)
        self.candidates.append(candidate)
        if candidate.finished:
            self._finish(candidate)
        elif candidate.deaths.too_many:
            self._give_up(candidate)
        else:
            self._write_ahead(candidate)

    def _submit(self, candidate: Candidate, job: Measure | FitWeights) -> None:
        candidate.running.append(job)
        candidate.deaths.submitted(job)
        self._jobs[job] = candidate
        self.pool.submit(job)

    def _take(self, done: Done) -> None:
        """Records what came of a job, and ends its candidate if that decides it."""
        job: Measure | FitWeights = done.job
        candidate = self._jobs.pop(job)
        candidate.running.remove(job)
        candidate.deaths.ended(done)
        if done.died:
            if candidate.deaths.too_many and candidate in self.candidates:
                self._give_up(candidate)
            return
        if isinstance(job, FitWeights):
            try:
                self._take_weights(candidate, done.result())
            except NotUsable as error:
                self._fail(candidate, str(error))
            return
        measurement: Measurement = done.result()
        row = self._record(candidate, job.case, measurement)
        if candidate not in self.candidates:
            return  # decided meanwhile; what this cost is recorded
        if measurement.failure is not None:
            self._fail(candidate, measurement.failure)
            return
        candidate.seconds += (row.finished - row.started).total_seconds()
        candidate.take(job.case, row, self.references[job.case].stock_evaluations)
        if candidate.finished:
            self._finish(candidate)
        else:
            self._write_ahead(candidate)

    def _take_weights(self, candidate: Candidate, fitted: Fitted) -> None:
        """Records the run that weights were fitted in, clip by clip, and goes on with the policy that has them."""
        cases = self.study.fit_cases
        for case in cases:
            self.store.add(
                Generation(
                    kind="fit",
                    trial_number=candidate.trial.number,
                    environment_id=self.store.environment(fitted.hardware, fitted.versions),
                    prompt=case.prompt,
                    seed=case.seed,
                    policy=candidate.policy.to_dict(),
                    settings=fitted.settings.to_dict(),
                    evaluations=fitted.evaluations // len(cases),
                    stock_evaluations=fitted.stock_evaluations // len(cases),
                    seconds_denoise=fitted.seconds / len(cases),
                    seconds_end_to_end=fitted.seconds / len(cases),
                    state="complete",
                    started=fitted.started,
                    finished=fitted.finished,
                )
            )
        candidate.plan, candidate.policy = None, fitted.policy
        candidate.seconds += fitted.seconds
        candidate.trial.set_user_attr(FITTED, fitted.policy.to_dict())

    def _record(self, candidate: Candidate, case: Case, measurement: Measurement) -> Generation:
        row = Generation(
            kind=CANDIDATE,
            trial_number=candidate.trial.number,
            environment_id=self.store.environment(dict(measurement.hardware), dict(measurement.versions)),
            **measurement.fields,
        )
        if measurement.failure is not None:
            return self.store.add(row)
        if row.reason is None and candidate in self.candidates:
            row.reason = candidate.with_row(case, row).hopeless()
        recorded = self.store.record(row, measurement.detail, completing=SCORES)
        if measurement.clip is not None:
            # Only now: a full disk must not cost the measurement.
            clip = measurement.clip
            about = candidate.policy.to_dict(), case.prompt, case.seed
            self.clips.keep(*about, lambda: clip, recorded.settings.get(PREPARATION))
        return recorded

    def _finish(self, candidate: Candidate) -> None:
        result = candidate.result()
        self._end(candidate)
        if candidate.seconds:
            self.allowance.took(candidate.seconds)
        for trial in (candidate.trial, *candidate.followers):
            self._tell(trial, result)
        self.narrator.advance(_line(result, self.study.floors), self._progress())

    def _tell(self, trial: optuna.Trial, result: Result) -> None:
        for name, shortfall in self.study.floors.shortfalls(result.figures, margin=True).items():
            if shortfall < math.inf:  # what is not measured belongs to a candidate that misses another floor
                trial.set_constraint(name, shortfall)
        if result.trial != trial.number:
            trial.set_user_attr(REPEATED, result.trial)
        tell(self.optuna_study, trial, result)

    def _give_up(self, candidate: Candidate) -> None:
        self._fail(candidate, GIVEN_UP)

    def _fail(self, candidate: Candidate, reason: str) -> None:
        self._end(candidate)
        for trial in (candidate.trial, *candidate.followers):
            trial.set_user_attr(FAILURE, reason)
            self.optuna_study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self.narrator.advance(f"Candidate {candidate.trial.number} failed: {reason}", self._progress())

    def _end(self, candidate: Candidate) -> None:
        """Takes a candidate out of those that are measured; what still runs for it need not go on."""
        self.candidates.remove(candidate)
        for job in candidate.running:
            self.pool.stop(job)

    def _write_ahead(self, candidate: Candidate) -> None:
        """Notes a death before it happens, where this process is the one that would die."""
        if self.pool.here and candidate.trial.user_attrs.get(DEATHS) != candidate.deaths.count + 1:
            candidate.trial.set_user_attr(DEATHS, candidate.deaths.count + 1)

    def _stopped_by_hand(self) -> None:
        """Takes those notes back."""
        for candidate in self.candidates:
            if self.pool.here:
                with suppress(DatabaseFailed):
                    candidate.trial.set_user_attr(DEATHS, candidate.deaths.count)

    def _measured_before(self, policy: Policy, case: Case) -> Generation | None:
        return self.store.measured(
            CANDIDATE, policy.to_dict(), case.prompt, case.seed,
            metric_version=METRIC_VERSION, preparation=self._recorded_preparation,
        )  # fmt: skip

    @property
    def _recorded_preparation(self) -> dict[str, Any] | None:
        return self.preparation.to_dict() if self.preparation else None

    def _keep_change_maps(self) -> None:
        for indicator, scale in self.space.scales.items():
            self.narrator.say(f"Change map of {indicator}: {scale.fit_quality}")
        fits = {
            change_map_name(indicator, self._recorded_preparation): scale.fit_quality.to_dict()
            for indicator, scale in self.space.scales.items()
        }
        self.optuna_study.set_user_attr(CHANGE_MAPS, {**self.optuna_study.user_attrs.get(CHANGE_MAPS, {}), **fits})

    def _keep_scores(self) -> None:
        """Writes down what scores are measured by.

        Raises:
            CalibrateError: If one was measured by something else before: its values could not be compared.
        """
        asked = {score.name: score.measured_by() for score in self.study.floor_scores}
        before = self.optuna_study.user_attrs.get(SCORES, {})
        for name, how in asked.items():
            if before.get(name, how) != how:
                raise CalibrateError(
                    f"quality.scores: {name} was measured by another function or with other options in this study so "
                    "far; give the changed score another name, or put the old one back."
                )
        if asked.keys() - before.keys():
            self.optuna_study.set_user_attr(SCORES, {**before, **asked})

    def _queue_unmeasured(self) -> None:
        """Queues again, fastest first, the candidates that would hold the floors, but for scores asked for since."""
        trials = {trial.number: trial for trial in self.optuna_study.get_trials(deepcopy=False)}
        waiting = [t.system_attrs.get("fixed_params") for t in trials.values() if t.state == TrialState.WAITING]
        results = results_of(self.optuna_study)
        known = [result.policy for result in results if not self.study.floors.unmeasured(result.figures)]
        for result in sorted(results, key=lambda result: -result.speedup_evaluations):
            trial = trials[result.trial]
            if result.stopped or result.policy in known or trial.params in waiting:
                continue
            plan = {name: trial.user_attrs[name] for name in (EXTRAS, FITTED) if name in trial.user_attrs}
            self.optuna_study.enqueue_trial(trial.params, user_attrs=plan)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.study.search.method == "plain":
            return plain_sampler(seed)
        return ReplaySampler(
            self.space,
            Replay([self.baselines[case].trace for case in self.study.search_cases]),
            self._all_measured,
            self.study.floors,
            min_speedup=self._min_evaluations(),
            share=self.study.guarantee.share if self.study.guarantee else None,
            seed=seed,
            # Else nothing is measured while this process screens.
            ahead=not self.pool.here,
        )

    def _min_evaluations(self) -> float | None:
        """The study's least speed-up in block evaluations, which replay knows.

        Where the study means the time of denoising, what exact mode gains in either says how the two go together here.
        """
        least = self.study.export.min_speedup
        if least is None or not self.study.search.prepares:
            return least
        timings = [baseline.timings for baseline in self.baselines.values()]
        seconds = sum(t.stock_seconds for t in timings) / sum(t.exact_seconds for t in timings)
        evaluations = sum(t.stock_evaluations for t in timings) / sum(t.exact_evaluations for t in timings)
        return least * evaluations / seconds

    def _plans(self) -> Plans | None:
        """The plans that are searched for learned weights, if the study asks for any."""
        if self.study.search.learned is None:
            return None
        schedule = next(iter(self.baselines.values())).trace.windows[0].schedule
        return Plans(self.study.search.learned, schedule, self.study.generation.ar_step, self.study.seed)

    def _all_measured(self) -> list[Measured]:
        """All real runs of candidates so far, but for those with learned weights, whose errors replay cannot tell."""
        numbers = {(case.prompt, case.seed): number for number, case in enumerate(self.study.search_cases)}
        return [
            Measured(Policy.from_dict(row.policy), numbers[row.prompt, row.seed], _figures(row.metrics or {}))
            for row in self.store.complete(CANDIDATE, metric_version=METRIC_VERSION)
            if not (row.policy or {}).get("gap_weights") and row.settings.get(PREPARATION) == self._recorded_preparation
        ]

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

    def _progress(self) -> str:
        """What was spent and the best so far, for the progress bar."""
        equivalents = self.study.budget.equivalents
        spent = f"{self.allowance.equivalents():.1f}" + (f" of {equivalents:g}" if equivalents is not None else "")
        best = fastest_feasible(of_metric(survey(self.store)), self.study.floors)
        told = (
            f"none above the floors{self.study.floors.with_margin}"
            if best is None
            else f"best {best.speed:.2f}x, {best.figures['psnr_db']:.1f} dB"
        )
        return f"{spent} full generations spent, {told}"


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one clip, those of its scores among them."""
    built_in = {name: value for name, value in metrics.items() if name != SCORES}
    return built_in | score_figures([metrics.get(SCORES, {})])


def _line(result: Result, floors: Floors) -> str:
    missed = " and ".join(floors.told_missed(result.figures, margin=True))
    remark = result.stopped or (f"misses {missed}" if missed else "")
    return f"Candidate {result.trial}: {result}" + (f" - {remark}" if remark else "")
