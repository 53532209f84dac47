"""Training of the reference pipeline's VAE, in stages.

1. `frames`: single frames, which are quick and teach the spatial layers.
2. `clips`: nine-frame windows, which teach the temporal layers.

The latents are not left to the training's choice: the encoder learns to produce small keyframes, which are every fourth
frame averaged over squares of 4 x 4 pixels, and the decoder learns to fill in pixels and frames between them. Such
latents have no fine structure of the encoder's own making, which a transformer would have to learn like noise; and
neither training waits for the other.
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

L1_WEIGHT = 0.1
# The decoder learns under up to this much noise, in units of the latents' standard deviation: it has to forgive what
# the encoder's and a transformer's latents lack.
LATENT_NOISE = 0.06
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


STAGES = {
    "frames": Stage(steps=600, frames=1, batch=6, lr=2e-3, final_lr=1e-3, warm_up=30),
    "clips": Stage(steps=1400, frames=9, batch=2, lr=1e-3, final_lr=2e-5, warm_up=30),
}


def train(run: Path, stage_name: str, seed: int = 0, validate_every: int = 250) -> None:
    """Run one stage, going on from `run / "vae.safetensors"`, and log to `run / "vae_<stage>.csv"`."""
    stage = STAGES[stage_name]
    torch.manual_seed(seed)
    vae = models.build_vae()
    path = run / "vae.safetensors"
    start = 0
    tensors: dict[str, torch.Tensor] = {}
    if path.exists():
        tensors, start = checkpoint.load(path)
        vae.load_state_dict(checkpoint.with_prefix(tensors, "vae"))
    offset = sum(STAGES[name].steps for name in list(STAGES)[: list(STAGES).index(stage_name)])
    first = max(0, start - offset)

    optimizer = MuonAdamW(*split_parameters(vae.parameters()), lr=stage.lr)
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
            loss, mse = _loss(vae, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
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


def _loss(vae: Any, video: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The encoder's error against the keyframes plus the decoder's from them; and the decoder's mean squared error."""
    keyframes = codec.shrink(video[:, :, ::4])
    encoded = codec.encode(vae, video)[:, : models.LATENT_CHANNELS]
    noise = torch.randn_like(keyframes) * torch.rand(len(keyframes), 1, 1, 1, 1)
    decoded = codec.decode(vae, keyframes + LATENT_NOISE * models.LATENT_STD * noise)
    mse = functional.mse_loss(decoded, video)
    loss = functional.mse_loss(encoded, keyframes) + mse + L1_WEIGHT * functional.l1_loss(decoded, video)
    return loss, mse.item()


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
    return torch.cat(
        [codec.to_video(world.render(world.sample_scene(rng, "held_out"))) for _ in range(VALIDATION_CLIPS)]
    )
