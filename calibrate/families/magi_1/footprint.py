"""What generations with MAGI-1 take, read from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.families.footprint import Footprint
from calibrate.families.magi_1.checkout import Checkout
from calibrate.families.magi_1.spec import Magi1Spec
from calibrate.spec.generation import Generation
from scope_runtime.context import context_bytes

_PIXELS = 8  # per latent pixel, in each direction


@dataclass(frozen=True)
class Magi1Footprint(Footprint):
    """As `Footprint`, for MAGI-1: keys and values are stored once, for the whole video, and read over a few chunks.

    Attributes:
        kv_width: Key heads times head dimension.
        reach: Chunks that one attends to, itself included, at most.
        offloaded: Whether keys and values are kept in host memory (`kv_offload`).
    """

    kv_width: int
    reach: int
    offloaded: bool

    @classmethod
    def of(cls, folder: Path, spec: Magi1Spec, generation: Generation) -> Magi1Footprint:
        """Reads the configuration that a study names.

        Args:
            folder: A checkout of the official repository.
            spec: The study's model.
            generation: The study's settings.

        Raises:
            CalibrateError: If the study cannot run with it; see `Checkout`.
        """
        config = Checkout(folder, spec, generation).config
        model, runtime = config.model, config.runtime
        chunk = runtime.chunk_width
        latent_frames = -(-(generation.num_frames // runtime.temporal_downsample_factor) // chunk) * chunk
        height, width = generation.height // _PIXELS, generation.width // _PIXELS
        return cls(
            layers=model.num_layers,
            width=model.num_attention_heads * model.kv_channels,
            ffn_width=model.ffn_hidden_size,
            channels=model.in_channels,
            window_lengths=(latent_frames,),
            latent_height=height,
            latent_width=width,
            patches=(height // model.patch_size) * (width // model.patch_size),
            branches=runtime.cfg_number,
            itemsize=getattr(torch, spec.torch_dtype).itemsize,
            generation=generation,
            kv_width=model.num_query_groups * model.kv_channels,
            reach=max(runtime.noise2clean_kvrange, default=latent_frames // chunk),
            offloaded=config.engine.kv_offload,
        )

    @property
    def bidirectional(self) -> bool:
        """Never: chunks attend to earlier ones."""
        return False

    @property
    def context_bytes(self) -> int:
        """The model's own buffer of keys and values, where it is on the device."""
        if self.offloaded:
            return 0
        return context_bytes(
            layers=self.layers,
            width=self.kv_width,
            tokens=self.generation.causal_block_size * self.patches,
            blocks=self.blocks,
            branches=1,
            batch=1,
            itemsize=self.itemsize,
        )

    @property
    def mask_bytes(self) -> int:
        """No mask is built."""
        return 0

    @property
    def flops(self) -> float:
        """As for `Footprint`, with every chunk computed once per step and branch."""
        tokens = self.generation.causal_block_size * self.patches
        projections = 4 * tokens * self.width * (3 * self.width + self.kv_width)
        feed_forward = 4 * tokens * self.width * self.ffn_width
        attention = 4 * tokens * min(self.reach, self.blocks) * tokens * self.width
        evaluations = self.blocks * self.generation.num_inference_steps * self.branches
        return float(evaluations * self.layers * (projections + feed_forward + attention))
