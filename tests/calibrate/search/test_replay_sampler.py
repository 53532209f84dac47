"""The sampler under `study.optimize`, with a formula in the place of real generations."""

from __future__ import annotations

import copy
import threading
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from calibrate.measure.baseline import _to_array
from calibrate.replay.replay import Replay, Replayed
from calibrate.replay.trace import TraceRecorder
from calibrate.results.result import BLOCKS, RESULT, Result
from calibrate.search.hypervolume import expected_improvement, hypervolume
from calibrate.search.replay_sampler import Measured, ReplaySampler
from calibrate.search.space import Space
from calibrate.spec.floors import Floors
from calibrate.spec.search_space import Quantiles, SearchSpace
from calibrate.spec.strict import IntRange
from scope_runtime import Policy, exact
from tests.tiny import CALL, latents, tiny_pipeline

FLOORS = Floors(psnr_db=None, psnr_worst_prompt_db=None)


@pytest.fixture(scope="module")
def setting() -> tuple[Space, Replay]:
    pipe, recorder = tiny_pipeline(), TraceRecorder(CALL["guidance_scale"])
    with exact(pipe, observe=True, recorder=recorder) as scope:
        latents(pipe)
    spec = SearchSpace.model_validate({"indicator": ["noise-level"], "warmup": {"low": 1, "high": 4}})
    return Space(spec, [_to_array(scope.report)]), Replay([recorder.trace()])


class Trials:
    """An Optuna study whose generations are made up."""

    def __init__(self, space: Space, replay: Replay, seed: int = 0, floors: Floors = FLOORS, **options: Any) -> None:
        self.space, self.replay, self.measured = space, replay, []
        options = {"screened": (60, 30)} | options
        self.sampler = ReplaySampler(space, replay, lambda: self.measured, floors, seed=seed, **options)
        self.study = optuna.create_study(directions=["maximize", "maximize"], sampler=self.sampler)
        self.keys: list[object] = []

    def objective(self, trial: optuna.Trial) -> tuple[float, float]:
        policy = self.space.suggest(trial)
        replayed = self.replay.run(policy)
        self.keys.append(replayed.key)
        psnr = _truth(replayed)
        figures = {"psnr_db": psnr, "psnr_worst_prompt_db": psnr}
        self.measured.append(Measured(policy, 0, figures))
        result = Result(trial.number, policy.to_dict(), replayed.speedup_evaluations, 1.0, figures, 1, None)
        trial.set_user_attr(RESULT, result.to_dict())
        return result.speedup_evaluations, psnr

    def run(self, count: int) -> list[dict[str, Any]]:
        for parameters in self.space.first_candidates()[:2]:
            self.study.enqueue_trial(parameters)
        self.study.optimize(self.objective, n_trials=count)
        return [trial.params for trial in self.study.trials]


def _truth(replayed: Replayed) -> float:
    from calibrate.replay.sensitivity import Sensitivity

    return float(Sensitivity.fit([]).psnr_db(replayed)[0]) - 3.0


def test_no_candidate_is_tried_twice_and_the_same_seed_gives_the_same_search(setting: tuple[Space, Replay]) -> None:
    first, again = Trials(*setting), Trials(*setting)
    parameters = first.run(8)
    assert len(set(first.keys)) == len(first.keys) == 8
    assert again.run(8) == parameters


def test_screening_ahead_gives_the_same_search_again_and_keeps_nobody_waiting(setting: tuple[Space, Replay]) -> None:
    space, replay = setting
    runs = []
    for _ in range(2):
        ahead = Trials(space, replay, ahead=True)
        runs.append(ahead.run(8))
        assert len(set(ahead.keys)) == 8
        ahead.sampler.close()
    assert runs[0] == runs[1]

    slow = Gated(replay.traces)
    trials = Trials(space, slow, ahead=True)
    trials.study.enqueue_trial(space.first_candidates()[0])
    trials.space.suggest(trials.study.ask())  # planned: there while the first screening has not come far
    assert slow.looked.wait(30)
    trials.sampler._closed = True
    slow.gate.set()
    trials.sampler.close()
    assert slow.count < 60, "what nobody waits for is not screened to its end"


class Gated(Replay):
    """Replays that wait to be let through."""

    def __init__(self, traces: Any) -> None:
        super().__init__(traces)
        self.gate, self.looked, self.count = threading.Event(), threading.Event(), 0

    def run(self, policy: Policy) -> Any:
        self.count += 1
        self.looked.set()
        assert self.gate.wait(30)
        return super().run(policy)


def test_a_clip_that_was_not_finished_tells_of_the_blocks_that_were(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting)
    policy = Policy(warmup=2, max_skip=2)
    errors = trials.replay.run(policy).errors[0]
    whole, cut = (trials.sampler._observed(Measured(policy, 0, {"psnr_db": 30.0, **m})) for m in ({}, {BLOCKS: 1}))
    assert (whole.errors == errors).all()
    assert len(errors) == 3
    assert (cut.errors == errors[:1]).all()


