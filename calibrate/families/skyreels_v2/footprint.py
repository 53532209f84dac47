"""What generations with SkyReels-V2 take, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

import torch

from calibrate.errors import CalibrateError
from calibrate.families.diffusers_folder import complete_configuration, read_config
from calibrate.families.footprint import Footprint
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.families.skyreels_v2.windows import windows_of
from calibrate.spec.generation import Generation

_DEFAULT_REACH = 1024  # the transformer's own default


def footprint_of(folder: Path, spec: SkyReelsV2Spec, generation: Generation) -> Footprint:
    """Reads a pipeline's configuration.

    Args:
        folder: A diffusers folder.
        spec: Of which the data type counts.
        generation: Settings of the pipeline call.

    Raises:
        CalibrateError: If a configuration file is missing or lacks a field, or the settings do not fit it.
    """
    transformer, vae = read_config(folder / "transformer"), read_config(folder / "vae")
    with complete_configuration(folder):
        _, patch_height, patch_width = transformer["patch_size"]
        halved_in_time = vae["temperal_downsample"]
        height, width = (size // 2 ** len(halved_in_time) for size in (generation.height, generation.width))
        lengths = windows_of(generation, 2 ** sum(halved_in_time))
        reach = transformer.get("rope_max_seq_len", _DEFAULT_REACH)
        for name, size in (
            ("num_frames", lengths[0]), ("height", height // patch_height), ("width", width // patch_width)
        ):  # fmt: skip
            if size > reach:
                raise CalibrateError(
                    f"generation.{name}: {getattr(generation, name)} gives {size} positions, more than the {reach} "
                    "that the transformer knows; lower it."
                )
        return Footprint(
            layers=transformer["num_layers"],
            width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            ffn_width=transformer["ffn_dim"],
            channels=transformer["in_channels"],
            window_lengths=lengths,
            latent_height=height,
            latent_width=width,
            patches=(height // patch_height) * (width // patch_width),
            branches=2 if generation.guidance_scale > 1 else 1,
            itemsize=getattr(torch, spec.torch_dtype).itemsize,
            generation=generation,
        )
