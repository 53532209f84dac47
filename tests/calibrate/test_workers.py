"""Several workers on one study: nothing is done twice, and nothing is lost when some of them are killed."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import create_engine, delete, text, update

from calibrate.claims import Worker
from calibrate.progress import Narrator
from calibrate.results import RESULT, Result
from calibrate.search import Search, open_optuna_study
from calibrate.store import Claim, Generation, Heartbeat, Storage, Store, WorkerRecord
from calibrate.study_file import Budget, Study
from calibrate.trials import FAILURE, STOPPED, TURN, Tally, Upkeep, deaths, end_trial
from tests.calibrate import worker_process
from tests.calibrate.conftest import Workplace

PLANNED = [{"warmup": warmup, "max_skip": skip} for warmup, skip in ((4, 3), (3, 4), (2, 4), (4, 2), (2, 1), (1, 3))]
FIXED_STUDY: dict[str, Any] = {
    "search": {"max_skip": {"low": 1, "high": 4}, "warmup": {"low": 1, "high": 4}, "candidates": PLANNED},
    "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": None},
    "budget": {"trials": len(PLANNED)},
    "workers": {"heartbeat_seconds": 1, "grace_seconds": 3},
}
ROUNDS, WORKERS, KILLED = 10, 4, 2


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store.open_study(
        storage, name="s", yaml_text="name: s", fixed_parts={}, settings={}, model={"weights": "abc"}
    )


class TestClaims:
    def test_work_is_claimed_by_one_and_can_be_given_back(self, store: Store) -> None:
        with Worker(store, Heartbeat()) as first, Worker(store, Heartbeat()) as second:
            assert first.try_claim("a")
            assert not second.try_claim("a")
            assert second.try_claim("b")
            second.release("a")
            assert not second.try_claim("a"), "a claim was released by a worker that did not hold it"
            first.release("a")
            assert second.try_claim("a")

    def test_the_work_of_a_silent_worker_is_taken_over_once(self, store: Store) -> None:
        with Worker(store, Heartbeat()) as first, Worker(store, Heartbeat()) as second:
            assert first.try_claim("a")
            with store.storage.sessions.begin() as session:
                long_ago = datetime.now(UTC) - timedelta(seconds=121)
                session.execute(update(WorkerRecord).where(WorkerRecord.id == first.id).values(seen=long_ago))
            assert second.try_claim("a")
            assert not first.try_claim("a")

    def test_a_worker_that_lives_is_seen_to_live(self, store: Store) -> None:
        with (
            Worker(store, Heartbeat(interval=1, grace=2)) as first,
            Worker(store, Heartbeat(interval=1, grace=2)) as second,
        ):
            assert first.try_claim("a")
            time.sleep(2.5)
            assert not second.try_claim("a")

    def test_a_worker_that_leaves_gives_everything_back(self, store: Store) -> None:
        with Worker(store, Heartbeat()) as first:
            assert first.try_claim("a")
        with Worker(store, Heartbeat()) as second:
            assert second.try_claim("a")


class TestUpkeep:
    @pytest.fixture
    def worker(self, store: Store) -> Iterator[Worker]:
        with Worker(store, Heartbeat(interval=1, grace=2)) as worker:
            yield worker

    @pytest.fixture
    def study(self, store: Store) -> optuna.Study:
        return open_optuna_study(store, create=True, heartbeat=Heartbeat(interval=1, grace=2))

    def test_a_trial_without_any_heartbeat_is_queued_again_after_the_grace_period(
        self, study: optuna.Study, worker: Worker
    ) -> None:
        study.enqueue_trial({"x": 0.25})
        study.ask()
        upkeep = Upkeep(study, worker)
        upkeep.run()
        assert Tally.of(study) == Tally(measured=0, finished=0, running=1, queued=0)
        upkeep._silent_since = {trial_id: since - 3 for trial_id, since in upkeep._silent_since.items()}
        upkeep.run()
        assert Tally.of(study) == Tally(measured=0, finished=0, running=0, queued=1)
        assert study.ask().suggest_float("x", 0, 1) == 0.25

    def test_only_what_failed_without_a_reason_is_queued_again_and_only_once(
        self, study: optuna.Study, worker: Worker
    ) -> None:
        for reason in (None, "out of memory"):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            if reason:
                trial.set_user_attr(FAILURE, reason)
            end_trial(study, trial._trial_id)
        for _ in range(2):
            Upkeep(study, worker).run()
        assert Tally.of(study) == Tally(measured=1, finished=1, running=0, queued=1)
        assert [t.number for t in study.get_trials(states=(TrialState.WAITING,))] == [2]

    def test_deaths_are_counted_but_not_being_stopped(self, study: optuna.Study, worker: Worker) -> None:
        study.enqueue_trial({"x": 0.5})
        for stopped in (False, True, False):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            if stopped:
                trial.set_user_attr(STOPPED, trial.number)
            end_trial(study, trial._trial_id)
            Upkeep(study, worker).run()
        assert deaths(study, study.get_trials()[-1]) == 2


class TestTurns:
    """One worker, and a rival that acts wherever it can between two looks of the worker at the trials."""

    CANDIDATES: ClassVar = [{"warmup": warmup, "max_skip": 1} for warmup in (1, 2, 3)]

    @pytest.fixture
    def search(self, store: Store, tiny_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
        """A search of as many planned candidates as the budget has, whose measurements cost nothing."""
        spec = {"method": "plain", "candidates": self.CANDIDATES, "warmup": {"low": 1, "high": 6}}
        study = Study.model_validate(
            tiny_study | {"search": spec, "floors": {}, "budget": {"trials": len(self.CANDIDATES)}}
        )
        baseline = SimpleNamespace(
            observations=np.array(
                [[row, 0, 1.1 - 0.1 * row, 1 - 0.1 * row, 0.1 * row, 0.2 * row] for row in range(1, 6)]
            ),
            timings=SimpleNamespace(exact_seconds=1.0, decode_seconds=1.0, exact_evaluations=20, stock_evaluations=30),
        )
        heartbeat = Heartbeat(interval=1, grace=60)
        with Worker(store, heartbeat) as worker:
            yield Search(
                study,
                store,
                open_optuna_study(store, create=True, heartbeat=heartbeat),
                SimpleNamespace(),  # type: ignore[arg-type]
                dict.fromkeys(study.search_cases, baseline),  # type: ignore[arg-type]
                worker,
                Narrator(),
            )

    @pytest.mark.parametrize("planned", [3, 1])
    @pytest.mark.parametrize("seed", range(6))
    def test_nothing_beyond_the_budget_is_started_and_nothing_of_the_plan_is_lost(
        self, search: Search, store: Store, monkeypatch: pytest.MonkeyPatch, seed: int, planned: int
    ) -> None:
        policies: list[Any] = []

        def measure(trial: int, policy: Any) -> Result:
            policies.append((policy.warmup, policy.max_skip))
            return Result(trial, policy.to_dict(), 2.0, 2.0, {"psnr_db": 30.0, "psnr_worst_prompt_db": 30.0}, 2, None)

        plan = search.space.first_candidates()[:planned]
        monkeypatch.setattr(search.space, "first_candidates", lambda: plan)
        monkeypatch.setattr(search, "_measure", measure)
        with Worker(store, Heartbeat()) as rival:
            _interfere(monkeypatch, search.optuna_study, rival, random.Random(seed))
            search.run(float("inf"))
        assert len(policies) == len(self.CANDIDATES)
        assert {(c["warmup"], c["max_skip"]) for c in plan} <= set(policies)
        states = Counter(trial.state for trial in search.optuna_study.get_trials(deepcopy=False))
        assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}
        # A drawn one may repeat an earlier one, which costs nothing.
        assert states[TrialState.COMPLETE] >= len(self.CANDIDATES)

    def test_a_result_outlives_a_worker_that_dies_right_after_it(
        self, search: Search, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = _measure_for_nothing(search, monkeypatch)
        with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
            dying.setattr(search, "_refuse_taken_over", _interrupt)
            search.run(float("inf"))
        search.run(float("inf"))
        trials = search.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        assert measured == [0, 1, 2]
        # The trial that was queued again carries the first one's result: one candidate, counted once.
        assert sorted(trial.user_attrs[RESULT]["trial"] for trial in trials) == measured

    def test_candidates_that_run_elsewhere_count_against_the_budget_of_generations(
        self, search: Search, store: Store
    ) -> None:
        for case in search.study.search_cases:
            for kind, evaluations in (("stock", 30), ("exact", 20)):
                store.add(_generation(store, kind, case.prompt, case.seed, evaluations, 30))
        search.study = search.study.model_copy(update={"budget": Budget(trials=50, equivalents=3.1)})
        assert search._equivalents() == pytest.approx(5 / 3)
        # As many more as exact runs would fit: 5/3 + 2/3 + 2/3 = 3.
        assert [search._affordable(running) for running in range(4)] == [True, True, True, False]
        for _ in range(3):
            search.optuna_study.enqueue_trial({"x": 0.5})
            search.optuna_study.ask()
        search.enqueue(search.space.first_candidates())
        assert not search._take_turn()
        assert search._progress().startswith("1.7 of 3.1 full generations spent")
        # What the bar counts up to: two more candidates by generations, one by time (4 s for both prompts).
        assert search._reachable(10, float("inf")) == 12
        assert search._reachable(10, time.monotonic() + 5) == 11
        assert search._reachable(10, time.monotonic() - 5) == 10

    def test_what_was_queued_twice_is_not_left_waiting_and_costs_nothing(
        self, search: Search, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = _measure_for_nothing(search, monkeypatch)
        planned = search.space.first_candidates()
        for candidates in (planned, planned[1:]):  # a second worker, while the first one stands still
            for parameters in candidates:
                search.optuna_study.enqueue_trial(parameters)
        search.run(float("inf"))
        assert measured == [0, 1, 2]
        trials = search.optuna_study.get_trials(deepcopy=False)
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert [trial.user_attrs[RESULT]["trial"] for trial in trials] == [0, 1, 2, 1, 2]

    def test_a_worker_that_lost_its_turn_gives_the_trial_back(
        self, search: Search, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask, started = optuna.Study.ask, []

        def late(study: optuna.Study, *args: Any) -> optuna.Trial:
            if not started:  # another worker took the turn over, and with it the trial that was waiting
                with store.storage.sessions.begin() as session:
                    session.execute(delete(Claim).where(Claim.work == TURN))
                started.append(ask(study))
            return ask(study, *args)

        monkeypatch.setattr(optuna.Study, "ask", late)
        search._keep_change_maps()
        search.enqueue(search.space.first_candidates()[:1])
        assert search._take_turn()
        trials = search.optuna_study.get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [TrialState.RUNNING, TrialState.FAIL]
        assert Tally.of(search.optuna_study) == Tally(measured=0, finished=0, running=1, queued=0)


def _measure_for_nothing(search: Search, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts a made-up result in the place of measurements; gives the list of the trials that were measured."""
    measured: list[int] = []

    def measure(trial: int, policy: Any) -> Result:
        measured.append(trial)
        return Result(trial, policy.to_dict(), 2.0, 2.0, {"psnr_db": 30.0, "psnr_worst_prompt_db": 30.0}, 2, None)

    monkeypatch.setattr(search, "_measure", measure)
    return measured


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def _generation(store: Store, kind: str, prompt: str, seed: int, evaluations: int, stock: int) -> Generation:
    now = datetime.now(UTC)
    return Generation(
        kind=kind,
        environment_id=store.environment({}, {}),
        prompt=prompt,
        seed=seed,
        settings={},
        evaluations=evaluations,
        stock_evaluations=stock,
        state="complete",
        started=now,
        finished=now,
    )


