"""A study of MAGI-1, on the stand-in, through the whole service."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

import dashboard
import studies
from calibrate.errors import CalibrateError
from calibrate.families import load_target
from calibrate.families.magi_1.checkout import Checkout
from calibrate.families.magi_1.footprint import Magi1Footprint
from calibrate.families.target import Target
from calibrate.replay.replay import Replay
from calibrate.replay.trace import Trace, TraceRecorder
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage, Store
from calibrate.study.study_file import StudyFile
from dashboard.page import INSIGHT, POLICY, STUDIES, TRADE_OFF
from scope_runtime import MODULATED_INPUT, Policy, Profile, apply_scope, exact, run_policy
from tests.calibrate.conftest import Workplace
from tests.magi_1 import CHECKOUT, needs_checkout, save_checkout, set_aside

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


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One process runs one checkout, but these tests have many."""
    with set_aside():
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workplace]:
    """Makes folders with the stand-in's checkout and a study that differs from `STUDY` as given."""

    def made(**changes: Any) -> Workplace:
        folder = tmp_path_factory.mktemp("magi")
        save_checkout(folder / "magi", cfg_number=int(changes.get("generation", STUDY["generation"])["guidance_scale"]))
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(STUDY | changes))
        return Workplace(folder, study)

    return made


@pytest.fixture(scope="module")
def finished(make: Callable[..., Workplace]) -> Workplace:
    workplace = make()
    with set_aside():
        result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    return workplace


def load(workplace: Workplace) -> Target:
    file = StudyFile(workplace.study)
    return load_target(file.model_path, file.study.model, file.study.generation)


def test_a_study_goes_from_run_to_verify(finished: Workplace) -> None:
    profile = Profile.load(finished.folder / "profiles" / "magi.json")
    assert profile.model.transformer == "VideoDiTModel"
    assert str(profile.settings.scheduler).startswith("MAGI-1(cfg_t_range=")
    assert profile.evidence["speedup_evaluations"] > 1.2
    exact = profile.evidence["exact"]
    assert exact["max_abs_diff"] <= 5e-5
    # The stand-in is so small that sums in another order may come out the same.
    assert exact["holds"] is (True if exact["stock_rounding"] else None)
    front = json.loads(finished.scope("front", "study.yaml", "--json").stdout)
    assert front[0]["speedup_evaluations"] > 1.2
    exported = finished.scope("export", "study.yaml", "--target-speedup", "1.1", "--output", "other.json")
    assert exported.exit_code == 0, exported.output
    verified = finished.scope("verify", "profiles/magi.json", "study.yaml", "--json")
    assert verified.exit_code == 0, verified.output
    figures = {figure["figure"]: figure for figure in json.loads(verified.stdout)["evidence"]["figures"]}
    for name in ("speedup_evaluations", "psnr_db", "psnr_worst_frame_db", "ssim"):
        assert figures[name]["measured"] == pytest.approx(figures[name]["recorded"])


def test_plans_with_learned_weights_are_searched_beside_thresholds(make: Callable[..., Workplace]) -> None:
    workplace = make(
        generation=STUDY["generation"] | {"num_frames": 16, "num_inference_steps": 8, "ar_step": 2},
        search=STUDY["search"] | {"learned": {}, "candidates": [{"warmup": 1, "max_skip": 1}]},
        search_cases=STUDY["search_cases"][:1],
        fit_cases=[{"prompt": "a plain circle moving left", "seed": 4}, {"prompt": "a striped square", "seed": 5}],
        budget={"trials": 3},
    )
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    store = Store.find_study(Storage(f"sqlite:///{workplace.folder}/runs/magi.db"), "magi")
    with closing(store.storage):
        assert store.counts() | {"candidate": 3, "fit": 4} == store.counts()
        learned = [row.policy for row in store.complete("candidate") if row.policy and row.policy.get("gap_weights")]
    assert len(learned) == 2
    for policy in map(Policy.from_dict, learned):
        assert policy.captures == "clean"
        assert policy.gap_weights is not None
        assert {branch for _, _, branch, _ in policy.gap_weights.weights} == {"guided"}
    front = json.loads(workplace.scope("front", "study.yaml", "--json").stdout)
    assert "learned" in {entry["kind"] for entry in front}
    assert Profile.load(workplace.folder / "profiles" / "magi.json").policy.to_dict() in [e["policy"] for e in front]


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


def change_config(folder: Path, **changes: Any) -> None:
    """Changes fields of a checkout's configuration; None removes one."""
    path = folder / "magi" / "config.json"
    parts = json.loads(path.read_text())
    for name, value in changes.items():
        (part,) = (part for part in parts.values() if name in part)
        if value is None:
            del part[name]
        else:
            part[name] = value
    path.write_text(json.dumps(parts))


def base(folder: Path) -> Path:
    return folder / "magi" / "downloads" / "base" / "inference_weight"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def index(folder: Path) -> None:
    (base(folder) / "model.safetensors.index.json").write_text('{"weight_map": {"phase": "model-1.safetensors"}}')


