"""SkyReels-V2 diffusion forcing as a calibration target: a diffusers folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from calibrate.errors import CalibrateError
from calibrate.families.diffusers_target import DiffusersTarget
from calibrate.families.lookahead import SchedulerLookahead
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.families.skyreels_v2.windows import block_ends, windows_of
from calibrate.families.target import AfterRow, Together, Watch
from calibrate.quality.metrics import Frames
from calibrate.replay.trace import TraceSize
from calibrate.spec.generation import Case, Generation
from scope_runtime import Policy, run_policy
from scope_runtime.engine import Pilot

_WARM_UP_STEPS = 3


class SkyReelsV2Target(DiffusersTarget):
    """A diffusers pipeline."""

    pipeline = SkyReelsV2DiffusionForcingPipeline

    @classmethod
    def prepare(cls, pipe: Any, spec: SkyReelsV2Spec, generation: Generation) -> None:
        """See `DiffusersTarget.prepare`."""
        if spec.flow_shift is not None:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=spec.flow_shift)
        windows_of(generation, pipe.vae_scale_factor_temporal)

    @classmethod
    def call_arguments(cls, spec: SkyReelsV2Spec, generation: Generation) -> dict[str, Any]:
        """See `DiffusersTarget.call_arguments`."""
        return generation.model_dump(exclude={"negative_prompt"})

    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes."""
        pipe, settings = self.pipe, self.generation
        lengths = windows_of(settings, pipe.vae_scale_factor_temporal)
        return TraceSize.of(
            settings,
            channels=pipe.transformer.config.out_channels,
            scale=pipe.vae_scale_factor_spatial,
            blocks=lengths[0] // settings.causal_block_size,
            windows=len(lengths),
            branches=2 if settings.guidance_scale > 1 else 1,
        )

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
        return self._call([case], num_inference_steps=min(_WARM_UP_STEPS, self.generation.num_inference_steps))

    def _generate(self, case: Case, watch: Watch | None = None, after_row: AfterRow | None = None) -> torch.Tensor:
        if (watch or after_row) and self._one_window:
            return self._call([case], callback_on_step_end=_Watched(watch, after_row))
        return self._call([case])

    def denoise_together(self, cases: Sequence[Case], policy: Policy, pilot: Pilot | None = None) -> Together:
        """As one batch; noise that is drawn for a prefix is not each clip's own."""
        with run_policy(self.pipe, policy, pilot=pilot) as scope:
            latents = self._call(cases).cpu()
        return Together(latents, scope.report)

    def lookahead(self) -> AbstractContextManager[SchedulerLookahead]:
        """See `Target.lookahead`."""
        if not self._one_window:
            raise CalibrateError("search.learned: weights are fitted for videos of one window only; leave it out.")
        if "sde" in str(self.pipe.scheduler.config.get("algorithm_type")):
            raise CalibrateError(
                "search.learned: weights are not fitted under a scheduler that draws noise in every step; leave it out."
            )
        guidance = self.generation.guidance_scale
        shares = {"cond": guidance, "uncond": 1.0 - guidance} if guidance > 1 else {"cond": 1.0}
        return SchedulerLookahead.of(self.pipe.scheduler, shares)

    @property
    def _one_window(self) -> bool:
        return self.generation.num_frames <= self.generation.base_num_frames

    def _call(self, cases: Sequence[Case], **more: Any) -> torch.Tensor:
        embeds, negative = zip(*(self.encode(case.prompt) for case in cases), strict=True)
        # `addnoise_condition` draws from the global generator, so that one is seeded too.
        torch.manual_seed(cases[0].seed)
        generators = [torch.Generator("cpu").manual_seed(case.seed) for case in cases]
        return self.pipe(
            prompt=None,
            prompt_embeds=torch.cat(embeds),
            negative_prompt_embeds=None if negative[0] is None else torch.cat(negative),
            generator=generators if len(cases) > 1 else generators[0],
            output_type="latent",
            **self.call | more,
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
    """The pipeline's callback after each row: hands on latents, and the complete frames when they have become more."""

    def __init__(self, watch: Watch | None, after_row: AfterRow | None) -> None:
        self.watch = watch
        self.after_row = after_row
        self.complete = 0

    def __call__(self, _pipe: Any, row: int, timesteps: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if self.after_row:
            self.after_row(row, tensors["latents"])
        # A frame whose last step was in an earlier row stands at timestep 0.
        complete = int((timesteps.flatten() == 0).sum())
        if self.watch and complete > self.complete:
            self.complete = complete
            self.watch(tensors["latents"][:, :, :complete])
        return {}