def _interfere(monkeypatch: pytest.MonkeyPatch, study: optuna.Study, rival: Worker, chance: random.Random) -> None:
    """Lets a second worker start what waits, or stop and give it back, whenever the first one has looked at the trials.

    It keeps to the rule of `calibrate.trials`: it acts in its turn only.
    """
    real = {name: getattr(optuna.Study, name) for name in ("get_trials", "ask")}
    held: list[optuna.Trial] = []

    def act() -> None:
        if held:
            trial = held.pop()
            trial.set_user_attr(STOPPED, trial.number)
            end_trial(study, trial._trial_id)
            RetryHeartbeatStaleTrialCallback()(study, study.get_trials()[trial.number])
        elif study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            held.append(study.ask())

    def followed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = real[name](*args, **kwargs)
            if chance.random() < 0.5 and rival.try_claim(TURN):
                with monkeypatch.context() as alone:
                    for method, function in real.items():
                        alone.setattr(optuna.Study, method, function)
                    act()
                rival.release(TURN)
            return found

        return call

    for name in real:
        monkeypatch.setattr(optuna.Study, name, followed(name))
    # Nobody waits for the rival: it goes on as soon as the worker looks again.
    monkeypatch.setattr(Worker, "wait", lambda _: None)


def _trials(url: str, study: str) -> optuna.Study:
    return optuna.load_study(study_name=study, storage=url)


