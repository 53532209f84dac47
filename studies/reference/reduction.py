"""Fewer latent channels by principal components, folded into the VAE's own convolutions.

A transformer token holds 4 x 4 latents of every channel and has to carry all of them through a residual stream of width
192. The VAE learns fastest with eight channels, the transformer with fewer. Projecting the latents on their first five
principal components keeps nearly all that the decoder uses, and the decoder's own training stage recovers the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from studies.reference import models


@dataclass(frozen=True)
class Reduction:
    """An orthonormal projection: `reduced = basis.T @ (latent - mean)` per position.

    `basis` is [trained channels, kept channels], `mean` [trained channels], and `scale` the root mean square of the
    reduced latents, one number for all channels so that distances keep their meaning for the decoder.
    """

    basis: torch.Tensor
    mean: torch.Tensor
    scale: float


def principal_components(latents: torch.Tensor, keep: int = models.LATENT_CHANNELS) -> Reduction:
    """The reduction for latents [clips, channels, frames, height, width]."""
    flat = latents.float().transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    centred = flat - mean[:, None]
    _, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    basis = vectors.flip(1)[:, :keep].contiguous()
    scale = (basis.T @ centred).square().mean().sqrt().item()
    return Reduction(basis, mean, scale)


def reduce_latents(reduction: Reduction, latents: torch.Tensor) -> torch.Tensor:
    """Latents [clips, trained channels, ...] as [clips, kept channels, ...], not normalised."""
    centred = latents.float() - reduction.mean.view(1, -1, 1, 1, 1)
    return torch.einsum("ci,bcthw->bithw", reduction.basis, centred).contiguous()


def save(run: Path, reduction: Reduction) -> None:
    """Write a reduction to the folder of a run."""
    tensors = {"basis": reduction.basis, "mean": reduction.mean, "scale": torch.tensor(reduction.scale)}
    save_file(tensors, run / "reduction.safetensors")


def exists(run: Path) -> bool:
    """Whether a run's latents are reduced."""
    return (run / "reduction.safetensors").exists()


def load(run: Path) -> Reduction:
    """Read what `save` wrote."""
    tensors = load_file(run / "reduction.safetensors")
    return Reduction(tensors["basis"], tensors["mean"], tensors["scale"].item())


@torch.no_grad()
def reduce_vae(vae: Any, reduction: Reduction) -> Any:
    """A VAE with the kept channels whose posterior's mean is the reduced mean of `vae`.

    The encoder's last two layers are one linear map, so its side is exact. On the decoder's side the constant that the
    mean contributes goes into a bias, which is exact but for the zero padding at the borders.
    """
    kept = reduction.basis.shape[1]
    reduced = models.build_vae(kept, reduction.scale)
    state = vae.state_dict()
    replaced = [name for name, value in reduced.state_dict().items() if value.shape != state[name].shape]
    reduced.load_state_dict({**reduced.state_dict(), **{k: v for k, v in state.items() if k not in replaced}})

    trained = len(reduction.mean)
    quant = vae.quant_conv.weight[:trained, :, 0, 0, 0]
    project = reduction.basis.T @ quant
    head, source = reduced.encoder.conv_out, vae.encoder.conv_out
    head.weight.zero_()
    head.weight[:kept] = torch.einsum("io,ocxyz->icxyz", project, source.weight)
    constant = vae.quant_conv.bias[:trained] - reduction.mean
    head.bias.zero_()
    head.bias[:kept] = project @ source.bias + reduction.basis.T @ constant
    _set_identity(reduced.quant_conv)
    # The posterior's width follows no linear map; what remains of the training does not use it.
    reduced.quant_conv.bias[kept:] = -6.0

    post = vae.post_quant_conv.weight[:, :, 0, 0, 0]
    tail, source = reduced.decoder.conv_in, vae.decoder.conv_in
    tail.weight.copy_(torch.einsum("ocxyz,ci->oixyz", source.weight, post @ reduction.basis))
    constant = post @ reduction.mean + vae.post_quant_conv.bias
    tail.bias.copy_(source.bias + source.weight.sum((2, 3, 4)) @ constant)
    _set_identity(reduced.post_quant_conv)
    return reduced


def reduce_transformer(
    weights: Mapping[str, torch.Tensor], reduction: Reduction, std: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The transformer's weights for reduced latents, as a start for further training.

    Its first layer reads, and its last one writes, what the projection keeps. Noise is spread differently over the
    channels afterwards, to which the transformer has to adapt.

    Args:
        weights: of a transformer trained on latents normalised per channel.
        reduction: the projection.
        std: the standard deviations [trained channels] of that normalisation.
    """
    reduced = dict(weights)
    read = reduction.basis * reduction.scale / std[:, None]
    write = reduction.basis / reduction.scale * std[:, None]
    reduced["patch_embedding.weight"] = torch.einsum("ojtxy,ji->oitxy", weights["patch_embedding.weight"], read)
    for name in ("proj_out.weight", "proj_out.bias"):
        # Rows are ordered [position in the patch, channel].
        rows = weights[name].unflatten(0, (-1, len(std)))
        reduced[name] = torch.einsum("pj...,ji->pi...", rows, write).flatten(0, 1)
    return reduced


def _set_identity(convolution: Any) -> None:
    convolution.weight.copy_(torch.eye(convolution.weight.shape[0])[..., None, None, None])
    convolution.bias.zero_()
