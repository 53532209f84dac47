"""Every mode of the family that docs/coverage.md speaks of, one test a line of its table."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from PIL import Image

from scope_runtime import (
    MODULATED_INPUT,
    AttachError,
    ModelIdentity,
    Policy,
    ProfileError,
    ProfileMismatch,
    Scope,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.adapters import adapter_for
from studies.bench.compiled import CountedGraphs
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, latents, tiny_pipeline

IMAGE = Image.new("RGB", (16, 16), (200, 40, 40))
POLICY = Policy(warmup=2, max_skip=2)


def image_to_video(pipe: Any, **changes: Any) -> torch.Tensor:
    call = CALL | {"ar_step": 0, "causal_block_size": 1} | changes
    generator = torch.Generator().manual_seed(0)
    return pipe(IMAGE, "a red circle", output_type="latent", generator=generator, **call).frames


def video_to_video(pipe: Any, **changes: Any) -> torch.Tensor:
    call = CALL | {"num_frames": 45, "base_num_frames": 33, "overlap_history": 9} | changes
    video = [IMAGE] * 9
    generator = torch.Generator().manual_seed(0)
    return pipe(video, "a red circle", output_type="latent", generator=generator, **call).frames


def as_other(pipe: Any, kind: type) -> Any:
    other = kind(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


def test_image_to_video_runs_whole_rows_because_attention_is_bidirectional(pipe: Any) -> None:
    other = as_other(pipe, SkyReelsV2DiffusionForcingImageToVideoPipeline)
    stock = image_to_video(other)
    with exact(other) as scope:
        assert torch.equal(image_to_video(other), stock)
    assert scope.report.evaluations == scope.report.stock_evaluations
    with run_policy(other, POLICY) as scope:
        assert torch.isfinite(image_to_video(other)).all()
    assert scope.report.speedup_evaluations > 1.5


def test_image_to_video_with_a_last_image_is_exact(pipe: Any) -> None:
    other = as_other(pipe, SkyReelsV2DiffusionForcingImageToVideoPipeline)
    stock = image_to_video(other, last_image=IMAGE)
    with exact(other):
        assert torch.equal(image_to_video(other, last_image=IMAGE), stock)


def test_video_to_video_is_exact(pipe: Any) -> None:
    other = as_other(pipe, SkyReelsV2DiffusionForcingVideoToVideoPipeline)
    stock = video_to_video(other)
    with exact(other) as scope:
        assert (video_to_video(other) - stock).abs().max() <= 1e-4
    assert scope.report.evaluations < scope.report.stock_evaluations
    assert Settings.of(other, video=[IMAGE], **CALL | {"overlap_history": 9}).prefix


@pytest.mark.parametrize("granularity", ["prefix", "step"])
def test_video_to_video_with_a_policy(pipe: Any, granularity: str) -> None:
    other = as_other(pipe, SkyReelsV2DiffusionForcingVideoToVideoPipeline)
    with run_policy(other, Policy(granularity=granularity, warmup=2, max_skip=2)) as scope:
        assert torch.isfinite(video_to_video(other)).all()
    assert scope.report.speedup_evaluations > 1.5


LONG = {"num_frames": 57, "base_num_frames": 33, "overlap_history": 9}
BIDIRECTIONAL = {"ar_step": 0, "causal_block_size": 1}
EVERY_MODE: dict[str, tuple[type | None, Callable[..., torch.Tensor], dict[str, Any]]] = {
    "text, asynchronous": (None, latents, {}),
    "text, block by block": (None, latents, {"ar_step": 8}),
    "text, synchronous": (None, latents, {"ar_step": 0}),
    "text, bidirectional": (None, latents, BIDIRECTIONAL),
    "text, asynchronous and bidirectional": (None, latents, {"causal_block_size": 1}),
    "text, without guidance": (None, latents, {"guidance_scale": 1.0}),
    "text, long": (None, latents, LONG),
    "text, long, block by block": (None, latents, LONG | {"ar_step": 8}),
    "text, long, bidirectional": (None, latents, LONG | BIDIRECTIONAL),
    "text, long, condition noise": (None, latents, LONG | {"addnoise_condition": 20}),
    "text, two prompts": (None, latents, {"prompt": ["a red circle", "a blue square moving up"]}),
    "image, bidirectional": (SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {}),
    "image, asynchronous and bidirectional": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"ar_step": 2}
    ),
    "image, causal blocks": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"ar_step": 2, "causal_block_size": 3}
    ),
    "image, without guidance": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"guidance_scale": 1.0}
    ),
    "image, long": (SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, LONG),
    "image, long, condition noise": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, LONG | {"addnoise_condition": 20}
    ),
    "image, two videos": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"num_videos_per_prompt": 2}
    ),
    "video": (SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {}),
    "video, bidirectional": (SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, BIDIRECTIONAL),
    "video, without guidance": (
        SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {"guidance_scale": 1.0}
    ),
    "video, condition noise": (
        SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {"addnoise_condition": 20}
    ),
    "video, two videos": (
        SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {"num_videos_per_prompt": 2}
    ),
}  # fmt: skip
"""Pipeline, generation and what it changes of `CALL`."""


@pytest.mark.parametrize(("kind", "generate", "changes"), EVERY_MODE.values(), ids=EVERY_MODE.keys())
def test_every_mode_is_exact_without_a_policy_and_skips_with_one(
    pipe: Any, kind: type | None, generate: Callable[..., torch.Tensor], changes: dict[str, Any]
) -> None:
    other = as_other(pipe, kind) if kind else pipe

    def run() -> torch.Tensor:
        torch.manual_seed(0)  # condition noise comes from the global generator
        return generate(other, **changes)

    stock = run()
    with exact(other) as scope:
        ours = run()
    assert (ours - stock).abs().max() <= 1e-5
    if "bidirectional" in str(scope.report):
        assert torch.equal(ours, stock)
    with run_policy(other, POLICY) as scope:
        skipped = run()
    assert torch.isfinite(skipped).all()
    assert 0 < (skipped - stock).abs().max() < 5 * stock.std()
    assert scope.report.speedup_evaluations > 1.1


def test_blocks_after_a_prefix_that_is_noised_anew_are_no_constants_either(pipe: Any) -> None:
    """What a complete block's K/V are depends on the prefix: so much noise shows what a capture would do."""
    changes = LONG | {"addnoise_condition": 300}
    torch.manual_seed(0)
    stock = latents(pipe, **changes)
    torch.manual_seed(0)
    with exact(pipe) as scope:
        ours = latents(pipe, **changes)
    assert (ours - stock).abs().max() <= 1e-5
    assert "K" not in "".join(scope.report.windows[1].modes)


