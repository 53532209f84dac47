"""FramePack (HunyuanVideo) in diffusers: image-to-video, section by section, forwards or backwards."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video_framepack import HunyuanVideoFramepackTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import FramepackSamplingType, calculate_shift

from scope_runtime.adapters._chunked import ChunkedAttachment, as_planned
from scope_runtime.adapters._hooks import loaded

# What the pipeline lets the shift of its noise levels come to.
_MOST_SHIFT = math.log(7.0)


class FramepackAttachment(ChunkedAttachment):
    """Holds a `HunyuanVideoFramepackPipeline` accelerated until `detach`."""

    kind = HunyuanVideoFramepackTransformer3DModel

    @staticmethod
    def layers(transformer: Any) -> Collection[torch.nn.Module]:
        """See `ChunkedAttachment.layers`."""
        double = [part for block in transformer.transformer_blocks for part in (block, block.attn, block.ff)]
        return [*double, *(part for block in transformer.single_transformer_blocks for part in (block, block.attn))]

    def modulated_input(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """See `ChunkedAttachment.modulated_input`."""
        model = self.transformer
        first = model.transformer_blocks[0]
        with loaded(model, first):
            tokens = model.x_embedder(arguments["hidden_states"])
            embedding, _ = model.time_text_embed(
                arguments["timestep"], arguments["pooled_projections"], arguments["guidance"]
            )
            modulated: torch.Tensor = first.norm1(tokens, emb=embedding)[0]
        return modulated

    def _branch(self, name: str | None, arguments: dict[str, Any]) -> str:
        # The pipeline names no cache contexts: with true guidance, every second call is the one without the prompt.
        assert self._plan is not None
        calls = self._plan["calls"]
        self._plan["calls"] += 1
        return "uncond" if _true_guidance(self._gate.arguments) and calls % 2 else "cond"

    @staticmethod
    def guidance_scale(call: Mapping[str, Any]) -> float:
        """See `ChunkedAttachment.guidance_scale`; the distilled guidance is one of the `options`."""
        return float(call["true_cfg_scale"]) if _true_guidance(call) else 1.0

    @staticmethod
    def chunk_frames(call: Mapping[str, Any]) -> int:
        """See `ChunkedAttachment.chunk_frames`."""
        return int(call["latent_window_size"])

    @staticmethod
    def options(call: Mapping[str, Any]) -> dict[str, Any]:
        """In which direction sections are made, and what the transformer is told of guidance."""
        last = any(call[name] is not None for name in ("last_image", "last_image_latents"))
        return {
            "sampling_type": FramepackSamplingType(call["sampling_type"]).value,
            "distilled_guidance_scale": float(call["guidance_scale"]),
            "last_image": last,
        }

    @staticmethod
    def planned(pipe: Any, call: Mapping[str, Any], frames: int) -> Any:
        """See `ChunkedAttachment.planned`."""
        patch = pipe.transformer.config.patch_size**2
        return as_planned(pipe, call, frames, patch, calculate_shift, start=1.0, most=_MOST_SHIFT)


def _true_guidance(call: Mapping[str, Any]) -> bool:
    """Whether every step has a second call, with the negative prompt."""
    embedded = call["negative_prompt_embeds"] is not None and call["negative_pooled_prompt_embeds"] is not None
    return call["true_cfg_scale"] > 1 and (call["negative_prompt"] is not None or embedded)
