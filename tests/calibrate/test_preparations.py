"""A study that may set the pipeline up in other ways: from its YAML to a profile that is verified."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from optuna.trial import TrialState

from calibrate.doctor import _searched_equivalents
from calibrate.errors import CalibrateError
from calibrate.export.guarantee import GuaranteeTests
from calibrate.families import FAMILIES
from calibrate.results.result import LEARNED, THRESHOLDS, Result, load_results, results_of_trials, told_preparation
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import open_optuna_study
from calibrate.search.preparations import _slower, share
from calibrate.spec.generation import Case
from calibrate.spec.search_space import Backend, Weights
from calibrate.store import (
    CANDIDATE,
    GUARANTEE,
    GUARANTEE_STOCK,
    PAIRED_STOCK,
    PREPARATION,
    Generation,
    Storage,
    Store,
    policy_digest,
)
from calibrate.study.study_file import Study, StudyFile
from scope_runtime import Preparation, Profile, apply_scope
from scope_runtime.preparation import ATTENTION_BACKENDS, WEIGHTS
from tests.calibrate.conftest import TINY_STUDY, Workplace
from tests.tiny import latents, tiny_pipeline

CASE = Case(prompt="a red circle", seed=1)
BFLOAT16 = Preparation(weights="bfloat16").to_dict()
SHORT = {"num_inference_steps": 5}
CHOICES = {
    "generation": TINY_STUDY["generation"] | SHORT,
    "search": {
        **TINY_STUDY["search"],
        "weights": [None, "bfloat16"],
        "attention_backend": [None, "sage"],
        "learned": {},
        "candidates": [{"warmup": 2, "max_skip": 2}],
    },
    "fit_cases": [{"prompt": "a green square moving left", "seed": 7}],
    "search_cases": TINY_STUDY["search_cases"][:1],
    "held_out_cases": TINY_STUDY["held_out_cases"][:1],
    "floors": {"psnr_db": 5.0, "psnr_worst_prompt_db": 5.0, "safety_margin_db": 0.0},
    "budget": {"trials": 4},
    "timing": {"max_repeats": 0},
    # Of two cases none may miss for this.
    "guarantee": {"share": 0.5, "confidence": 0.75},
    "guarantee_cases": [{"prompt": f"a red circle moving {way}", "seed": 9} for way in ("up", "down")],
}


@pytest.fixture(scope="module")
def chosen(make_workplace: Callable[..., Workplace]) -> Workplace:
    """A study that was stopped after a fit and within the test of its second policy, and continued to its end."""
    workplace = make_workplace(**CHOICES)
    with pytest.MonkeyPatch.context() as patch:
        # Which is faster here is not what is asked: all are searched, and all that was measured is tested.
        patch.setattr("calibrate.search.preparations._SLOWER", 0.0)
        patch.setattr("calibrate.export.guarantee.sequence_of", lambda results, *_: sorted(results, key=_speed))
        _stopped(workplace, Driver, "_take_weights", 2)
        _stopped(workplace, GuaranteeTests, "_record", 3)
        result = workplace.scope("run", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    (workplace.folder / "exported.json").write_text(result.stdout)
    return workplace


def _stopped(workplace: Workplace, kind: type, method: str, calls: int) -> None:
    """Runs the study until a method has been called so often."""
    made, called = getattr(kind, method), 0

    def stop(*given: Any) -> Any:
        nonlocal called
        result, called = made(*given), called + 1
        if called == calls:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, stop)
        stopped = workplace.scope("run", "study.yaml")
    assert stopped.exit_code == 130, stopped.output


def _speed(result: Result) -> float:
    return result.speed


@pytest.fixture(scope="module")
def store(chosen: Workplace) -> Iterator[Store]:
    storage = Storage(f"sqlite:///{chosen.folder}/runs/tiny.db")
    yield Store.find_study(storage, "tiny")
    storage.close()


def test_a_study_may_choose_what_a_profile_may_ask_for() -> None:
    assert get_args(Backend) == ATTENTION_BACKENDS
    assert get_args(Weights) == WEIGHTS


def test_each_preparation_has_its_own_traces_candidates_and_times_beside_stock(store: Store) -> None:
    results = load_results(store)
    assert {str(result.preparation) for result in results} == {"None", str(BFLOAT16)}
    assert all(result.paired and result.speed == result.speedup_denoise for result in results)
    same = [result for result in results if result.kind == THRESHOLDS]
    # The same schedule in another pipeline is another candidate: its evaluations are the same, its quality is its own.
    assert len({result.speedup_evaluations for result in same}) == 1
    assert len({result.figures["psnr_db"] for result in same}) == len(same) == 2
    rows = {kind: [row.settings.get(PREPARATION) for row in store.complete(kind)] for kind in ("stock", "exact")}
    # Of the search case and the fit case.
    assert rows == {"stock": [None] * 2, "exact": [None] * 2 + [BFLOAT16] * 2}
    assert len(store.complete(PAIRED_STOCK)) == 2


def test_a_trial_that_was_tested_and_has_no_result_is_one_sentence(store: Store) -> None:
    with pytest.raises(CalibrateError, match="records of study 'tiny' are damaged: trial 999 has no result"):
        results_of_trials(store, [0, 999])


def test_optuna_maximises_the_time_that_candidates_are_ranked_by(store: Store) -> None:
    told: dict[int, list[float]] = {}
    for preparation in (Preparation(), Preparation.from_dict(BFLOAT16)):
        trials = open_optuna_study(store, create=False, preparation=preparation).trials
        told |= {trial.number: trial.values for trial in trials if trial.state == TrialState.COMPLETE}
    results = load_results(store)
    assert told == {result.trial: [result.speedup_denoise, result.figures["psnr_db"]] for result in results}
    assert all(result.speedup_denoise != result.speedup_evaluations for result in results)


def test_weights_are_fitted_in_the_pipeline_that_they_are_for(store: Store) -> None:
    learned = [result for result in load_results(store) if result.kind == LEARNED]
    assert [result.preparation for result in learned] == [None, BFLOAT16]
    plain, half = (result.policy for result in learned)
    # The same plan in another pipeline has other weights.
    assert plain["plan"] == half["plan"]
    assert plain["gap_weights"]["weights"] != half["gap_weights"]["weights"]
    rows = store.complete("fit")
    # What was fitted before the study was stopped was not fitted again.
    assert [(row.trial_number, row.settings.get(PREPARATION)) for row in rows] == [
        (result.trial, result.preparation) for result in learned for _ in CHOICES["fit_cases"]
    ]


def test_what_does_not_load_is_written_down_and_dropped_after_one_case(chosen: Workplace) -> None:
    state = json.loads(chosen.scope("status", "study.yaml", "--json").output)
    dropped = {str(Preparation.from_dict(r["preparation"])): r["dropped"] for r in state["preparations"]}
    assert dropped["as loaded"] is dropped["bfloat16 weights"] is None
    for name in ("sage attention", "sage attention, bfloat16 weights"):
        assert "does not load" in dropped[name]
        assert "sageattention" in dropped[name]
    told = chosen.scope("status", "study.yaml").output
    assert "set up: bfloat16 weights" in told
    front = json.loads(chosen.scope("front", "study.yaml", "--json").output)
    assert all(entry["paired"] for entry in front)
    shown = chosen.scope("front", "study.yaml").output
    assert told_preparation(front[0]["preparation"]).split()[0] in shown


def test_a_profile_names_what_it_needs_runs_with_prepare_and_is_verified(chosen: Workplace, store: Store) -> None:
    trial = next(result.trial for result in load_results(store) if result.preparation and result.kind == LEARNED)
    result = chosen.scope("export", "study.yaml", "--trial", str(trial), "--output", "profiles/half.json")
    assert result.exit_code == 0, result.output
    profile = Profile.load(chosen.folder / "profiles" / "half.json")
    assert profile.settings.preparation == Preparation.from_dict(BFLOAT16)
    assert profile.settings.dtype == "float32"  # of what is loaded, and of the stock clips
    promise = profile.evidence["guarantee"]
    assert (promise["n"], promise["misses"]) == (2, 0)
    assert profile.policy.gap_weights is not None
    pipe = tiny_pipeline()
    with apply_scope(pipe, profile, prepare=True, on_mismatch="raise") as scope:
        latents(pipe, **SHORT)
        assert scope.report.speedup_evaluations == pytest.approx(profile.evidence["speedup_evaluations"])
    usage = FAMILIES[0].usage(profile.settings, "half.json")
    assert "apply_scope(pipe, profile, prepare=True)" in usage
    verified = chosen.scope("verify", "profiles/half.json", "study.yaml", "--json")
    assert verified.exit_code == 0, verified.output
    figures = json.loads(verified.stdout)
    assert figures["psnr_db"] == pytest.approx(profile.evidence["psnr_db"], abs=0.5)
    counted = figures["promise"]
    assert (counted["n"], counted["held"], counted["broken"]) == (1, 1, False)


def test_a_policy_is_tested_in_the_pipeline_that_its_candidate_ran_in(chosen: Workplace, store: Store) -> None:
    results = sorted(load_results(store), key=_speed)
    table = json.loads((chosen.folder / "exported.json").read_text())["promises"]
    assert table == json.loads(chosen.scope("promises", "study.yaml", "--json").output)
    # The same policy in two pipelines is tested twice, by the order of their times, and nothing is measured again.
    assert [(entry["trial"], entry["preparation"]) for entry in table["policies"]] == [
        (result.trial, result.preparation) for result in results
    ]
    assert [entry["speed"] for entry in table["policies"]] == [result.speedup_denoise for result in results]
    rows = store.complete(GUARANTEE)
    assert len(rows) == len({(row.policy_digest, row.prompt) for row in rows}) == 2 * len(results)
    for result in results:
        own = [row for row in rows if row.trial_number == result.trial]
        assert [row.settings.get(PREPARATION) for row in own] == [result.preparation] * 2
        assert {row.policy_digest for row in own} == {policy_digest(result.policy, result.preparation)}
    same = [row.metrics["psnr_db"] for row in rows if row.prompt.endswith("up") and row.metrics]
    assert len(set(same)) == len(same)
    stock = store.complete(GUARANTEE_STOCK)
    assert [row.settings.get(PREPARATION) for row in stock] == [None, None]
    told = " ".join(chosen.scope("promises", "study.yaml").output.split())
    assert "bfloat16 weights" in told
    assert f"{results[-1].speed:.2f}x" in told


def test_what_is_spent_is_what_doctor_says_beforehand(
    chosen: Workplace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shares of stock's evaluations that doctor guesses put at what they came to."""
    study = StudyFile(chosen.study).study
    loads = study.search.model_copy(update={"attention_backend": [None]})
    kinds = ("stock", PAIRED_STOCK, "exact", "fit", CANDIDATE)
    rows = {kind: [_share(row) for row in store.complete(kind)] for kind in kinds}
    monkeypatch.setattr("calibrate.doctor._EXACT_SHARE", mean(rows["exact"]))
    monkeypatch.setattr("calibrate.doctor._CANDIDATE_SHARE", mean(rows[CANDIDATE] + rows["fit"]))
    said = _searched_equivalents(study.model_copy(update={"search": loads}))
    # Beside what has rows of its own, every candidate took a stock run to be timed by.
    assert store.equivalents() == pytest.approx(sum(map(sum, rows.values())) + len(load_results(store)))
    assert store.equivalents() == pytest.approx(said)
    assert json.loads(chosen.scope("status", "study.yaml", "--json").output)["equivalents"] == pytest.approx(said)


