"""A whole study whose floors are on scores: what is measured when, what is picked, and what is told of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import yaml

from calibrate.display.data import feasible, load_study
from calibrate.display.measures import score_measures
from calibrate.progress import Narrator
from calibrate.results.result import Result, load_results
from calibrate.search.optuna_study import open_optuna_study
from calibrate.session import open_session
from calibrate.spec.floors import Floors
from calibrate.store import Storage
from tests.calibrate import scoring
from tests.calibrate.conftest import TINY_STUDY, Workplace

VBENCH = {"dimension": "imaging_quality", "weights": "vbench"}
QUALITY: dict[str, Any] = {
    "scores": [
        {"name": "error", "function": "tests.calibrate.scoring:error", "of": "pair", "best": 0.0},
        {"name": "bright", "function": "tests.calibrate.scoring:brightness"},
        {"name": "imaging", "function": "calibrate.quality.perceptual:vbench", "options": VBENCH, "slow": True},
        {"name": "contrast", "function": "tests.calibrate.scoring:contrast"},
    ]
}
# Of this pipeline's candidates some have a prompt that is further from stock, and some do not.
FLOORS: dict[str, Any] = {
    "psnr_db": None,
    "psnr_worst_prompt_db": None,
    "scores": {
        "error": {"at_most": 0.004, "per": "prompt"},
        "bright": {"below_stock": 0.5},
        "imaging": {"below_stock": 0.5, "per": "prompt"},
    },
}


class VBench:
    """Stands in for VBench, which is not installed here: gives a clip's brightness."""

    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, device: str, info: str, results: str) -> None:
        self.results = Path(results)
        self.results.mkdir()

    def evaluate(self, name: str, prompt_list: dict[str, str], dimension_list: list[str], **_: Any) -> None:
        ((path, prompt),) = prompt_list.items()
        self.calls[prompt] += 1
        with av.open(path) as video:
            value = float(np.mean([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])) / 255
        (self.results / f"{name}_eval_results.json").write_text(json.dumps({dimension_list[0]: [value, []]}))


