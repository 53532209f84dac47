"""The steps of a training: learning rates, moving average, checkpoints and the loss curve."""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studies.reference import checkpoint
from studies.reference.optim import MuonAdamW

_SAVE_EVERY = 100
_TOLD_EVERY = 25


@dataclass(frozen=True)
class Course:
    """How long, and how fast: learning rates rise over `warm_up` steps and fall to zero over the last `decay` steps."""

    steps: int
    decay: int
    adamw_lr: float
    muon_lr: float
    warm_up: int = 60
    ema: float = 0.995


def schedule(course: Course, step: int) -> float:
    """The factor of the learning rates: a linear warm-up, a plateau, and a linear descent to zero."""
    return min(1.0, (step + 1) / course.warm_up, (course.steps - step) / course.decay)


def train_steps(
    run: Path,
    parts: torch.nn.ModuleDict,
    optimizer: MuonAdamW,
    course: Course,
    loss_of: Callable[[int, torch.Generator], torch.Tensor],
    seed: int,
) -> None:
    """Train, going on from `run / "transformer.safetensors"` where there is one; log to `run / "transformer.csv"`.

    Args:
        run: folder of checkpoint and curve.
        parts: what is trained, its "transformer" compiled block by block: a third of a step goes into small
            element-wise kernels, and compiling fuses them.
        optimizer: over all parameters of `parts`.
        course: how long, and how fast.
        loss_of: the loss of a step, from its number and the source of chance.
        seed: of that source.
    """
    average = copy.deepcopy(parts).requires_grad_(False)
    path, first = run / "transformer.safetensors", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        tensors, first = checkpoint.load(path)
        parts.load_state_dict(checkpoint.with_prefix(tensors, "parts"))
        average.load_state_dict(checkpoint.with_prefix(tensors, "average"))
        checkpoint.restore_optimizer(optimizer, checkpoint.with_prefix(tensors, "optimizer"))
    transformer: Any = parts["transformer"]
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)

    generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
    began = time.monotonic()
    losses: list[float] = []
    with (run / "transformer.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        if first == 0:
            writer.writerow(["step", "loss", "schedule", "seconds"])
        for step in range(first, course.steps):
            factor = schedule(course, step)
            for group in optimizer.param_groups:
                group["lr"] = factor * (course.muon_lr if group["muon"] else course.adamw_lr)
            loss = loss_of(step, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            optimizer.step()
            _update_average(average, parts, min(course.ema, (step + 1) / (step + 10)))
            losses.append(loss.item())
            if (step + 1) % _TOLD_EVERY == 0:
                seconds, mean = time.monotonic() - began, float(np.mean(losses[-_TOLD_EVERY:]))
                writer.writerow([step + 1, f"{mean:.5f}", f"{factor:.3f}", f"{seconds:.1f}"])
                file.flush()
                print(f"{step + 1}/{course.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == course.steps:
                state = checkpoint.add_prefix(parts.state_dict(), "parts")
                state |= checkpoint.add_prefix(average.state_dict(), "average")
                state |= checkpoint.add_prefix(checkpoint.optimizer_tensors(optimizer), "optimizer")
                checkpoint.save(path, state, step + 1)


@torch.no_grad()
def _update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
