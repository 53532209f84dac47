"""What generations with Helios take, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

import torch

from calibrate.errors import CalibrateError
from calibrate.families.chunked import CHUNK, ChunkedFootprint, chunks_of
from calibrate.families.diffusers_folder import read_config
from calibrate.families.helios.spec import HeliosSpec
from calibrate.spec.generation import Generation


def footprint_of(folder: Path, spec: HeliosSpec, generation: Generation) -> ChunkedFootprint:
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
        _, patch_height, patch_width = transformer["patch_size"]
        halved_in_time = vae["temperal_downsample"]
        height, width = (size // 2 ** len(halved_in_time) for size in (generation.height, generation.width))
        return ChunkedFootprint(
            layers=transformer["num_layers"],
            width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            ffn_width=transformer["ffn_dim"],
            channels=transformer["in_channels"],
            window_lengths=(CHUNK,) * chunks_of(generation, 2 ** sum(halved_in_time)),
            latent_height=height,
            latent_width=width,
            patches=(height // patch_height) * (width // patch_width),
            branches=2 if generation.guidance_scale > 1 else 1,
            itemsize=getattr(torch, spec.torch_dtype).itemsize,
            generation=generation,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrateError(
            f"model.path: {folder} has an incomplete transformer/config.json or vae/config.json ({error}); "
            "download the pipeline again."
        ) from error