FAULTS: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "no checkout": (
        {"model": {"path": "elsewhere"}}, lambda folder: None, "model.path: elsewhere is no checkout of MAGI-1",
    ),
    "no configuration": (
        {"model": {"config": "other.json"}}, lambda folder: None, "model.config: magi/other.json is missing or damaged",
    ),
    "half a configuration": (
        {}, lambda folder: truncate(folder / "magi" / "config.json"), "model.config: magi/config.json is missing or",
    ),
    "a configuration of something else": (
        {}, lambda folder: (folder / "magi" / "config.json").write_text("[]"), "model.config: config.json: ",
    ),
    "a field is missing": (
        {}, lambda folder: change_config(folder, chunk_width=None), "runtime_config.chunk_width: field required",
    ),
    "a field is no number": (
        {}, lambda folder: change_config(folder, num_layers="many"), "model_config.num_layers: input should be",
    ),
    "a field that only the code asks for": (
        {}, lambda folder: change_config(folder, hidden_size=None), "model_config.hidden_size: field required",
    ),
    "scales of another number": (
        {}, lambda folder: change_config(folder, text_scales=[7.5]), "text_scales must have as many numbers",
    ),
    "no scale for noise": (
        {}, lambda folder: change_config(folder, cfg_t_range=[0.1, 0.2, 0.3, 0.4, 0.5]),
        "cfg_t_range must begin with 0 and ascend",
    ),
    "branches of a distilled model": (
        {}, lambda folder: change_config(folder, distill=True), "runtime_config.cfg_number must be 1",
    ),
    "chunk width": (
        {}, lambda folder: change_config(folder, chunk_width=6),
        "generation.causal_block_size: is 2, but config.json says 6 (chunk_width); change one of the two.",
    ),
    "chunk width of one": (
        {"generation": {"causal_block_size": 1}}, lambda folder: None,
        "generation.causal_block_size: is 1, but config.json says 2 (chunk_width); change one of the two.",
    ),
    "guidance": (
        {}, lambda folder: change_config(folder, cfg_number=1, distill=True),
        "generation.guidance_scale: is 3.0, but config.json says 1 (cfg_number); change one of the two.",
    ),
    "data type": (
        {"model": {"torch_dtype": "bfloat16"}}, lambda folder: None,
        "model.torch_dtype: is bfloat16, but config.json says float32 (params_dtype); change one of the two.",
    ),
    "steps and context ranges": (
        {"generation": {"num_inference_steps": 6, "ar_step": 3}}, lambda folder: None,
        "generation.num_inference_steps: must be a multiple of 4, the number of context ranges",
    ),
    "steps and window": (
        {"generation": {"ar_step": 5}}, lambda folder: None,
        "generation.ar_step must be MAGI-1's num_steps / window_size and so divide num_inference_steps (16), not 5",
    ),
    "several processes": (
        {}, lambda folder: change_config(folder, cp_size=2), "set engine_config.cp_size and pp_size to 1",
    ),
    "a backend for GPUs": (
        {}, lambda folder: change_config(folder, distributed_backend="nccl"),
        "model.device: is cpu, but config.json has distributed_backend nccl, which is for GPUs; set it to cuda.",
    ),
    "no GPU": ({"model": {"device": "cuda:7"}}, lambda folder: None, "model.device: this machine has no cuda:7"),
    "no weights": (
        {"model": {"weights": "elsewhere"}}, lambda folder: None, "which config.json names as load; download it",
    ),
    "no text encoder": (
        {}, lambda folder: shutil.rmtree(folder / "magi" / "downloads" / "t5"),
        "which config.json names as t5_pretrained; download it",
    ),
    "no file of weights": (
        {}, lambda folder: (base(folder) / "model.safetensors").unlink(),
        "model.weights: magi/downloads/base/inference_weight holds no weights (neither",
    ),
    "weights by another name": (
        {}, lambda folder: (base(folder) / "model.safetensors").rename(base(folder) / "dit.safetensors"),
        "holds no weights (neither model.safetensors nor model.safetensors.index.json); ",
    ),
    "truncated weights": (
        {}, lambda folder: truncate(base(folder) / "model.safetensors"),
        "model.weights: magi/downloads/base/inference_weight/model.safetensors is truncated; download it again.",
    ),
    "an index that is damaged": (
        {}, lambda folder: (base(folder) / "model.safetensors.index.json").write_text("{}"),
        "inference_weight/model.safetensors.index.json is damaged; download it again.",
    ),
    "half of the weights": ({}, index, "model-1.safetensors is missing; download it again."),
    "a package that is not installed": (
        {}, lambda folder: write(folder, "import flash_attn_of_nobody\nimport timm_of_nobody.models\n"),
        "model.path: MAGI-1's code needs flash_attn_of_nobody, timm_of_nobody, which are not installed; ",
    ),
    "a package of another version": (
        {}, lambda folder: write(folder, "from torch import cuda_of_tomorrow\n"),
        "model.path: MAGI-1's code cannot be imported (ImportError: cannot import name 'cuda_of_tomorrow'",
    ),
    "code that a GPU is missing for": (
        {}, lambda folder: write(folder, "raise RuntimeError('no NVIDIA driver')\n"),
        "model.path: MAGI-1's code cannot be imported (RuntimeError: no NVIDIA driver); ",
    ),
}  # fmt: skip


