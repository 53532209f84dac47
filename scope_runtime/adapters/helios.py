"""Helios (Base) in diffusers: text-, image- and video-to-video, chunk by chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_helios import HeliosTransformer3DModel
from diffusers.pipelines.helios.pipeline_helios import calculate_shift

from scope_runtime.adapters._chunked import ChunkedAttachment, as_planned
from scope_runtime.adapters._hooks import loaded


class HeliosAttachment(ChunkedAttachment):
    """Holds a `HeliosPipeline` accelerated until `detach`."""

    kind = HeliosTransformer3DModel

    @staticmethod
    def layers(transformer: Any) -> Collection[torch.nn.Module]:
        """See `ChunkedAttachment.layers`."""
        return [layer for block in transformer.blocks for layer in (block, block.attn1, block.attn2, block.ffn)]

    def modulated_input(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """See `ChunkedAttachment.modulated_input`."""
        model = self.transformer
        first = model.blocks[0]
        with loaded(model, first):
            tokens = model.patch_embedding(arguments["hidden_states"]).flatten(2).transpose(1, 2)
            _, modulation, _ = model.condition_embedder(
                arguments["timestep"], arguments["encoder_hidden_states"], is_return_encoder_hidden_states=False
            )
            table = first.scale_shift_table + modulation.unflatten(-1, (6, -1)).float()
            shift, scale = table[:, :2].chunk(2, dim=1)
            normed: torch.Tensor = first.norm1(tokens.float())
            return normed * (1 + scale) + shift

    @staticmethod
    def guidance_scale(call: Mapping[str, Any]) -> float:
        """See `ChunkedAttachment.guidance_scale`."""
        return float(call["guidance_scale"])

    @staticmethod
    def chunk_frames(call: Mapping[str, Any]) -> int:
        """See `ChunkedAttachment.chunk_frames`."""
        return int(call["num_latent_frames_per_chunk"])

    @staticmethod
    def options(call: Mapping[str, Any]) -> dict[str, Any]:
        """What a chunk sees of those before it, and what the video starts from."""
        starts = [name for name in ("image", "video") if _given(call, name, f"{name}_latents")]
        return {
            "starts_from": starts[0] if starts else "nothing",
            "history_sizes": sorted(call["history_sizes"], reverse=True),
            "keep_first_frame": bool(call["keep_first_frame"]),
            "is_skip_first_chunk": bool(call["is_skip_first_chunk"]),
        }

    @staticmethod
    def planned(pipe: Any, call: Mapping[str, Any], frames: int) -> Any:
        """See `ChunkedAttachment.planned`."""
        per_frame, high, wide = pipe.transformer.config.patch_size
        return as_planned(pipe, call, frames, per_frame * high * wide, calculate_shift, start=0.999)


def _given(call: Mapping[str, Any], *names: str) -> bool:
    """Whether a call has any of these arguments."""
    return any(call[name] is not None for name in names)
