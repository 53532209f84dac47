"""The parts of the Helios reference pipeline: a transformer of its own; the rest is the other reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

from studies.reference import models, world

PIPELINE_DIR = Path(__file__).parent / "pipeline"

CHUNK = 9
CHUNKS = 3
CHUNK_FRAMES = (CHUNK - 1) * 4 + 1
# Of latent frames before a chunk: how many are seen at a quarter of the resolution, at half of it, and in full.
HISTORY = (16, 2, 1)
# Every chunk is decoded by itself, so its latents are those of its own first frame and of every fourth from there.
KEYFRAMES = [chunk * CHUNK_FRAMES + 4 * frame for chunk in range(CHUNKS) for frame in range(CHUNK)]

# How the pipeline is meant to be called: the same calls in evaluation, studies and tests.
CALL: dict[str, Any] = {
    "num_frames": world.FRAMES,
    "height": world.SIZE,
    "width": world.SIZE,
    "num_inference_steps": 40,
    "guidance_scale": models.GUIDANCE_SCALE,
    "max_sequence_length": models.TEXT_LENGTH,
}


def build_transformer() -> Any:
    """A fresh `HeliosTransformer3DModel`: 144 tokens a chunk, and 40 of its history."""
    height = width = 2 * (32 // 6)
    return HeliosTransformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=models.LATENT_CHANNELS,
        out_channels=models.LATENT_CHANNELS,
        text_dim=models.TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        rope_dim=(32 - height - width, height, width),
    )


def start_transformer() -> Any:
    """A transformer that begins with what the other reference has learnt.

    The two have the same blocks. What is new is how history is seen: the newest frame by the weights that every frame
    was seen by, frames further back by those weights spread over the larger patch.
    """
    transformer = build_transformer()
    known = dict(models.load_pipeline().transformer.state_dict())
    own = transformer.state_dict()
    learnt = {name: value for name, value in known.items() if name in own}
    learnt["norm_out.scale_shift_table"] = known["scale_shift_table"]
    kernel, bias = known["patch_embedding.weight"], known["patch_embedding.bias"]
    for name, factor in (("patch_short", 1), ("patch_mid", 2), ("patch_long", 4)):
        # The mean over frames, of pictures made as small as one patch.
        spread = kernel.repeat_interleave(factor, 3).repeat_interleave(factor, 4).repeat(1, 1, factor, 1, 1)
        learnt |= {f"{name}.weight": spread / factor**3, f"{name}.bias": bias}
    transformer.load_state_dict(learnt)
    return transformer


def build_scheduler() -> Any:
    """Helios' own sampler (UniPC), with the shift that the pipeline derives from the number of tokens (1.6 here)."""
    return HeliosScheduler(stages=1, use_dynamic_shifting=True)


def save_pipeline(folder: Path, transformer: Any) -> None:
    """Write a complete pipeline to `folder`, replacing what is there in one rename."""
    other = models.load_pipeline()
    pipeline = HeliosPipeline(
        tokenizer=other.tokenizer,
        text_encoder=other.text_encoder,
        transformer=transformer,
        vae=other.vae,
        scheduler=build_scheduler(),
    )
    models.write_folder(folder, pipeline)


def load_pipeline(folder: Path = PIPELINE_DIR) -> HeliosPipeline:
    """Load the pipeline from a folder, on the CPU in float32, without its progress bars."""
    pipeline = HeliosPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def history_of(clips: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a chunk sees of the clip before it, as the pipeline hands it over.

    Args:
        clips: normalised latents [batch, channels, CHUNKS * CHUNK, height, width].
        chunk: number of the chunk.

    Returns:
        The very first frame and the newest [batch, channels, 2, ...], the two before it, and the sixteen before those;
        zeros where there is none.
    """
    nothing = clips.new_zeros(*clips.shape[:2], sum(HISTORY), *clips.shape[3:])
    seen = torch.cat([nothing, clips[:, :, : chunk * CHUNK]], dim=2)[:, :, -sum(HISTORY) :]
    long, mid, newest = seen.split(HISTORY, dim=2)
    first = clips[:, :, :1] if chunk else nothing[:, :, :1]
    return torch.cat([first, newest], dim=2), mid, long
