"""The long benchmarks at their smallest, on a tiny pipeline: what they print, and that they go on where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrate.families.target import Target
from studies.bench.__main__ import app


def _run(study: Path, *arguments: str) -> Any:
    options = ("--study", str(study), "--cache", str(study.parent / "cache"), "--cases", "1", "--json")
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _no_generation(*_: Any) -> Any:
    raise AssertionError("a generation was made anew")


def test_replay_against_real_runs(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("replay", "--policies", "3", "--fitted", "2", "--picks", "1", "--speedup", "2.2")
    figures = _run(study, *arguments)
    assert figures["evaluations_exact"] is True
    assert -1 <= figures["rank_correlation"] <= 1
    assert figures["seconds_per_replay"] > 0
    assert set(figures) == {
        "evaluations_exact", "rank_correlation", "seconds_per_replay", "seconds_per_run", "picked_minus_random_db",
    }  # fmt: skip
    monkeypatch.setattr(Target, "denoise", _no_generation)
    again = _run(study, *arguments)
    measured = ("rank_correlation", "picked_minus_random_db", "seconds_per_run")
    assert {name: again[name] for name in measured} == {name: figures[name] for name in measured}


def test_axes_against_each_other(study: Path) -> None:
    lines = _run(study, "axis", "--schedule", "3:2")
    assert [(line["order"], line["axis"]) for line in lines] == [
        (0, "noise-level"), (1, "noise-level"), (1, "step"), (2, "noise-level"), (2, "step"),
    ]  # fmt: skip
    assert len({line["speedup_evaluations"] for line in lines}) == 1
    assert all(line["psnr_worst_prompt_db"] <= line["psnr_db"] for line in lines)
    assert len({line["psnr_db"] for line in lines}) > 2


def test_search_by_replay_against_plain_optuna(study: Path) -> None:
    figures = _run(study, "search", "--budget", "2.5", "--budget", "4", "--trials", "3", "--trials", "5")
    assert set(figures) == {"replay", "plain"}
    replay, plain = figures["replay"], figures["plain"]
    assert {len(line) for line in replay} == {2}
    assert {len(line) for line in plain} == {3}
    assert [line[0] for line in plain] == [3, 5]
    assert plain[0][1] < plain[1][1]
    assert replay[0][0] <= 2.5
    assert replay[0][0] < replay[1][0] <= 4
    # The made-up model's videos are far from each other: a front may lie wholly below what counts.
    assert all(line[-1] >= 0 for line in replay + plain)


def test_a_search_with_learned_weights_pays_for_their_prompts(study: Path) -> None:
    common = ("search", "--budget", "5", "--trials", "3")
    without, learned = _run(study, *common)["replay"], _run(study, *common, "--learned")["replay"]
    assert 4 < learned[0][0] <= 5
    assert learned[0][1] >= 0
    # Baselines of one search prompt and one fit prompt leave less than half as many candidates to be tried.
    weights = len(list((study.parent / "cache").glob("generation-*.json")))
    assert 0 < weights < 5
    assert without[0][0] <= 5
