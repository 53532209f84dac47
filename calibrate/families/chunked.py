"""What a study says of families that make a video chunk by chunk.

Each chunk of frames goes through a denoising loop of its own, all frames of it at one noise level, and sees the clean
chunks before it.
"""

from __future__ import annotations

from calibrate.families.diffusers_folder import DiffusersSpec
from calibrate.spec.generation import Generation
from calibrate.spec.search_space import SearchSpace

CHUNK = 9
"""Latent frames of a chunk."""


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
