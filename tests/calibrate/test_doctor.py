from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate import doctor
from calibrate.errors import CalibrateError
from calibrate.families.diffusers_folder import pipeline_weights
from calibrate.families.skyreels_v2.footprint import footprint_of
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.families.weights import stored_parameters
from calibrate.spec.generation import Generation
from calibrate.study.study_file import StudyFile
from scope_runtime import exact
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL, latents, tiny_pipeline

Make = Callable[..., Workplace]
STUDIES = Path(__file__).parents[2] / "studies"
MODELS = {"1.3b": (30, 12, 8960), "14b": (40, 40, 13824)}
"""Layers, heads and feed-forward width of the published models."""


def _examine(workplace: Workplace) -> tuple[int, dict[str, dict[str, Any]]]:
    result = workplace.scope("doctor", "study.yaml", "--json")
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {check["name"]: check for check in report["checks"]}


def test_a_sound_study_passes_and_nothing_is_made(make_workplace: Make) -> None:
    workplace = make_workplace()
    code, checks = _examine(workplace)
    assert code == 0
    assert {name: check["state"] for name, check in checks.items()} == {
        "weights": "ok", "device": "ok", "settings": "ok", "memory": "ok", "disk": "ok", "export": "ok",
        "prompts": "warning", "database": "ok", "time": "ok",
    }  # fmt: skip
    assert "use three or more" in checks["prompts"]["message"]
    assert checks["time"]["figures"]["seconds_low"] < checks["time"]["figures"]["seconds_high"]
    assert sorted(path.name for path in workplace.folder.iterdir()) == ["pipe", "study.yaml"]
    lines = workplace.scope("doctor", "study.yaml").stdout.splitlines()
    assert len(lines) == len(checks)
    assert lines[0].startswith("ok       device")


def test_clips_that_weights_are_fitted_on_share_the_device(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_cases = [{"prompt": f"a square {number}", "seed": number} for number in range(2)]
    learned, plain = make_workplace(search={"learned": {}}, fit_cases=fit_cases), make_workplace()
    figures = _examine(learned)[1]["memory"]["figures"]
    room = figures["weights_bytes"] + figures["context_bytes"] + 1
    monkeypatch.setattr(doctor, "_device_bytes", lambda _: room)
    code, checks = _examine(learned)
    assert (code, checks["memory"]["state"]) == (2, "failed")
    assert "for each of 2 fit_cases, before activations" in checks["memory"]["message"]
    assert checks["memory"]["message"].endswith("or fewer frames, pixels or fit_cases.")
    assert _examine(plain)[1]["memory"]["state"] == "warning"


def test_the_time_of_a_started_study_is_measured(finished: Workplace) -> None:
    result = finished.scope("doctor", "study.yaml", "--json")
    time = next(check for check in json.loads(result.stdout)["checks"] if check["name"] == "time")
    assert time["figures"]["measured"]


def test_a_study_that_cannot_be_continued_is_found(finished: Workplace) -> None:
    assert "will be continued" in finished.scope("doctor", "study.yaml").stdout
    changed = finished.folder / "other-settings.yaml"
    changed.write_text(finished.study.read_text().replace("guidance_scale: 3.0", "guidance_scale: 5.0"))
    result = finished.scope("doctor", "other-settings.yaml")
    assert result.exit_code == 2
    assert "generation: study 'tiny' was started with another value" in result.stdout


def test_the_time_of_a_bounded_budget_is_bounded(make_workplace: Make) -> None:
    equivalents = []
    for budget in ({"trials": 1000}, {"trials": 1000, "equivalents": 12.0}):
        _, checks = _examine(make_workplace(budget=budget))
        equivalents.append(checks["time"]["figures"]["stock_equivalents"])
    held_out = 2 * 2
    assert equivalents[0] > 600
    assert equivalents[1] == pytest.approx(2 * 12 + held_out)


@pytest.mark.parametrize(
    ("changes", "name", "fragment"),
    [
        ({"model": {"path": "nowhere"}}, "weights", "model_index.json"),
        ({"model": {"path": "pipe", "device": "cuda:7"}}, "device", "no cuda:7"),
        ({"generation": CALL | {"num_frames": 29}}, "settings", "no multiple of causal_block_size 3"),
        ({"generation": CALL | {"num_frames": 35}}, "settings", "generation.num_frames: 35 frames"),
        ({"generation": CALL | {"num_frames": 141, "base_num_frames": 141}}, "settings", "positions, more than the 32"),
        ({"storage": "postgresql+psycopg://anna:hunter2@127.0.0.1:1/scope"}, "database", "cannot be reached"),
        ({"quality": {"scores": [{"name": "s", "function": "nowhere.at_all:s"}]}}, "scores", "cannot be loaded"),
        ({"storage": "sqlite:////dev/null/x/study.db"}, "database", "choose another path"),
        ({"export": {"path": "/dev/null/x/profile.json"}}, "export", "choose another path"),
        ({"export": {"path": "pipe"}}, "export", "choose another path"),
        ({"floors": {"max_memory": "1KB"}}, "memory", "floors.max_memory"),
    ],
)
def test_what_would_stop_the_study_fails_with_the_mend(
    make_workplace: Make, changes: dict[str, Any], name: str, fragment: str
) -> None:
    code, checks = _examine(make_workplace(**changes))
    assert code == 2
    assert checks[name]["state"] == "failed"
    assert fragment in checks[name]["message"]
    assert "hunter2" not in json.dumps(checks)


def test_what_doctor_fails_is_refused_before_anything_is_made(make_workplace: Make) -> None:
    generation = CALL | {"num_frames": 45, "base_num_frames": 33, "overlap_history": 33}
    workplace = make_workplace(generation=generation, export={"path": "pipe"})
    _, checks = _examine(workplace)
    assert [name for name, check in checks.items() if check["state"] == "failed"] == ["settings", "export"]
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    assert result.stderr == f"Error: {checks['settings']['message']}\n"
    assert sorted(path.name for path in workplace.folder.iterdir()) == ["pipe", "study.yaml"]


def test_a_score_that_cannot_be_loaded_is_found_before_the_search(make_workplace: Make) -> None:
    workplace = make_workplace(quality={"scores": [{"name": "s", "function": "nowhere.at_all:s"}]})
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    assert "cannot be loaded" in result.stderr
    assert not (workplace.folder / "runs").exists()


def test_incomplete_weights_are_found_by_reading_headers_alone(make_workplace: Make) -> None:
    workplace = make_workplace()
    weights = workplace.folder / "pipe/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in _examine(workplace)[1]["weights"]["message"]
    weights.unlink()
    assert "no weights" in _examine(workplace)[1]["weights"]["message"]
    index = {"weight_map": {"a": "part-1.safetensors"}}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    assert "part-1.safetensors is missing" in _examine(workplace)[1]["weights"]["message"]


def test_weights_by_variant_are_named_and_can_be_asked_for(make_workplace: Make) -> None:
    workplace = make_workplace(budget={"trials": 1}, floors={"psnr_db": None, "psnr_worst_prompt_db": None})
    pipe = workplace.folder / "pipe"
    for path in list(pipe.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    code, checks = _examine(workplace)
    assert code == 2
    assert "set model.variant to fp16" in checks["weights"]["message"]
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    assert "model.variant" in result.stderr
    study = yaml.safe_load(workplace.study.read_text())
    study["model"]["variant"] = "fp16"
    workplace.study.write_text(yaml.safe_dump(study))
    # One component without the variant, and a file that nobody reads, change nothing.
    vae = pipe / "vae/diffusion_pytorch_model.fp16.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.safetensors"))
    (pipe / "transformer/other.safetensors").write_bytes(b"not weights")
    code, checks = _examine(workplace)
    assert code == 0, checks
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output