def _generations(url: str, study: str) -> Counter[tuple[Any, ...]]:
    """How often each thing was measured, with what it cost."""
    engine = create_engine(url)
    query = (
        "SELECT g.kind, g.policy_digest, g.prompt, g.seed, g.evaluations, g.state FROM scope_generation g "
        "JOIN scope_study s ON s.id = g.study_id WHERE s.name = :name"
    )
    try:
        with engine.connect() as connection:
            return Counter(tuple(row) for row in connection.execute(text(query), {"name": study}))
    finally:
        engine.dispose()


def _front(workplace: Workplace) -> list[tuple[Any, ...]]:
    result = workplace.scope("front", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    return [
        (entry["policy"], entry["speedup_evaluations"], entry["figures"], entry["feasible"])
        for entry in json.loads(result.stdout)
    ]


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("worker-*.log")))


def _round(workplace: Workplace, moments: list[float]) -> list[int | None]:
    """Runs the workers, kills as many as there are moments; returns the exit codes of the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker_process.__name__])
    processes = [context.Process(target=worker_process.work, args=(str(workplace.folder),)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    start = time.monotonic()
    for process, moment in zip(processes, sorted(moments), strict=False):
        process.join(max(0.0, start + moment - time.monotonic()))
        process.kill()
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            pytest.fail(f"a worker did not come to an end:\n{_logs(workplace.folder)}")
    return [process.exitcode for process in processes[len(moments) :]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "rounds"), [("sqlite", 1), ("postgresql", ROUNDS)])
def test_killed_workers_lose_nothing_and_nothing_is_done_twice(
    make_workplace: Callable[..., Workplace], request: pytest.FixtureRequest, kind: str, rounds: int
) -> None:
    alone = make_workplace(**FIXED_STUDY, name="alone")
    assert alone.scope("worker", "study.yaml").exit_code == 0
    alone_url = f"sqlite:///{alone.folder / 'runs/alone.db'}"
    expected, front = _generations(alone_url, "alone"), _front(alone)
    assert set(expected.values()) == {1}
    assert sum(expected.values()) == 2 * 2 + 2 * len(PLANNED)

    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    chance = random.Random(0)
    seconds: list[float] = []
    for number in range(rounds):
        name = f"round-{number}-{kind}"
        workplace = make_workplace(**FIXED_STUDY, name=name, **({"storage": server} if server else {}))
        url = server or f"sqlite:///{workplace.folder / f'runs/{name}.db'}"
        # The first round tells how long one takes, so that later kills fall anywhere in it.
        longest = seconds[0] if seconds else 4.0
        start = time.monotonic()
        codes = _round(workplace, [chance.uniform(0, longest) for _ in range(KILLED)])
        seconds.append(time.monotonic() - start)
        assert codes == [0] * (WORKERS - KILLED), _logs(workplace.folder)
        assert _generations(url, name) == expected, _logs(workplace.folder)
        trials = _trials(url, name).get_trials(deepcopy=False)
        assert not {TrialState.RUNNING, TrialState.WAITING} & {trial.state for trial in trials}, _logs(workplace.folder)
        measured = {t.user_attrs[RESULT]["trial"] for t in trials if t.state == TrialState.COMPLETE}
        assert len(measured) == len(PLANNED)
        assert _front(workplace) == front


def test_a_worker_whose_trial_was_given_away_goes_on(
    make_workplace: Callable[..., Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = make_workplace(**FIXED_STUDY, name="slow")
    real, calls = Search._measure, []

    def sleepy(search: Search, trial: int, policy: Any) -> Any:
        calls.append(trial)
        if len(calls) == 1:
            end_trial(search.optuna_study, search.optuna_study.get_trials()[trial]._trial_id)
        return real(search, trial, policy)

    monkeypatch.setattr(Search, "_measure", sleepy)
    result = workplace.scope("worker", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "Another worker took over" in result.stderr
    assert set(_generations(f"sqlite:///{workplace.folder / 'runs/slow.db'}", "slow").values()) == {1}
    assert json.loads(workplace.scope("status", "study.yaml", "--json").stdout)["candidates"] == len(PLANNED)


def test_a_candidate_over_which_workers_die_is_given_up(make_workplace: Callable[..., Workplace]) -> None:
    workplace = make_workplace(**FIXED_STUDY, name="deadly")
    result = workplace.scope("worker", "study.yaml")
    assert result.exit_code == 0, result.output
    study = _trials(f"sqlite:///{workplace.folder / 'runs/deadly.db'}", "deadly")
    study.enqueue_trial({**study.trials[0].params, "warmup": 1, "max_skip": 1})
    store = Store.find_study(Storage(f"sqlite:///{workplace.folder / 'runs/deadly.db'}"), "deadly")
    with Worker(store, Heartbeat()) as worker:
        for _ in range(3):
            end_trial(study, study.ask()._trial_id)
            Upkeep(study, worker).run()
    store.storage.close()
    workplace.study.write_text(workplace.study.read_text().replace("trials: 6", "trials: 7"))
    result = workplace.scope("worker", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "3 workers died while they measured it" in result.stderr


def test_two_runs_of_one_study_share_it(make_workplace: Callable[..., Workplace]) -> None:
    workplace = make_workplace(**FIXED_STUDY | {"workers": {"heartbeat_seconds": 1, "grace_seconds": 3}}, name="shared")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker_process.__name__])
    helper = context.Process(target=worker_process.work, args=(str(workplace.folder),))
    helper.start()
    result = workplace.scope("run", "study.yaml", "--json")
    helper.join()
    assert (result.exit_code, helper.exitcode) == (0, 0), result.output + _logs(workplace.folder)
    counts = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)["generations"]
    assert (counts["stock"], counts["exact"], counts["candidate"]) == (2, 2, 2 * len(PLANNED))
