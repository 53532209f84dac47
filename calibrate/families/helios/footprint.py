"""What generations with Helios take, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from calibrate.families.chunked_footprint import ChunkedFootprint
from calibrate.families.diffusers_folder import complete_configuration, read_config
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
    with complete_configuration(folder):
        halved_in_time = vae["temperal_downsample"]
        return ChunkedFootprint.of(
            spec,
            generation,
            patch=transformer["patch_size"][-1],
            scale=2 ** len(halved_in_time),
            per_latent_frame=2 ** sum(halved_in_time),
            layers=transformer["num_layers"],
            width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            ffn_width=transformer["ffn_dim"],
            channels=transformer["in_channels"],
        )
