"""Traces: what a full-compute run's model outputs were, in a few hundred kilobytes.

Replay compares outputs of one block with each other: it extrapolates some of them and measures distances. Both depend
on nothing but the outputs' mutual geometry, so a trace keeps, in place of each output, its coordinates in an
orthonormal basis of all outputs of its block (a QR decomposition). Every linear combination and every norm comes out
as it would on the outputs themselves, while a file takes (updates x branches)^2 numbers per block, whatever the
resolution. Blocks with more than `MAX_SAMPLES` elements are thinned to that many beforehand, drawn at random, which
bounds the memory that recording takes.

For the fit of learned weights (`calibrate.measure.gap_fit`) a trace also keeps the latents that every update led to,
element by element and thinned in the same way: outputs of an accelerated run lie outside the basis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.spec.generation import Generation
from scope_runtime import Phase, Schedule

# Part of a baseline's name: a change of what is recorded makes new baselines.
TRACE_FORMAT = 4
# Elements of a block's output that are kept while recording.
MAX_SAMPLES = 16_384
_SAMPLING_SEED = 0
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class WindowTrace:
    """One window of a full-compute run.

    Attributes:
        schedule: Its plan.
        volatile: Complete blocks whose input changes in every row; see `scope_runtime.engine.Engine`.
        changes: Relative L1 change of the modulated input [rows, blocks]; NaN where there is none.
        outputs: Coordinates of the raw outputs [branches, rows, blocks, rank], zero where a block is not active. Scaled
            so that a norm is the root mean square over a block's elements.
        states: Latents after every update of every block [updates, blocks, elements], those of `kept_elements`; None
            where they cannot be looked at while the model runs.
    """

    schedule: Schedule
    volatile: frozenset[int]
    changes: NDArray[np.float64]
    outputs: torch.Tensor
    states: torch.Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """A full-compute run.

    Attributes:
        branches: Guidance branches in the order of their calls.
        guidance_scale: How the branches are combined.
        windows: In order; a long video has several.
    """

    branches: tuple[str, ...]
    guidance_scale: float
    windows: tuple[WindowTrace, ...]

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], str]:
        """Tensors and metadata for a safetensors file."""
        tensors: dict[str, torch.Tensor] = {}
        for number, window in enumerate(self.windows):
            schedule = window.schedule
            tensors |= {
                f"trace.{number}.sigma": torch.tensor(schedule.sigma, dtype=torch.float64),
                f"trace.{number}.phase": torch.tensor(schedule.phase, dtype=torch.uint8),
                f"trace.{number}.changes": torch.from_numpy(np.require(window.changes, requirements="W")),
                f"trace.{number}.outputs": window.outputs.contiguous(),
            }
            if window.states is not None:
                tensors[f"trace.{number}.states"] = window.states.contiguous()
        metadata = {
            "branches": self.branches,
            "guidance_scale": self.guidance_scale,
            "windows": [
                {
                    "block_frames": window.schedule.block_frames,
                    "causal": window.schedule.causal,
                    "volatile": sorted(window.volatile),
                    "restarts": sorted(window.schedule.restarts),
                    "offered_once": window.schedule.offered_once,
                    "branches": window.schedule.branches,
                    "stock": window.schedule.stock,
                }
                for window in self.windows
            ],
        }
        return tensors, json.dumps(metadata, allow_nan=False)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], metadata: str) -> Trace:
        """Inverse of `to_tensors`.

        Raises:
            KeyError: If a part is missing.
            ValueError: If the metadata cannot be read.
        """
        described = json.loads(metadata)
        windows = tuple(_read_window(tensors, number, about) for number, about in enumerate(described["windows"]))
        return cls(tuple(described["branches"]), described["guidance_scale"], windows)


def _read_window(tensors: Mapping[str, torch.Tensor], number: int, about: Mapping[str, Any]) -> WindowTrace:
    schedule = Schedule(
        sigma=tuple(map(tuple, tensors[f"trace.{number}.sigma"].tolist())),
        phase=tuple(tuple(map(Phase, row)) for row in tensors[f"trace.{number}.phase"].tolist()),
        block_frames=about["block_frames"],
        causal=about["causal"],
        # What a trace of an older version lacks is what only newer families have.
        restarts=frozenset((row, block) for row, block in about.get("restarts", ())),
        offered_once=about.get("offered_once", False),
        branches=tuple(map(tuple, about.get("branches", ()))),
        stock=tuple(about.get("stock", ())),
    )
    changes = tensors[f"trace.{number}.changes"].numpy()
    outputs, states = tensors[f"trace.{number}.outputs"], tensors.get(f"trace.{number}.states")
    return WindowTrace(schedule, frozenset(about["volatile"]), changes, outputs, states)


class TraceRecorder:
    """Records a full-compute run; see `scope_runtime.exact`."""

    def __init__(self, guidance_scale: float, max_samples: int = MAX_SAMPLES) -> None:
        """Starts with nothing recorded.

        Args:
            guidance_scale: The run's.
            max_samples: Elements of a block's output that are kept.
        """
        self.guidance_scale = guidance_scale
        self.max_samples = max_samples
        self._branches: list[str] = []
        self._windows: list[_Recording] = []

    def begin(self, schedule: Schedule, volatile: frozenset[int]) -> None:
        """A window begins."""
        self._windows.append(_Recording(schedule, volatile, self.max_samples))

    def record(self, row: int, branch: str, changes: Mapping[int, float], outputs: Mapping[int, torch.Tensor]) -> None:
        """One model call of the current window."""
        if branch not in self._branches:
            self._branches.append(branch)
        self._windows[-1].add(row, self._branches.index(branch), changes, outputs)

    def after_row(self, row: int, latents: torch.Tensor) -> None:
        """The latents [1, channels, frames, h, w] that a row of the window that runs led to."""
        self._windows[-1].add_states(row, latents)

    def trace(self) -> Trace:
        """What was recorded."""
        branches = len(self._branches)
        return Trace(
            tuple(self._branches), self.guidance_scale, tuple(window.finish(branches) for window in self._windows)
        )


class _Recording:
    """One window while it runs."""

    def __init__(self, schedule: Schedule, volatile: frozenset[int], max_samples: int) -> None:
        self.schedule = schedule
        self.volatile = volatile
        self.changes = np.full((schedule.rows, schedule.blocks), np.nan)
        self._max_samples = max_samples
        self._kept: torch.Tensor | None = None
        self._outputs: dict[int, dict[tuple[int, int], torch.Tensor]] = {b: {} for b in range(schedule.blocks)}
        self._states: dict[int, list[torch.Tensor]] = {b: [] for b in range(schedule.blocks)}

    def add(self, row: int, branch: int, changes: Mapping[int, float], outputs: Mapping[int, torch.Tensor]) -> None:
        for block, change in changes.items():
            self.changes[row, block] = change
        for block, output in outputs.items():
            self._outputs[block][branch, row] = self._thinned(output)

    def add_states(self, row: int, latents: torch.Tensor) -> None:
        width = self.schedule.block_frames
        for block in self.schedule.active(row):
            self._states[block].append(self._thinned(latents[:, :, block * width : (block + 1) * width]))

    def _thinned(self, output: torch.Tensor) -> torch.Tensor:
        flat = output.flatten()
        if flat.numel() <= self._max_samples:
            return flat.float().cpu().clone()
        if self._kept is None:
            self._kept = kept_elements(flat.numel(), self._max_samples).to(flat.device)
        return flat[self._kept].float().cpu()

    def finish(self, branches: int) -> WindowTrace:
        coordinates = {block: _coordinates(list(kept.values())) for block, kept in self._outputs.items() if kept}
        rank = max((c.shape[1] for c in coordinates.values()), default=0)
        outputs = torch.zeros(branches, self.schedule.rows, self.schedule.blocks, rank)
        for block, values in coordinates.items():
            for (branch, row), value in zip(self._outputs[block], values, strict=True):
                outputs[branch, row, block, : len(value)] = value
        # Blocks that come with a prefix have no updates; a fit has nothing to do there.
        whole = len({len(states) for states in self._states.values()}) == 1 and bool(self._states[0])
        states = torch.stack([torch.stack(s) for s in self._states.values()], dim=1) if whole else None
        return WindowTrace(self.schedule, self.volatile, self.changes, outputs, states)


def kept_elements(elements: int, max_samples: int = MAX_SAMPLES) -> torch.Tensor:
    """The elements [n] of a flattened block that traces keep, ascending; all of them where they are few."""
    if elements <= max_samples:
        return torch.arange(elements)
    # At random: a regular grid could fall in step with the model's patches.
    order = torch.randperm(elements, generator=torch.Generator().manual_seed(_SAMPLING_SEED))
    return order[:max_samples].sort().values


def _coordinates(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Coordinates [n, at most n] of n vectors in an orthonormal basis of their span, with norms per element."""
    stacked = torch.stack(vectors).double() / math.sqrt(vectors[0].numel())
    return torch.linalg.qr(stacked.T, mode="r").R.T.float()


