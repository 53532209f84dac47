"""What generations with FramePack take, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from calibrate.families.chunked_footprint import ChunkedFootprint
from calibrate.families.diffusers_folder import complete_configuration, read_config
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
    with complete_configuration(folder):
        width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        return ChunkedFootprint.of(
            spec,
            generation,
            patch=transformer["patch_size"],
            scale=vae["spatial_compression_ratio"],
            per_latent_frame=vae["temporal_compression_ratio"],
            layers=transformer["num_layers"] + transformer["num_single_layers"],
            width=width,
            ffn_width=int(width * transformer["mlp_ratio"]),
            channels=transformer["in_channels"],
        )
