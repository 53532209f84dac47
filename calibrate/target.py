"""The pipeline under calibration: load it, generate with it, time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from diffusers import SkyReelsV2DiffusionForcingPipeline

from calibrate.errors import CalibrateError
from calibrate.files import folder_digest
from calibrate.quality import Frames
from calibrate.study_file import Case, Generation, ModelSpec
from calibrate.trace import TraceSize
from scope_runtime import ModelIdentity, Report, Settings

T = TypeVar("T")

# The first call in a process is slower than later ones (kernel choice, allocation); a few steps absorb that.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Denoised:
    """What one run of the denoising loop gave.

    Attributes:
        latents: Final latents [1, channels, latent frames, h, w], on the CPU.
        seconds: Wall-clock time of the pipeline call without text encoding and decoding.
    """

    latents: torch.Tensor
    seconds: float


class Target:
    """A loaded pipeline with the arguments that all generations of a study share."""

    def __init__(self, pipe: Any, generation: Generation, content: str) -> None:
        """Wraps a loaded pipeline.

        Args:
            pipe: The pipeline.
            generation: Arguments of the pipeline call.
            content: A digest of all of the pipeline's files, text encoder and VAE included.
        """
        self.pipe = pipe
        self.generation = generation
        self.model = {**ModelIdentity.of(pipe).to_dict(), "files": content}
        self.settings = Settings.of(pipe, **self._settings_call())
        self._embeds: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._encode_seconds: dict[str, float] = {}
        self._warm = False

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
        """Loads the pipeline from a diffusers folder.

        Args:
            folder: The folder, with its `model_index.json`.
            spec: Data type, device and number of CPU threads.
            generation: Arguments of the pipeline call.

        Raises:
            CalibrateError: If the folder holds no such pipeline, or the device is not there.
        """
        if not (folder / "model_index.json").is_file():
            raise CalibrateError(
                f"model.path: {folder} is not a diffusers pipeline (it has no model_index.json); check the path."
            )
        if spec.device.startswith("cuda") and not torch.cuda.is_available():
            raise CalibrateError(f"model.device: this machine has no {spec.device}; set it to cpu.")
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        try:
            pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(
                folder, dtype=getattr(torch, spec.torch_dtype), local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise CalibrateError(f"model.path: {folder} cannot be loaded: {_first_line(error)}") from error
        if spec.flow_shift is not None:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=spec.flow_shift)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(spec.device)
        return cls(pipe, generation, folder_digest(folder))

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return self.pipe._execution_device

    def warm_up(self, case: Case) -> None:
        """Runs a few steps and a decode whose times nobody records, once in a process."""
        if not self._warm:
            self.decode(self._call(case, num_inference_steps=min(_WARM_UP_STEPS, self.generation.num_inference_steps)))
            self._warm = True

    def encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text embeddings of the prompt and of the negative prompt (None without guidance), computed once."""
        if prompt not in self._embeds:
            guided = self.generation.guidance_scale > 1
            with torch.no_grad():
                self._embeds[prompt], self._encode_seconds[prompt] = self._timed(
                    lambda: self.pipe.encode_prompt(
                        prompt,
                        self.generation.negative_prompt,
                        do_classifier_free_guidance=guided,
                        max_sequence_length=self.generation.max_sequence_length,
                    )
                )
        return self._embeds[prompt]

    def encode_seconds(self, prompt: str) -> float:
        """Wall-clock time that encoding the prompt took."""
        self.encode(prompt)
        return self._encode_seconds[prompt]

    def denoise(self, case: Case) -> Denoised:
        """Generates latents for a case by calling the pipeline, whatever is attached to it at the moment."""
        self.encode(case.prompt)
        latents, seconds = self._timed(lambda: self._call(case))
        return Denoised(latents.cpu(), seconds)

    def decode(self, latents: torch.Tensor) -> tuple[Frames, float]:
        """Decodes latents just as the pipeline itself does at the end of its call.

        Args:
            latents: Final latents [1, channels, latent frames, h, w].

        Returns:
            Frames [T, H, W, 3] in [0, 1], and the seconds that it took.
        """
        with torch.no_grad():
            frames, seconds = self._timed(lambda: self._decode(latents.to(self.device)))
        return np.ascontiguousarray(frames), seconds

    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes."""
        channels = self.pipe.transformer.config.out_channels
        return TraceSize.of(self.generation, channels, self.pipe.vae_scale_factor_spatial)

    def memory_bytes(self, report: Report) -> int:
        """Memory that a generation took: the device's peak where it counts, else weights, context and histories."""
        if report.peak_memory_bytes is not None:
            return report.peak_memory_bytes
        weights = sum(p.numel() * p.element_size() for p in self.pipe.transformer.parameters())
        return weights + report.context_bytes + report.history_bytes

    def _settings_call(self) -> dict[str, Any]:
        """The pipeline call's arguments but for the prompt."""
        return self.generation.model_dump(exclude={"negative_prompt"})

    def _call(self, case: Case, **overrides: Any) -> torch.Tensor:
        prompt_embeds, negative_prompt_embeds = self.encode(case.prompt)
        # `addnoise_condition` draws from the global generator, so that one is seeded too.
        torch.manual_seed(case.seed)
        return self.pipe(
            prompt=None,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            generator=torch.Generator("cpu").manual_seed(case.seed),
            output_type="latent",
            **self._settings_call() | overrides,
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

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        self._synchronize()
        start = time.perf_counter()
        result = work()
        self._synchronize()
        return result, time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
