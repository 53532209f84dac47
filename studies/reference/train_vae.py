"""Training of the reference pipeline's VAE, in stages.

1. `frames`: single frames, which are quick and teach the spatial layers.
2. `clips` and `refine`: nine-frame windows, which teach the temporal layers, first at a high learning rate, then at a
   low one.
3. `decoder`: after `reduction` has taken latent channels out, the encoder is frozen and the decoder alone goes on
   learning. The transformer's data set depends on the encoder alone, so this stage can run beside its training.
"""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from studies.reference import checkpoint, codec, models, world
from studies.reference.optim import MuonAdamW, split_parameters

KL_WEIGHT = 3e-5
L1_WEIGHT = 0.1
# The decoder's own stage adds up to this much noise, in units of each channel's standard deviation, for a decoder that
# forgives what a transformer's latents lack.
DECODER_NOISE = 0.06
POOL_CLIPS = 150
VALIDATION_CLIPS = 4
VALIDATION_SEED = 7_000


@dataclass(frozen=True)
class Stage:
    """One stage of training; `frames` is the window's length, `final_lr` is reached by a cosine from `lr`."""

    steps: int
    frames: int
    batch: int
    lr: float
    final_lr: float
    warm_up: int
    decoder_only: bool = False


STAGES = {
    "frames": Stage(steps=500, frames=1, batch=4, lr=2e-3, final_lr=2e-3, warm_up=30),
    "clips": Stage(steps=250, frames=9, batch=1, lr=2e-3, final_lr=2e-3, warm_up=30),
    "refine": Stage(steps=250, frames=9, batch=2, lr=3.4e-4, final_lr=1e-4, warm_up=1),
    "decoder": Stage(steps=1200, frames=9, batch=2, lr=5e-4, final_lr=2e-5, warm_up=30, decoder_only=True),
}


def train(run: Path, stage_name: str, seed: int = 0, validate_every: int = 250) -> None:
    """Run one stage, going on from `run / "vae.safetensors"`, and log to `training/vae_<stage>.csv` there."""
    stage = STAGES[stage_name]
    torch.manual_seed(seed)
    vae = models.build_vae(models.LATENT_CHANNELS if stage.decoder_only else models.TRAINED_CHANNELS)
    path = run / "vae.safetensors"
    start = 0
    tensors: dict[str, torch.Tensor] = {}
    if path.exists():
        tensors, start = checkpoint.load(path)
        vae.load_state_dict(checkpoint.with_prefix(tensors, "vae"))
    offset = sum(STAGES[name].steps for name in list(STAGES)[: list(STAGES).index(stage_name)])
    first = max(0, start - offset)

    if stage.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = MuonAdamW(*split_parameters(trained), lr=stage.lr)
    if first > 0:
        checkpoint.restore_optimizer(optimizer, checkpoint.with_prefix(tensors, "optimizer"))

    rng = np.random.default_rng([seed, offset + first])
    pool = _render_pool(seed)
    held_out = _validation_clips()
    log = run / f"vae_{stage_name}.csv"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    running: list[float] = []
    with log.open("a", newline="") as file:
        writer = csv.writer(file)
        if first == 0:
            writer.writerow(["step", "loss", "validation_psnr_db", "seconds"])
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(stage, step)
            batch = _windows(pool, stage, rng)
            loss, mse = _loss(vae, batch, stage.decoder_only)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            running.append(mse)
            if (step + 1) % 25 == 0:
                print(f"{step + 1} mse {np.mean(running[-25:]):.5f} {time.monotonic() - began:.0f} s", flush=True)
            if (step + 1) % validate_every == 0 or step + 1 == stage.steps:
                psnr = evaluate_psnr(vae, held_out)
                seconds = time.monotonic() - began
                writer.writerow([step + 1, f"{np.mean(running[-100:]):.6f}", f"{psnr:.3f}", f"{seconds:.1f}"])
                file.flush()
                print(f"{stage_name} {step + 1}: validation {psnr:.2f} dB", flush=True)
                state = checkpoint.add_prefix(vae.state_dict(), "vae")
                state |= checkpoint.add_prefix(checkpoint.optimizer_tensors(optimizer), "optimizer")
                checkpoint.save(path, state, offset + step + 1)


def evaluate_psnr(vae: Any, clips: torch.Tensor) -> float:
    """Mean PSNR in dB, over a range of 2, of whole clips [n, 3, frames, height, width] through the VAE."""
    values = []
    with torch.no_grad():
        for clip in clips.split(1):
            mean = codec.encode(vae, clip)[:, : vae.config.z_dim]
            error = functional.mse_loss(codec.decode(vae, mean).clamp(-1, 1), clip).item()
            values.append(10 * math.log10(4 / error))
    return float(np.mean(values))


def to_video(frames: world.Frames) -> torch.Tensor:
    """Frames [frames, height, width, 3] as a video [1, 3, frames, height, width]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].contiguous()


def _loss(vae: Any, video: torch.Tensor, decoder_only: bool) -> tuple[torch.Tensor, float]:
    with torch.set_grad_enabled(not decoder_only):
        mean, log_variance = codec.encode(vae, video).chunk(2, dim=1)
        log_variance = log_variance.clamp(-12.0, 4.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        width = (0.5 * log_variance).exp()
        if decoder_only:
            spread = mean.std((0, 2, 3, 4), keepdim=True)
            width = width + DECODER_NOISE * torch.rand(len(mean), 1, 1, 1, 1) * spread
        latents = mean + torch.randn_like(mean) * width
    decoded = codec.decode(vae, latents)
    mse = functional.mse_loss(decoded, video)
    loss = mse + L1_WEIGHT * functional.l1_loss(decoded, video)
    return loss if decoder_only else loss + KL_WEIGHT * kl, mse.item()


def _learning_rate(stage: Stage, step: int) -> float:
    if step < stage.warm_up:
        return stage.lr * (step + 1) / stage.warm_up
    progress = (step - stage.warm_up) / max(1, stage.steps - stage.warm_up)
    return stage.final_lr + (stage.lr - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def _render_pool(seed: int) -> np.ndarray:
    """Training clips as bytes [clips, frames, height, width, 3]: rendering is slower than a look-up."""
    rng = np.random.default_rng([seed, 1])
    pool = np.empty((POOL_CLIPS, world.FRAMES, world.SIZE, world.SIZE, 3), dtype=np.uint8)
    for index in range(POOL_CLIPS):
        pool[index] = np.round((world.render(world.sample_scene(rng, "train")) + 1) * 127.5)
    return pool


def _windows(pool: np.ndarray, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    """A batch of random windows [batch, 3, frames, height, width] in [-1, 1]."""
    clips = rng.integers(len(pool), size=stage.batch)
    starts = rng.integers(world.FRAMES - stage.frames + 1, size=stage.batch)
    windows = np.stack([pool[c, s : s + stage.frames] for c, s in zip(clips, starts, strict=True)])
    return torch.from_numpy(windows).float().div(127.5).sub(1).permute(0, 4, 1, 2, 3).contiguous()


def _validation_clips() -> torch.Tensor:
    rng = np.random.default_rng(VALIDATION_SEED)
    return torch.cat([to_video(world.render(world.sample_scene(rng, "held_out"))) for _ in range(VALIDATION_CLIPS)])
