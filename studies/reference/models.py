"""The parts of the reference pipeline: their sizes, and putting them together as a diffusers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from studies.reference import world

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

PIPELINE_DIR = Path(__file__).parent / "pipeline"

CAUSAL_BLOCK = 5
LATENT_CHANNELS = 3
LATENT_FRAMES = 25
LATENT_SIZE = 16
# The standard deviation of the latents over training clips, one for all channels.
LATENT_STD = 0.32
# The posterior is narrow and the same everywhere: the VAE is trained like a deterministic autoencoder.
POSTERIOR_LOG_VARIANCE = -10.0
TEXT_DIM = 64
TEXT_LENGTH = 32
FLOW_SHIFT = 5.0
TRAIN_TIMESTEPS = 1000

GUIDANCE_SCALE = 3.0

# How the pipeline is meant to be called: the same calls in evaluation, studies and tests.
CALL: dict[str, Any] = {
    "num_frames": world.FRAMES,
    "height": world.SIZE,
    "width": world.SIZE,
    "num_inference_steps": 30,
    "guidance_scale": GUIDANCE_SCALE,
    "ar_step": 5,
    "causal_block_size": CAUSAL_BLOCK,
    "overlap_history": None,
    "base_num_frames": world.FRAMES,
    "fps": world.FPS,
    "max_sequence_length": TEXT_LENGTH,
}


def build_vae() -> Any:
    """A fresh `AutoencoderKLWan`: 4x in space, 4x in time, so 97 x 64 x 64 pixels become 25 x 16 x 16 latents."""
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[LATENT_STD] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )
    _initialise_vae(vae)
    return vae


def build_transformer() -> Any:
    """A fresh `SkyReelsV2Transformer3DModel`: 16 tokens a latent frame, 400 tokens a clip.

    `proj_out` starts at zero, so that the first prediction is the mean velocity and early gradients stay small.
    """
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        inject_sample_info=False,
        rope_max_seq_len=32,
        num_frame_per_block=CAUSAL_BLOCK,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the captions' vocabulary; it ends every text, also the empty one, with `</s>`."""
    words = [PAD, END, UNKNOWN, *world.vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, words.index(END))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=TEXT_LENGTH,
    )


def build_text_encoder(vocabulary_size: int) -> Any:
    """A fresh, small `UMT5EncoderModel`; it is trained together with the transformer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=0,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def build_scheduler() -> Any:
    """The sampler of SkyReels-V2: UniPC on the shifted flow-matching schedule."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=TRAIN_TIMESTEPS,
        flow_shift=FLOW_SHIFT,
    )


def save_pipeline(
    folder: Path, vae: AutoencoderKLWan, transformer: SkyReelsV2Transformer3DModel, text_encoder: UMT5EncoderModel
) -> None:
    """Write a complete pipeline to `folder`, replacing what is there in one rename."""
    pipeline = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=build_scheduler(),
    )
    write_folder(folder, pipeline)


def write_folder(folder: Path, pipeline: DiffusionPipeline) -> None:
    """Write any pipeline to `folder`, replacing what is there in one rename.

    Where its parts were read from is no part of it and is left out.
    """
    fresh, stale = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    for path in fresh.glob("*/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def load_pipeline(folder: Path = PIPELINE_DIR) -> SkyReelsV2DiffusionForcingPipeline:
    """Load the pipeline from a folder, on the CPU in float32, without its progress bars."""
    pipeline = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _initialise_vae(vae: AutoencoderKLWan) -> None:
    """Start as a linear, frame-by-frame autoencoder.

    The default initialisation shrinks the signal in every convolution until the biases drown it, and training stays at
    grey images for long. Here kernels keep the variance and look at the current frame only, biases are zero, residual
    branches add nothing and resampling in time copies frames. The posterior is narrow, because noise as wide as an
    untrained encoder's signal would hide it from the decoder.
    """
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            current = module.weight[:, :, -1] if module.weight.ndim == 5 else module.weight
            kernel = torch.empty_like(current)
            torch.nn.init.kaiming_normal_(kernel, nonlinearity="linear")
            module.weight.zero_()
            current.copy_(kernel)
            if module.bias is not None:
                module.bias.zero_()
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.zero_()
        elif isinstance(module, WanAttentionBlock):
            module.proj.weight.zero_()
        elif isinstance(module, WanResample) and hasattr(module, "time_conv"):
            weight = module.time_conv.weight
            copies = weight.shape[0] // weight.shape[1]
            weight[:, :, -1] = torch.eye(weight.shape[1]).repeat(copies, 1)[..., None, None]
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0.0
    vae.quant_conv.bias[LATENT_CHANNELS:] = POSTERIOR_LOG_VARIANCE