def test_long_video_forgets_between_windows(pipe: Any) -> None:
    with run_policy(pipe, POLICY) as scope:
        latents(pipe, **LONG)
    first, second = scope.report.windows
    assert first.modes[0] == "R.."
    assert second.modes[0] == "KR."  # the prefix of the second window is captured anew
    started = ["".join(block).lstrip(".") for block in zip(*second.modes, strict=True)][1:]
    assert all(block.startswith("RR") for block in started)  # no history from the window before
    assert scope.report.evaluations == first.evaluations + second.evaluations


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_is_exact_up_to_its_own_rounding(dtype: torch.dtype, tolerance: float) -> None:
    full = latents(tiny_pipeline())
    pipe = tiny_pipeline()
    pipe.transformer.to(dtype)
    stock = latents(pipe)
    with exact(pipe):
        ours = latents(pipe)
    rounding = (stock - full).abs().max()
    assert (ours - stock).abs().max() <= max(tolerance, float(rounding))
    with run_policy(pipe, POLICY) as scope:
        assert torch.isfinite(latents(pipe)).all()
    assert scope.report.speedup_evaluations > 1.5


@pytest.mark.parametrize("dynamic", [None, False], ids=["dynamic where needed", "one graph per shape"])
def test_compiled_blocks_are_exact_and_none_runs_uncompiled(dynamic: bool | None) -> None:
    layers = 10  # more than the recompilations that torch allows
    pipe = tiny_pipeline(layers=layers)
    stock = latents(pipe)
    torch._dynamo.reset()
    counted = CountedGraphs("eager")
    passes = []
    pipe.transformer.patch_embedding.register_forward_hook(lambda *_: passes.append(1))
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=dynamic, backend=counted)
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
    assert counted.graphs <= 4
    with run_policy(pipe, POLICY):
        latents(pipe)
    assert counted.graphs <= 4  # a policy needs no graph of its own
    assert counted.calls == len(passes) * layers
    assert torch.equal(latents(pipe), stock)


