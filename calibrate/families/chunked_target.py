"""Chunk-by-chunk pipelines of diffusers as calibration targets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from calibrate.errors import CalibrateError
from calibrate.families.chunked import CHUNK, chunks_of
from calibrate.families.diffusers_target import DiffusersTarget
from calibrate.families.lookahead import ChunkLookahead
from calibrate.families.target import AfterRow, Together, Watch
from calibrate.replay.trace import TraceSize
from calibrate.spec.generation import Case, Generation
from scope_runtime import Policy, run_policy
from scope_runtime.engine import Pilot

_WARM_UP_STEPS = 3


class ChunkedTarget(DiffusersTarget):
    """A pipeline that makes one chunk after another; a trace has a window for each."""

    @property
    def chunks(self) -> int:
        """Chunks of a clip."""
        return chunks_of(self.generation, self.pipe.vae_scale_factor_temporal)

    @property
    def _branches(self) -> int:
        return 2 if self.generation.guidance_scale > 1 else 1

    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes."""
        return TraceSize.of(
            self.generation,
            channels=self.pipe.transformer.config.out_channels,
            scale=self.pipe.vae_scale_factor_spatial,
            blocks=1,
            windows=self.chunks,
            branches=self._branches,
            block_frames=CHUNK,
            states=True,
        )

    @abstractmethod
    def _conditions(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What the call is told of prompts and images."""

    @abstractmethod
    def _final(self, output: Any) -> torch.Tensor:
        """Final latents [cases, channels, latent frames, h, w] from what the pipeline returns for latents."""

    def _shown(self, chunks: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Final latents of a beginning of the clip, from the chunks that are complete; None if they are none."""
        return torch.cat([*chunks], dim=2)

    def _generate(self, case: Case, watch: Watch | None = None, after_row: AfterRow | None = None) -> torch.Tensor:
        watched = _Watched(self, watch, after_row)
        return self._call([case], **({"callback_on_step_end": watched} if watch or after_row else {}))

    def _generate_little(self, case: Case) -> torch.Tensor:
        return self._call([case], num_inference_steps=min(_WARM_UP_STEPS, self.generation.num_inference_steps))

    def denoise_together(self, cases: Sequence[Case], policy: Policy, pilot: Pilot | None = None) -> Together:
        """As one batch."""
        for case in cases:
            self.encode(case.prompt)
        with run_policy(self.pipe, policy, pilot=pilot) as scope:
            latents = self._call(cases).cpu()
        return Together(latents, scope.report)

    def lookahead(self) -> AbstractContextManager[ChunkLookahead]:
        """See `Target.lookahead`."""
        guidance = self.generation.guidance_scale
        shares = {"cond": guidance, "uncond": 1.0 - guidance} if guidance > 1 else {"cond": 1.0}
        return nullcontext(ChunkLookahead(self.pipe.scheduler, shares))

    def _call(self, cases: Sequence[Case], **more: Any) -> torch.Tensor:
        generators = [torch.Generator("cpu").manual_seed(case.seed) for case in cases]
        with undecoded(self.pipe.vae):
            output = self.pipe(
                **self._conditions(cases),
                generator=generators if len(cases) > 1 else generators[0],
                output_type="latent",
                **self.call | more,
            ).frames
        return self._final(output)

    def image(self, case: Case) -> Image.Image | None:
        """What the case's video starts from.

        Raises:
            CalibrateError: If the file is none that can be read.
        """
        if case.image is None:
            return None
        try:
            with Image.open(case.image) as opened:
                return opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise CalibrateError(f"image: {case.image} cannot be read as an image; give a PNG or JPEG file.") from error

    @classmethod
    def call_arguments(cls, spec: Any, generation: Generation) -> dict[str, Any]:
        """See `DiffusersTarget.call_arguments`."""
        wanted = {"height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length"}
        return generation.model_dump(include=wanted)


class _Watched:
    """The pipeline's callback after each step: hands on latents, and the complete chunks when they have become more."""

    def __init__(self, target: ChunkedTarget, watch: Watch | None, after_row: AfterRow | None) -> None:
        self.target = target
        self.watch = watch
        self.after_row = after_row
        self.complete: list[torch.Tensor] = []

    def __call__(self, _pipe: Any, step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        latents: torch.Tensor = tensors["latents"]
        if self.after_row:
            self.after_row(step, latents)
        if step == self.target.generation.num_inference_steps - 1:
            self.complete.append(latents)
            shown = self.target._shown(self.complete) if self.watch else None
            if self.watch and shown is not None and len(self.complete) < self.target.chunks:
                self.watch(shown)
        return {}


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels [batch, 3, frames, h, w] of latents, also while the pipeline is kept from decoding."""
    pixels: torch.Tensor = type(vae).decode(vae, latents, return_dict=False)[0]
    return pixels


@contextmanager
def undecoded(vae: Any) -> Iterator[None]:
    """Keeps a pipeline from decoding each chunk, as some do even when latents are asked for: that is no denoising."""
    nothing = torch.empty(1, 3, 0, 1, 1)
    vae.decode = lambda latents, return_dict=True: (nothing.to(latents),)
    try:
        yield
    finally:
        del vae.decode
