"""What families have in common that make a video chunk by chunk: study fields, and what generations take.

Each chunk of frames goes through a denoising loop of its own, all frames of it at one noise level, and sees the clean
chunks before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from calibrate.families.check import Check
from calibrate.families.diffusers_folder import DiffusersSpec
from calibrate.families.footprint import Footprint
from calibrate.spec.generation import Generation
from calibrate.spec.search_space import SearchSpace

# Latent frames of a chunk, and of what a chunk sees before it: in full, at half and at a quarter of the resolution.
CHUNK = 9
_IN_FULL, _HALVED, _QUARTERED = 2, 2, 16


class ChunkedSpec(DiffusersSpec):
    """A diffusers folder of a chunk-by-chunk pipeline."""

    def refuse_unfit(self, generation: Generation, search: SearchSpace) -> None:
        """Refuses what belongs to blocks that overlap in time, and to keys and values that are kept."""
        generation.refuse_given(
            self.family,
            "ar_step",
            "causal_block_size",
            "overlap_history",
            "addnoise_condition",
            "base_num_frames",
        )
        for name in ("stale_quantile", "context_window", "context_dtype"):
            if getattr(search, name) != [None]:
                raise ValueError(f"search.{name} must be [null]: chunks see each other as latents, no context is kept")
        if search.learned is not None and "last" in (search.learned.captures or ()):
            raise ValueError("search.learned.captures must be [clean]: no keys and values are captured")


def chunks_of(generation: Generation, per_latent_frame: int) -> int:
    """Chunks of a generation.

    Args:
        generation: A study's settings.
        per_latent_frame: Frames that the VAE makes one latent frame of.
    """
    frames = (CHUNK - 1) * per_latent_frame + 1
    return max(1, -(-generation.num_frames // frames))


@dataclass(frozen=True)
class ChunkedFootprint(Footprint):
    """As `Footprint`, for chunks as windows: bidirectional, no context, and history beside the chunk's own tokens."""

    @classmethod
    def of(
        cls, spec: ChunkedSpec, generation: Generation, *, patch: int, scale: int, per_latent_frame: int, **model: int
    ) -> Self:
        """From what the configuration files say.

        Args:
            spec: Of which the data type counts.
            generation: Settings of the pipeline call.
            patch: Latent pixels per token, in each direction.
            scale: Pixels per latent pixel, in each direction.
            per_latent_frame: Frames that the VAE makes one latent frame of.
            model: `layers`, `width`, `ffn_width` and `channels`.
        """
        import torch

        height, width = generation.height // scale, generation.width // scale
        return cls(
            window_lengths=(CHUNK,) * chunks_of(generation, per_latent_frame),
            latent_height=height,
            latent_width=width,
            patches=(height // patch) * (width // patch),
            branches=2 if generation.guidance_scale > 1 else 1,
            itemsize=getattr(torch, spec.torch_dtype).itemsize,
            generation=generation,
            **model,
        )

    @property
    def blocks(self) -> int:
        """All frames of a chunk share a noise level."""
        return 1

    @property
    def rows(self) -> int:
        """Steps of a chunk."""
        return self.generation.num_inference_steps

    @property
    def bidirectional(self) -> bool:
        """Within a chunk it is."""
        return True

    @property
    def mask_bytes(self) -> int:
        """No mask is built."""
        return 0

    @property
    def tokens(self) -> int:
        """Of a chunk and of the history that it sees."""
        halved, quartered = _HALVED * self.patches // 8, _QUARTERED * self.patches // 64
        return self.latent_frames * self.patches + _IN_FULL * self.patches + halved + quartered

    def described(self) -> Check:
        """See `Footprint.described`."""
        chunks = len(self.window_lengths)
        return Check(
            "settings",
            "ok",
            f"{chunks} chunks of {self.latent_frames} latent frames, {self.rows} steps each, {self.tokens} tokens with "
            "their history; exact mode has nothing to leave out, policies skip whole steps",
            {"chunks": chunks, "latent_frames": self.latent_frames, "rows": self.rows, "tokens": self.tokens},
        )
