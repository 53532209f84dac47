"""The transformer's data set: latents of training clips and their captions.

The VAE's latents are small keyframes (see `train_vae`), so a clip's latents are rendered, not encoded: the data set
needs no VAE, and the two are trained side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from studies.reference import codec, models, world


def scene(seed: int, index: int) -> world.Scene:
    """Training scene `index` of the data set `seed`."""
    return world.sample_scene(np.random.default_rng([seed, 2, index]), "train")


def data_set(
    seed: int, clips: int, keyframes: Sequence[int] = range(0, world.FRAMES, 4)
) -> tuple[torch.Tensor, list[str]]:
    """The first `clips` clips of the data set `seed`.

    Args:
        seed: of the data set.
        clips: how many.
        keyframes: numbers of the frames that the latents are small pictures of, in order.

    Returns:
        Latents [clips, LATENT_CHANNELS, keyframes, LATENT_SIZE, LATENT_SIZE] as half floats, normalised, and the
        captions.
    """
    shape = (clips, models.LATENT_CHANNELS, len(keyframes), models.LATENT_SIZE, models.LATENT_SIZE)
    latents = torch.empty(shape, dtype=torch.float16)
    captions = []
    for index in range(clips):
        drawn = scene(seed, index)
        video = codec.to_video(world.render(drawn, frames=keyframes[-1] + 1, kept=keyframes))
        latents[index] = codec.shrink(video)[0] / models.LATENT_STD
        captions.append(drawn.caption)
    return latents, captions