def test_weights_in_parts_are_counted_once(tmp_path: Path, tiny_folder: Path) -> None:
    pipe = tiny_pipeline()
    pipe.transformer.save_pretrained(tmp_path / "plain", max_shard_size="10KB")
    pipe.transformer.save_pretrained(tmp_path / "fp16", max_shard_size="10KB", variant="fp16")
    whole = stored_parameters(pipeline_weights(tiny_folder / "transformer", None))
    assert whole == sum(p.numel() for p in pipe.transformer.parameters())
    assert stored_parameters(pipeline_weights(tmp_path / "plain", None)) == whole
    assert stored_parameters(pipeline_weights(tmp_path / "fp16", "fp16")) == whole
    with pytest.raises(CalibrateError, match="set model.variant to fp16"):
        pipeline_weights(tmp_path / "fp16", None)


def test_the_context_is_that_of_a_real_generation(pipe: Any, tiny_folder: Path) -> None:
    footprint = footprint_of(tiny_folder, SkyReelsV2Spec(path="pipe"), Generation.model_validate(CALL))
    with exact(pipe) as scope:
        latents(pipe)
    assert footprint.context_bytes == scope.report.context_bytes
    assert footprint.window_lengths == (9,)
    assert footprint.rows == len(scope.report.windows[0].modes)


@pytest.mark.parametrize(("model", "context_gib"), [("1.3b", 14.0), ("14b", 62.3)])
def test_the_shipped_studies_need_nothing_but_the_checkpoint(tmp_path: Path, model: str, context_gib: float) -> None:
    file = StudyFile(STUDIES / f"skyreels-v2-df-{model}-540p.yaml")
    layers, heads, ffn = MODELS[model]
    configs = {
        "transformer": {
            "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn,
            "patch_size": [1, 2, 2], "in_channels": 16,
        },
        "vae": {"temperal_downsample": [False, True, True]},
    }  # fmt: skip
    for component, config in configs.items():
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text(json.dumps(config))
    spec = file.study.model
    assert isinstance(spec, SkyReelsV2Spec)
    footprint = footprint_of(tmp_path, spec, file.study.generation)
    assert footprint.context_bytes / 2**30 == pytest.approx(context_gib, abs=0.05)
    assert footprint.mask_bytes / 2**30 == pytest.approx(2.4, abs=0.05)
    assert (footprint.blocks, footprint.rows) == (5, 70)
    assert min(len(file.study.search_cases), len(file.study.held_out_cases)) >= 3