def write(folder: Path, line: str) -> None:
    """Puts code in front of what a checkout imports."""
    path = folder / "magi" / "inference" / "pipeline" / "prompt_process.py"
    path.write_text(path.read_text().replace("import os\n", f"import os\n{line}"))


@pytest.mark.parametrize("fault", FAULTS)
def test_doctor_and_run_say_the_same(make: Callable[..., Workplace], fault: str) -> None:
    changes, spoil, sentence = FAULTS[fault]
    workplace = make(**{part: STUDY[part] | fields for part, fields in changes.items()})
    spoil(workplace.folder)
    run = workplace.scope("run", "study.yaml")
    assert run.exit_code == 2, run.output
    (said,) = (line.removeprefix("Error: ") for line in run.output.splitlines() if line.startswith("Error: "))
    assert sentence in said
    doctor = workplace.scope("doctor", "study.yaml")
    assert doctor.exit_code == 2
    lines = [line for line in doctor.output.splitlines() if line.startswith(("failed", "Error: "))]
    assert len(lines) == 1, "one fault, one reason"
    assert lines[0].endswith(said)


def test_a_checkout_that_only_runs_on_gpus_says_so(make: Callable[..., Workplace]) -> None:
    """The official code says nothing when it finds none."""
    workplace = make()
    path = workplace.folder / "magi" / "inference" / "pipeline" / "pipeline.py"
    path.write_text(path.read_text().replace('"""One process needs nothing."""', "assert torch.cuda.is_available()"))
    if not torch.cuda.is_available():
        with pytest.raises(CalibrateError, match=r"^model.device: this checkout's code runs on GPUs only; set it to"):
            load(workplace)


def test_weights_of_another_model_are_refused(make: Callable[..., Workplace]) -> None:
    workplace = make()
    save_file({"phase": torch.zeros(2, 2)}, base(workplace.folder) / "model.safetensors")
    with pytest.raises(CalibrateError, match=r"^model.weights: .* cannot be loaded with config.json: .* belong"):
        load(workplace)


def test_progress_of_the_checkout_stays_off_the_screen(finished: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    target = load(finished)
    capfd.readouterr()
    target.denoise(StudyFile(finished.study).study.search_cases[0])
    assert capfd.readouterr() == ("", "")


def test_no_other_package_of_its_name_hides_a_checkout(
    finished: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official package has no `__init__.py`: one that has comes first wherever on the path it is."""
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert load(finished).package.__file__.startswith(str(finished.folder))
    with set_aside():
        importlib.import_module("inference")
        with pytest.raises(CalibrateError, match=r"another package called inference is in the way .*__init__.py"):
            load(finished)


def test_the_environment_is_a_setting_of_the_study(
    make: Callable[..., Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official run.sh puts tokens before every prompt."""
    workplace = make(name="tokens", budget={"trials": 1}, search_cases=STUDY["search_cases"][:1])
    monkeypatch.setenv("PAD_HQ", "1")
    checks = json.loads(workplace.scope("doctor", "study.yaml", "--json").stdout)["checks"]
    (code,) = (check for check in checks if check["name"] == "code")
    assert code["figures"] == {"special_tokens": ["HQ_TOKEN"]}
    run = workplace.scope("run", "study.yaml", "--min-psnr", "0")
    assert run.exit_code == 0, run.output
    profile = Profile.load(workplace.folder / "profiles" / "tokens.json")
    with apply_scope(load(workplace).pipe, profile, on_mismatch="raise"):
        pass
    monkeypatch.delenv("PAD_HQ")
    continued = workplace.scope("run", "study.yaml", "--min-psnr", "0")
    assert continued.exit_code == 2
    assert "was started with another value" in continued.output
    verified = workplace.scope("verify", "profiles/tokens.json", "study.yaml")
    assert verified.exit_code == 2
    assert "special_tokens" in verified.output


@needs_checkout
@pytest.mark.parametrize("model", ["base", "distill"])
def test_the_studies_fit_the_official_configurations(model: str) -> None:
    study = StudyFile(Path(studies.__file__).parent / f"magi-1-4.5b-{model}.yaml").study
    checkout = Checkout(Path(str(CHECKOUT)), study.model, study.generation)
    assert checkout.config.engine.weights == "inference_weight" + ".distill" * (model == "distill")
    footprint = Magi1Footprint.of(Path(str(CHECKOUT)), study.model, study.generation)
    assert (footprint.blocks, footprint.rows) == (4, 112)
    assert footprint.context_bytes == 0, "kv_offload keeps it in host memory"
    assert replace(footprint, offloaded=False).context_bytes == 2 * 34 * 8 * 128 * 24 * 45**2 * 2
