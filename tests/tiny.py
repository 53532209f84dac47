"""A tiny random SkyReels-V2 pipeline: real diffusers parts, well under a second for a generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = "a red blue green circle square moving left right up down on striped plain background and".split()

CALL: dict[str, Any] = {
    "height": 16,
    "width": 16,
    "num_frames": 33,
    "num_inference_steps": 8,
    "guidance_scale": 3.0,
    "ar_step": 2,
    "causal_block_size": 3,
    "max_sequence_length": 16,
}
"""Nine latent frames in three blocks, staggered by two rows."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer with the special tokens that the pipeline relies on."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_pipeline(seed: int = 0, layers: int = 2, flow_shift: float = 3.0) -> SkyReelsV2DiffusionForcingPipeline:
    """Builds the pipeline with random weights, on the CPU in float32.

    Args:
        seed: Of the weights; another seed is another model.
        layers: Transformer blocks.
        flow_shift: Of the scheduler.
    """
    random_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        transformer = SkyReelsV2Transformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=layers, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
        )
    finally:
        torch.random.set_rng_state(random_state)
    pipe = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=text_encoder.eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=flow_shift
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_pipeline(folder: Path, **options: Any) -> Path:
    """Writes a tiny pipeline as an ordinary diffusers folder; returns the folder."""
    tiny_pipeline(**options).save_pretrained(folder)
    return folder


def latents(pipe: Any, prompt: str = "a red circle moving left", seed: int = 0, **changes: Any) -> torch.Tensor:
    """Generates with `CALL` (and ``changes``) and returns the latents ``[1, 16, frames, 2, 2]``."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, output_type="latent", generator=generator, **(CALL | changes)).frames
