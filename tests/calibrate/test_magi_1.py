"""A study of MAGI-1, on the stand-in, through the whole service."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from streamlit.testing.v1 import AppTest

import dashboard
import studies
from calibrate.errors import CalibrateError
from calibrate.replay import Replay
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage, Store
from calibrate.study_file import StudyFile
from calibrate.target import Target
from calibrate.trace import Trace, TraceRecorder
from dashboard.page import INSIGHT, POLICY, STUDIES, TRADE_OFF
from scope_runtime import MODULATED_INPUT, Policy, Profile, exact, run_policy
from tests.calibrate.conftest import Workplace
from tests.magi_1 import save_checkout

STUDY: dict[str, Any] = {
    "name": "magi",
    "model": {"family": "magi_1", "path": "magi", "config": "config.json", "threads": 1},
    "generation": {
        "height": 32, "width": 32, "num_frames": 24, "num_inference_steps": 16, "guidance_scale": 3.0, "ar_step": 4,
        "causal_block_size": 2,
    },
    "search_cases": [{"prompt": "a red circle", "seed": 1}, {"prompt": "a blue square moving", "seed": 2}],
    "held_out_cases": [{"prompt": "a green circle moving up", "seed": 3}],
    "search": {"max_skip": {"low": 1, "high": 3}, "warmup": {"low": 1, "high": 4}, "indicator": ["noise-level"]},
    "floors": {"psnr_db": 12.0, "psnr_worst_prompt_db": 10.0},
    "budget": {"trials": 4},
    "timing": {"max_repeats": 0},
}  # fmt: skip


def forget_package() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "inference"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workplace]]:
    """Makes folders with the stand-in's checkout and a study that differs from `STUDY` as given."""

    def made(**changes: Any) -> Workplace:
        folder = tmp_path_factory.mktemp("magi")
        save_checkout(folder / "magi", cfg_number=int(changes.get("generation", STUDY["generation"])["guidance_scale"]))
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(STUDY | changes))
        forget_package()  # one process runs one checkout
        return Workplace(folder, study)

    yield made
    forget_package()


@pytest.fixture(scope="module")
def finished(make: Callable[..., Workplace]) -> Workplace:
    workplace = make()
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    return workplace


def load(workplace: Workplace) -> Target:
    file = StudyFile(workplace.study)
    return Target.load(file.model_path, file.study.model, file.study.generation)


def test_a_study_goes_from_run_to_verify(finished: Workplace) -> None:
    profile = Profile.load(finished.folder / "profiles" / "magi.json")
    assert profile.model.transformer == "VideoDiTModel"
    assert str(profile.settings.scheduler).startswith("MAGI-1(cfg_t_range=")
    assert profile.evidence["speedup_evaluations"] > 1.2
    assert profile.evidence["exact"]["max_abs_diff"] <= 5e-5
    front = json.loads(finished.scope("front", "study.yaml", "--json").stdout)
    assert front[0]["speedup_evaluations"] > 1.2
    exported = finished.scope("export", "study.yaml", "--target-speedup", "1.1", "--output", "other.json")
    assert exported.exit_code == 0, exported.output
    verified = finished.scope("verify", "profiles/magi.json", "study.yaml", "--json")
    assert verified.exit_code == 0, verified.output
    figures = {figure["figure"]: figure for figure in json.loads(verified.stdout)["evidence"]["figures"]}
    for name in ("speedup_evaluations", "psnr_db", "psnr_worst_frame_db", "ssim"):
        assert figures[name]["measured"] == pytest.approx(figures[name]["recorded"])


def test_the_dashboard_shows_the_study(finished: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{finished.folder}/runs/magi.db")
    page = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=120)
    for view in (STUDIES, TRADE_OFF, POLICY, INSIGHT):
        page.session_state["view"] = view
        page.session_state["study"] = "magi"
        page.run()
        assert not page.exception, view
        if view == TRADE_OFF:
            assert float(page.metric[0].value.rstrip("x")) > 1.2


def test_chunks_are_watched_as_they_are_made_and_a_generation_can_be_ended_there(finished: Workplace) -> None:
    target = load(finished)
    case = StudyFile(finished.study).study.search_cases[0]
    seen: list[torch.Tensor] = []
    latents = target.denoise(case, watch=lambda made: seen.append(made.cpu().clone())).latents
    assert [made.shape[2] for made in seen] == [2, 4]
    assert all(torch.equal(made, latents[:, :, : made.shape[2]]) for made in seen)

    def end(_: torch.Tensor) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"), run_policy(target.pipe, Policy(warmup=2)) as scope:
        target.denoise(case, watch=end)
    assert scope.report.evaluations > 0
    assert torch.equal(target.denoise(case).latents, latents), "nothing is left behind"


def test_a_chunks_frames_are_those_that_it_is_decoded_to(finished: Workplace) -> None:
    target = load(finished)
    latents = target.denoise(StudyFile(finished.study).study.search_cases[0]).latents
    whole, _ = target.decode(latents)
    spans = target.block_spans(len(whole))
    assert spans == [(0, 8), (8, 16), (16, 24)]
    for number, (start, end) in enumerate(spans):
        chunk, _ = target.decode(latents[:, :, 2 * number : 2 * number + 2])
        assert (chunk == whole[start:end]).all()
    assert target.block_spans(16) == spans[:2]