def test_a_transformer_compiled_as_a_whole_is_refused_with_the_mend() -> None:
    pipe = tiny_pipeline(layers=1)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(AttachError, match="compile_repeated_blocks"):
        exact(pipe)
    in_place = tiny_pipeline(layers=1)
    in_place.transformer.compile(backend="eager")
    with pytest.raises(AttachError, match="compile_repeated_blocks"):
        exact(in_place)


def test_lora_is_exact_and_another_model() -> None:
    pipe = tiny_pipeline()
    plain, identity = latents(pipe), ModelIdentity.of(pipe)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    stock = latents(pipe)
    assert (stock - plain).abs().max() > 1e-3
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
    assert identity.mismatches(ModelIdentity.of(pipe))


def offload_in_groups(pipe: Any, level: str, folder: Path | None) -> None:
    """On a machine without a GPU; on disk, weights are really gone while a group is not loaded."""
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
        offload_to_disk_path=str(folder) if folder else None,
    )


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("first", ["offload", "attach"])
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
def test_group_offloading(level: str, indicator: str, first: str, disk: bool, tmp_path: Path) -> None:
    pipe, policy = tiny_pipeline(), Policy(indicator=indicator, warmup=2, max_skip=2)
    stock = latents(pipe)
    with run_policy(pipe, policy):
        skipped = latents(pipe)
    if first == "offload":
        offload_in_groups(pipe, level, tmp_path if disk else None)
    with run_policy(pipe, policy):
        if first == "attach":
            offload_in_groups(pipe, level, tmp_path if disk else None)
        assert torch.equal(latents(pipe), skipped)
        assert torch.equal(latents(pipe), skipped)
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
    assert torch.equal(latents(pipe), stock)


@pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
def test_weights_that_accelerate_keeps_away_are_found(indicator: str) -> None:
    """Between two calls of a module its parameters are on the meta device: no values, no place."""
    pipe, policy = tiny_pipeline(), Policy(indicator=indicator, warmup=2, max_skip=2)
    stock, profile = latents(pipe), make_profile(pipe)
    with run_policy(pipe, policy):
        skipped = latents(pipe)
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"), offload_buffers=False)
    assert next(pipe.transformer.parameters()).is_meta
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
    with run_policy(pipe, policy):
        assert torch.equal(latents(pipe), skipped)
    with apply_scope(pipe, profile) as scope:
        latents(pipe)
    assert "P" in "".join(scope.report.modes)


def test_weights_without_values_are_refused() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.to("meta")
    with pytest.raises(ProfileError, match="holds no values"):
        ModelIdentity.of(pipe)


@pytest.mark.parametrize("first", ["offload", "attach"])
def test_model_offloading_is_accelerated_in_every_generation(first: str) -> None:
    """The pipeline takes accelerate's hooks off and puts new ones on at the end of every generation."""
    pipe = tiny_pipeline()
    stock = latents(pipe)
    if first == "offload":
        pipe.enable_model_cpu_offload(device="cpu")
    with exact(pipe) as scope:
        if first == "attach":
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert (latents(pipe) - stock).abs().max() <= 1e-4
            assert 0 < scope.report.evaluations < scope.report.stock_evaluations
    assert pipe.transformer.forward.__wrapped__ == type(pipe.transformer).forward.__get__(pipe.transformer)
    assert torch.equal(latents(pipe), stock)


