from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from calibrate.display.data import best_point, feasible, front, load_study
from calibrate.display.wording import (
    chart_text,
    file_name,
    headline,
    plain,
    policy_sentence,
    promised_cell,
    reasons,
)
from calibrate.errors import CalibrateError
from calibrate.families import FAMILIES
from calibrate.families.family import Family
from calibrate.results.result import Result
from calibrate.spec.floors import Floors
from calibrate.store import Storage, browse
from scope_runtime import Settings
from tests.made import EVIDENCE, TRIALS, Made


def test_every_measured_policy_is_a_point(made: Made) -> None:
    points = made.data.points
    assert len(points) == len(made.data.results) == TRIALS
    assert made.data.states == {"complete": TRIALS, "fail": 1, "running": 1}
    assert list(made.data.failures.values()) == ["RuntimeError: out of memory"]
    row = points.iloc[7]
    assert row["psnr_db"] == made.data.results[int(row["trial"])].figures["psnr_db"]
    assert len(made.data.replayed) == TRIALS


def test_feasible_agrees_with_the_results_own_judgement(made: Made) -> None:
    floors = made.data.study.floors
    expected = {trial for trial, result in made.data.results.items() if result.feasible(floors)}
    points = made.data.points
    assert set(points[feasible(points, floors)]["trial"]) == expected
    assert 0 < len(expected) < TRIALS
    fastest = max((made.data.results[t] for t in expected), key=lambda r: r.speedup_evaluations)
    assert best_point(points, floors, "speedup_evaluations") == fastest.trial == made.best
    assert best_point(points, Floors(psnr_db=99.0), "speedup_evaluations") is None


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    points = pd.DataFrame({"trial": range(5), "x": [1.0, 2.0, 3.0, 2.0, 3.0], "y": [9.0, 5.0, 4.0, 4.5, 4.0]})
    assert front(points, "x", "y")["trial"].tolist() == [2, 1, 0]


def test_exact_mode_is_a_point_of_its_own(made: Made) -> None:
    assert made.data.exact_speedup == pytest.approx({"speedup_evaluations": 2.0, "speedup_denoise": 8 / 5})


def test_the_budget_is_spent_by_trials_or_by_full_generations(made: Made) -> None:
    assert made.data.budget_spent == 1.0
    study = made.data.study
    budget = study.budget.model_copy(update={"trials": 80, "equivalents": None})
    assert replace(made.data, study=study.model_copy(update={"budget": budget})).budget_spent == TRIALS / 80
    full = 1 + 1 / 2 + sum(1 / result.speedup_evaluations for result in made.data.results.values())
    budget = study.budget.model_copy(update={"trials": 10_000, "equivalents": 100.0})
    data = replace(made.data, study=study.model_copy(update={"budget": budget}))
    assert data.budget_spent == pytest.approx(full / 100)
    # Weights that were fitted in ten runs, each of which cost a quarter of a stock one, on two prompts.
    means = {**data.means, "fit": browse.Means(10, data.means["stock"].evaluations / 4, 1.0, 0.0)}
    assert replace(data, means=means).budget_spent == pytest.approx((full + 10 / 4 / 2) / 100)


def test_what_was_predicted_is_kept_beside_what_was_measured(made: Made, read_only: Storage) -> None:
    policy = made.data.results[made.best].policy
    _, detail = browse.measurements(read_only, made.data.record.id, policy)[0]
    errors = detail["prediction_errors"]
    assert {len(error) for error in errors} == {4, 5}  # the first check of a block has none before it
    assert all(error[4] > 0 for error in errors if len(error) == 5)


def test_a_deleted_study_is_one_sentence(read_only: Storage) -> None:
    with pytest.raises(CalibrateError, match="'gone' is not in this database"):
        load_study(read_only, "gone")


def test_sentences_name_figures_and_neighbours(made: Made) -> None:
    data, floors = made.data, made.data.study.floors
    best = data.results[made.best]
    assert f"**{best.speedup_evaluations:.2f}x fewer" in headline(best, 3, 40)
    assert "lower one" in headline(None, 0, 40)
    assert "above the floors with their safety margin of 1 dB" in headline(best, 3, 40, floors.with_margin)
    told = reasons(data, best, floors, "speedup_evaluations", "psnr_db")
    assert told[0] == "Holds every floor with the margin of 1 dB."
    assert any("fastest policy above the floors" in line for line in told)
    beaten = min(data.results.values(), key=lambda r: r.figures["psnr_db"] + 10 * r.speedup_evaluations)
    assert any(
        "at least as good in both" in line for line in reasons(data, beaten, floors, "speedup_evaluations", "psnr_db")
    )
    needed = best.figures["psnr_db"] - 0.5
    strict = reasons(data, best, floors.model_copy(update={"psnr_db": needed}), "speedup_evaluations", "psnr_db")
    assert strict[0] == f"Misses psnr_db by 0.5 dB (floor {needed:.10g} dB with its margin of 1 dB)."
    small = floors.model_copy(update={"max_memory": 10**9})
    large = Result(**{**best.to_dict(), "figures": best.figures | {"memory_bytes": 3e9}})
    assert (
        reasons(data, large, small, "speedup_evaluations", "psnr_db")[0] == "Misses max_memory by 2 GB (at most 1 GB)."
    )
    stopped = Result(**{**best.to_dict(), "stopped": "stopped early: 1 dB"})
    assert "stopped early" in reasons(data, stopped, floors, "speedup_evaluations", "psnr_db")[0]


