"""Every mode of the family that docs/coverage.md speaks of, one test a line of its table."""

from __future__ import annotations

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

from scope_runtime import MODULATED_INPUT, AttachError, ModelIdentity, Policy, Settings, exact, run_policy
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
    assert Settings.of(other, video=[IMAGE], **CALL).prefix


@pytest.mark.parametrize("granularity", ["prefix", "step"])
def test_video_to_video_with_a_policy(pipe: Any, granularity: str) -> None:
    other = as_other(pipe, SkyReelsV2DiffusionForcingVideoToVideoPipeline)
    with run_policy(other, Policy(granularity=granularity, warmup=2, max_skip=2)) as scope:
        assert torch.isfinite(video_to_video(other)).all()
    assert scope.report.speedup_evaluations > 1.5


def test_long_video_forgets_between_windows(pipe: Any) -> None:
    changes = {"num_frames": 57, "base_num_frames": 33, "overlap_history": 9}
    with run_policy(pipe, POLICY) as scope:
        latents(pipe, **changes)
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


def test_compiled_blocks_are_exact() -> None:
    pipe = tiny_pipeline(layers=1)
    stock = latents(pipe)
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4


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


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
def test_group_offloading(level: str, indicator: str) -> None:
    pipe = tiny_pipeline()
    policy = Policy(indicator=indicator, warmup=2, max_skip=2)
    stock = latents(pipe)
    with run_policy(pipe, policy):
        skipped = latents(pipe)
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
    )
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4
    with run_policy(pipe, policy):
        assert torch.equal(latents(pipe), skipped)


def test_accelerate_offload_hooks() -> None:
    pipe = tiny_pipeline()
    stock = latents(pipe)
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"), offload_buffers=False)
    with exact(pipe):
        assert (latents(pipe) - stock).abs().max() <= 1e-4


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
