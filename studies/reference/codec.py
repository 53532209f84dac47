"""The VAE over whole clips at once, for training and for encoding many clips.

`AutoencoderKLWan` walks through a clip in chunks of four frames with a cache per convolution, which costs more in
overhead than in arithmetic at this size. Every layer is causal and starts from zero padding, so one pass over all
frames computes the same numbers; only the two temporal resampling layers treat the first frame specially.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanUpBlock
from torch.nn import functional

from studies.reference import world


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Encode clips in one pass.

    Args:
        vae: the autoencoder.
        video: pixels [batch, 3, 4 n + 1, height, width] in [-1, 1].

    Returns:
        The posterior's mean and log-variance [batch, 2 z_dim, n + 1, height / 4, width / 4], as the posterior of
        `vae.encode` holds them.
    """
    encoder = vae.encoder
    x = encoder.conv_in(video)
    for layer in encoder.down_blocks:
        x = _resample(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.mid_block(x)
    return vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x))))


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode clips in one pass, without the clamp of `vae.decode`.

    Args:
        vae: the autoencoder.
        latents: [batch, z_dim, n + 1, height / 4, width / 4], not normalised.

    Returns:
        Pixels [batch, 3, 4 n + 1, height, width], about [-1, 1].
    """
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        x = _up_block(block, x)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


def to_video(frames: world.Frames) -> torch.Tensor:
    """Frames [frames, height, width, 3] as a video [1, 3, frames, height, width]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].contiguous()


def shrink(video: torch.Tensor) -> torch.Tensor:
    """Average squares of 4 x 4 pixels; of every fourth frame this gives the latents the encoder is trained to produce.

    Args:
        video: pixels [batch, 3, frames, height, width].

    Returns:
        Pixels [batch, 3, frames, height / 4, width / 4].
    """
    return functional.avg_pool3d(video, (1, 4, 4))


def _up_block(block: WanUpBlock, x: torch.Tensor) -> torch.Tensor:
    for resnet in block.resnets:
        x = resnet(x)
    for upsampler in block.upsamplers or []:
        x = _resample(upsampler, x)
    return x


def _resample(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Resample in space and, beyond the first frame, in time.

    Called without a cache, the layer itself does its spatial part only.
    """
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        batch, channels, frames, height, width = x.shape
        doubled = layer.time_conv(x[:, :, 1:]).view(batch, 2, channels, frames - 1, height, width)
        doubled = torch.stack((doubled[:, 0], doubled[:, 1]), dim=3).flatten(2, 3)
        return layer(torch.cat([x[:, :, :1], doubled], dim=2))
    x = layer(x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x