def _share(row: Generation) -> float:
    assert row.evaluations
    assert row.stock_evaluations
    return row.evaluations / row.stock_evaluations


def test_the_budget_bounds_what_doctor_says_beside_the_baselines() -> None:
    def said(**changes: Any) -> float:
        return _searched_equivalents(Study.model_validate(TINY_STUDY | {"budget": {"trials": 6}} | changes))

    baselines, candidates = 2 * (1 + 2 / 3), 6 * 2 / 3
    ways = {"search": {"weights": [None, "bfloat16", "dynamic-int8"]}}
    assert said() == pytest.approx(baselines + candidates)
    assert said(**ways) == pytest.approx(3 * baselines + candidates + 6)
    assert said(**ways, budget={"trials": 6, "equivalents": 7}) == pytest.approx(2 * 7)
    assert said(**ways, budget={"trials": 6, "equivalents": 2}) == pytest.approx(3 * baselines)
    assert said(**ways, budget={"trials": 1}) == pytest.approx(3 * baselines + candidates / 2 + 3)


def test_what_is_slower_than_the_first_is_dropped() -> None:
    def made(stock: float, exact: float) -> Any:
        return {CASE: SimpleNamespace(timings=SimpleNamespace(stock_seconds=stock, exact_seconds=exact))}

    first: Any = SimpleNamespace(preparation=Preparation("native"), made=made(3.0, 2.0))
    assert _slower(first.made, []) is None
    assert _slower(made(4.0, 2.7), [first]) is None
    assert "1.00x as fast as stock, and 1.50x with native attention" in str(_slower(made(2.0, 2.0), [first]))


def test_the_budget_is_shared() -> None:
    study = Study.model_validate(TINY_STUDY | {"budget": {"trials": 5, "equivalents": 12}})
    shares = [share(study, 4.0, number, 2) for number in (0, 1)]
    assert [budget.trials for budget in shares] == [3, 2]
    assert [budget.equivalents for budget in shares] == [8.0, 12.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": ["int4"]}, "search.weights.0"),
        ({"attention_backend": ["sage_hub"]}, "search.attention_backend.0"),
        ({"compile": []}, "search.compile"),
    ],
)
def test_what_a_study_may_not_ask_for_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(TINY_STUDY | {"search": changes}))
    with pytest.raises(CalibrateError, match=said):
        StudyFile(path)


def test_a_study_without_such_a_choice_is_recorded_as_before() -> None:
    study = Study.model_validate(TINY_STUDY)
    assert study.search.preparations == [Preparation()]
    assert not {"attention_backend", "weights", "compile"} & study.fixed_parts()["search"].keys()
    assert policy_digest(None) == "full-compute" != policy_digest(None, BFLOAT16)
