"""Tiny random pipelines that make a video chunk by chunk: real diffusers parts, a second or less for a generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny import tiny_tokenizer

HELIOS_CALL: dict[str, Any] = {
    "height": 16,
    "width": 16,
    "num_frames": 99,
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}
"""Three chunks of nine latent frames."""

FRAMEPACK_CALL: dict[str, Any] = {
    "height": 16,
    "width": 16,
    "num_frames": 99,
    "num_inference_steps": 6,
    "guidance_scale": 6.0,
    "max_sequence_length": 16,
}
"""Three sections of nine latent frames, made last to first."""


def tiny_helios(seed: int = 0, layers: int = 2, **scheduler: Any) -> HeliosPipeline:
    """Builds the pipeline with random weights, on the CPU in float32.

    Args:
        seed: Of the weights; another seed is another model.
        layers: Transformer blocks.
        scheduler: Of its configuration.
    """
    with _seeded(seed):
        transformer = HeliosTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=layers, rope_dim=(4, 4, 4),
        )  # fmt: skip
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
        )
    pipe = HeliosPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=text_encoder.eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=HeliosScheduler(**{"stages": 1, "use_dynamic_shifting": True, **scheduler}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_framepack(seed: int = 0, layers: int = 1) -> HunyuanVideoFramepackPipeline:
    """Builds the pipeline with random weights, on the CPU in float32; arguments as for `tiny_helios`."""
    with _seeded(seed):
        transformer = HunyuanVideoFramepackTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=layers,
            num_single_layers=layers, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(4, 4, 4), image_condition_type=None, has_image_proj=True,
            image_proj_dim=16, has_clean_x_embedder=True,
        )  # fmt: skip
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            scaling_factor=0.5,
        )  # fmt: skip
        text_encoder = LlamaModel(
            LlamaConfig(
                vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
                num_key_value_heads=2,
            )
        )  # fmt: skip
        text_encoder_2 = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                projection_dim=8,
            )
        )  # fmt: skip
        image_encoder = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                patch_size=8,
            )
        )  # fmt: skip
    pipe = HunyuanVideoFramepackPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=text_encoder.eval(),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_2=text_encoder_2.eval(),
        image_encoder=image_encoder.eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int = 0) -> Image.Image:
    """A small image to start from."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def helios_latents(pipe: Any, prompt: str = "a red circle moving left", seed: int = 0, **changes: Any) -> torch.Tensor:
    """Generates with `HELIOS_CALL` (and ``changes``) and returns the latents ``[1, 16, frames, 2, 2]``."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, output_type="latent", generator=generator, **(HELIOS_CALL | changes)).frames


def framepack_latents(
    pipe: Any, prompt: str = "a red circle moving left", seed: int = 0, **changes: Any
) -> torch.Tensor:
    """Generates with `FRAMEPACK_CALL` (and ``changes``) and returns the latents ``[1, 4, frames, 2, 2]``."""
    call = {"image": picture(), "prompt_template": {"template": "{}", "crop_start": 0}} | FRAMEPACK_CALL | changes
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt=prompt, output_type="latent", generator=generator, **call).frames[-1]


def undecoded(pipe: Any) -> Any:
    """The pipeline without what takes half of its time: chunks are decoded also where nobody looks at the pictures."""
    pipe.vae.decode = lambda latents, return_dict: (latents,)
    return pipe
