"""Helios and FramePack as families to calibrate: targets, study fields, footprints, weights, and a whole run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from calibrate.cli import app
from calibrate.doctor import examine
from calibrate.errors import CalibrateError
from calibrate.families import load_target
from calibrate.families.target import Target
from calibrate.measure.baseline import Baseline, MakeBaseline, read_baseline, write_baseline
from calibrate.measure.candidate import Measure
from calibrate.measure.gap_fit import FitWeights, Truth
from calibrate.replay.replay import Replay
from calibrate.search.plans import rows_of
from calibrate.spec.floors import Floors
from calibrate.study.study_file import StudyFile
from scope_runtime import Policy, Profile, run_policy
from tests.chunked import FRAMEPACK_CALL, HELIOS_CALL, picture, tiny_framepack, tiny_helios

PROMPTS = ("a red circle moving left", "a blue square moving right", "a green circle moving up", "a red square")


def _cases(*numbers: int, image: bool) -> list[dict[str, Any]]:
    return [{"prompt": PROMPTS[n], "seed": n, **({"image": f"{n}.png"} if image else {})} for n in numbers]


def _study(name: str, model: dict[str, Any], call: dict[str, Any], *, image: bool) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"path": name, "threads": 1, **model},
        "generation": {**call, "num_inference_steps": 8},
        "search_cases": _cases(0, 1, image=image),
        "fit_cases": _cases(2, image=image),
        "held_out_cases": _cases(3, image=image),
        "search": {"learned": {"share": 0.4}, "first_window": {"max_skip": {"low": 1, "high": 3}}},
        "floors": {"psnr_db": 10.0, "psnr_worst_block_db": 5.0},
        "budget": {"trials": 4},
        "timing": {"max_repeats": 0},
        "clip_megabytes": 0,
    }


STUDIES: dict[str, dict[str, Any]] = {
    "helios": _study("helios", {"family": "helios"}, HELIOS_CALL, image=False),
    "helios-i2v": _study("helios", {"family": "helios", "starts_from": "image"}, HELIOS_CALL, image=True),
    "framepack": _study("framepack", {"family": "framepack"}, FRAMEPACK_CALL | {"guidance_scale": 1.0}, image=True),
    "framepack-f1": _study(
        "framepack",
        {"family": "framepack", "sampling_type": "vanilla"},
        FRAMEPACK_CALL | {"guidance_scale": 2.0, "negative_prompt": "blue"},
        image=True,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both pipelines, images, and a study file of each kind."""
    made = tmp_path_factory.mktemp("chunked")
    tiny_helios().save_pretrained(made / "helios")
    tiny_framepack().save_pretrained(made / "framepack")
    for number in range(len(PROMPTS)):
        picture(number).save(made / f"{number}.png")
    for name, study in STUDIES.items():
        (made / f"{name}.yaml").write_text(yaml.safe_dump(study))
    return made


@pytest.fixture(scope="module")
def target_of(folder: Path) -> Callable[[str], Target]:
    """The loaded target of a study, each once."""
    loaded: dict[str, Target] = {}

    def load(name: str) -> Target:
        if name not in loaded:
            file = StudyFile(folder / f"{name}.yaml")
            loaded[name] = load_target(file.model_path, file.study.model, file.study.generation)
        return loaded[name]

    return load


