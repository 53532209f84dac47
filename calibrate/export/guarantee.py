"""Tests candidates on the guarantee cases, one policy after the other, from careful to bold.

What is tested is a policy in the pipeline that its candidate ran in, set up alike; stock is stock as it was loaded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from functools import partial

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import Reference, Timings, read_baseline
from calibrate.measure.candidate import Measure, Measurement
from calibrate.measure.describe import Description
from calibrate.pool.pool import GIVEN_UP, Deaths, Pool
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.guarantee import Promise, Tried, worth_measuring
from calibrate.results.promise_table import PromiseTable, tried
from calibrate.results.promises import declared_wish, promises_of, refuse_too_few
from calibrate.results.result import Result, of_metric
from calibrate.results.sequence import SEQUENCES, Sequenced, sequence_of, sequences_in
from calibrate.search.baselines import Baselines
from calibrate.search.optuna_study import open_optuna_study
from calibrate.search.presence import keep_presence
from calibrate.search.quiet import quiet_optuna
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.guarantee import Guarantee
from calibrate.spec.score_floor import SCORES
from calibrate.store import GUARANTEE, GUARANTEE_STOCK, Generation, Store
from calibrate.store.optuna_tables import study_attribute
from calibrate.study.promised import recorded_promises
from calibrate.study.study_file import Study
from scope_runtime import Policy

# Tested policies take a part of what stock does, and bold ones are given up before all cases are measured.
_SHARE_OF_STOCK = 0.3
# Every case is measured to its end, so that it counts for all floors of the table.
_NO_FLOORS = Floors(psnr_db=None, psnr_worst_prompt_db=None, safety_margin_db=0.0)


class GuaranteeTests:
    """The tests of a study that asks for a guarantee."""

    def __init__(
        self, study: Study, guarantee: Guarantee, store: Store, pool: Pool, target: Description, narrator: Narrator
    ) -> None:
        """Measures nothing yet.

        Args:
            study: The study file's content.
            guarantee: Its wish.
            store: Where generations are recorded.
            pool: Where they are made.
            target: What the pool has loaded.
            narrator: Told of every case.

        Raises:
            CalibrateError: If the study has too few cases for its wish.
        """
        refuse_too_few(guarantee, len(study.guarantee_cases))
        self.study = study
        self.guarantee = guarantee
        self.cases = study.guarantee_cases
        self.store = store
        self.pool = pool
        self.narrator = narrator
        self._baselines = Baselines(
            pool, target, study.generation, store, study.cache_folder, narrator.say, (GUARANTEE_STOCK,)
        )
        self._timings: dict[Case, Timings] = {}
        self._references: dict[Case, Reference] = {}
        self._stock_scores: dict[Case, dict[str, float]] = {}
        self._most = 0

    def make_stock(self) -> None:
        """Makes the stock clips of the cases, but for those that were kept."""
        self.narrator.stage("Guarantee cases: stock", len(self.cases))
        for baseline, reused in self._baselines.all(self.cases):
            self._timings[baseline.case] = baseline.timings
            if reused:
                self.narrator.reached(len(self._timings), len(self.cases))
            else:
                self.narrator.advance(f"{baseline.case.label}: stock {baseline.timings.stock_seconds:.1f} s")
        if any(score.of == "clip" for score in self.study.floor_scores):
            self.narrator.stage("Scores of the guarantee cases' stock clips", len(self.cases))
            for case in self.cases:
                self._stock_scores[case] = self._baselines.scores(self._reference(case), self.study.floor_scores)
                self.narrator.advance(case.label)

    @property
    def seconds(self) -> float:
        """How long the tests will take, roughly, once the stock clips are made."""
        each = sum(t.stock_seconds * _SHARE_OF_STOCK + t.decode_seconds for t in self._timings.values())
        return self.guarantee.most_policies * each / self.pool.size

    def run(self, results: list[Result]) -> PromiseTable:
        """Tests policies of the front until none of the promises can be passed any more.

        What was measured before is read. A sequence that was begun is brought to its end, whatever was searched since.

        Args:
            results: What the search measured.

        Raises:
            CalibrateError: If there is no policy to test.
        """
        if len(self._timings) < len(self.cases):
            self.make_stock()
        comparable = {result.trial: result for result in of_metric(results)}
        kept = self._begun(comparable)
        floors, numbers = self.study.floors, kept[-1].trials
        declared = kept[0].wish == declared_wish(self.guarantee, floors)
        self._most = len(numbers) * len(self.cases)
        self.narrator.stage("Guarantee: policies on cases, careful ones first, at most", self._most)
        promises = promises_of(self.guarantee, floors)
        sequence: list[Tried] = []
        for number in numbers:
            sequence.append(self._test(comparable[number], promises, sequence))
            if not worth_measuring(promises, sequence):
                break
        self._keep([*kept[:-1], replace(kept[-1], finished=True)])
        recorded = recorded_promises(self.store, self.study)
        return PromiseTable(
            # With why policies failed, which is not recorded.
            self.guarantee, floors, self.cases, sequence, len(kept), declared=declared,
            likeness=recorded.likeness if recorded else None,
        )  # fmt: skip

    def _begun(self, results: dict[int, Result]) -> list[Sequenced]:
        """The sequences of policies that these cases have tested, the one that is to be tested now as the last."""
        chosen = [r.trial for r in sequence_of(list(results.values()), self.guarantee, self.study.floors)]
        if not chosen:
            raise CalibrateError(
                "guarantee: no policy was measured on all search cases, so that none can be tested; lower the floors "
                "or raise budget.trials."
            )
        kept = sequences_in(study_attribute(self.store.storage, self.store.study.name, SEQUENCES))
        if kept and not kept[-1].finished:
            looked_at = {row.trial_number for row in self.store.complete(GUARANTEE, metric_version=METRIC_VERSION)}
            if looked_at.isdisjoint(kept[-1].trials) or not results.keys() >= set(kept[-1].trials):
                kept.pop()
        if not kept or (kept[-1].finished and kept[-1].trials != chosen):
            kept.append(Sequenced(chosen, declared_wish(self.guarantee, self.study.floors)))
            self._keep(kept)
        return kept

    def _keep(self, sequences: list[Sequenced]) -> None:
        with quiet_optuna():
            optuna_study = open_optuna_study(self.store, create=False)
            optuna_study.set_user_attr(SEQUENCES, [asdict(entry) for entry in sequences])

    def _test(self, result: Result, promises: list[Promise], before: list[Tried]) -> Tried:
        """Measures a policy on the cases, as many at once as there are devices, while any promise can be passed."""
        rows = {case: row for case in self.cases if (row := self._measured(result, case)) is not None}
        waiting = deque(case for case in self.cases if case not in rows)
        running, deaths, failed = 0, Deaths(), None
        while True:
            found = tried(result, self.cases, rows, failed)
            self.narrator.reached(len(before) * len(self.cases) + len(rows), self._most)
            while waiting and running < self.pool.size and worth_measuring(promises, [*before, found]):
                job = self._job(result, waiting.popleft())
                deaths.submitted(job)
                self.pool.submit(job)
                running += 1
            if not running:
                return found
            self.pool.changed = partial(keep_presence, self.store, self.pool, "guarantee")
            done = self.pool.next()
            running -= 1
            deaths.ended(done)
            case = done.job.case
            if done.died:
                waiting.appendleft(case)
                if deaths.too_many:
                    failed = GIVEN_UP
                continue
            measurement: Measurement = done.result()
            row = self._record(result, case, measurement)
            if measurement.failure is not None:
                failed = measurement.failure
                self.narrator.say(f"Policy of trial {result.trial} failed on {case.label}: {failed}")
                continue
            rows[case] = row
            missed = self.study.floors.missed_by_prompt(row.metrics or {})
            told = f" - misses {' and '.join(missed)}" if missed else ""
            self.narrator.say(f"Trial {result.trial}, {case.label}: {(row.metrics or {})['psnr_db']:.1f} dB{told}")

    def _measured(self, result: Result, case: Case) -> Generation | None:
        """A row that is there, unless a floor on a score asks for more than it has."""
        row = self._row(result, case)
        scored = {} if row is None else (row.metrics or {}).get(SCORES, {})
        return row if all(score.name in scored for score in self.study.floor_scores) else None

    def _row(self, result: Result, case: Case) -> Generation | None:
        return self.store.measured(
            GUARANTEE, result.policy, case.prompt, case.seed,
            metric_version=METRIC_VERSION, preparation=result.preparation,
        )  # fmt: skip

    def _job(self, result: Result, case: Case) -> Measure:
        policy = Policy.from_dict(result.policy)
        return Measure(
            result.trial, policy, case, _NO_FLOORS, (), len(self.cases), None, reference=self._reference(case),
            scores=self.study.floor_scores, stock_scores=self._stock_scores.get(case, {}), preparation=result.set_up,
        )  # fmt: skip

    def _reference(self, case: Case) -> Reference:
        """A case's stock clip; where jobs run in this process it is read for each, and never are all in memory."""
        if case in self._references:
            return self._references[case]
        path = self._baselines.path(case)
        baseline = read_baseline(path, case)
        if baseline is None:
            raise CalibrateError(f"cache: the stock clip in {path} has gone or is damaged; run the study again.")
        reference = baseline.reference(path)
        if not self.pool.here:
            self._references[case] = reference
        return reference

    def _record(self, result: Result, case: Case, measurement: Measurement) -> Generation:
        row = Generation(
            kind=GUARANTEE,
            trial_number=result.trial,
            environment_id=self.store.environment(dict(measurement.hardware), dict(measurement.versions)),
            **measurement.fields,
        )
        first = self._row(result, case)
        if measurement.failure is not None or first is None:
            return self.store.add(row, measurement.detail)
        # Measured again for the sake of its scores alone.
        return self.store.with_more(first, SCORES, (row.metrics or {}).get(SCORES, {}))
