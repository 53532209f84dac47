"""What generations of a study take in memory, disk and arithmetic, from configuration files alone: no weights loaded.

Everything here is an estimate. Weights and context are exact up to alignment; activations are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibrate.families.check import Check
from calibrate.spec.generation import Generation
from scope_runtime.context import context_bytes

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Footprint:
    """The shapes that a model's configuration and a study's generation settings give.

    What is computed from them is that of block-causal diffusion forcing with captured keys and values; a family that
    does otherwise says so in a subclass.

    Attributes:
        layers: Of the transformer.
        width: Heads times head dimension.
        ffn_width: Of the feed-forward layers.
        channels: Of the latents.
        window_lengths: Latent frames of each window of a generation; a long video has several.
        latent_height: In latent pixels.
        latent_width: In latent pixels.
        patches: Tokens per latent frame.
        branches: Guidance branches.
        itemsize: Bytes per number in the study's data type.
        generation: The study's settings.
    """

    layers: int
    width: int
    ffn_width: int
    channels: int
    window_lengths: tuple[int, ...]
    latent_height: int
    latent_width: int
    patches: int
    branches: int
    itemsize: int
    generation: Generation

    @property
    def latent_frames(self) -> int:
        """Of the longest window."""
        return self.window_lengths[0]

    @property
    def blocks(self) -> int:
        """Blocks of latent frames that share a noise level, in the longest window."""
        return self.latent_frames // self.generation.causal_block_size

    @property
    def rows(self) -> int:
        """Iterations of the denoising loop in one window."""
        return self.generation.num_inference_steps + self.generation.ar_step * max(0, self.blocks - 1)

    @property
    def bidirectional(self) -> bool:
        """Whether every frame attends to all others, so that nothing can be left out of a computed row."""
        return self.generation.causal_block_size == 1

    @property
    def context_bytes(self) -> int:
        """Captured keys and values of exact mode at the end of a generation; none under bidirectional attention."""
        if self.bidirectional:
            return 0
        return context_bytes(
            layers=self.layers,
            width=self.width,
            tokens=self.generation.causal_block_size * self.patches,
            blocks=self.blocks - 1,
            branches=self.branches,
            batch=1,
            itemsize=self.itemsize,
        )

    @property
    def mask_bytes(self) -> int:
        """The dense attention mask that the stock pipeline builds, one byte for each pair of tokens."""
        return (self.latent_frames * self.patches) ** 2 if self.generation.causal_block_size > 1 else 0

    @property
    def baseline_bytes(self) -> int:
        """A baseline's file: latents and decoded frames in float32."""
        settings = self.generation
        frames = settings.num_frames * settings.height * settings.width * 3
        latents = self.channels * sum(self.window_lengths) * self.latent_height * self.latent_width
        return _FLOAT32_BYTES * (frames + latents)

    @property
    def tokens(self) -> int:
        """That the transformer sees at once."""
        return self.latent_frames * self.patches

    def described(self) -> Check:
        """The check that says what a generation consists of."""
        if self.bidirectional:
            return Check(
                "settings",
                "warning",
                "attention is bidirectional (causal_block_size 1): nothing can be left out of a computed row; set "
                "causal_block_size to 5 and ar_step to 5 for asynchronous generation",
            )
        return Check(
            "settings",
            "ok",
            f"{self.latent_frames} latent frames in {self.blocks} blocks, {self.rows} rows, {self.tokens} tokens",
            {"latent_frames": self.latent_frames, "blocks": self.blocks, "rows": self.rows},
        )

    @property
    def flops(self) -> float:
        """Floating-point operations of one stock generation's transformer calls; text encoder and VAE not counted."""
        tokens = self.tokens
        projections = 12 * tokens * self.width**2  # self-attention's four, cross-attention's query and output
        feed_forward = 4 * tokens * self.width * self.ffn_width
        attention = 4 * tokens**2 * self.width
        return float(
            len(self.window_lengths)
            * self.rows
            * self.branches
            * self.layers
            * (projections + feed_forward + attention)
        )
