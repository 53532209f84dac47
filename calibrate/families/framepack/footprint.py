"""What generations with FramePack take, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

import torch

from calibrate.errors import CalibrateError
from calibrate.families.chunked import CHUNK, ChunkedFootprint, chunks_of
from calibrate.families.diffusers_folder import read_config
from calibrate.families.framepack.spec import FramepackSpec
from calibrate.spec.generation import Generation


def footprint_of(folder: Path, spec: FramepackSpec, generation: Generation) -> ChunkedFootprint:
    """Reads a pipeline's configuration.

    Args:
        folder: A diffusers folder.
        spec: Of which the data type counts.
        generation: Settings of the pipeline call.

    Raises:
        CalibrateError: If a configuration file is missing or lacks a field.
    """
    transformer, vae = read_config(folder / "transformer"), read_config(folder / "vae")
    try:
        patch = transformer["patch_size"]
        scale, per_latent_frame = vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]
        height, width = generation.height // scale, generation.width // scale
        inner = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        return ChunkedFootprint(
            layers=transformer["num_layers"] + transformer["num_single_layers"],
            width=inner,
            ffn_width=int(inner * transformer["mlp_ratio"]),
            channels=transformer["in_channels"],
            window_lengths=(CHUNK,) * chunks_of(generation, per_latent_frame),
            latent_height=height,
            latent_width=width,
            patches=(height // patch) * (width // patch),
            branches=2 if generation.guidance_scale > 1 else 1,
            itemsize=getattr(torch, spec.torch_dtype).itemsize,
            generation=generation,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrateError(
            f"model.path: {folder} has an incomplete transformer/config.json or vae/config.json ({error}); "
            "download the pipeline again."
        ) from error
