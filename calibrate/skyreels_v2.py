"""SkyReels-V2 diffusion forcing as a calibration target: a diffusers folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SkyReelsV2DiffusionForcingPipeline

from calibrate.content import parts_of
from calibrate.errors import CalibrateError
from calibrate.quality import Frames
from calibrate.study_file import Case, Generation, ModelSpec
from calibrate.target import Target, Watch, first_line
from calibrate.trace import TraceSize
from calibrate.windows import block_ends, windows_of
from scope_runtime import Settings

_WARM_UP_STEPS = 3


class SkyReelsV2Target(Target):
    """A diffusers pipeline."""

    @classmethod
    def open(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
        """Loads the pipeline from a diffusers folder, with its `model_index.json`."""
        if not (folder / "model_index.json").is_file():
            raise CalibrateError(
                f"model.path: {folder} is not a diffusers pipeline (it has no model_index.json); check the path."
            )
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        try:
            pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(
                folder,
                dtype=getattr(torch, spec.torch_dtype),
                variant=spec.variant,
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise CalibrateError(f"model.path: {folder} cannot be loaded: {first_line(error)}") from error
        if spec.flow_shift is not None:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=spec.flow_shift)
        windows_of(generation, pipe.vae_scale_factor_temporal)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(spec.device)
        settings = Settings.of(pipe, **_call_arguments(generation))
        return cls(pipe, generation, parts_of(pipe.components), settings)

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return self.pipe._execution_device

    @property
    def network(self) -> torch.nn.Module:
        """The pipeline's transformer."""
        return self.pipe.transformer

    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes."""
        channels = self.pipe.transformer.config.out_channels
        pipe = self.pipe
        return TraceSize.of(self.generation, channels, pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal)

    def _block_ends(self) -> Sequence[int]:
        return block_ends(self.generation, self.pipe.vae_scale_factor_temporal)

    def _encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of the prompt and of the negative prompt (None without guidance)."""
        return self.pipe.encode_prompt(
            prompt,
            self.generation.negative_prompt,
            do_classifier_free_guidance=self.generation.guidance_scale > 1,
            max_sequence_length=self.generation.max_sequence_length,
        )

    def _generate_little(self, case: Case) -> torch.Tensor:
        return self._call(case, num_inference_steps=min(_WARM_UP_STEPS, self.generation.num_inference_steps))

    def _generate(self, case: Case, watch: Watch | None = None) -> torch.Tensor:
        one_window = self.generation.num_frames <= self.generation.base_num_frames
        return self._call(case, **({"callback_on_step_end": _Watched(watch)} if watch and one_window else {}))

    def _call(self, case: Case, **more: Any) -> torch.Tensor:
        prompt_embeds, negative_prompt_embeds = self.encode(case.prompt)
        # `addnoise_condition` draws from the global generator, so that one is seeded too.
        torch.manual_seed(case.seed)
        return self.pipe(
            prompt=None,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            generator=torch.Generator("cpu").manual_seed(case.seed),
            output_type="latent",
            **_call_arguments(self.generation) | more,
        ).frames

    def _decode(self, latents: torch.Tensor) -> Frames:
        vae = self.pipe.vae
        latents = latents.to(vae.dtype)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean, std = (
            torch.tensor(values).view(shape).to(latents.device, latents.dtype)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        # The pipeline divides by the reciprocal; a plain product would round differently.
        video = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
        return self.pipe.video_processor.postprocess_video(video, output_type="np")[0]


class _Watched:
    """The pipeline's callback after each step: hands on the frames that are complete whenever they have become more."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.complete = 0

    def __call__(self, _pipe: Any, _step: int, timesteps: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        # A frame whose last step was in an earlier row stands at timestep 0.
        complete = int((timesteps.flatten() == 0).sum())
        if complete > self.complete:
            self.complete = complete
            self.watch(tensors["latents"][:, :, :complete])
        return {}


def _call_arguments(generation: Generation) -> dict[str, Any]:
    """The pipeline call's arguments but for the prompts."""
    return generation.model_dump(exclude={"negative_prompt"})
