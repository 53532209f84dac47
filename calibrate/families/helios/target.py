"""Helios as a calibration target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import HeliosPipeline

from calibrate.families.chunked import CHUNK
from calibrate.families.chunked_target import ChunkedTarget, decoded
from calibrate.families.helios.spec import HeliosSpec
from calibrate.quality.metrics import Frames
from calibrate.spec.generation import Case


class HeliosTarget(ChunkedTarget):
    """A `HeliosPipeline`: every chunk is decoded by itself."""

    pipeline = HeliosPipeline

    @classmethod
    def told(cls, spec: HeliosSpec) -> dict[str, Any]:
        """Whether videos start from an image."""
        return {"image": "of the case"} if spec.starts_from == "image" else {}

    def _block_ends(self) -> Sequence[int]:
        frames = (CHUNK - 1) * self.pipe.vae_scale_factor_temporal + 1
        return range(frames, frames * self.chunks + 1, frames)

    def _encode(self, prompt: str) -> tuple[Any, ...]:
        """Embeddings of the prompt and of the negative prompt (None without guidance)."""
        encoded: tuple[Any, ...] = self.pipe.encode_prompt(
            prompt,
            self.generation.negative_prompt,
            do_classifier_free_guidance=self.generation.guidance_scale > 1,
            max_sequence_length=self.generation.max_sequence_length,
        )
        return encoded

    def _conditions(self, cases: Sequence[Case]) -> dict[str, Any]:
        embeds, negative = zip(*(self.encode(case.prompt) for case in cases), strict=True)
        images = [image for case in cases if (image := self.image(case)) is not None]
        return {
            "prompt": None,
            "prompt_embeds": torch.cat(embeds),
            "negative_prompt_embeds": None if negative[0] is None else torch.cat(negative),
            "image": images or None,
        }

    def _final(self, output: Any) -> torch.Tensor:
        latents: torch.Tensor = output
        # What a video starts from stands in front of what was made.
        return latents[:, :, -CHUNK * self.chunks :]

    def _decode(self, latents: torch.Tensor) -> Frames:
        vae, per_latent_frame = self.pipe.vae, self.pipe.vae_scale_factor_temporal
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean, std = (
            torch.tensor(values).view(shape).to(latents.device, vae.dtype)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        # The pipeline divides by the reciprocal; a plain product would round differently.
        chunks = [chunk.to(vae.dtype) / (1.0 / std) + mean for chunk in latents.split(CHUNK, dim=2)]
        video = torch.cat([decoded(vae, chunk) for chunk in chunks], dim=2)
        whole = (video.shape[2] - 1) // per_latent_frame * per_latent_frame + 1
        frames: Frames = self.pipe.video_processor.postprocess_video(video[:, :, :whole], output_type="np")[0]
        return frames
