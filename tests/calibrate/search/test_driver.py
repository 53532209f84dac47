"""The driver: what it has measured, in which order, what it makes of deaths, and that it survives its own."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import Reference
from calibrate.measure.candidate import Measure, Measurement
from calibrate.pool.pool import Activity, Done, Job
from calibrate.progress import Narrator
from calibrate.results.result import MEMORY, RESULT
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import DEATHS, FAILURE, count, open_optuna_study
from calibrate.spec.generation import Case
from calibrate.store import Generation, Storage, Store
from calibrate.store.lock import StudyLock
from calibrate.study.study_file import Study
from tests.calibrate.conftest import TINY_STUDY, Workplace
from tests.calibrate.search import driver_process

PLANNED = [{"warmup": warmup, "max_skip": skip} for warmup, skip in ((4, 3), (3, 4), (2, 4), (4, 2), (2, 1), (1, 3))]
FIXED_STUDY: dict[str, Any] = {
    "search": TINY_STUDY["search"] | {"candidates": PLANNED},
    "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": None},
    "budget": {"trials": len(PLANNED)},
}
KILLS = 6

STOCK_EVALUATIONS = 30
ENVIRONMENT: dict[str, Any] = {"hardware": {}, "versions": {}}


class FakePool:
    """Devices that measure for nothing. Each job ends when `order` says so; what it came to, `outcome` says.

    Attributes:
        most: The most jobs that were in the air at once.
        policies: The most different policies among them.
        given: Every job, in the order in which they were submitted.
        ran: Every job that ended, in order.
        stopped: Jobs that nobody wanted any more.
    """

    here = False

    def __init__(self, size: int, outcome: Callable[[Measure], float | None]) -> None:
        self.size = size
        self.outcome = outcome
        self.most = self.policies = 0
        self.given: list[Measure] = []
        self.ran: list[Measure] = []
        self.stopped: list[Job] = []
        self.order: Callable[[Sequence[Measure]], Measure] = lambda jobs: jobs[0]
        self._air: list[Any] = []

    def submit(self, job: Any) -> None:
        self._air.append(job)
        self.given.append(job)
        assert len(self._air) <= self.size
        self.most = max(self.most, len(self._air))
        self.policies = max(self.policies, len({job.trial for job in self._air}))

    def next(self) -> Done:
        job = self.order(self._air)
        self._air.remove(job)
        self.ran.append(job)
        psnr = self.outcome(job)
        return Done(job, died=True) if psnr is None else Done(job, _measured(job, psnr))

    def stop(self, job: Job) -> None:
        self.stopped.append(job)

    def activity(self) -> Sequence[Activity]:
        return [Activity(f"device {number}", job) for number, job in enumerate(self._air)]

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _measured(job: Measure, psnr: float) -> Measurement:
    now = datetime.now(UTC)
    names = ("psnr_db", "psnr_worst_frame_db", "psnr_worst_block_db", "temporal_psnr_db")
    metrics = {**dict.fromkeys(names, psnr), "ssim": 0.9, "flicker": 0.0, "motion_error_px": 0.0, MEMORY: 1.0}
    fields = {
        "prompt": job.case.prompt, "seed": job.case.seed, "policy": job.policy.to_dict(), "settings": {},
        "metric_version": 2, "stock_seconds_denoise": 3.0, "started": now, "finished": now, "reason": None,
        "metrics": metrics, "evaluations": 10, "stock_evaluations": STOCK_EVALUATIONS, "seconds_denoise": 1.0,
        "seconds_decode": 0.0, "seconds_end_to_end": 1.0, "state": "complete",
    }  # fmt: skip
    return Measurement(fields, {}, {}, {})


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store.open_study(storage, name="s", yaml_text="name: s", fixed_parts={}, settings={}, model={})


Drive = Callable[..., Driver]


@pytest.fixture
def drive(store: Store, tiny_study: dict[str, Any], tmp_path: Path) -> Drive:
    """Runs a search of planned candidates over so many cases on a pool."""

    def run(pool: Any, *, candidates: int = 3, cases: int = 2, floor: float | None = None, **budget: Any) -> Driver:
        planned = [{"warmup": 1 + number, "max_skip": 1} for number in range(candidates)]
        study = Study.model_validate(
            tiny_study
            | {
                "search_cases": [{"prompt": f"prompt {number}", "seed": number} for number in range(cases)],
                "search": {"method": "plain", "candidates": planned, "warmup": {"low": 1, "high": 9}},
                "floors": {"psnr_db": None, "psnr_worst_prompt_db": floor, "safety_margin_db": 0.0},
                "budget": {"trials": candidates} | budget,
                "cache": str(tmp_path),
                "clip_megabytes": 0,
            }
        )
        baseline = SimpleNamespace(
            observations=np.array(
                [[row, 0, 1.1 - 0.1 * row, 1 - 0.1 * row, 0.1 * row, 0.2 * row] for row in range(1, 6)]
            ),
            timings=SimpleNamespace(
                exact_seconds=1.0, decode_seconds=1.0, exact_evaluations=20, stock_evaluations=STOCK_EVALUATIONS
            ),
        )
        references = {
            case: Reference(case, np.zeros((1, 2, 2, 3), np.float32), 3.0, STOCK_EVALUATIONS, tmp_path)
            for case in study.search_cases
        }
        with StudyLock(store) as lock:
            driver = Driver(
                study, store, lock, open_optuna_study(store, create=True), pool,
                dict.fromkeys(study.search_cases, baseline), references, Narrator(),  # type: ignore[arg-type]
            )  # fmt: skip
            driver.run(float("inf"))
        return driver

    return run


def _states(driver: Driver) -> Counter[TrialState]:
    return Counter(trial.state for trial in driver.optuna_study.get_trials(deepcopy=False))


def test_a_least_speed_up_of_time_is_told_replay_in_evaluations(drive: Drive) -> None:
    driver = drive(FakePool(1, lambda _: 30.0), candidates=1, cases=1)
    # Exact mode makes half the evaluations in a third of the time, so that 3x faster takes 2x fewer.
    timings = SimpleNamespace(stock_seconds=3.0, exact_seconds=1.0, stock_evaluations=40, exact_evaluations=20)
    driver.baselines = dict.fromkeys(driver.study.search_cases, SimpleNamespace(timings=timings))  # type: ignore[arg-type]
    export = driver.study.export.model_copy(update={"min_speedup": 3.0})
    found = []
    for weights in ([None], [None, "bfloat16"]):
        search = driver.study.search.model_copy(update={"weights": weights})
        driver.study = driver.study.model_copy(update={"export": export, "search": search})
        found.append(driver._min_evaluations())
    assert found == [3.0, pytest.approx(2.0)]


class TestDevices:
    def test_cases_come_first_and_what_devices_are_left_get_other_candidates(self, drive: Drive) -> None:
        pool = FakePool(8, lambda _: 30.0)
        driver = drive(pool, candidates=4, cases=4)
        assert pool.most == 8
        assert [job.trial for job in pool.given[:8]] == [0] * 4 + [1] * 4
        assert _states(driver) == {TrialState.COMPLETE: 4}
        assert Counter((job.trial, job.case.prompt) for job in pool.ran).most_common(1)[0][1] == 1

    def test_one_device_measures_one_case_after_the_other(self, drive: Drive) -> None:
        pool = FakePool(1, lambda _: 30.0)
        drive(pool)
        assert [(job.trial, job.case.seed) for job in pool.ran] == [(n, seed) for n in range(3) for seed in range(2)]

    @pytest.mark.parametrize("here", [False, True])
    def test_the_next_candidate_is_chosen_while_devices_work(self, drive: Drive, store: Store, here: bool) -> None:
        pool, begun = FakePool(1, lambda _: 30.0), []

        def look(jobs: Sequence[Measure]) -> Measure:
            trials = open_optuna_study(store, create=False).get_trials(deepcopy=False)
            begun.append(sum(trial.state == TrialState.RUNNING for trial in trials))
            return jobs[0]

        pool.here, pool.order = here, look
        drive(pool)
        # Two cases each; over the second nobody can know yet whether another is wanted, but it is chosen.
        assert begun == ([1] * 6 if here else [1, 2, 1, 2, 1, 1])

    def test_no_more_are_started_than_the_budget_has_candidates(self, drive: Drive) -> None:
        pool = FakePool(8, lambda _: 30.0)
        driver = drive(pool, candidates=3, cases=2)
        assert pool.most == 6
        assert len(pool.ran) == 6
        assert count(driver.optuna_study) == (3, 3)

    def test_candidates_that_run_count_against_the_budget_of_generations(self, drive: Drive, store: Store) -> None:
        for case in (Case(prompt=f"prompt {n}", seed=n) for n in range(2)):
            for kind, evaluations in (("stock", 30), ("exact", 20)):
                store.add(_generation(store, kind, case, evaluations))
        # 5/3 are spent; as many more as exact runs would fit: 5/3 + 2/3 + 2/3 = 3.
        pool = FakePool(8, lambda _: 30.0)
        driver = drive(pool, candidates=8, cases=2, equivalents=3.1)
        assert pool.policies == 3
        # Each came to a third of a generation, so that there was room for one more of a third.
        assert count(driver.optuna_study)[0] == 4

    @pytest.mark.parametrize("seed", range(5))
    def test_whatever_the_order_in_which_devices_end_all_is_measured_once(self, drive: Drive, seed: int) -> None:
        chance = random.Random(seed)
        pool = FakePool(5, lambda job: 20.0 + job.policy.warmup + job.case.seed)
        pool.order = chance.choice
        driver = drive(pool, candidates=6, cases=3)
        assert len(pool.ran) == len({(job.trial, job.case) for job in pool.ran}) == 18
        results = {t.number: t.user_attrs[RESULT] for t in driver.optuna_study.get_trials(deepcopy=False)}
        for result in results.values():
            assert result["figures"]["psnr_db"] == pytest.approx(21 + result["policy"]["warmup"])


class TestEarlyStops:
    def test_a_prompt_that_ends_a_candidate_ends_its_other_jobs(self, drive: Drive, store: Store) -> None:
        pool = FakePool(4, lambda job: 10.0 if job.case.seed == 1 else 40.0)
        pool.order = lambda jobs: next((job for job in jobs if job.case.seed == 1), jobs[0])
        driver = drive(pool, candidates=1, cases=4, floor=20.0)
        assert sorted(job.case.seed for job in pool.stopped) == [0, 2, 3]  # type: ignore[attr-defined]
        (trial,) = driver.optuna_study.get_trials(deepcopy=False)
        result = trial.user_attrs[RESULT]
        assert result["stopped"].startswith("stopped early: at best it misses psnr_worst_prompt_db")
        assert result["cases"] == 1
        # What they came to is recorded all the same: it was paid for.
        assert store.counts() == {"candidate": 4}

    def test_on_one_device_the_others_are_not_begun(self, drive: Drive, store: Store) -> None:
        pool = FakePool(1, lambda job: 10.0 if job.case.seed == 1 else 40.0)
        drive(pool, candidates=1, cases=4, floor=20.0)
        assert [job.case.seed for job in pool.ran] == [0, 1]
        assert pool.stopped == []


class TestDeaths:
    def test_a_candidate_over_which_processes_die_is_given_up(self, drive: Drive) -> None:
        pool = FakePool(2, lambda job: None if job.policy.warmup == 2 else 30.0)
        driver = drive(pool)
        assert _states(driver) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}
        (failed,) = driver.optuna_study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        assert failed.user_attrs[FAILURE] == "3 processes died while they measured it"

    def test_deaths_count_only_without_a_generation_in_between(self, drive: Drive) -> None:
        died: Counter[Case] = Counter()

        def outcome(job: Measure) -> float | None:
            died[job.case] += 1
            return None if died[job.case] <= 2 else 30.0

        driver = drive(FakePool(1, outcome), candidates=1, cases=3)
        assert _states(driver) == {TrialState.COMPLETE: 1}
        assert set(died.values()) == {3}

    def test_what_was_measured_is_a_result_however_many_processes_died(self, drive: Drive, store: Store) -> None:
        """As when one dies after the last generation was recorded, and before the trial was told."""
        pool = FakePool(1, lambda _: 30.0)
        driver = drive(pool, candidates=1)
        study = driver.optuna_study
        study.enqueue_trial({**study.trials[0].params, "warmup": 5})
        trial = study.ask()
        policy = driver.space.suggest(trial)
        trial.set_user_attr(DEATHS, 3)
        for case in driver.study.search_cases:
            job = Measure(trial.number, policy, case, driver.study.floors, (), 2, None)
            fields = _measured(job, 30.0).fields
            store.add(Generation(kind="candidate", trial_number=trial.number, environment_id=1, **fields))
        driver = drive(pool, candidates=2)
        assert driver.optuna_study.trials[trial.number].state == TrialState.COMPLETE
        assert len(pool.ran) == 2, "it was measured again"

    def test_one_that_has_killed_three_processes_that_drove_is_not_tried_again(self, drive: Drive) -> None:
        driver = drive(FakePool(1, lambda _: 30.0), candidates=1)
        study = driver.optuna_study
        study.enqueue_trial({**study.trials[0].params, "warmup": 5})
        study.ask().set_user_attr(DEATHS, 3)
        pool = FakePool(1, lambda job: pytest.fail("it was tried again") if job.policy.warmup == 5 else 30.0)
        driver = drive(pool, candidates=2)
        assert driver.optuna_study.trials[1].user_attrs[FAILURE].startswith("3 processes died")

    def test_in_the_driver_own_process_a_death_is_noted_before_it_happens(self, drive: Drive, store: Store) -> None:
        class Deadly(FakePool):
            here = True

        class Killed(BaseException):
            """As a kill: nothing is done about it."""

        def outcome(job: Measure) -> float:
            if job.policy.warmup == 2:
                raise Killed
            return 30.0

        for noted in (1, 2, 3):
            with pytest.raises(Killed):
                drive(Deadly(1, outcome))
            assert open_optuna_study(store, create=False).trials[1].user_attrs[DEATHS] == noted
        driver = drive(Deadly(1, outcome))
        assert _states(driver) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}

    def test_stopping_by_hand_is_no_death(self, drive: Drive) -> None:
        class InProcess(FakePool):
            here = True

        def stopped(_job: Measure) -> float:
            raise KeyboardInterrupt

        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                drive(InProcess(1, stopped))
        driver = drive(InProcess(1, lambda _: 30.0))
        assert _states(driver) == {TrialState.COMPLETE: 3}


class TestRestarts:
    def test_a_result_outlives_a_process_that_dies_right_after_it(self, drive: Drive, monkeypatch: Any) -> None:
        tell = optuna.Study.tell

        def die(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(optuna.Study, "tell", die)
        pool = FakePool(1, lambda _: 30.0)
        with pytest.raises(KeyboardInterrupt):
            drive(pool)
        monkeypatch.setattr(optuna.Study, "tell", tell)
        driver = drive(pool)
        assert len(pool.ran) == 6
        assert _states(driver) == {TrialState.COMPLETE: 3}

    def test_planned_candidates_are_queued_once(self, drive: Drive) -> None:
        for _ in range(2):
            driver = drive(FakePool(1, lambda _: 30.0))
        assert _states(driver) == {TrialState.COMPLETE: 3}

    def test_what_an_earlier_program_lost_is_tried_again(self, drive: Drive, store: Store) -> None:
        """Workers ended trials of dead ones without a reason, and queued them again; one could die in between."""
        driver = drive(FakePool(1, lambda _: 30.0), candidates=1)
        study = driver.optuna_study
        study.enqueue_trial({**driver.space.first_candidates()[0], "warmup": 2})
        trial = study.ask()
        driver.space.suggest(trial)
        study.tell(trial, state=TrialState.FAIL)
        driver = drive(FakePool(1, lambda _: 30.0), candidates=2)
        assert _states(driver) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}

    def test_trials_without_parameters_are_ended_and_not_counted(self, drive: Drive, store: Store) -> None:
        open_optuna_study(store, create=True).ask()
        driver = drive(FakePool(1, lambda _: 30.0))
        assert _states(driver) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}
        assert count(driver.optuna_study) == (3, 3)


def _generation(store: Store, kind: str, case: Case, evaluations: int) -> Generation:
    now = datetime.now(UTC)
    return Generation(
        kind=kind, environment_id=store.environment({}, {}), prompt=case.prompt, seed=case.seed, settings={},
        evaluations=evaluations, stock_evaluations=STOCK_EVALUATIONS, state="complete", started=now, finished=now,
    )  # fmt: skip


def _generations(url: str, study: str) -> Counter[tuple[Any, ...]]:
    """How often each thing was measured, with what it cost; without the held-out ones, which a new export repeats."""
    engine = create_engine(url)
    query = (
        "SELECT g.kind, g.policy_digest, g.prompt, g.seed, g.evaluations, g.state FROM scope_generation g "
        "JOIN scope_study s ON s.id = g.study_id WHERE s.name = :name AND g.kind NOT LIKE 'held_out%'"
    )
    try:
        with engine.connect() as connection:
            return Counter(tuple(row) for row in connection.execute(text(query), {"name": study}))
    finally:
        engine.dispose()


def _made(url: str, study: str) -> int:
    """How many generations there are; a look must not make the database."""
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return 0
    try:
        return sum(_generations(url, study).values())
    except DBAPIError:
        return 0  # the tables are not there yet


def _front(workplace: Workplace) -> list[tuple[Any, ...]]:
    result = workplace.scope("front", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    return [
        (entry["policy"], entry["speedup_evaluations"], entry["figures"], entry["feasible"])
        for entry in json.loads(result.stdout)
    ]


def _policy(workplace: Workplace, name: str) -> Any:
    return json.loads((workplace.folder / f"profiles/{name}.json").read_text())["policy"]


@pytest.fixture(scope="module")
def undisturbed(make_workplace: Callable[..., Workplace]) -> Workplace:
    workplace = make_workplace(**FIXED_STUDY, name="alone")
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    return workplace


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_driver_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(
    make_workplace: Callable[..., Workplace],
    request: pytest.FixtureRequest,
    undisturbed: Workplace,
    forkserver: Any,
    kind: str,
) -> None:
    expected, front = _generations(f"sqlite:///{undisturbed.folder / 'runs/alone.db'}", "alone"), _front(undisturbed)
    assert set(expected.values()) == {1}
    assert sum(expected.values()) == 2 * 2 + 2 * len(PLANNED)
    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    chance, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        name, made = f"killed-{rounds}-{kind}", -1
        workplace = make_workplace(**FIXED_STUDY, name=name, **({"storage": server} if server else {}))
        url = server or f"sqlite:///{workplace.folder / f'runs/{name}.db'}"
        while True:
            process = forkserver.Process(target=driver_process.run, args=(str(workplace.folder),))
            process.start()
            # At least one generation later than where the last one was killed: one that kills three is given up.
            while kills < KILLS and process.is_alive() and _made(url, name) <= made:
                time.sleep(0.05)
            process.join(None if kills >= KILLS else chance.uniform(0.0, 0.5))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills, made = kills + 1, _made(url, name)
        log = (workplace.folder / "run.log").read_text()
        assert process.exitcode == 0, log
        assert _generations(url, name) == expected, log
        trials = optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * len(PLANNED), log
        assert _front(workplace) == front
        assert _policy(workplace, name) == _policy(undisturbed, "alone")
        rounds += 1


def test_the_second_driver_says_who_has_the_study(
    make_workplace: Callable[..., Workplace], forkserver: Any, database_url: str
) -> None:
    workplace = make_workplace(**FIXED_STUDY | {"storage": database_url, "budget": {"trials": 2}}, name="shared")
    first = forkserver.Process(target=driver_process.run, args=(str(workplace.folder),))
    first.start()
    deadline = time.monotonic() + 60
    while _status(workplace).get("driver") is None:
        assert time.monotonic() < deadline
        assert first.is_alive()
        time.sleep(0.05)
    second = workplace.scope("run", "study.yaml")
    assert second.exit_code == 2
    assert f"study 'shared' is being run by process {first.pid} on " in second.stderr
    assert "Loading" not in second.stderr
    first.join()
    assert first.exitcode == 0, (workplace.folder / "run.log").read_text()
    status = _status(workplace)
    assert status["driver"] is None
    assert status["generations"]["candidate"] == 2 * 2


def _status(workplace: Workplace) -> dict[str, Any]:
    result = workplace.scope("status", "study.yaml", "--json")
    return json.loads(result.stdout) if result.exit_code == 0 else {}


class TestLock:
    @pytest.fixture
    def other(self, storage: Storage, store: Store, database_url: str) -> Iterator[Store]:
        """The same study, over a connection of its own."""
        opened = Storage(database_url)
        yield Store.find_study(opened, "s")
        opened.close()

    NOBODY: ClassVar = "study 's' is being run; wait for it"

    def test_one_study_is_driven_by_one_process(self, store: Store, other: Store) -> None:
        with StudyLock(store) as lock:
            lock.require()
            assert StudyLock(other).is_taken()
            with pytest.raises(CalibrateError, match=self.NOBODY), StudyLock(other):
                pytest.fail("two drivers")
        assert not StudyLock(other).is_taken()
        with StudyLock(other):
            assert StudyLock(store).is_taken()

    def test_other_studies_of_the_database_are_free(self, store: Store, other: Store) -> None:
        second = Store.open_study(other.storage, name="t", yaml_text="name: t", fixed_parts={}, settings={}, model={})
        with StudyLock(store), StudyLock(second):
            pass

    def test_a_look_takes_nothing(self, store: Store, other: Store) -> None:
        for _ in range(3):
            assert not StudyLock(other).is_taken()
        with StudyLock(store):
            pass
