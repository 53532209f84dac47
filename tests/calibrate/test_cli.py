from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from sqlalchemy import create_engine, text
from typer.testing import Result

from calibrate.display.data import load_study
from calibrate.measure.candidate import Measure
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import ESTIMATE, RESULT
from calibrate.store import Storage, browse
from dashboard.clips import clip_of
from scope_runtime import Profile, apply_scope
from tests.calibrate.conftest import TINY_STUDY, Workplace
from tests.tiny import CALL, latents, save_tiny_pipeline, tiny_pipeline

Make = Callable[..., Workplace]
SEARCH_CASES = TINY_STUDY["search_cases"]


def _assert_refused(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *progress, last = result.stderr.splitlines()
    assert last.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert all(line.startswith("Loading the pipeline") for line in progress)
    for fragment in fragments:
        assert fragment in result.stderr


def test_no_arguments_show_help(finished: Workplace) -> None:
    result = finished.scope()
    assert "verify" in result.output
    assert "Traceback" not in result.output


def test_a_run_ends_with_a_profile_that_the_runtime_takes(finished: Workplace) -> None:
    profile = Profile.load(finished.folder / "profiles/tiny.json")
    pipe = tiny_pipeline()
    with apply_scope(pipe, profile, on_mismatch="raise") as scope:
        latents(pipe)
    assert scope.report.speedup_evaluations == pytest.approx(profile.evidence["speedup_evaluations"])
    assert profile.evidence["exact"]["max_abs_diff"] <= 1e-4
    assert profile.evidence["n"] == len(profile.evidence["cases"]) == 2
    assert profile.evidence["worst_prompt"]["psnr_db"] == profile.evidence["psnr_worst_prompt_db"]
    assert profile.evidence["metric_version"] == METRIC_VERSION
    for case in profile.evidence["cases"]:
        # Blocks of 9, 12 and 12 frames; a clip's figure is that of their squared errors.
        mse = np.average(10 ** (-np.array(case["block_psnr_db"]) / 10), weights=[9, 12, 12])
        assert case["psnr_db"] == pytest.approx(-10 * math.log10(mse), abs=0.02)
        assert case["psnr_worst_block_db"] == pytest.approx(min(case["block_psnr_db"]), abs=0.01)
    assert {case["prompt"] for case in profile.evidence["cases"]} == {
        "a green circle moving up",
        "a green square moving down",
    }


def test_beside_the_profile_lie_a_clip_and_a_plot(finished: Workplace) -> None:
    with av.open(str(finished.folder / "profiles/tiny.mp4")) as clip:
        stream = clip.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(frames) == 33
    assert frames[0].shape[1] > 3 * 200
    content = (finished.folder / "profiles/tiny.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert (finished.folder / "profiles/tiny-front.png").read_bytes().startswith(b"\x89PNG")


def test_beside_the_profile_lies_a_report_that_can_be_written_again(finished: Workplace, tmp_path: Path) -> None:
    written = (finished.folder / "profiles/tiny.html").read_text()
    again = finished.scope("report", "study.yaml", "-o", str(tmp_path / "again.html"))
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.html").read_text() == written
    evidence = Profile.load(finished.folder / "profiles/tiny.json").evidence
    assert f"<strong>{evidence['speedup_evaluations']:.2f}x fewer block evaluations</strong>" in written
    assert written.count('src="data:video/mp4;base64,') == 3  # the worst held-out prompt, two search prompts
    for name in ("front", "modes", "blocks"):
        assert f'data-figure="{name}"' in written


def test_status_and_front_tell_what_was_measured(finished: Workplace) -> None:
    status = json.loads(finished.scope("status", "study.yaml", "--json").stdout)
    assert status["candidates"] == 5
    assert status["generations"]["candidate"] == 10
    assert status["trials"]["running"] == 0
    assert len(status["profiles"]) == 1
    front = json.loads(finished.scope("front", "study.yaml", "--json").stdout)
    speeds = [entry["speedup_evaluations"] for entry in front if entry["feasible"]]
    assert speeds == sorted(speeds, reverse=True)
    assert status["best"]["speedup_evaluations"] == speeds[0]
    assert "5 of 5" in finished.scope("status", "study.yaml").stdout
    assert "met" in finished.scope("front", "study.yaml").stdout


def test_every_generation_is_recorded_with_its_environment(finished: Workplace) -> None:
    engine = create_engine(f"sqlite:///{finished.folder / 'runs/tiny.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM scope_generation")).mappings().all()
        environments = connection.execute(text("SELECT * FROM scope_environment")).mappings().all()
    assert len(rows) == 2 * 2 + 5 * 2 + 2 * 3
    for row in rows:
        assert row["state"] == "complete"
        assert row["seconds_denoise"] > 0
        assert row["evaluations"] <= row["stock_evaluations"]
        assert row["stock_seconds_denoise"] > 0
        assert json.loads(row["settings"])["num_inference_steps"] == 8
    assert len(environments) == 1
    assert json.loads(environments[0]["versions"])["torch"]


def test_what_replay_expected_is_written_down_before_each_run_but_the_first(finished: Workplace) -> None:
    storage = Storage(f"sqlite:///{finished.folder}/runs/tiny.db", read_only=True)
    data = load_study(storage, "tiny")
    trials = browse.trials(storage, "tiny", (ESTIMATE, RESULT))
    storage.close()
    assert [ESTIMATE in trial.attributes for trial in trials] == [False, *[True] * (len(trials) - 1)]
    assert len(data.replayed) == len(trials) - 1
    for trial in trials[1:]:
        expected, result = (trial.attributes[key] for key in (ESTIMATE, RESULT))
        if result["policy"]["indicator"] == "noise-level":
            assert expected["speedup_evaluations"] == pytest.approx(result["speedup_evaluations"])
        assert 0 < expected["figures"]["psnr_worst_prompt_db"] <= expected["figures"]["psnr_db"] <= 100


def test_verify_measures_again_and_prints_what_the_evidence_holds(finished: Workplace) -> None:
    result = finished.scope("verify", "profiles/tiny.json", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures) == {
        "speedup_evaluations",
        "speedup_denoise",
        "speedup_end_to_end",
        "psnr_db",
        "psnr_worst_prompt_db",
        "psnr_worst_frame_db",
        "psnr_worst_block_db",
        "metric_version",
        "ssim",
        "n",
        "exact",
        "temporal_psnr_db",
        "flicker",
        "motion_error_px",
        "worst_prompt",
        "scores",
        "intervals",
        "timing",
        "evidence",
        "missed_floors",
        "told_missed",
        "promise",
        "cases",
    }
    assert figures["promise"] is None
    assert len(figures["cases"]) == figures["n"]
    assert set(figures["exact"]) == {"speedup_denoise", "max_abs_diff", "stock_rounding", "holds"}
    evidence = Profile.load(finished.folder / "profiles/tiny.json").evidence
    for name in ("speedup_evaluations", "psnr_db", "psnr_worst_block_db", "psnr_worst_frame_db", "ssim", "n"):
        assert figures[name] == pytest.approx(evidence[name], rel=1e-4)
    rechecked = {entry["figure"]: entry["holds"] for entry in figures["evidence"]["figures"]}
    assert all(holds for name, holds in rechecked.items() if "speedup_" not in name)
    assert rechecked["speedup_evaluations"]
    assert figures["evidence"]["differs"] == {}
    low, high = (figures["intervals"]["psnr_db"][end] for end in ("mean_low", "mean_high"))
    assert low <= figures["psnr_db"] <= high


def test_a_strict_verify_fails_where_the_evidence_does_not_hold(finished: Workplace, tmp_path: Path) -> None:
    profile = json.loads((finished.folder / "profiles/tiny.json").read_text())
    for figure in ("speedup_denoise", "speedup_end_to_end"):  # of milliseconds, which prove nothing
        profile["evidence"][figure] = 0.1
    ends = {}
    for name, psnr in (("true", profile["evidence"]["psnr_db"]), ("boasting", profile["evidence"]["psnr_db"] + 5)):
        path = finished.folder / f"profiles/{name}.json"
        path.write_text(json.dumps(profile | {"evidence": profile["evidence"] | {"psnr_db": psnr}}))
        ends[name] = finished.scope("verify", str(path), "study.yaml", "--strict")
        path.unlink()
    assert (ends["true"].exit_code, ends["boasting"].exit_code) == (0, 3)
    assert "psnr_db" in ends["boasting"].stdout


def test_a_profile_from_before_is_verified_but_for_what_meant_something_else(finished: Workplace) -> None:
    profile = json.loads((finished.folder / "profiles/tiny.json").read_text())
    evidence = {name: value for name, value in profile["evidence"].items() if name != "metric_version"}
    # As the mean of frame PSNR of these clips would be; and times of milliseconds prove nothing.
    evidence |= {"psnr_db": 90.0, "psnr_worst_prompt_db": 90.0, "speedup_denoise": 0.1, "speedup_end_to_end": 0.1}
    old = finished.folder / "profiles/old.json"
    old.write_text(json.dumps(profile | {"evidence": evidence}))
    result = finished.scope("verify", str(old), "study.yaml", "--strict")
    old.unlink()
    assert result.exit_code == 3, result.output
    told = " ".join(result.stdout.split())
    assert "Measured in the old way (mean of frame PSNR, before version 2)" in told
    assert "not to be compared: psnr_db, psnr_worst_prompt_db" in told
    assert "All other figures of the profile's evidence hold" in told


def test_verify_takes_another_folder_and_refuses_another_model(finished: Workplace, tmp_path: Path) -> None:
    same, other = save_tiny_pipeline(tmp_path / "same"), save_tiny_pipeline(tmp_path / "other", seed=1)
    assert finished.scope("verify", "profiles/tiny.json", "study.yaml", "--model", str(same)).exit_code == 0
    alone = finished.scope("verify", "profiles/tiny.json", "--model", str(same), "--json")
    assert alone.exit_code == 0, alone.output
    assert json.loads(alone.stdout)["evidence"]  # on the prompts that the profile records
    _assert_refused(
        finished.scope("verify", "profiles/tiny.json", "--model", str(other), "--json"), "model.weights", "calibrate"
    )


def test_what_a_database_holds_is_neither_markup_nor_control_of_the_terminal(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "[/red] [link=http://far.example]a[/link] :smile: \x1b[2J\u202e\x9b2J end"
    state = {
        "study": told, "candidates": 0, "budget_trials": 1, "feasible": 0, "equivalents": 0.0,
        "budget_equivalents": None, "trials": {told: 1}, "generations": {}, "best": None, "change_maps": {},
        "profiles": [{"path": told}], "driver": None, "failures": {f"{told}\n{told}": 1}, "last_activity": None,
        "storage": told, "margin_db": 1.0, "set_apart": {"candidates": 0, "psnr_db": None},
        "guarantee_equivalents": 0.0, "guarantee": None, "exported": None, "preparations": [],
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("calibrate.overview.status", lambda session: state)
    workplace = make_workplace()
    Storage(f"sqlite:///{workplace.folder}/runs/tiny.db").close()
    result = workplace.scope("status", "study.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("[/red] [link=http://far.example]a[/link] :smile:  [2J  2J end") == 6
    assert not set(result.stdout) & set("\x1b\u202e\x9b")


def test_a_profile_does_not_decide_what_is_imported_or_opened(finished: Workplace, tmp_path: Path) -> None:
    """One that names a checkout, whose code would run when it is imported, by every path that a profile can hold."""
    touched = tmp_path / "imported"
    trap = tmp_path / "trap"
    (trap / "inference/pipeline").mkdir(parents=True)
    for package in ("inference/__init__.py", "inference/pipeline/__init__.py", "inference/pipeline/pipeline.py"):
        (trap / package).write_text(f"open({str(touched)!r}, 'w').close()\n")
    profile = json.loads((finished.folder / "profiles/tiny.json").read_text())
    profile["provenance"]["verify"] |= {
        "model": str(trap),
        "model_spec": {"family": "magi_1", "path": str(trap), "config": str(trap), "weights": str(trap)},
    }
    path = finished.folder / "profiles/trap.json"
    path.write_text(json.dumps(profile))
    try:
        refused = finished.scope("verify", "profiles/trap.json")
        _assert_refused(refused, "STUDY.yaml", "`scope-calibrate verify profiles/trap.json STUDY.yaml`", "--model")
        # Nor does it by the family that it names, for a folder that its user names.
        assert finished.scope("verify", "profiles/trap.json", "--model", "pipe").exit_code == 0
        _assert_refused(finished.scope("verify", "profiles/trap.json", "--model", str(trap)), "--model", "MAGI-1")
    finally:
        path.unlink()
    assert not touched.exists()


def test_verify_and_warm_start_take_addresses_on_the_hub(finished: Workplace) -> None:
    for command in (["verify", "hf://me/there", "study.yaml"], ["run", "study.yaml", "--warm-start", "hf://me/there"]):
        _assert_refused(finished.scope(*command), "names no file of a repository")


def test_a_refused_verify_shows_the_command_with_the_study(finished: Workplace) -> None:
    study = finished.folder / "tiny.yaml"
    study.write_text("name: tiny\n")
    refused = finished.scope("verify", "profiles/tiny.json")
    study.unlink()
    _assert_refused(refused, "`scope-calibrate verify profiles/tiny.json tiny.yaml`")


def test_the_clip_of_an_export_is_in_the_cache_as_well(finished: Workplace) -> None:
    """The dashboard opens no path that its database names."""
    storage = Storage(f"sqlite:///{finished.folder}/runs/tiny.db", read_only=True)
    data = load_study(storage, "tiny")
    (record,) = [record for record in data.profiles if record.path == "profiles/tiny.json"]
    measured = browse.measurements(storage, data.record.id, record.profile["policy"])
    storage.close()
    with contextlib.chdir(finished.folder):
        shown = [clip_of(row, data.study, [Path("runs")]) for row, _ in measured if row.kind == "held_out_scope"]
    (clip,) = [path for path in shown if path]
    assert clip.read_bytes() == (finished.folder / "profiles/tiny.mp4").read_bytes()


def test_export_by_another_rule(copied: Workplace, make_workplace: Make) -> None:
    result = copied.scope(
        "export", "study.yaml", "--rule", "best-quality", "--target-speedup", "1.01", "--output", "best.json", "--json"
    )
    assert result.exit_code == 0, result.output
    exported = json.loads(result.stdout)
    best = Profile.load(copied.folder / "best.json")
    assert exported["profile"] == "best.json"
    assert best.provenance["rule"] == "best-quality"
    fastest = Profile.load(copied.folder / "profiles/tiny.json").evidence
    assert best.evidence["search"]["psnr_db"] >= fastest["search"]["psnr_db"]
    _assert_refused(
        copied.scope("export", "study.yaml", "--target-speedup", "90", "--output", "fast.json"), "export.min_speedup"
    )
    _assert_refused(copied.scope("export", "study.yaml", "--rule", "best-quality"), "export", "needs min_speedup")
    _assert_refused(copied.scope("export", "study.yaml", "--rule", "loudest"), "export: rule", "knee")
    _assert_refused(copied.scope("export", "study.yaml", "--trial", "999"), "--trial: 999", "the best are")
    asked = copied.scope("export", "study.yaml", "--trial", "1", "--output", "asked.json", "--json")
    assert asked.exit_code == 0, asked.output
    assert Profile.load(copied.folder / "asked.json").provenance["trial"] == 1
    assert not (copied.folder / "fast.json").exists()


def test_nothing_that_is_kept_names_a_folder_of_the_machine(finished: Workplace) -> None:
    assert str(finished.folder) not in (finished.folder / "profiles/tiny.json").read_text()


@pytest.mark.parametrize("command", [["run"], ["status"], ["front"], ["export"]])
def test_a_missing_study_is_one_sentence(finished: Workplace, command: list[str]) -> None:
    _assert_refused(finished.scope(*command, "nowhere.yaml"), "nowhere.yaml", "check the path")


@pytest.mark.parametrize("command", ["status", "front", "export"])
def test_a_study_that_was_not_started_is_one_sentence(make_workplace: Make, command: str) -> None:
    workplace = make_workplace()
    _assert_refused(workplace.scope(command, "study.yaml", "--json"), "scope-calibrate run")
    assert sorted(path.name for path in workplace.folder.iterdir()) == ["pipe", "study.yaml"]


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda text: text[: len(text) // 2], "not complete JSON"),
        (lambda text: text.replace('"max_skip"', '"max_skips"'), "policy.max_skip"),
        (lambda text: _with_policy(text, cache_threshold=math.nan), "NaN"),
        (lambda text: _with_policy(text, cache_threshold=-0.5), "policy.cache_threshold"),
        (lambda text: json.dumps(json.loads(text) | {"provenance": {}}), "provenance.verify"),
        (lambda text: text.replace('"height": 16', '"height": 32', 1), "height is 16, calibrated for 32"),
    ],
)
def test_a_damaged_profile_is_one_sentence(
    finished: Workplace, tmp_path: Path, edit: Callable[[str], str], field: str
) -> None:
    original = finished.folder / "profiles/tiny.json"
    damaged = finished.folder / "profiles/damaged.json"
    damaged.write_text(edit(original.read_text()))
    _assert_refused(finished.scope("verify", "profiles/damaged.json", "--model", "pipe", "--json"), field)


def test_a_missing_profile_or_pipeline_is_one_sentence(finished: Workplace) -> None:
    _assert_refused(finished.scope("verify", "nowhere.json"), "nowhere.json")
    _assert_refused(finished.scope("verify", "profiles/tiny.json", "--model", "nowhere"), "--model", "nowhere")


def test_an_unreachable_database_is_one_sentence_without_its_password(make_workplace: Make) -> None:
    workplace = make_workplace(storage="postgresql+psycopg://anna:hunter2@127.0.0.1:1/scope")
    result = workplace.scope("run", "study.yaml", "--json")
    _assert_refused(result, "storage", "cannot be reached", "anna:***@")
    assert "hunter2" not in result.output


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    workplace = make_workplace(name="full")
    monkeypatch.setattr("os.fsync", full)
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: runs/full/")
    assert result.stderr.splitlines()[-1].endswith(
        ": the disk is full; free some space and run the same command again."
    )
    assert list((workplace.folder / "runs/full").iterdir()) == []


def test_settings_of_a_started_study_cannot_change(finished: Workplace) -> None:
    changed = finished.folder / "changed.yaml"
    changed.write_text(finished.study.read_text().replace("guidance_scale: 3.0", "guidance_scale: 5.0"))
    result = finished.scope("run", "changed.yaml")
    assert result.exit_code == 2
    assert "generation: study 'tiny' was started with another value" in result.stderr


def test_floors_out_of_reach_are_answered_with_how_close_it_came(make_workplace: Make) -> None:
    workplace = make_workplace(
        floors={"psnr_db": 99.0, "psnr_worst_prompt_db": None}, budget={"trials": 2}, name="proud"
    )
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    assert "Error: floors: " in result.stderr
    assert "budget.trials" in result.stderr
    assert not (workplace.folder / "profiles").exists()
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["candidates"] == 2
    assert status["feasible"] == 0


@pytest.mark.parametrize(
    "floor", ["psnr_db", "psnr_worst_prompt_db", "psnr_worst_frame_db", "psnr_worst_block_db", "ssim", "max_memory"]
)
def test_a_hopeless_candidate_is_stopped_after_its_first_prompt(make_workplace: Make, floor: str) -> None:
    # Enough memory for the transformer and its context, as the doctor asks for, and not for what a generation records.
    asked = {"ssim": 0.9999, "max_memory": "120KB"}.get(floor, 99.0)
    none = {"psnr_db": None, "psnr_worst_prompt_db": None}
    workplace = make_workplace(floors=none | {floor: asked}, budget={"trials": 2}, name="strict")
    workplace.scope("run", "study.yaml")
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["generations"]["candidate"] == 2
    front = json.loads(workplace.scope("front", "study.yaml", "--json").stdout)
    assert front[0]["stopped"].startswith("stopped early")


def test_under_a_memory_ceiling_the_search_goes_over_to_a_smaller_context(make_workplace: Make) -> None:
    floors = {"psnr_db": None, "psnr_worst_prompt_db": None}
    search = {"context_window": [None, 1], "order": [1], "candidates": [{"warmup": 2, "max_skip": 2}]}
    free = make_workplace(floors=floors, search=search, budget={"trials": 1}, name="free")
    assert free.scope("run", "study.yaml").exit_code == 0
    whole = int(json.loads(free.scope("front", "study.yaml", "--json").stdout)[0]["figures"]["memory_bytes"])

    small = make_workplace(floors=floors | {"max_memory": whole - 1}, search=search, budget={"trials": 4}, name="small")
    result = small.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    front = json.loads(small.scope("front", "study.yaml", "--json").stdout)
    assert {entry["policy"]["context_window"] for entry in front if entry["feasible"]} == {1}
    profile = json.loads((small.folder / "profiles/small.json").read_text())
    assert profile["policy"]["context_window"] == 1
    assert 0 < profile["evidence"]["search"]["memory_bytes"] < whole


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("out of memory")])
def test_a_failing_candidate_is_recorded_and_the_study_goes_on(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    workplace = make_workplace(budget={"trials": 3}, name="patchy")
    real, calls = Measure.run, []

    def sometimes(job: Measure, *arguments: Any) -> Any:
        calls.append(job.trial)
        with pytest.MonkeyPatch.context() as failing:
            if len(calls) == 1:
                failing.setattr("calibrate.measure.candidate.run_policy", fail)
            return real(job, *arguments)

    monkeypatch.setattr(Measure, "run", sometimes)
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "out of memory" in result.stderr
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["trials"]["fail"] == 1
    assert status["trials"]["complete"] == 2
    assert status["generations"]["failed"] == 1


@pytest.mark.parametrize("at_a_bad_moment", [False, True])
def test_ctrl_c_says_how_to_continue(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch, at_a_bad_moment: bool
) -> None:
    workplace = make_workplace(budget={"trials": 3}, name="stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Measure, "run", _interrupt_and_go_on if at_a_bad_moment else _interrupt)
        result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 130
    assert "continue with `scope-calibrate run study.yaml`" in result.stderr
    assert workplace.scope("run", "study.yaml").exit_code == 0
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["candidates"] == 3


def test_goals_take_the_place_of_floors_and_say_how_close_the_search_came(copied: Workplace) -> None:
    fast = copied.scope("export", "study.yaml", "--target-speedup", "90", "--output", "goal.json")
    _assert_refused(fast, "no policy above the floors reaches 90x", "the fastest (trial")
    fine = copied.scope("export", "study.yaml", "--min-psnr", "99.5", "--output", "goal.json")
    _assert_refused(fine, "the closest (trial", "misses", "psnr_db by", "floor 99.5 dB with its margin of 1 dB")
    alike = copied.scope("export", "study.yaml", "--min-ssim", "0.99999999", "--output", "goal.json")
    _assert_refused(alike, "ssim by")
    small = copied.scope("export", "study.yaml", "--max-memory", "1KB", "--output", "goal.json")
    _assert_refused(small, "max_memory by")
    assert not (copied.folder / "goal.json").exists()
    met = copied.scope(
        "export", "study.yaml", "--max-memory", "40GB", "--target-speedup", "1.2", "--output", "goal.json"
    )
    assert met.exit_code == 0, met.output
    assert Profile.load(copied.folder / "goal.json").provenance["rule"] == "best-quality"


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--max-memory", "forty", "floors.max_memory"),
        ("--min-psnr", "101", "floors.psnr_db"),
        ("--min-ssim", "nan", "floors.ssim"),
        ("--target-speedup", "0.5", "export.min_speedup"),
    ],
)
def test_a_goal_out_of_range_is_one_sentence(finished: Workplace, option: str, value: str, field: str) -> None:
    _assert_refused(finished.scope("export", "study.yaml", option, value), field)


def test_a_warm_start_tries_the_profile_and_its_neighbours_first(finished: Workplace, make_workplace: Make) -> None:
    profile = finished.folder / "profiles/tiny.json"
    workplace = make_workplace(
        name="warm", generation=CALL | {"num_inference_steps": 6}, budget={"trials": 2}, search_cases=SEARCH_CASES[:1]
    )
    result = workplace.scope("run", "study.yaml", "--warm-start", str(profile))
    assert result.exit_code == 0, result.output
    tried = [entry["policy"] for entry in json.loads(workplace.scope("front", "study.yaml", "--json").stdout)]
    wanted = Profile.load(profile).policy
    assert any((p["warmup"], p["max_skip"]) == (wanted.warmup, wanted.max_skip) for p in tried)


def test_a_warm_start_from_a_study_tries_its_front_first(finished: Workplace, make_workplace: Make) -> None:
    front = [e for e in json.loads(finished.scope("front", "study.yaml", "--json").stdout) if e["feasible"]]
    workplace = make_workplace(
        name="warm", generation=CALL | {"num_inference_steps": 6}, budget={"trials": 1}, search_cases=SEARCH_CASES[:1],
        floors={"psnr_db": None, "psnr_worst_prompt_db": None},
    )  # fmt: skip
    other = f"{finished.folder}/study.yaml"
    unstarted = workplace.scope("run", "study.yaml", "--warm-start", other)
    assert unstarted.exit_code == 2
    assert "scope-calibrate run" in unstarted.stderr
    # Paths of a database are relative to where the command runs.
    (workplace.folder / "runs").mkdir(exist_ok=True)
    shutil.copy(finished.folder / "runs/tiny.db", workplace.folder / "runs/tiny.db")
    result = workplace.scope("run", "study.yaml", "--warm-start", other)
    assert result.exit_code == 0, result.output
    (tried,) = json.loads(workplace.scope("front", "study.yaml", "--json").stdout)
    assert (tried["policy"]["warmup"], tried["policy"]["max_skip"]) == (
        front[0]["policy"]["warmup"],
        front[0]["policy"]["max_skip"],
    )


def test_the_budget_counts_full_generations_baselines_included(make_workplace: Make) -> None:
    workplace = make_workplace(
        name="thrifty", budget={"trials": 50, "equivalents": 3.0}, search_cases=SEARCH_CASES[:1],
        floors={"psnr_db": None, "psnr_worst_prompt_db": None},
    )  # fmt: skip
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "budget of 3 full generations per prompt is spent" in result.stderr
    assert "Traces for replay" in result.stderr
    engine = create_engine(f"sqlite:///{workplace.folder / 'runs/thrifty.db'}")
    with engine.connect() as connection:
        spent = connection.execute(
            text(
                "SELECT SUM(evaluations * 1.0 / stock_evaluations) FROM scope_generation "
                "WHERE kind IN ('stock', 'exact', 'candidate')"
            )
        ).scalar_one()
    assert 2.0 < spent <= 3.3
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["equivalents"] == pytest.approx(spent)
    assert "of 3 full generations" in workplace.scope("status", "study.yaml").stdout
    assert status["change_maps"]["noise-level"]["prompts"] == 1
    assert status["change_maps"]["noise-level"]["pairs"] > 10
    assert "R2" in workplace.scope("status", "study.yaml").stdout
    evidence = Profile.load(workplace.folder / "profiles/thrifty.json").evidence
    assert evidence["change_map"]["prompts"] == 1


def _with_policy(profile: str, **changes: float) -> str:
    data = json.loads(profile)
    data["policy"] |= changes
    return json.dumps(data)


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def _interrupt_and_go_on(*_: Any) -> Any:
    """Is interrupted while a weak reference's callback runs, which Python drops."""
    seen = []

    def interrupted(_gone: object) -> None:
        seen.append(True)
        signal.raise_signal(signal.SIGINT)

    thing = {1}
    reference = weakref.ref(thing, interrupted)
    del thing
    assert reference() is None
    assert seen
    time.sleep(30)
    pytest.fail("nobody was interrupted")