def test_the_headline_quotes_what_no_choice_has_seen(made: Made) -> None:
    best = made.data.results[made.best]
    seen = headline(best, 3, 40)
    assert seen.startswith("On the search prompts")
    unseen = made.data.unseen[made.best]
    assert (unseen.kind, unseen.prompts, unseen.psnr_db) == ("held-out", 1, EVIDENCE["psnr_db"])
    assert made.data.told_unseen == unseen
    told = headline(best, 3, 40, unseen=unseen)
    assert told.startswith("On 1 held-out prompt, which no choice has seen")
    assert "**2.50x fewer block evaluations** at **38.5 dB** against the stock video (worst prompt 37.0 dB)" in told
    assert f"{best.figures['psnr_db']:.1f} dB" not in told
    other = next(result for trial, result in made.data.results.items() if trial != made.best)
    assert f"On the search prompts alone trial {other.trial}" in headline(other, 3, 40, unseen=unseen)


def test_what_can_be_promised_is_read_beside_the_front_and_not_mixed_into_it(promised: Made) -> None:
    data = promised.data
    assert data.promises is not None
    assert [entry.trial for entry in data.promises.passed] == [promised.best]
    unseen = data.told_unseen
    assert unseen is not None
    assert (unseen.trial, unseen.kind, unseen.prompts) == (promised.best, "guarantee", 5)
    assert (unseen.speedup, unseen.psnr_db, unseen.worst_db) == (3.0, 43.0, 41.0)
    assert len(data.points) == 12
    assert "guarantee" not in data.means
    cells = {cell.name: promised_cell(cell, 5) for cell in data.promises.cells}
    assert cells["28,0.6"] == f"3.00x (trial {promised.best})"
    assert cells["28,0.9"] == "takes 22 cases"
    storage = Storage(promised.url, read_only=True)
    kinds = {row.kind for row, _ in browse.measurements(storage, data.record.id, data.results[promised.best].policy)}
    storage.close()
    assert kinds == {"candidate"}


def test_a_policy_in_words_names_its_numbers(made: Made) -> None:
    policy = made.data.results[made.best].policy
    sentence = policy_sentence(policy)
    assert f"first {policy['warmup']} steps" in sentence
    assert f"at most {policy['max_skip']} rows in a row" in sentence
    assert "first step and the last one" in policy_sentence({**policy, "warmup": 1, "tail": 1})
    assert "at most one row at a time" in policy_sentence({**policy, "max_skip": 1})
    assert "without a limit" in policy_sentence({**policy, "predict_threshold": None})
    assert "along a line over its steps" in policy_sentence({**policy, "order": 1, "axis": "step"})
    before = {name: value for name, value in policy.items() if name != "axis"}
    assert "along a parabola over the noise level" in policy_sentence({**before, "order": 2})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_code_to_use_a_profile_compiles(made: Made, family: Family[Any]) -> None:
    settings = Settings.from_dict(made.data.profiles[0].profile["settings"])
    if family.name == "framepack":
        settings = replace(settings, options={"distilled_guidance_scale": 6.0, "sampling_type": "vanilla"})
    text = family.usage(settings, "made.json")
    compile(text, "usage", "exec")
    assert "made.json" in text
    assert "prepare=" not in text
    assert family.name == "magi_1" or "num_inference_steps=20" in text


def test_text_of_others_is_one_line_without_control_and_ordinary_names_stay_as_they_are() -> None:
    assert plain("a\n# b\x00\u202ec") == r"a \# b c"
    assert plain("SkyReels 14B") == chart_text("SkyReels 14B") == "SkyReels 14B"
    assert plain("sqlite:///runs/a.db").replace("\\", "") == "sqlite:///runs/a.db"
    assert chart_text("<b> & %{x}\n'") == "&lt;b&gt; &amp; %&#123;x} &#x27;"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("profiles/made.json", "made.json"),
        ("/a/b/my_model-v2.1.json", "my_model-v2.1.json"),
        ("..", "profile.json"),
        ("a/.bashrc", "bashrc.json"),
        ("C:\\x\\run.exe", "run.exe.json"),
        ('x"); import os; ("', "x_import_os_.json"),
    ],
)
def test_a_recorded_path_gives_a_harmless_name(path: str, name: str) -> None:
    assert file_name(path, ".json") == name
