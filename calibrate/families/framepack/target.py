"""FramePack as a calibration target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import HunyuanVideoFramepackPipeline

from calibrate.families.chunked import CHUNK
from calibrate.families.chunked_target import ChunkedTarget, decoded
from calibrate.families.framepack.spec import FramepackSpec
from calibrate.quality.metrics import Frames
from calibrate.spec.generation import Case, Generation

_INVERTED = "inverted_anti_drifting"


class FramepackTarget(ChunkedTarget):
    """A `HunyuanVideoFramepackPipeline`: sections are decoded two at a time and cross-faded."""

    pipeline = HunyuanVideoFramepackPipeline

    @classmethod
    def call_arguments(cls, spec: FramepackSpec, generation: Generation) -> dict[str, Any]:
        """See `DiffusersTarget.call_arguments`."""
        return super().call_arguments(spec, generation) | {
            "guidance_scale": spec.distilled_guidance_scale,
            "true_cfg_scale": generation.guidance_scale,
            "sampling_type": spec.sampling_type,
            # Any text will do for there to be a second call per step; what counts are its embeddings.
            "negative_prompt": generation.negative_prompt,
        }

    @property
    def _backwards(self) -> bool:
        return bool(self.call["sampling_type"] == _INVERTED)

    def _block_ends(self) -> Sequence[int]:
        """Of every section, in the order of the clip, cross-fades left to the earlier one."""
        latent_frames = CHUNK * self.pipe.vae_scale_factor_temporal
        # The image's latent frame comes first, whatever the order in which sections are made.
        return [1 + latent_frames * (section + 1) for section in range(self.chunks)]

    def _encode(self, prompt: str) -> tuple[Any, ...]:
        """Embeddings, pooled ones and mask of the prompt, and of the negative prompt where there is true guidance."""
        length = self.generation.max_sequence_length
        encoded: list[Any] = [*self.pipe.encode_prompt(prompt=prompt, max_sequence_length=length)]
        if self.generation.guidance_scale > 1:
            encoded += self.pipe.encode_prompt(prompt=self.generation.negative_prompt, max_sequence_length=length)
        return tuple(encoded)

    def _conditions(self, cases: Sequence[Case]) -> dict[str, Any]:
        names = ["prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"]
        names += [f"negative_{name}" for name in names] if self.generation.guidance_scale > 1 else []
        encoded = zip(*(self.encode(case.prompt) for case in cases), strict=True)
        told = {name: torch.cat(parts) for name, parts in zip(names, encoded, strict=True)}
        return {**told, "image": [self.image(case) for case in cases]}

    def _final(self, output: Any) -> torch.Tensor:
        latents: torch.Tensor = output[-1]
        return latents

    def _shown(self, chunks: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Nothing before the end: the first frames are made last, or come after the image's, which is not told."""
        return None

    def _decode(self, latents: torch.Tensor) -> Frames:
        pipe = self.pipe
        ends = range(1 + CHUNK, latents.shape[2] + 1, CHUNK)
        overlap = (CHUNK - 1) * pipe.vae_scale_factor_temporal + 1
        video: torch.Tensor | None = None
        for number, end in enumerate(ends):
            # Two sections at a time; the image's latent frame goes with the first of the clip.
            last = number == len(ends) - 1
            if self._backwards:
                start = latents.shape[2] - CHUNK * (number + 1) - last
                part = latents[:, :, start : start + min(2, number + 1) * CHUNK + last]
            else:
                part = latents[:, :, :end] if number == 0 else latents[:, :, end - 2 * CHUNK : end]
            made = decoded(pipe.vae, part.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor)
            if video is None:
                video = made
            elif self._backwards:
                video = pipe._soft_append(made, video, overlap)
            else:
                video = pipe._soft_append(video, made, overlap)
        assert video is not None
        whole = (video.shape[2] - 1) // pipe.vae_scale_factor_temporal * pipe.vae_scale_factor_temporal + 1
        frames: Frames = pipe.video_processor.postprocess_video(video[:, :, :whole], output_type="np")[0]
        return frames