def test_attention_backends_are_kept() -> None:
    pipe = tiny_pipeline()
    stock = latents(pipe)
    pipe.transformer.set_attention_backend("native")
    before = [block.attn1.processor._attention_backend for block in pipe.transformer.blocks]
    assert before[0] is not None
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
        pipe.transformer.reset_attention_backend()  # while attached: reaches the original processors
    assert [block.attn1.processor._attention_backend for block in pipe.transformer.blocks] != before


def test_fused_projections_are_exact() -> None:
    pipe = tiny_pipeline()
    stock = latents(pipe)
    pipe.transformer.fuse_qkv_projections()
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4


def test_several_videos_per_prompt(pipe: Any) -> None:
    stock = latents(pipe, num_videos_per_prompt=2)
    with exact(pipe):
        assert (latents(pipe, num_videos_per_prompt=2) - stock).abs().max() <= 1e-4


def test_frames_that_do_not_fill_a_block_stay_what_stock_makes_of_them(pipe: Any) -> None:
    stock = latents(pipe, num_frames=37)  # ten latent frames, blocks of three
    with exact(pipe):
        assert (latents(pipe, num_frames=37) - stock).abs().max() <= 1e-4


TESTS = Path(__file__).parents[1]


def table(family: str) -> list[list[str]]:
    """The cells of every line of a family's table in the docs."""
    text = (TESTS.parent / "docs/coverage.md").read_text()
    section = next(part for part in text.split("\n## ") if part.startswith(family))
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) > 10
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


@pytest.mark.parametrize("family", ["SkyReels-V2", "Helios", "FramePack"])
def test_every_line_of_the_table_names_a_test_that_exists(family: str) -> None:
    sources = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    for _, exactness, policy, tests in table(family):
        for verdict in (exactness, policy):
            assert verdict.startswith(("exact", "approximate", "refused", "not offered", "as stock", "clean")), verdict
        named = re.findall(r"`(test_\w+\.py)::([\w:]+)(?:\[([^\]]+)\])?`", tests)
        assert named, tests
        for file, path, case in named:
            assert all(re.search(rf"(def|class) {part}\b", sources[file]) for part in path.split("::")), tests
            assert not case or f'"{case}"' in sources[file], tests


def test_every_line_of_the_table_of_magi_1_does_too() -> None:
    source = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_magi_1*.py"))
    for *_, tests in table("MAGI-1"):
        named = re.findall(r"`([^`\[]+)", tests)
        assert any("test_" in name for name in named), tests
        for name in named:
            if "test_" not in name:
                continue
            if name.endswith(".py"):
                assert (TESTS.parent / name).is_file(), tests
            else:
                assert all(re.search(rf"(def|class) {part}\b", source) for part in name.split("::") if part), tests


