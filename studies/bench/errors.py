"""The error analysis on the reference pipeline: constants from recorded runs, and the bound beside the measured error.

Constants come from two prompts, bound and measurement from a third.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calibrate.files import write_atomically
from scope_runtime import Policy, Scope, exact, run_policy
from scope_runtime.schedule import AXES, NOISE_LEVEL_AXIS, STEP_AXIS
from studies.bench.error_bound import Course, bound, distances, estimate
from studies.reference import models, world

BINS = 6
POLICIES = {
    "cache": Policy(warmup=4, max_skip=3, cache_threshold=2.0),
    "predict": Policy(warmup=4, max_skip=3, order=1),
    "predict by step": Policy(warmup=4, max_skip=3, order=1, axis=STEP_AXIS),
}


def measure(picture: Path | None) -> dict[str, Any]:
    """The figures of ``python -m studies.bench errors``; draws bound and measured error to ``picture``."""
    pipe = models.load_pipeline()
    *fitted, tested = list(enumerate(world.held_out_prompts(3, seed=1)))
    fully = [record(pipe, case, exact(pipe)) for case in fitted]
    skipped = [record(pipe, case, run_policy(pipe, POLICIES["cache"])) for case in fitted]
    constants = {axis: [estimate(fully, skipped, bins, axis) for bins in (BINS, 1)] for axis in AXES}
    (by_sigma, _), (by_step, _) = (constants[axis] for axis in (NOISE_LEVEL_AXIS, STEP_AXIS))
    full = record(pipe, tested, exact(pipe))
    figures: dict[str, Any] = {
        "constants": {
            "sigma_up_to": [round(edge, 3) for edge in by_sigma.edges],
            "L": [round(value, 3) for value in by_sigma.growth],
            "M1": [round(value, 3) for value in by_sigma.first],
            "M2": [round(value, 1) for value in by_sigma.second],
            "M1_by_step": [round(value, 3) for value in by_step.first],
            "M2_by_step": [round(value, 3) for value in by_step.second],
        }
    }
    curves = {}
    for name, policy in POLICIES.items():
        course = record(pipe, tested, run_policy(pipe, policy))
        measured = distances(course, full)
        limit, textbook = (bound(course.schedule, course.modes, found)[:-1] for found in constants[policy.axis])
        seen = measured > 1e-4
        figures[name] = {
            "measured_final": round(float(measured[-1].max()), 4),
            "bound_final": round(float(limit[-1].max()), 3),
            "bound_final_one_bin": round(float(textbook[-1].max()), 3),
            "rows_within_bound": float((measured <= limit)[seen].double().mean()),
        }
        curves[name] = (measured.max(1).values, limit.max(1).values)
    if picture:
        _draw(curves, picture)
    return figures


def record(pipe: Any, case: tuple[int, str], attached: AbstractContextManager[Scope]) -> Course:
    """Run one prompt under ``exact`` or ``run_policy`` and keep what went into the transformer and what came out."""
    seed, prompt = case
    recorder = _Recorder()
    handle = pipe.transformer.register_forward_hook(recorder, with_kwargs=True)
    try:
        with attached as scope:
            generator = torch.Generator().manual_seed(seed)
            pipe(prompt, output_type="latent", generator=generator, **models.CALL)
    finally:
        handle.remove()
    window = scope.report.windows[0]
    schedule = window.schedule
    guided, unguided = recorder.outputs[0::2], recorder.outputs[1::2]
    scale = models.CALL["guidance_scale"]
    outputs = [u + scale * (c - u) for c, u in zip(guided, unguided, strict=True)]
    # Other letters say why a block was computed; here it counts that it was.
    modes = [
        "".join(
            (letter if letter in "PC" else "R") if block in schedule.active(row) else "."
            for block, letter in enumerate(letters)
        )
        for row, letters in enumerate(window.modes)
    ]
    blocks = schedule.blocks
    return Course(schedule, modes, _by_block(recorder.latents[0::2], blocks), _by_block(outputs, blocks))


@dataclass
class _Recorder:
    """A forward hook: latents in, output out, one pair per guidance branch and row."""

    latents: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.latents.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).clone())
        self.outputs.append(output[0].clone())


def _by_block(rows: Sequence[torch.Tensor], blocks: int) -> torch.Tensor:
    """``[rows, blocks, values]`` from one tensor ``[1, channels, frames, height, width]`` a row."""
    return torch.stack([torch.stack([part.flatten() for part in row.chunk(blocks, dim=2)]) for row in rows])


def _draw(curves: dict[str, tuple[torch.Tensor, torch.Tensor]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for colour, (name, (measured, limit)) in zip(("#0072B2", "#D55E00", "#009E73"), curves.items(), strict=True):
        axes.plot(measured.clamp(min=1e-5), color=colour, label=f"{name}: measured")
        axes.plot(limit.clamp(min=1e-5), color=colour, linestyle="--", label=f"{name}: bound")
    axes.set(
        yscale="log",
        xlabel="row",
        ylabel="distance from the full-compute run\n(RMS of latents, worst block)",
        title="Error of skipping: bound and measurement",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    plt.close(figure)
    write_atomically(picture, image.getvalue())
