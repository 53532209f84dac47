"""Plans for learned weights: what they recompute, what is tried next, and how a search of them goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import NotUsable, Reference
from calibrate.measure.gap_fit import Fitted, FitWeights, Truth
from calibrate.pool.pool import Done
from calibrate.progress import Narrator
from calibrate.results.result import RESULT
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import FAILURE, count, open_optuna_study
from calibrate.search.plans import EXTRAS, FITTED, Plan, Plans, rows_of
from calibrate.spec.generation import Case
from calibrate.spec.search_space import Learned
from calibrate.store import PREPARATION, Storage, Store
from calibrate.store.lock import StudyLock
from calibrate.study.study_file import Study, StudyFile
from calibrate.workflow import _start_from
from scope_runtime import GapWeights, Policy, Preparation, Schedule, Settings, plan_of
from scope_runtime.gap_weights import plan_digest
from tests.calibrate.search.test_driver import STOCK_EVALUATIONS, FakePool, _generation
from tests.calibrate.test_doctor import STUDIES
from tests.scope_runtime.test_policy import staggered
from tests.tiny import CALL, tiny_pipeline

REFERENCE = staggered(blocks=5, steps=36, lag=5)
"""That of the reference pipeline."""
TINY = staggered(blocks=3, steps=8, lag=2)
FIT_CASES: list[dict[str, Any]] = [{"prompt": f"fit {number}", "seed": number} for number in range(2)]


def evaluations(rows: tuple[str, ...]) -> int:
    return "".join(rows).count("R")


class TestRows:
    @pytest.mark.parametrize("schedule", [REFERENCE, TINY, staggered(blocks=1, steps=5), staggered(4, 9, 0)])
    @pytest.mark.parametrize("period", [1, 2, 5, 100])
    def test_blocks_are_recomputed_at_their_own_steps_and_at_their_last(self, schedule: Schedule, period: int) -> None:
        rows = rows_of(schedule, period, ())
        for block in range(schedule.blocks):
            letters = "".join(row[block] for row in rows if row[block] != ".")
            last = len(letters) - 1
            assert letters == "".join("R" if k % period == 0 or k == last else "P" for k in range(last + 1))
        assert plan_of(Policy(plan=rows), schedule) == rows

    def test_with_the_studys_stagger_all_blocks_are_recomputed_in_the_same_rows(self) -> None:
        assert all(len(set(row.replace(".", ""))) == 1 for row in rows_of(REFERENCE, 5, ()) if set(row) != {"."})
        assert evaluations(rows_of(REFERENCE, 5, ())) == 40

    def test_extra_rows_recompute_blocks_up_to_theirs(self) -> None:
        base, rows = rows_of(REFERENCE, 5, ()), rows_of(REFERENCE, 5, ((2, 0), (18, 2), (39, 4)))
        changed = {number: row for number, (row, other) in enumerate(zip(rows, base, strict=True)) if row != other}
        assert changed == {2: "R....", 18: "RRRP.", 39: ".RRRR"}
        assert evaluations(rows) == 40 + 1 + 3 + 4

    def test_where_a_history_begins_anew_a_block_is_recomputed(self) -> None:
        restarting = Schedule(**{**vars_of(TINY), "restarts": frozenset({(3, 0), (6, 1)})})
        rows = rows_of(restarting, 4, ())
        # What restarts sees fresh keys and values of what is before it, and draws nothing else in.
        assert (rows[3], rows[6]) == ("RP.", "RRP")
        assert plan_of(Policy(plan=rows), restarting) == rows


def vars_of(schedule: Schedule) -> dict[str, Any]:
    return {name: getattr(schedule, name) for name in schedule.__dataclass_fields__}


class TestProposals:
    @pytest.fixture(params=[REFERENCE, TINY, staggered(blocks=1, steps=6)], ids=["reference", "tiny", "one block"])
    def plans(self, request: pytest.FixtureRequest) -> Plans:
        return Plans(Learned(depth=[2, 3]), request.param, 5 if request.param is REFERENCE else 2, seed=0)

    @pytest.fixture
    def study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.create_study(directions=["maximize", "maximize"])

    def test_the_first_ones_are_of_every_kind_of_captures(self, plans: Plans) -> None:
        first = plans.first()
        assert {plan.captures for plan in first} == {"last", "clean"}
        assert {plan.period for plan in first} == {plans.period}
        assert {plan.depth for plan in first} == {2}
        for plan in first:
            assert plan_of(plan.policy(plans.schedule), plans.schedule) == plan.policy(plans.schedule).plan

    def test_on_the_reference_schedule_they_are_those_that_held_up(self) -> None:
        first = Plans(Learned(captures=["last"]), REFERENCE, 5, seed=0).first()
        assert [evaluations(rows_of(REFERENCE, plan.period, plan.extras)) for plan in first] == [51, 46, 56, 76, 40]

    def test_what_is_to_be_promised_begins_with_careful_ones(self, plans: Plans) -> None:
        careful = plans.first(careful=True)
        assert sorted(map(repr, careful)) == sorted(map(repr, plans.first()))
        for captures in plans.captures:
            own = [evaluations(rows_of(plans.schedule, p.period, p.extras)) for p in careful if p.captures == captures]
            assert own == sorted(own, reverse=True)
        assert [plan.captures for plan in careful] == sorted((p.captures for p in careful), key=plans.captures.index)

    def test_neighbours_can_be_run_and_are_drawn_the_same_again(self, plans: Plans) -> None:
        first = plans.first()
        drawn = [plans._propose(number, [], set(first), None) for number in range(50)]
        assert drawn == [plans._propose(number, [], set(first), None) for number in range(50)]
        assert not set(drawn) & set(first)
        assert len(set(drawn)) > 5
        for plan in drawn:
            policy = plan.policy(plans.schedule)
            assert plan_of(policy, plans.schedule) == policy.plan
            assert plan.depth in (2, 3)
            assert list(plan.extras) == sorted(dict(plan.extras).items())

    def test_no_two_plans_have_the_same_rows(self, plans: Plans) -> None:
        drawn = {plans._propose(number, [], (), None) for number in range(200)} | set(plans.first())
        told_apart = {(plan.policy(plans.schedule), plan.depth) for plan in drawn}
        assert len(told_apart) == len(drawn)

    def test_a_profile_of_the_same_setting_gives_its_own_plan(self, plans: Plans) -> None:
        drawn = [plans._propose(number, [], (), None) for number in range(100)] + plans.first()
        for plan in drawn:
            assert plans.like(_with_weights(plan.policy(plans.schedule), plan.depth)) == plan

    def test_a_profile_of_other_steps_gives_the_plan_with_rows_at_the_same_share(self) -> None:
        there, here = staggered(blocks=5, steps=36, lag=6), staggered(blocks=3, steps=18, lag=3)
        plan = Plan(6, ((2, 0), (8, 0), (16, 2), (32, 4)), "clean", 5)
        found = Plans(Learned(captures=["last"]), here, 3, seed=0).like(_with_weights(plan.policy(there), plan.depth))
        assert found == Plan(3, ((1, 0), (4, 0), (8, 1), (16, 2)), "last", 3)

    def test_a_warm_start_has_the_plan_tried_or_says_that_it_cannot(self, plans: Plans, study: optuna.Study) -> None:
        learned = _with_weights(plans.first()[0].policy(plans.schedule), 3)
        said: list[str] = []
        driver: Any = SimpleNamespace(plans=None, optuna_study=study, space=None)
        narrator: Any = SimpleNamespace(say=said.append)
        _start_from([learned], driver, narrator)
        assert study.get_trials() == []
        assert said[0].startswith("--warm-start: learned weights are left out")
        driver.plans = plans
        _start_from([learned], driver, narrator)
        assert [plans.of(trial) for trial in study.get_trials()] == [plans.like(learned)]
        assert len(said) == 1

    def test_the_most_promising_neighbour_is_taken(self, plans: Plans) -> None:
        def fewest(policy: Policy) -> float:
            assert policy.plan is not None
            return -evaluations(policy.plan)

        chosen = plans._propose(3, [], (), fewest)
        others = [plans._propose(number, [], (), None) for number in range(50)]
        cost = -fewest(chosen.policy(plans.schedule))
        assert cost <= np.median([-fewest(plan.policy(plans.schedule)) for plan in others])

    def test_nothing_is_queued_twice(self, plans: Plans, study: optuna.Study) -> None:
        for _ in range(2):
            for plan in plans.first():
                plans.queue(study, plan)
        assert len(study.get_trials()) == len(set(plans.first()))
        for plan in dict.fromkeys(plans.first()):
            assert plans.suggest(study.ask()) == plan
        for plan in plans.first():
            plans.queue(study, plan)
        assert [t for t in study.get_trials() if t.state == TrialState.WAITING] == []

    def test_plans_take_their_share_of_turns(self, study: optuna.Study) -> None:
        plans = Plans(Learned(share=0.25), TINY, 2, seed=0)
        for _ in range(40):
            plans.take_turn(study, None)
            trial = study.ask()
            if EXTRAS in trial.user_attrs:
                plans.suggest(trial)
        kinds = [EXTRAS in trial.user_attrs for trial in study.get_trials()]
        assert sum(kinds) == 10
        tried = list(plans._tried(study).values())
        assert len(set(tried)) == len(tried)

    def test_what_waits_comes_first(self, plans: Plans, study: optuna.Study) -> None:
        plans.queue(study, plans.first()[0])
        plans.take_turn(study, None)
        assert len(study.get_trials()) == 1

    @pytest.mark.parametrize(
        ("steps", "lag", "period"),
        [(36, 5, 5), (50, 10, 5), (64, 16, 8), (32, 8, 4), (12, 3, 3), (64, 64, 8), (36, 0, 6), (8, 2, 2), (1, 1, 1)],
    )
    def test_a_period_keeps_blocks_in_the_same_rows_and_is_short(self, steps: int, lag: int, period: int) -> None:
        schedule = staggered(blocks=2, steps=steps, lag=lag)
        plans = Plans(Learned(), schedule, lag, seed=0)
        assert plans.period == period
        rows = rows_of(schedule, plans.period, ())
        assert all(len(set(row[: row.rindex("R") + 1]) - {"."}) == 1 for row in rows if "R" in row)
        assert Plans(Learned(period=7), schedule, lag, seed=0).period == 7

    def test_what_is_offered_once_is_captured_by_the_model_itself(self) -> None:
        once = Schedule(**{**vars_of(TINY), "offered_once": True})
        assert {plan.captures for plan in Plans(Learned(), once, 2, seed=0).first()} == {"clean"}
        assert {plan.captures for plan in Plans(Learned(captures=["last"]), TINY, 2, seed=0).first()} == {"last"}

    def test_parameters_count_what_extra_rows_cost(self) -> None:
        plan = Plan(5, ((2, 0), (18, 2)), "last", 3)
        assert plan.parameters(REFERENCE) == {
            "kind": "learned", "period": 5, "extra_evaluations": 4, "extra_rows": 2, "captures": "last", "depth": 3,
        }  # fmt: skip


class FittingPool(FakePool):
    """Fits weights for nothing, too.

    Attributes:
        fits: Every fit that ended.
        stop_after_fits: Raises `KeyboardInterrupt` in place of the next job's end once so many fits were told.
    """

    def __init__(self, size: int = 1, stop_after_fits: int | None = None, error: Exception | None = None) -> None:
        super().__init__(size, lambda _: 30.0)
        self.fits: list[FitWeights] = []
        self.stop_after_fits = stop_after_fits
        self.error = error

    def next(self) -> Done:
        if self.stop_after_fits == len(self.fits):
            raise KeyboardInterrupt
        job: Any = self.order(self._air)
        if not isinstance(job, FitWeights):
            return super().next()
        self._air.remove(job)
        self.fits.append(job)
        return Done(job, _fitted(job)) if self.error is None else Done(job, error=self.error)


SETTINGS = Settings.of(tiny_pipeline(), **CALL)


def _with_weights(policy: Policy, depth: int) -> Policy:
    assert policy.plan is not None
    weights = GapWeights(
        depth=depth, classes=(0, 1, 2), weights=((0, 0, "cond", (1.25,)),), num_inference_steps=8,
        guidance_scale=3.0, scheduler="any", plan=plan_digest(policy.plan),
    )  # fmt: skip
    return Policy(plan=policy.plan, captures=policy.captures, gap_weights=weights)


def _fitted(job: FitWeights) -> Fitted:
    now = datetime.now(UTC)
    policy = _with_weights(job.policy, job.depth)
    # Of two clips together: each a third of what stock takes.
    return Fitted(policy, 20, 2 * STOCK_EVALUATIONS, 0.5, SETTINGS, {}, {}, now, now)


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store.open_study(storage, name="s", yaml_text="name: s", fixed_parts={}, settings={}, model={})


Drive = Callable[..., Driver]


@pytest.fixture
def drive(store: Store, tiny_study: dict[str, Any], tmp_path: Path) -> Drive:
    """Runs a search of one planned candidate and of plans."""

    def run(pool: Any, *, trials: int = 4, learned: dict[str, Any] | None = None) -> Driver:
        study = Study.model_validate(
            tiny_study
            | {
                "fit_cases": FIT_CASES,
                "search": {
                    "method": "plain",
                    "candidates": [{"warmup": 1, "max_skip": 1}],
                    "learned": {"captures": ["last"]} | (learned or {}),
                },
                "floors": {"psnr_db": None, "psnr_worst_prompt_db": None, "safety_margin_db": 0.0},
                "budget": {"trials": trials},
                "cache": str(tmp_path),
                "clip_megabytes": 0,
            }
        )
        baseline: Any = SimpleNamespace(
            observations=np.array([[row, 0, 1.1 - 0.1 * row, 1 - 0.1 * row, 0.1, 0.2 * row] for row in range(1, 6)]),
            timings=SimpleNamespace(
                exact_seconds=1.0, decode_seconds=1.0, exact_evaluations=20, stock_evaluations=STOCK_EVALUATIONS
            ),
            trace=SimpleNamespace(windows=[SimpleNamespace(schedule=TINY)]),
        )
        references = {
            case: Reference(case, np.zeros((1, 2, 2, 3), np.float32), 3.0, STOCK_EVALUATIONS, tmp_path)
            for case in study.search_cases
        }
        truth = Truth((torch.zeros(2, 8, 3, 4),), torch.arange(4))
        with StudyLock(store) as lock:
            driver = Driver(
                study, store, lock, open_optuna_study(store, create=True), pool,
                dict.fromkeys(study.search_cases, baseline), references, Narrator(), truth,
            )  # fmt: skip
            driver.run(float("inf"))
        return driver

    return run


def learned_trials(driver: Driver) -> Iterator[optuna.trial.FrozenTrial]:
    """Those that are not just queued."""
    trials = driver.optuna_study.get_trials(deepcopy=False)
    return (t for t in trials if EXTRAS in t.user_attrs and t.state != TrialState.WAITING)


class TestSearch:
    def test_weights_are_fitted_before_a_plan_is_measured(self, drive: Drive) -> None:
        pool = FittingPool()
        driver = drive(pool)
        assert count(driver.optuna_study) == (4, 4)
        assert len(pool.fits) == len({job.policy for job in pool.fits}) == 3
        assert {job.cases for job in pool.fits} == {tuple(driver.study.fit_cases)}
        for job in pool.fits:
            own = [ran for ran in pool.ran if ran.trial == job.trial]
            assert len(own) == 2
            assert {ran.policy.gap_weights for ran in own} == {_fitted(job).policy.gap_weights}
        for trial in learned_trials(driver):
            assert trial.state == TrialState.COMPLETE
            assert trial.user_attrs[RESULT]["policy"] == trial.user_attrs[FITTED]
            assert trial.params["kind"] == "learned"

    def test_a_fit_holds_its_candidates_other_jobs_back(self, drive: Drive) -> None:
        pool = FittingPool(size=6)
        driver = drive(pool, trials=4)
        assert count(driver.optuna_study) == (4, 4)
        # All of them at once, beside the two generations of the planned candidate.
        assert [job.trial for job in pool.given[:5]] == [0, 0, 1, 2, 3]
        assert len(pool.fits) == 3
        assert len(pool.ran) == len({(job.trial, job.case) for job in pool.ran}) == 8

    def test_a_plan_is_tried_once_in_every_pipeline(self, store: Store) -> None:
        learned = _with_weights(Plan(2, ((1, 0),), "last", 3).policy(TINY), 3)
        open_optuna_study(store, create=True, timed=True)
        for preparation in (Preparation(), Preparation(weights="bfloat16")):
            own = open_optuna_study(store, create=False, preparation=preparation)
            driver: Any = SimpleNamespace(plans=Plans(Learned(), TINY, 2, seed=0), optuna_study=own, space=None)
            for _ in range(2):
                _start_from([learned], driver, Narrator())
            (trial,) = own.get_trials()
            assert driver.plans.of(trial) == Plan(2, ((1, 0),), "last", 3)
            assert trial.user_attrs.get(PREPARATION) == (preparation.to_dict() if preparation else None)

    def test_a_fit_that_fails_where_the_pipeline_is_set_up_is_the_end_of_its_candidate_alone(
        self, drive: Drive
    ) -> None:
        driver = drive(FittingPool(error=NotUsable("fitting its weights: RuntimeError: no such kernel")))
        failed = [trial.user_attrs[FAILURE] for trial in learned_trials(driver)]
        assert failed == ["fitting its weights: RuntimeError: no such kernel"] * 3
        assert count(driver.optuna_study) == (4, 4)

    def test_one_plan_with_weights_of_another_depth_is_fitted_for_itself(self, drive: Drive, store: Store) -> None:
        study = open_optuna_study(store, create=True)
        plans = Plans(Learned(), TINY, 2, seed=0)
        for depth in (2, 4):
            plans.queue(study, Plan(2, ((1, 0),), "last", depth))
        pool = FittingPool(size=6)
        drive(pool, trials=2)
        assert [job.depth for job in pool.fits] == [2, 4]
        assert len({job.policy for job in pool.fits}) == 1

    def test_fits_are_recorded_clip_by_clip_and_count_as_spent(self, drive: Drive, store: Store) -> None:
        for number in range(2):
            case = Case(prompt=f"any {number}", seed=number)
            store.add(_generation(store, "stock", case, STOCK_EVALUATIONS))
        driver = drive(FittingPool())
        assert store.counts() == {"stock": 2, "candidate": 8, "fit": 6}
        # Each clip of a fit and each generation of a candidate is a third of a full generation.
        assert driver.allowance.equivalents() * 2 == pytest.approx(2 + (6 + 8) / 3)
        rows = store.complete("fit")
        assert {(row.prompt, row.seed) for row in rows} == {("fit 0", 0), ("fit 1", 1)}
        assert {row.evaluations for row in rows} == {10}
        assert all(row.policy and row.policy.get("gap_weights") is None for row in rows)

    def test_a_search_that_was_stopped_after_a_fit_goes_on_with_its_weights(self, drive: Drive, store: Store) -> None:
        stopped = FittingPool(stop_after_fits=1)
        with pytest.raises(KeyboardInterrupt):
            drive(stopped)
        study = open_optuna_study(store, create=False)
        (begun,) = [trial for trial in study.get_trials(deepcopy=False) if FITTED in trial.user_attrs]
        assert begun.state == TrialState.RUNNING
        again = FittingPool()
        driver = drive(again)
        assert count(driver.optuna_study) == (4, 4)
        assert begun.number not in {job.trial for job in again.fits}
        assert len(again.fits) == 2
        own = [job for job in again.ran if job.trial == begun.number]
        assert [job.policy.to_dict() for job in own] == [begun.user_attrs[FITTED]] * 2
        assert store.counts() == {"candidate": 8, "fit": 6}

    def test_a_search_that_was_stopped_within_a_fit_fits_again(self, drive: Drive, store: Store) -> None:
        stopped = FittingPool(stop_after_fits=0)
        with pytest.raises(KeyboardInterrupt):
            drive(stopped)
        again = FittingPool()
        driver = drive(again)
        assert count(driver.optuna_study) == (4, 4)
        assert len(again.fits) == 3
        assert store.counts() == {"candidate": 8, "fit": 6}

    def test_a_plan_over_whose_fit_processes_die_is_given_up(self, drive: Drive) -> None:
        class Deadly(FittingPool):
            def next(self) -> Done:
                job: Any = self.order(self._air)
                if not isinstance(job, FitWeights) or job.trial != 1:
                    return super().next()
                self._air.remove(job)
                return Done(job, died=True)

        driver = drive(Deadly())
        states = {trial.number: trial.state for trial in driver.optuna_study.get_trials(deepcopy=False)}
        assert states[1] == TrialState.FAIL
        assert [states[number] for number in (0, 2, 3)] == [TrialState.COMPLETE] * 3


class TestStudyFile:
    LEARNED: ClassVar[dict[str, Any]] = {"search": {"learned": {}}}

    def refused(self, tmp_path: Path, study: dict[str, Any]) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        with pytest.raises(CalibrateError) as error:
            StudyFile(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_weights_need_prompts_to_be_fitted_on(self, tmp_path: Path, tiny_study: dict[str, Any]) -> None:
        assert "fit_cases must name the prompts" in self.refused(tmp_path, tiny_study | self.LEARNED)

    @pytest.mark.parametrize("other", ["search_cases", "held_out_cases"])
    def test_they_must_be_prompts_of_their_own(self, tmp_path: Path, tiny_study: dict[str, Any], other: str) -> None:
        case = {"prompt": tiny_study[other][0]["prompt"], "seed": 77}
        sentence = self.refused(tmp_path, tiny_study | self.LEARNED | {"fit_cases": [case]})
        assert f"fit_cases must share no prompt with {other}, but both hold {case['prompt']!r}" in sentence

    def test_none_may_be_named_twice(self, tmp_path: Path, tiny_study: dict[str, Any]) -> None:
        sentence = self.refused(tmp_path, tiny_study | self.LEARNED | {"fit_cases": [FIT_CASES[0]] * 2})
        assert "fit_cases holds the same prompt and seed twice" in sentence

    @pytest.mark.parametrize(
        ("learned", "told"),
        [
            ({"captures": ["clean", "last"]}, "search.learned.captures must be [clean]"),
            ({"period": 5}, "search.learned.period must divide generation.ar_step (16), not 5"),
        ],
    )
    def test_what_magi_1_keeps_no_context_for_is_refused(
        self, tmp_path: Path, learned: dict[str, Any], told: str
    ) -> None:
        study = yaml.safe_load((STUDIES / "magi-1-4.5b-base.yaml").read_text()) | {"fit_cases": FIT_CASES}
        study["search"] = {**study.get("search", {}), "learned": learned}
        assert told in self.refused(tmp_path, study)
        study["search"]["learned"] = {"period": 4}
        assert Study.model_validate(study).search.learned == Learned(period=4)

    def test_a_long_video_is_refused_before_anything_is_made(self, tmp_path: Path, tiny_study: dict[str, Any]) -> None:
        generation = CALL | {"num_frames": 45, "base_num_frames": 33, "overlap_history": 9}
        study = tiny_study | self.LEARNED | {"fit_cases": FIT_CASES, "generation": generation}
        assert "search.learned must be null for videos of several windows" in self.refused(tmp_path, study)
        study["search"] = {"learned": None}
        assert Study.model_validate(study).fit_cases == [Case(**case) for case in FIT_CASES]
