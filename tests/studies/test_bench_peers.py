"""Techniques of others beside this project's: what is counted, what is compared, and that they leave nothing behind."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from calibrate.families.target import Target
from scope_runtime import Policy, exact, run_policy
from studies.bench import techniques
from studies.bench.__main__ import app
from studies.bench.generations import Generations, Outcome
from studies.bench.peers import Counted, Tried, figures_of, front_of, level_speedup, worth_trying
from studies.bench.peers_page import MARKS
from studies.bench.techniques import Setting
from tests.tiny import CALL


@pytest.fixture(scope="module")
def made(study: Path) -> Generations:
    return Generations(study, study.parent / "cache", beside_stock=True)


@pytest.fixture(scope="module")
def stock(made: Generations) -> tuple[torch.Tensor, int]:
    """The stock pipeline's latents and work."""
    return _work(made)


def _work(made: Generations) -> tuple[torch.Tensor, int]:
    with Counted(made.target.network) as work:
        latents = made.target.denoise(made.study.search_cases[0]).latents
    return latents, work.flops


def test_work_is_tokens_times_weights_of_the_layers_that_are_called(
    made: Generations, stock: tuple[torch.Tensor, int]
) -> None:
    layer = made.target.network.blocks[0]
    size = {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.ndim > 1)
        for name, part in {
            "q": layer.attn1.to_q,
            "k": layer.attn1.to_k,
            "text": layer.attn2.to_k,
            "ffn": layer.ffn,
        }.items()
    }
    video, text = 9, CALL["max_sequence_length"]  # latents of 2x2 are one token of each frame
    per_call = 2 * (video * (2 * size["q"] + size["k"] + size["ffn"]) + text * size["text"])
    calls = 2 * (CALL["num_inference_steps"] + 2 * CALL["ar_step"]) * len(made.target.network.blocks)
    assert stock[1] == calls * per_call


def test_the_counter_and_the_report_agree_on_what_a_policy_saves(
    made: Generations, stock: tuple[torch.Tensor, int]
) -> None:
    with run_policy(made.target.pipe, Policy(warmup=2, max_skip=2)) as scope:
        work = _work(made)[1]
    # All but the text's keys grow with the blocks that are evaluated.
    assert stock[1] / work == pytest.approx(scope.report.stock_evaluations / scope.report.evaluations, rel=0.35)
    assert work < stock[1]


@pytest.mark.parametrize("technique", techniques.techniques(), ids=lambda technique: technique.name)
def test_every_technique_saves_work_and_leaves_the_pipeline_as_it_was(
    technique: techniques.Technique,
    made: Generations,
    stock: tuple[torch.Tensor, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Fewer plans than there are, whose weights take long to fit.
    monkeypatch.setattr(techniques, "_PERIODS", (3,))
    monkeypatch.setattr(techniques, "BY_HAND", ())
    settings = technique.settings(made)
    assert len({setting.key for setting in settings}) == len({setting.name for setting in settings}) == len(settings)
    told = io.StringIO()
    (handler,) = (found for found in logging.getLogger("CACHE_DIT").handlers if type(found) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", told)
    with settings[-1].enabled(made.target):
        _, less = _work(made)
    assert told.getvalue() == ""  # standard output is the figures'
    assert less < stock[1]
    after, work = _work(made)
    assert torch.equal(after, stock[0])
    assert work == stock[1]
    exact(made.target.pipe).close()  # refuses whatever another one has left behind


def _tried(name: str, speedup: float, *dbs: float) -> Tried:
    return Tried(Setting(name, lambda _: exact(None), name), [Outcome(1000, round(1000 * speedup), db) for db in dbs])


def test_settings_far_off_or_far_behind_on_the_first_prompt_are_not_tried_on_others() -> None:
    first = [_tried("off", 6.0, 23.9), _tried("good", 4.0, 36.0), _tried("behind", 4.0, 33.9)]
    first += [_tried("near", 3.9, 34.1), _tried("slow", 1.2, 46.1)]
    assert [one.setting.name for one in worth_trying(first)] == ["good", "near"]


def test_a_front_is_from_fast_to_slow_and_has_one_of_each_group_of_near_ones() -> None:
    tried = [_tried("a", 4.0, 30.0), _tried("b", 3.85, 33.0), _tried("worse", 3.0, 32.0), _tried("c", 3.7, 35.0)]
    tried += [_tried("d", 3.6, 36.0), _tried("e", 2.0, 40.0)]
    assert [one.setting.name for one in front_of(tried)] == ["b", "d", "e"]


def test_what_a_technique_has_at_a_level() -> None:
    assert level_speedup(33.0, [(4.0, 34.0), (9.0, 32.0)]) == pytest.approx(6.0)
    assert level_speedup(33.0, [(1.5, 100.0)]) == 1.5
    assert level_speedup(33.0, [(1.5, 32.0)]) is None


def test_the_best_of_ours_is_held_beside_the_best_of_the_others() -> None:
    measured = {
        "learned": [_tried("l", 6.0, 35.5, 34.5)],
        "periodic": [_tried("p", 7.0, 31.0, 31.0)],
        "peer": [_tried("q", 4.0, 34.0, 38.0)],
        "poor": [_tried("r", 1.0, 20.0, 20.0)],
    }
    seconds = {name: [1.0] * len(tried) for name, tried in measured.items()}
    found = figures_of(measured, seconds, {"learned", "periodic"})
    assert found["at_35"] == {"learned": 6.0, "periodic": None, "peer": 4.0, "poor": None}
    assert found["ratio_to_best_peer"] == {"35": 1.5, "33": 1.5}
    assert found["best"]["35"] == {"ours": "learned", "peer": "peer"}
    assert found["curves"]["peer"][0]["psnr_worst_prompt_db"] == 34.0
    alone = figures_of({"learned": measured["learned"]}, seconds, {"learned"})
    assert (alone["ratio_to_best_peer"]["35"], alone["ratio_range"]["35"]) == (None, None)


def test_the_command_goes_on_where_it_was_and_writes_page_and_picture(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, picture, printed = tmp_path / "peers.md", tmp_path / "peers.png", tmp_path / "peers.json"
    arguments = ["peers", "--study", str(study), "--cache", str(study.parent / "cache"), "--page", str(page), "--json"]
    arguments += ["--prompts", "1", "--timed", "1", "--technique", "exact", "--picture", str(picture)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "add both" in refused.stderr
    page.write_text(f"# Peers\n\n{MARKS[0]}\nof an earlier run\n{MARKS[1]}\n\nAfter.\n")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    line = figures["curves"]["exact"][0]
    assert figures["at_35"]["exact"] == pytest.approx(line["speedup"], abs=0.01)
    assert line["speedup"] > 1
    assert line["psnr_db"] > 80
    text = page.read_text()
    assert text.startswith("# Peers\n")
    assert text.endswith("\n\nAfter.\n")
    assert "earlier" not in text
    assert "](peers.png)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"| exact | {figures['at_35']['exact']:.2f}x (the fastest measured) |" in text

    monkeypatch.setattr(Target, "denoise", lambda *_: pytest.fail("a generation was made anew"))
    assert json.loads(CliRunner().invoke(app, arguments).stdout) == figures
    printed.write_text(result.stdout)
    again = CliRunner().invoke(app, ["peers", "--figures", str(printed), "--page", str(page), "--json"])
    assert json.loads(again.stdout) == figures
    assert "](peers.png)" not in page.read_text()
    printed.write_text("[]")
    assert CliRunner().invoke(app, ["peers", "--figures", str(printed)]).exit_code == 2