# What calls of each pipeline run with: rounded, windowed, with frames that stand before or behind those asked for.
FRAMES: dict[str, tuple[type | None, Callable[..., torch.Tensor], dict[str, Any]]] = {
    "text": (None, latents, {}),
    "text, rounded down": (None, latents, {"num_frames": 35}),
    "text, rounded up": (None, latents, {"num_frames": 32}),
    "text, rounded beyond a window": (None, latents, LONG | {"num_frames": 36, "causal_block_size": 1}),
    "text, last block not filled": (None, latents, {"num_frames": 29}),
    "text, long": (None, latents, LONG),
    "text, long, condition noise": (None, latents, LONG | {"addnoise_condition": 20}),
    "text, long, window rounded": (None, latents, LONG | {"base_num_frames": 36}),
    "text, long, short last window": (None, latents, LONG | {"num_frames": 45}),
    "text, long, overlap cut to blocks": (None, latents, LONG | {"overlap_history": 13, "num_frames": 53}),
    "text, long, overlap below a block": (None, latents, LONG | {"overlap_history": 5, "addnoise_condition": 20}),
    "text, fits into one window": (None, latents, LONG | {"num_frames": 33}),
    "image": (SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"addnoise_condition": 20}),
    "image, blocks": (
        SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video,
        {"causal_block_size": 3, "addnoise_condition": 20},
    ),
    "image, last image": (SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, {"last_image": IMAGE}),
    "image, long": (SkyReelsV2DiffusionForcingImageToVideoPipeline, image_to_video, LONG),
    "video": (SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {}),
    "video, one window": (SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {"num_frames": 33}),
    "video, short last window": (
        SkyReelsV2DiffusionForcingVideoToVideoPipeline, video_to_video, {"num_frames": 57, "overlap_history": 21},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", FRAMES)
def test_settings_are_those_that_a_call_runs_with(pipe: Any, mode: str) -> None:
    kind, generate, changes = FRAMES[mode]
    other = as_other(pipe, kind) if kind else pipe
    seen: list[Settings] = []

    def note(actual: Settings, _changes: Any) -> tuple[None, str]:
        seen.append(actual)
        return None, ""

    called: dict[str, Any] = {}
    inner = type(other).__call__

    class Noted(type(other)):  # type: ignore[misc] - the call's arguments, as the pipeline gets them
        @functools.wraps(inner)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            called.update(inspect.signature(inner).bind(self, *args, **kwargs).arguments)
            return inner(self, *args, **kwargs)

    Noted.__name__ = type(other).__name__
    noted = as_other(other, Noted)
    with Scope(adapter_for(noted)(noted, note)):
        generate(noted, num_inference_steps=2, **changes)
    said = Settings.of(noted, **{name: value for name, value in called.items() if name != "self"})
    assert [said.mismatches(window) for window in seen] == [[] for _ in seen]
    assert said.num_frames == seen[0].num_frames
    assert (said.last_num_frames or said.num_frames) == seen[-1].num_frames
    assert said.prefix == any(window.prefix for window in seen)
    assert said.noised_prefix == any(window.noised_prefix for window in seen)


def test_a_short_last_window_runs_under_its_profile_and_another_one_does_not(pipe: Any) -> None:
    call = LONG | {"num_frames": 45}
    profile = replace(make_profile(pipe), settings=Settings.of(pipe, **CALL | call))
    assert profile.settings.last_num_frames == 21
    assert Settings.from_dict(profile.settings.to_dict()) == profile.settings
    with apply_scope(pipe, profile, on_mismatch="raise") as scope:
        latents(pipe, **call)
        latents(pipe, **LONG)  # whole windows alone
    assert scope.report.speedup_evaluations > 1.5
    # A whole video of that length is not what was calibrated.
    with (
        apply_scope(pipe, profile, on_mismatch="raise"),
        pytest.raises(ProfileMismatch, match="num_frames is 21, calibrated for 33"),
    ):
        latents(pipe, num_frames=21)
    assert profile.settings.mismatches(Settings.of(pipe, **CALL | LONG)) == []
    assert Settings.of(pipe, **CALL | LONG).mismatches(profile.settings) == ["last_num_frames is 21, calibrated for 33"]


def test_who_runs_is_told_by_name_and_not_by_where_it_was_loaded_from(pipe: Any) -> None:
    identity = ModelIdentity.of(pipe)
    assert (identity.pipeline, identity.transformer) == (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2Transformer3DModel",
    )
    moved = tiny_pipeline()
    moved.transformer.register_to_config(_name_or_path="elsewhere")
    assert ModelIdentity.of(moved) == identity


def test_the_least_condition_noise_is_noise(pipe: Any) -> None:
    assert Settings.of(pipe, **CALL | LONG | {"addnoise_condition": 1}).noised_prefix
    assert not Settings.of(pipe, **CALL | LONG | {"addnoise_condition": 0}).noised_prefix