@pytest.fixture
def scope(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs `scope-calibrate` in a folder of its own."""

    def run(*arguments: str) -> Any:
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            return CliRunner().invoke(app, list(arguments))
        finally:
            os.chdir(before)

    return run


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_decoded_is_what_the_pipeline_itself_would_return(
    name: str, folder: Path, target_of: Callable[[str], Target]
) -> None:
    case, target = StudyFile(folder / f"{name}.yaml").study.search_cases[0], target_of(name)
    frames, _ = target.decode(target.denoise(case).latents)
    stock = target.pipe(
        **target._conditions([case]),  # type: ignore[attr-defined]
        generator=torch.Generator().manual_seed(case.seed),
        output_type="np",
        **target.call,  # type: ignore[attr-defined]
    ).frames[0]
    assert np.array_equal(frames, stock)
    spans = target.block_spans(len(frames))
    assert len(spans) == target.chunks == 3  # type: ignore[attr-defined]
    assert spans[-1][1] == len(frames)


def test_nothing_is_decoded_while_latents_are_made(folder: Path, target_of: Callable[[str], Target]) -> None:
    target = target_of("helios")
    decoded, decode = [], target.pipe.vae.decoder.forward
    target.pipe.vae.decoder.forward = lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs)
    try:
        target.denoise(StudyFile(folder / "helios.yaml").study.search_cases[0])
        assert not decoded
    finally:
        del target.pipe.vae.decoder.forward
    assert "decode" not in vars(target.pipe.vae)


def test_complete_chunks_are_shown_as_they_come_and_are_those_of_the_clip(
    folder: Path, target_of: Callable[[str], Target]
) -> None:
    target, case = target_of("helios"), StudyFile(folder / "helios.yaml").study.search_cases[0]
    shown: list[torch.Tensor] = []
    frames: list[Any] = []

    def watch(seen: torch.Tensor) -> None:
        shown.append(seen.clone())
        frames.append(target.decode(seen)[0])

    latents = target.denoise(case, watch).latents
    assert [seen.shape[2] for seen in shown] == [9, 18]
    assert all(torch.equal(seen, latents[:, :, : seen.shape[2]]) for seen in shown)
    whole, _ = target.decode(latents)
    assert [len(beginning) for beginning in frames] == [33, 65]
    assert all(np.array_equal(beginning, whole[: len(beginning)]) for beginning in frames)


def test_the_profile_knows_what_videos_start_from(target_of: Callable[[str], Target]) -> None:
    text, image = target_of("helios").settings, target_of("helios-i2v").settings
    assert text.mismatches(image) == ["options.starts_from is 'image', calibrated for 'nothing'"]
    sections = target_of("framepack").settings.mismatches(target_of("framepack-f1").settings)
    assert "options.sampling_type is 'vanilla', calibrated for 'inverted_anti_drifting'" in sections


@pytest.mark.parametrize("name", STUDIES)
def test_traces_have_a_window_per_chunk_and_replay_what_a_real_run_does(
    name: str, folder: Path, target_of: Callable[[str], Target], tmp_path: Path
) -> None:
    target, case = target_of(name), StudyFile(folder / f"{name}.yaml").study.search_cases[0]
    baseline = MakeBaseline(case).run(target, lambda: False)
    assert baseline.timings.max_abs_diff == 0
    assert len(baseline.trace.windows) == 3
    assert all(window.states is not None for window in baseline.trace.windows)
    path = tmp_path / "baseline.safetensors"
    write_baseline(path, baseline)
    assert path.stat().st_size <= target.trace_size().file_bytes + _clip_bytes(baseline) + 8192
    kept = read_baseline(path, case)
    assert kept is not None
    policy = Policy(warmup=2, max_skip=2, first_window=Policy(warmup=4, max_skip=1))
    replayed = Replay([kept.trace]).run(policy)
    with run_policy(target.pipe, policy) as attached:
        target.denoise(case)
    modes = tuple(row for window in attached.report.windows for row in window.modes)
    assert replayed.plans == (modes,)
    assert replayed.evaluations == (attached.report.evaluations,)
    assert attached.report.windows[0].modes != attached.report.windows[1].modes


def _clip_bytes(baseline: Baseline) -> int:
    return baseline.latents.numel() * 4 + baseline.frames.size * 4 + baseline.observations.size * 8


def test_a_candidate_that_spoils_the_first_chunk_is_ended_there(
    folder: Path, target_of: Callable[[str], Target], tmp_path: Path
) -> None:
    target, case = target_of("helios"), StudyFile(folder / "helios.yaml").study.search_cases[0]
    reference = MakeBaseline(case).run(target, lambda: False).reference(tmp_path)
    spoilt = Policy(warmup=1, max_skip=100, order=0)
    floors = Floors(psnr_db=60.0, psnr_worst_block_db=60.0)
    measured = Measure(0, spoilt, case, floors, (), 1, None, reference).run(target, lambda: False)
    assert measured.fields["state"] == "complete"
    assert "in the first 33 of 97 frames" in measured.fields["reason"]


@pytest.mark.parametrize("name", ["helios", "framepack-f1"])
def test_weights_are_fitted_for_the_first_chunk_and_for_all_others(
    name: str, folder: Path, target_of: Callable[[str], Target]
) -> None:
    study, target = StudyFile(folder / f"{name}.yaml").study, target_of(name)
    cases = (*study.search_cases, *study.fit_cases)
    baselines = [MakeBaseline(case).run(target, lambda: False) for case in cases]
    schedule = baselines[0].trace.windows[0].schedule
    plan = Policy(plan=rows_of(schedule, 3, ((1, 0),)))
    fitted = FitWeights(0, plan, 2, cases, Truth.of(baselines)).run(target, lambda: False).policy
    assert fitted.gap_weights is not None
    assert fitted.first_window is not None
    assert fitted.first_window.gap_weights is not None
    assert fitted.first_window.plan == fitted.plan == plan.plan
    assert fitted.first_window.gap_weights.weights != fitted.gap_weights.weights
    # On what they were fitted to, they are closer than repeating the newest output.
    newest = Policy(plan=plan.plan, order=0)
    errors = {}
    for which, policy in (("fitted", fitted), ("newest", newest)):
        together = target.denoise_together(cases, policy).latents
        errors[which] = sum(
            float((own - baseline.latents).square().mean())
            for own, baseline in zip(together.split(1), baselines, strict=True)
        )
    assert errors["fitted"] < 0.9 * errors["newest"]


@pytest.mark.parametrize("name", ["helios", "framepack"])
def test_the_doctor_tells_of_chunks_and_that_exact_mode_leaves_nothing_out(name: str, folder: Path) -> None:
    checks = {check.name: check for check in examine(StudyFile(folder / f"{name}.yaml"))}
    assert all(check.state != "failed" for check in checks.values())
    assert checks["settings"].figures["chunks"] == 3
    assert "exact mode has nothing to leave out" in checks["settings"].message


def test_a_whole_run_ends_with_a_profile_that_verifies(folder: Path, scope: Callable[..., Any], tmp_path: Path) -> None:
    name = "framepack"
    study = str(folder / f"{name}.yaml")
    ran = scope("run", study)
    assert ran.exit_code == 0, ran.output
    profile = Profile.load(tmp_path / f"profiles/{name}.json")
    assert profile.model.pipeline == "HunyuanVideoFramepackPipeline"
    assert "image_digest" in json.dumps(profile.to_dict())
    assert str(folder) not in json.dumps(profile.to_dict())
    verified = scope("verify", f"profiles/{name}.json", study, "--json")
    assert verified.exit_code == 0, verified.output
    alone = scope("verify", f"profiles/{name}.json", "--model", str(folder / name))
    assert alone.exit_code == 2
    assert "its videos start from images" in alone.output


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("helios", {"generation": {"ar_step": 5}}, "generation.ar_step means nothing to family helios; remove it"),
        ("helios", {"generation": {"causal_block_size": 9}}, "generation.causal_block_size means nothing"),
        ("helios", {"search": {"context_window": [2]}}, "search.context_window must be [null]"),
        ("helios", {"search": {"learned": {"captures": ["last"]}}}, "search.learned.captures must be [clean]"),
        (
            "helios",
            {"search_cases": _cases(0, image=True)},
            "search_cases.0.image is of no use unless model.starts_from",
        ),
        ("helios-i2v", {"held_out_cases": _cases(3, image=False)}, "held_out_cases.0.image must name the image"),
        ("framepack", {"fit_cases": _cases(2, image=False)}, "fit_cases.0.image must name the image"),
        ("framepack", {"model": {"sampling_type": "sideways"}}, "model.sampling_type"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, change: dict[str, Any], told: str, folder: Path) -> None:
    study = {**STUDIES[name]}
    for field, value in change.items():
        study[field] = {**study[field], **value} if isinstance(value, dict) else value
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(CalibrateError) as caught:
        StudyFile(path)
    assert told in str(caught.value)


def test_an_image_that_is_missing_is_told_before_anything_is_computed(folder: Path, scope: Callable[..., Any]) -> None:
    missing = [{"prompt": "a red circle", "seed": 0, "image": "missing.png"}]
    path = folder / "missing.yaml"
    path.write_text(yaml.safe_dump({**STUDIES["framepack"], "search_cases": missing}))
    ran = scope("run", str(path))
    assert ran.exit_code == 2
    assert f"search_cases.0.image: there is no {folder / 'missing.png'}; check the path." in ran.output.replace(
        "\n", " "
    )


def test_another_image_under_the_same_name_is_another_case(folder: Path, tmp_path: Path) -> None:
    study = {**STUDIES["framepack"], "fit_cases": [], "search": {}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    for number in range(len(PROMPTS)):
        picture(number).save(tmp_path / f"{number}.png")
    before = StudyFile(path).study
    picture(9).save(tmp_path / "0.png")
    after = StudyFile(path).study
    assert before.search_cases[0].content != after.search_cases[0].content
    assert before.search_cases[1] == after.search_cases[1]
    assert before.fixed_digest() != after.fixed_digest()


def test_an_image_that_is_none_is_said_so(folder: Path, target_of: Callable[[str], Target], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    case = StudyFile(folder / "framepack.yaml").study.search_cases[0].model_copy(update={"image": str(broken)})
    with pytest.raises(CalibrateError, match="cannot be read as an image"):
        target_of("framepack").denoise(case)