def test_replay_is_exact_in_what_it_counts(finished: Workplace) -> None:
    target = load(finished)
    case = StudyFile(finished.study).study.search_cases[0]
    recorder = TraceRecorder(target.generation.guidance_scale)
    with exact(target.pipe, observe=True, recorder=recorder):
        target.denoise(case)
    recorded = recorder.trace()
    tensors, metadata = recorded.to_tensors()
    trace = Trace.from_tensors(tensors, metadata)
    assert trace.windows[0].schedule == recorded.windows[0].schedule
    size = target.trace_size()
    assert trace.windows[0].outputs.numel() * 4 <= size.file_bytes
    replay = Replay([trace])
    for policy in (Policy(max_skip=0), Policy(warmup=1, max_skip=3), Policy(warmup=2, max_skip=2, granularity="step")):
        with run_policy(target.pipe, policy) as scope:
            target.denoise(case)
        replayed = replay.run(policy)
        assert replayed.plans[0] == tuple(scope.report.modes)
        assert replayed.evaluations == (scope.report.evaluations,)
        assert replayed.stock_evaluations == (scope.report.stock_evaluations,)
    assert replay.run(Policy(max_skip=0)).errors.sum() == 0
    assert replay.run(Policy(warmup=1, max_skip=3)).errors.sum() > 0
    content = replay.run(Policy(indicator=MODULATED_INPUT, cache_threshold=0.01, predict_threshold=0.5))
    assert content.speedup_evaluations > 1


def test_what_is_generated_is_the_packages_own(finished: Workplace) -> None:
    target = load(finished)
    case = StudyFile(finished.study).study.search_cases[0]
    target.warm_up(case)
    latents = target.denoise(case).latents
    assert latents.shape == (1, 4, 6, 4, 4)
    frames, _ = target.decode(latents)
    assert frames.shape == (24, 32, 32, 3)
    assert 0 <= frames.min() < frames.max() <= 1
    assert (target.denoise(case).latents == latents).all()
    store = Store.find_study(Storage(f"sqlite:///{finished.folder}/runs/magi.db"), "magi")
    assert store.study.settings["ar_step"] == 4
    store.storage.close()


def test_a_distilled_model_is_calibrated_too(make: Callable[..., Workplace]) -> None:
    generation = STUDY["generation"] | {"guidance_scale": 1.0}
    workplace = make(
        name="distilled", generation=generation, budget={"trials": 2}, search_cases=STUDY["search_cases"][:1]
    )
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    assert Profile.load(workplace.folder / "profiles" / "distilled.json").settings.guidance_scale == 1


def test_doctor_examines_it_without_loading_it(make: Callable[..., Workplace]) -> None:
    workplace = make()
    result = workplace.scope("doctor", "study.yaml", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {"weights", "device", "settings", "memory", "disk", "prompts", "database", "time"} <= set(checks)
    assert all(check["state"] != "failed" for check in checks.values()), checks
    assert checks["settings"]["figures"] == {"latent_frames": 6, "blocks": 3, "rows": 24}
    (workplace.folder / "magi" / "downloads" / "base" / "inference_weight" / "model.safetensors").unlink()
    result = workplace.scope("doctor", "study.yaml")
    assert result.exit_code == 2
    assert "holds no weights" in result.output


@pytest.mark.parametrize(("model", "branches"), [("base", 3), ("distill", 1)])
def test_the_studies_of_the_real_models_can_be_read(model: str, branches: int) -> None:
    study = StudyFile(Path(studies.__file__).parent / f"magi-1-4.5b-{model}.yaml").study
    assert study.generation.guidance_scale == branches
    assert study.generation.num_inference_steps // study.generation.ar_step == 4
    assert study.model.config == f"example/4.5B/4.5B_{model}_config.json"


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("model", {"config": None}, "config must name MAGI-1's configuration"),
        ("model", {"flow_shift": 3.0}, "flow_shift means nothing to family magi_1"),
        ("model", {"family": "skyreels_v2"}, "config means nothing to family skyreels_v2"),
        ("generation", {"guidance_scale": 6.0}, "generation.guidance_scale must be MAGI-1's cfg_number"),
        ("generation", {"ar_step": 5}, "generation.ar_step must be MAGI-1's num_steps / window_size"),
        ("generation", {"negative_prompt": "blurry"}, "generation.negative_prompt means nothing to family magi_1"),
        ("search", {"stale_quantile": [0.2]}, "search.stale_quantile must be [null]"),
        ("search", {"context_window": [None, 2]}, "search.context_window must be [null]"),
    ],
)
def test_studies_that_make_no_sense_are_refused(tmp_path: Path, part: str, changes: Any, sentence: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY | {part: STUDY[part] | changes}))
    with pytest.raises(CalibrateError) as error:
        StudyFile(study)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("model", {"path": "elsewhere"}, "is no checkout of MAGI-1"),
        ("model", {"config": "other.json"}, "model.config: "),
        ("model", {"weights": "elsewhere"}, "model.weights: "),
        ("model", {"torch_dtype": "bfloat16"}, "model.torch_dtype: is bfloat16, but config.json says float32"),
        ("generation", {"causal_block_size": 3}, "generation.causal_block_size: is 3, but config.json says 2"),
        ("generation", {"guidance_scale": 1.0}, "generation.guidance_scale: is 1.0, but config.json says 3"),
        ("generation", {"num_inference_steps": 6, "ar_step": 3}, "must be a multiple of 4"),
    ],
)
def test_models_that_do_not_fit_are_refused(finished: Workplace, part: str, changes: Any, sentence: str) -> None:
    study = finished.folder / "refused.yaml"
    study.write_text(yaml.safe_dump(STUDY | {part: STUDY[part] | changes}))
    with pytest.raises(CalibrateError) as error:
        load(Workplace(finished.folder, study))
    assert sentence in str(error.value)