@pytest.fixture(scope="module")
def scored(make_workplace: Callable[..., Workplace]) -> Iterator[Workplace]:
    """A workplace whose study has been run to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vbench", SimpleNamespace(VBench=VBench))
        patch.setenv("VBENCH_CACHE_DIR", "")
        scoring.CALLS.clear()
        VBench.calls.clear()
        workplace = make_workplace(quality=QUALITY, floors=FLOORS)
        weights = workplace.folder / "vbench/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
        weights.parent.mkdir(parents=True)
        weights.touch()
        result = workplace.scope("run", "study.yaml")
        assert result.exit_code == 0, result.output
        yield workplace


@pytest.fixture(scope="module")
def results(scored: Workplace) -> list[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scored.folder)
        with open_session(scored.study, Narrator()) as session:
            return load_results(session.find())


def _change(workplace: Workplace, **changes: Any) -> str:
    """Writes a study file that differs beside that of a workplace; returns its name."""
    (workplace.folder / "changed.yaml").write_text(
        yaml.safe_dump(TINY_STUDY | {"quality": QUALITY, "floors": FLOORS} | changes)
    )
    return "changed.yaml"


def test_a_prompt_that_misses_a_score_ends_its_candidate_and_spares_the_slow_score(
    scored: Workplace, results: list[Result]
) -> None:
    stopped = [result for result in results if result.stopped]
    whole = [result for result in results if not result.stopped]
    assert stopped
    assert whole
    for result in stopped:
        assert "at best it misses scores.error.at_most by" in str(result.stopped)
        assert result.figures["score.error.max"] > 0.004
        assert "score.imaging.min" not in result.figures
    searched = {case["prompt"] for case in TINY_STUDY["search_cases"]}
    measured = sum(count for prompt, count in VBench.calls.items() if prompt in searched)
    # Stock's own once a prompt, and every clip that held the other floors.
    assert measured == 2 + sum("score.imaging.mean" in r.figures for r in whole) * 2 + _first_prompts_held(stopped)
    # What no floor is set on is measured on held-out prompts alone: each twice, with stock's.
    assert scoring.CALLS["contrast"] == 4


def _first_prompts_held(stopped: list[Result]) -> int:
    return sum(result.cases - 1 for result in stopped)


def test_figures_hold_each_score_and_its_distance_to_stock(results: list[Result]) -> None:
    (best, *_) = [r for r in results if r.feasible(Floors.model_validate(FLOORS))]
    for score in ("error", "bright", "imaging"):
        assert best.figures[f"score.{score}.min"] <= best.figures[f"score.{score}.max"]
    assert abs(best.figures["score.bright.over_stock_mean"]) < 0.01
    assert "score.error.over_stock_mean" not in best.figures
    assert "score.contrast.mean" not in best.figures
    assert f", error {best.figures['score.error.mean']:.3g}, bright" in str(best)


def test_optuna_is_told_of_every_bound(scored: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scored.folder)
    with open_session(scored.study, Narrator()) as session:
        trials = open_optuna_study(session.find(), create=False).get_trials(deepcopy=False)
    names = {"scores.error.at_most", "scores.bright.below_stock", "scores.imaging.below_stock"}
    told = [{name for name in names if any(name in key for key in trial.system_attrs)} for trial in trials]
    assert names in told
    assert all("scores.error.at_most" in found for found in told)


def test_the_export_is_judged_by_the_scores_of_held_out_prompts(scored: Workplace) -> None:
    evidence = json.loads((scored.folder / "profiles/tiny.json").read_text())["evidence"]
    assert evidence["floors"]["scores"]["error"] == {"at_most": 0.004, "per": "prompt"}
    worst = max(case["error"] for case in evidence["cases"])
    assert evidence["score.error.max"] == pytest.approx(worst)
    assert ("scores.error.at_most" in evidence["missed_floors"]) == (worst > 0.004)


def test_verify_names_the_floors_that_are_missed(scored: Workplace) -> None:
    floors = FLOORS | {"scores": {"error": {"at_most": 1e-6}, "bright": {"below_stock": 0.5}}}
    study = _change(scored, floors=floors, timing={"max_repeats": 0})
    told = scored.scope("verify", "profiles/tiny.json", study)
    assert told.exit_code == 0, told.output
    assert "The held-out prompts miss the floor scores.error.at_most by 0.00" in told.output
    assert "bright.below_stock" not in told.output


def test_status_and_front_show_the_scores(scored: Workplace) -> None:
    assert ", error 0.00" in " ".join(scored.scope("status", "study.yaml").output.replace("│", " ").split())
    (entry, *_) = json.loads(scored.scope("front", "study.yaml", "--json").output)
    assert entry["feasible"]
    assert "score.imaging.min" in entry["figures"]
    assert "error" in scored.scope("front", "study.yaml").output


def test_what_cannot_be_picked_says_which_score_is_in_the_way(scored: Workplace) -> None:
    study = _change(scored, floors=FLOORS | {"scores": {"error": {"at_most": 1e-6}}})
    refused = scored.scope("export", study)
    assert refused.exit_code == 2
    assert "misses scores.error.at_most by 0.00" in refused.output


def test_a_score_that_means_something_else_needs_another_name(scored: Workplace) -> None:
    other = {"name": "bright", "function": "tests.calibrate.scoring:contrast"}
    study = _change(scored, quality={"scores": [QUALITY["scores"][0], other, *QUALITY["scores"][2:3]]})
    refused = scored.scope("run", study)
    assert refused.exit_code == 2
    assert "quality.scores: bright was measured by another function or with other options" in refused.output


def test_the_dashboard_filters_by_scores(scored: Workplace, results: list[Result]) -> None:
    storage = Storage(f"sqlite:///{scored.folder / 'runs/tiny.db'}", read_only=True)
    data = load_study(storage, "tiny")
    storage.close()
    floors = data.study.floors
    holding = set(data.points[feasible(data.points, floors)]["trial"])
    assert holding >= {result.trial for result in results if result.feasible(floors)}
    assert 0 < len(holding) < len(data.points)
    error = floors.scores["error"].model_copy(update={"at_most": 0.0})
    strict = floors.model_copy(update={"scores": floors.scores | {"error": error}})
    assert not feasible(data.points, strict).any()
    # Of an error less is better: on an axis it would point the wrong way.
    assert list(score_measures(floors)) == ["score.bright.mean", "score.imaging.mean"]


def test_a_floor_that_is_added_later_is_measured_on_policies_that_come_again(
    scored: Workplace, results: list[Result]
) -> None:
    """The rows of what was measured get what they lack."""
    study = _change(
        scored,
        floors=FLOORS | {"scores": FLOORS["scores"] | {"contrast": {"at_least": 0.0}}},
        budget={"trials": 6},
    )
    refused = scored.scope("export", study)
    assert "contrast.at_least unmeasured (at least 0 in the mean); it was measured before" in refused.output
    result = scored.scope("run", study)
    assert result.exit_code == 0, result.output
    evidence = json.loads((scored.folder / "profiles/tiny.json").read_text())["evidence"]
    assert evidence["search"]["score.contrast.mean"] > 0
    assert evidence["search"]["speedup_evaluations"] == max(r.speedup_evaluations for r in results if not r.stopped)
