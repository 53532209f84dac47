"""Actors, machines and candidates that die under a real run: nothing is done twice, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from optuna.trial import TrialState
from sqlalchemy import create_engine, text

from calibrate import workflow
from calibrate.measure.candidate import Measure
from calibrate.pool.here import Here
from calibrate.pool.pool import Done
from calibrate.results.result import RESULT
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import FAILURE, open_optuna_study
from calibrate.store import Storage, Store
from tests.calibrate.conftest import TINY_STUDY, Workplace
from tests.calibrate.pool.conftest import Nodes

ray_pool = pytest.importorskip("calibrate.pool.ray_pool")

PLANNED = [
    {"warmup": warmup, "max_skip": skip}
    for warmup, skip in ((4, 3), (3, 4), (2, 4), (4, 2), (2, 1), (1, 3), (3, 2), (1, 4), (2, 3))
]
FIXED_STUDY: dict[str, Any] = {
    "search": TINY_STUDY["search"] | {"candidates": PLANNED},
    "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": None},
    "budget": {"trials": len(PLANNED)},
}
# While generations run, and then right after one that nobody disturbed, of which a slow machine has fewer.
KILLS = {"at work": 5, "done": 2}


class Outcome(NamedTuple):
    """What a run came to, without times.

    Attributes:
        generations: How often each thing was measured, with what it cost.
        front: Policies and figures of the front.
        exported: The profile's policy.
        states: How many trials ended how.
    """

    generations: Counter[tuple[Any, ...]]
    front: list[Any]
    exported: dict[str, Any]
    states: Counter[TrialState]


def _run(workplace: Workplace, *options: str) -> Outcome:
    result = workplace.scope("run", "study.yaml", *options, "--json")
    # Last things first: of what Ray has to say there are pages.
    assert result.exit_code == 0, "\n".join(reversed(result.output.splitlines()))
    profile = json.loads((workplace.folder / json.loads(result.stdout)["profile"]).read_text())
    url = f"sqlite:///{workplace.folder / 'runs/fixed.db'}"
    engine = create_engine(url)
    query = "SELECT kind, policy_digest, prompt, seed, evaluations, state FROM scope_generation"
    with engine.connect() as connection:
        # How often held-out cases are timed depends on how steady times are.
        rows = Counter(
            tuple(row) for row in connection.execute(text(query)) if not str(row.kind).startswith("held_out")
        )
    engine.dispose()
    with closing(Storage(url)) as storage:
        trials = open_optuna_study(Store.find_study(storage, "fixed"), create=False).get_trials(deepcopy=False)
    assert {trial.user_attrs[RESULT]["trial"] for trial in trials} == set(range(len(PLANNED)))
    shown = workplace.scope("front", "study.yaml", "--json")
    assert shown.exit_code == 0, shown.output
    front = [
        (entry["policy"], entry["speedup_evaluations"], entry["figures"], entry["feasible"])
        for entry in json.loads(shown.stdout)
    ]
    return Outcome(rows, front, profile["policy"], Counter(trial.state for trial in trials))


@pytest.fixture(scope="module")
def undisturbed(make_workplace: Callable[..., Workplace]) -> Outcome:
    """What one process measures that nobody disturbs."""
    outcome = _run(make_workplace(**FIXED_STUDY, name="fixed"))
    assert set(outcome.generations.values()) == {1}
    assert sum(outcome.generations.values()) == 2 * 2 + 2 * len(PLANNED)
    assert outcome.states == {TrialState.COMPLETE: len(PLANNED)}
    return outcome


@dataclass
class Watched:
    """The pool and the driver of the run that goes on in this process."""

    pools: list[Any] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)

    def measuring(self) -> list[Any]:
        """Its devices that measure a candidate."""
        pool = self.pools[-1]
        found = [(slot, pool._jobs.get(slot.number)) for slot in list(pool._slots) if slot.greeting is None]
        return [slot for slot, job in found if isinstance(job, Measure)]

    def unharmed(self) -> bool:
        """Whether no candidate has lost a process since it last finished a generation."""
        return bool(self.drivers) and all(
            candidate.deaths.count == 0 for candidate in list(self.drivers[-1].candidates)
        )

    def spare(self, killed: set[int]) -> list[Any]:
        """Devices that measure candidates which survive the loss of one more process, but for those just killed."""
        pool, found = self.pools[-1], self.measuring()
        candidates = {slot.name: self.drivers[-1]._jobs[pool._jobs[slot.number]] for slot in found}
        dying = {id(candidates[slot.name]) for slot in found if slot.where["process"] in killed}
        return [s for s in found if candidates[s.name].deaths.count < 2 and id(candidates[s.name]) not in dying]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    enter, prepare = ray_pool.RayPool.__enter__, Driver.__init__

    def entered(pool: Any) -> Any:
        found.pools.append(pool)
        return enter(pool)

    def prepared(driver: Driver, *args: Any, **options: Any) -> None:
        prepare(driver, *args, **options)
        found.drivers.append(driver)

    monkeypatch.setattr(ray_pool.RayPool, "__enter__", entered)
    monkeypatch.setattr(Driver, "__init__", prepared)
    return found


@pytest.mark.slow
def test_actors_that_are_killed_lose_nothing(
    make_workplace: Callable[..., Workplace],
    undisturbed: Outcome,
    nodes: Nodes,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(0)
    kills: Counter[str] = Counter()
    killed: set[int] = set()

    def kill(slot: Any, when: str) -> None:
        killed.add(slot.where["process"])
        os.kill(slot.where["process"], signal.SIGKILL)
        kills[when] += 1

    ended, following = ray_pool.RayPool._ended, ray_pool.RayPool.next

    def killed_at_work(pool: Any) -> Done:
        if kills["at work"] < KILLS["at work"] and watched.drivers and (spare := watched.spare(killed)):
            time.sleep(chance.uniform(0.0, 0.5))
            kill(chance.choice(spare), "at work")
        return following(pool)

    def killed_when_done(pool: Any, slot: Any) -> Done:
        # Only then: one that is killed when its result is here already may take the next job with it.
        left = kills["at work"] == KILLS["at work"] and kills["done"] < KILLS["done"]
        if left and watched.unharmed() and slot in watched.spare(killed):
            kill(slot, "done")
            time.sleep(0.2)
        return ended(pool, slot)

    monkeypatch.setattr(ray_pool.RayPool, "_ended", killed_when_done)
    monkeypatch.setattr(ray_pool.RayPool, "next", killed_at_work)
    outcome = _run(make_workplace(**FIXED_STUDY, name="fixed"), "--ray", nodes.address)
    assert outcome == undisturbed
    assert kills["at work"] == KILLS["at work"]
    assert kills["done"]


@pytest.mark.slow
def test_machines_that_go_and_come_back_and_actors_that_hang_lose_nothing(
    make_workplace: Callable[..., Workplace],
    undisturbed: Outcome,
    nodes: Nodes,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ray_pool.RayPool.__init__.__kwdefaults__, "silence_seconds", 10.0)

    def one_goes() -> None:
        nodes.remove(1)

    def all_go_and_come_back() -> None:
        nodes.remove(2)
        nodes.restore()

    def one_hangs() -> None:
        os.kill(watched.measuring()[0].where["process"], signal.SIGSTOP)

    happenings = iter([one_goes, one_hangs, all_go_and_come_back])
    following = ray_pool.RayPool.next
    done: list[str] = []

    def eventful(pool: Any) -> Done:
        if watched.unharmed() and watched.measuring() and (happening := next(happenings, None)):
            happening()
            done.append(happening.__name__)
        return following(pool)

    monkeypatch.setattr(ray_pool.RayPool, "next", eventful)
    outcome = _run(make_workplace(**FIXED_STUDY, name="fixed"), "--ray", nodes.address)
    assert outcome == undisturbed
    assert done == ["one_goes", "one_hangs", "all_go_and_come_back"]


class Deadly(Here):
    """Several devices that are this process, and die as planned.

    Attributes:
        deaths: How many there are still to be, by candidate and case.
    """

    here = False

    def __init__(self, load: Callable[[], Any], size: int, deaths: dict[tuple[int, int], int]) -> None:
        super().__init__(load)
        self.size = size
        self.deaths = deaths

    def next(self) -> Done:
        job = self._waiting[0]
        key = (job.trial, job.case.seed) if isinstance(job, Measure) else None
        if key is not None and self.deaths.get(key, 0):
            self.deaths[key] -= 1
            return Done(self._waiting.popleft(), died=True)
        return super().next()


@pytest.fixture
def with_deaths(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, dict[tuple[int, int], int]], None]:
    """Has runs use so many devices, which die as planned."""
    opening = workflow.open_pool

    def plan(size: int, deaths: dict[tuple[int, int], int]) -> None:
        monkeypatch.setattr(workflow, "open_pool", lambda *args: Deadly(opening(*args)._load, size, dict(deaths)))

    return plan


@pytest.mark.parametrize(
    ("size", "deaths", "failed"),
    [
        pytest.param(1, {(1, 1): 3}, [1], id="three in a row"),
        pytest.param(1, {(1, 1): 2, (1, 2): 2}, [], id="two, a generation, two more"),
        pytest.param(1, {(1, 1): 2, (1, 2): 3}, [1], id="two, a generation, three more"),
        pytest.param(2, {(1, 1): 2, (1, 2): 2}, [], id="twice two at once, with their machine"),
        pytest.param(2, {(1, 1): 3, (1, 2): 3}, [1], id="three times two at once"),
    ],
)
def test_a_candidate_that_kills_three_processes_one_after_the_other_is_given_up(
    make_workplace: Callable[..., Workplace],
    with_deaths: Callable[..., None],
    size: int,
    deaths: dict[tuple[int, int], int],
    failed: list[int],
) -> None:
    with_deaths(size, deaths)
    search = FIXED_STUDY["search"] | {"candidates": PLANNED[:3]}
    workplace = make_workplace(**FIXED_STUDY | {"search": search, "budget": {"trials": 3}}, name="deadly")
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    with closing(Storage(f"sqlite:///{workplace.folder / 'runs/deadly.db'}")) as storage:
        trials = open_optuna_study(Store.find_study(storage, "deadly"), create=False).get_trials(deepcopy=False)
    told = {trial.number: trial.user_attrs[FAILURE] for trial in trials if trial.state == TrialState.FAIL}
    assert told == dict.fromkeys(failed, "3 processes died while they measured it")
    assert not {TrialState.RUNNING, TrialState.WAITING} & {trial.state for trial in trials}
    assert ("Candidate 1 failed: 3 processes died while they measured it" in result.stderr) is bool(failed)


@pytest.mark.parametrize(
    ("size", "deaths", "given_up"),
    [
        pytest.param(1, {11: 3}, True, id="three in a row"),
        pytest.param(1, dict.fromkeys(range(11, 16), 2), False, id="two before each generation"),
        pytest.param(3, {11: 2, 12: 2, 13: 2}, False, id="twice three at once, with their machine"),
        pytest.param(3, {11: 3, 12: 3, 13: 3}, True, id="three times three at once"),
    ],
)
def test_a_policy_is_tested_on_guarantee_cases_until_three_processes_died_one_after_the_other(
    make_workplace: Callable[..., Workplace],
    with_deaths: Callable[..., None],
    size: int,
    deaths: dict[int, int],
    given_up: bool,
) -> None:
    with_deaths(size, {(0, seed): count for seed, count in deaths.items()})
    workplace = make_workplace(
        search=FIXED_STUDY["search"] | {"candidates": PLANNED[:1]},
        budget={"trials": 1},
        floors={"psnr_db": None, "psnr_worst_prompt_db": 15.0},
        guarantee={"share": 0.5, "confidence": 0.75, "most_policies": 1},
        guarantee_cases=[{"prompt": f"a red circle moving up {seed}", "seed": seed} for seed in range(11, 16)],
        name="deadly-tests",
    )
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == (2 if given_up else 0), result.output
    assert ("failed (3 processes died while they measured it)" in " ".join(result.output.split())) is given_up
    with closing(sqlite3.connect(workplace.folder / "runs/deadly-tests.db")) as database:
        (rows,) = database.execute("SELECT count(*) FROM scope_generation WHERE kind = 'guarantee'").fetchone()
    assert rows == (0 if given_up else 5)