@dataclass(frozen=True)
class TraceSize:
    """What recording a case takes at most, known beforehand.

    Attributes:
        file_bytes: On disk, beside the baseline's latents and frames.
        memory_bytes: Of host memory, while the run lasts.
        share: Of a block's elements that are looked at.
    """

    file_bytes: int
    memory_bytes: int
    share: float

    @classmethod
    def of(
        cls,
        generation: Generation,
        channels: int,
        scale: int,
        blocks: int,
        windows: int,
        branches: int,
        max_samples: int = MAX_SAMPLES,
        *,
        block_frames: int | None = None,
        states: bool | None = None,
    ) -> TraceSize:
        """Computes the bounds.

        Args:
            generation: A study's settings.
            channels: Of the model's output.
            scale: Pixels per latent pixel, in each direction.
            blocks: Of a window.
            windows: Of the video.
            branches: Outputs that are recorded per block and row.
            max_samples: Elements of a block's output that are kept.
            block_frames: Latent frames of a block; the study's by default.
            states: Whether the latents after every update are kept; by default of videos of one window.
        """
        steps = generation.num_inference_steps
        rows = steps + generation.ar_step * (blocks - 1)
        frames = block_frames or generation.causal_block_size
        elements = channels * frames * (generation.height // scale) * (generation.width // scale)
        samples = min(elements, max_samples)
        rank = min(steps * branches, samples)
        kept = windows == 1 if states is None else states
        states_bytes = steps * blocks * samples * 4 if kept else 0
        per_row_and_block = branches * rank * 4 + 8 + 8 + 1  # coordinates, change, sigma, phase
        return cls(
            file_bytes=windows * (rows * blocks * per_row_and_block + states_bytes),
            memory_bytes=windows * (blocks * steps * branches * samples * 4 + states_bytes),
            share=samples / elements,
        )

    def __str__(self) -> str:
        return (
            f"at most {self.file_bytes / _MEBIBYTE:.2g} MiB on disk and {self.memory_bytes / _MEBIBYTE:.2g} MiB of "
            f"host memory while recording, from {self.share:.0%} of the elements"
        )