def test_figures_of_an_earlier_version_shape_no_proposal(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting)
    trials.run(2)
    known = trials.sampler._front(trials.study, 99)
    result = Result(2, Policy(warmup=1).to_dict(), 9.0, 9.0, {"psnr_db": 90.0, "psnr_worst_prompt_db": 90.0}, 1, None)
    old = {name: value for name, value in result.to_dict().items() if name != "metric_version"}
    trials.study.add_trial(optuna.trial.create_trial(values=[9.0, 90.0], user_attrs={RESULT: old}))
    assert trials.sampler._front(trials.study, 99) == known


def test_what_is_running_is_left_alone_and_shapes_the_proposal(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting)
    trials.run(3)
    running = trials.study.ask()
    taken = trials.replay.run(trials.space.suggest(running)).key
    assert trials.study.trials[running.number].state == TrialState.RUNNING
    trials.keys.clear()
    trials.study.optimize(trials.objective, n_trials=2)
    assert taken not in trials.keys


def test_a_trial_that_is_tried_again_keeps_its_proposal(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting)
    trials.run(3)
    died = trials.study.ask()
    trials.space.suggest(died)
    known = {name: died.params[name] for name in ("indicator", "cache_quantile")}
    trials.study.tell(died, state=TrialState.FAIL)
    attributes = trials.study.trials[died.number].system_attrs
    again = optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={**attributes, "fixed_params": known})
    trials.study.add_trial(again)
    fresh = Trials(*setting, seed=5)
    trials.study.sampler = fresh.sampler
    trials.study.optimize(trials.objective, n_trials=1)
    assert trials.study.trials[-1].params == died.params


def test_the_front_found_is_worth_more_than_that_of_random_candidates(setting: tuple[Space, Replay]) -> None:
    guided, blind = Trials(*setting), Trials(*setting)
    blind.study.sampler = optuna.samplers.RandomSampler(seed=0)
    guided.run(8)
    blind.run(8)
    worth = [
        hypervolume([(t.values[0], t.values[1]) for t in trials.study.trials], (1.0, 0.0)) for trials in (guided, blind)
    ]
    assert worth[0] > worth[1]


def test_a_goal_for_speed_is_searched_for(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting, min_speedup=2.5)
    trials.run(6)
    proposed = trials.study.trials[2:]
    assert all(trial.values[0] > 2.4 for trial in proposed)


def test_where_a_share_is_promised_more_careful_candidates_are_proposed(setting: tuple[Space, Replay]) -> None:
    floors = Floors(psnr_db=None, psnr_worst_prompt_db=22.0, safety_margin_db=0.0)
    trials = Trials(*setting, floors=floors)
    trials.run(6)
    careful = ReplaySampler(*setting, lambda: trials.measured, floors, seed=0, share=0.9, screened=(60, 30))
    estimated = []
    for sampler in (trials.sampler, careful):
        proposed = sampler.propose(trials.study, 99)
        estimated.append(float(sampler.estimate(proposed.replayed).mean()))
    assert estimated[1] > estimated[0] + 3


def test_hypervolume_by_hand() -> None:
    points = [(2.0, 30.0), (3.0, 25.0), (2.5, 20.0), (0.5, 90.0)]
    assert hypervolume(points, (1.0, 10.0)) == pytest.approx(2 * 15 + 1 * 5)
    assert hypervolume([], (1.0, 10.0)) == 0
    assert expected_improvement(points, (2.0, 20.0), 0.01, (1.0, 10.0)) == pytest.approx(0, abs=1e-6)
    assert expected_improvement(points, (4.0, 20.0), 0.01, (1.0, 10.0)) == pytest.approx(10, rel=1e-3)


def test_the_sampler_never_sees_a_policy_that_the_space_does_not_hold(setting: tuple[Space, Replay]) -> None:
    trials = Trials(*setting)
    trials.run(4)
    assert all(isinstance(m.policy, Policy) and m.policy.indicator == "noise-level" for m in trials.measured)


def test_a_context_that_was_over_the_ceiling_is_not_proposed_again(setting: tuple[Space, Replay]) -> None:
    space = copy.copy(setting[0])
    # So few candidates that screening sees what it proposes with either context, and with a tail every one recomputes
    # where complete blocks are left out, so that a bound costs something.
    narrow = {
        "predict_threshold": ["never"],
        "cache_quantile": Quantiles(low=0.0, high=0.0),
        "tail": IntRange(low=1, high=1),
        "order": [1],
        "axis": ["step"],
    }
    space.spec = space.spec.model_copy(update={"context_window": [None, 1], **narrow})
    floors = FLOORS.model_copy(update={"max_memory": 1000})
    trials = Trials(space, setting[1], floors=floors, screened=(300, 30))
    trials.run(2)
    small = trials.sampler.propose(trials.study, 99)
    for number, measured in enumerate(trials.measured):
        trials.measured[number] = Measured(measured.policy, 0, {**measured.figures, "memory_bytes": 2000.0})
    assert {measured.policy.context_window for measured in trials.measured} == {None}
    assert trials.sampler.propose(trials.study, 99).policy.context_window == 1
    assert small.policy.context_window is None, "a context that costs nothing is preferred while it may fit"
