"""What generations take that go chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from calibrate.families.check import Check
from calibrate.families.chunked import CHUNK, ChunkedSpec, chunks_of
from calibrate.families.footprint import Footprint
from calibrate.spec.generation import Generation

# Latent frames that a chunk sees before it: in full, at half and at a quarter of the resolution.
_IN_FULL, _HALVED, _QUARTERED = 2, 2, 16


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
