"""The latent data set: training clips, encoded once by the frozen encoder, in shards of safetensors.

Clip `i` of a seed is a fixed scene, so its caption needs no storing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from studies.reference import codec, world
from studies.reference.train_vae import to_video

SHARD_CLIPS = 25


def scene(seed: int, index: int) -> world.Scene:
    """Training scene `index` of the data set `seed`."""
    return world.sample_scene(np.random.default_rng([seed, 2, index]), "train")


def encode_shards(vae: Any, folder: Path, first: int, last: int, seed: int = 0) -> None:
    """Encode shards `first` to `last` - 1 into `folder`, leaving out those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(first, last):
        path = folder / f"{shard:04d}.safetensors"
        if path.exists():
            continue
        clips = range(shard * SHARD_CLIPS, (shard + 1) * SHARD_CLIPS)
        with torch.no_grad():
            means = [
                codec.encode(vae, to_video(world.render(scene(seed, clip))))[:, : vae.config.z_dim] for clip in clips
            ]
        fresh = path.with_suffix(".new")
        save_file({"latents": torch.cat(means).half()}, fresh)
        fresh.rename(path)


def load_shards(folder: Path, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Every encoded clip so far.

    Returns:
        Latents [clips, channels, frames, height, width] as half floats, not normalised, and the captions.
    """
    paths = sorted(folder.glob("*.safetensors"))
    latents = torch.cat([load_file(path)["latents"] for path in paths])
    indices = [int(path.stem) * SHARD_CLIPS + offset for path in paths for offset in range(SHARD_CLIPS)]
    return latents, [scene(seed, index).caption for index in indices]


def statistics(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation [channels] of latents [clips, channels, frames, height, width]."""
    return latents.float().mean((0, 2, 3, 4)), latents.float().std((0, 2, 3, 4))


def map_shards(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the latents of every shard by `change` of them."""
    for path in sorted(folder.glob("*.safetensors")):
        save_file({"latents": change(load_file(path)["latents"]).half()}, path)
