"""Traces: what a full-compute run's model outputs were, in a few hundred kilobytes.

Replay compares outputs of one block with each other: it extrapolates some of them and measures distances. Both depend
on nothing but the outputs' mutual geometry, so a trace keeps, in place of each output, its coordinates in an
orthonormal basis of all outputs of its block (a QR decomposition). Every linear combination and every norm comes out
as it would on the outputs themselves, while a file takes (updates x branches)^2 numbers per block, whatever the
resolution. Blocks with more than `MAX_SAMPLES` elements are thinned to that many beforehand, drawn at random, which
bounds the memory that recording takes.
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

from calibrate.study_file import Generation
from calibrate.windows import windows_of
from scope_runtime import Phase, Schedule

# Part of a baseline's name: a change of what is recorded makes new baselines.
TRACE_FORMAT = 2
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
    """

    schedule: Schedule
    volatile: frozenset[int]
    changes: NDArray[np.float64]
    outputs: torch.Tensor


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
                f"trace.{number}.changes": torch.from_numpy(window.changes),
                f"trace.{number}.outputs": window.outputs.contiguous(),
            }
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
    return WindowTrace(schedule, frozenset(about["volatile"]), changes, tensors[f"trace.{number}.outputs"])


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

    def add(self, row: int, branch: int, changes: Mapping[int, float], outputs: Mapping[int, torch.Tensor]) -> None:
        for block, change in changes.items():
            self.changes[row, block] = change
        for block, output in outputs.items():
            self._outputs[block][branch, row] = self._thinned(output)

    def _thinned(self, output: torch.Tensor) -> torch.Tensor:
        flat = output.flatten()
        if flat.numel() <= self._max_samples:
            return flat.float().cpu().clone()
        if self._kept is None:
            # At random: a regular grid could fall in step with the model's patches.
            order = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(_SAMPLING_SEED))
            self._kept = order[: self._max_samples].sort().values.to(flat.device)
        return flat[self._kept].float().cpu()

    def finish(self, branches: int) -> WindowTrace:
        coordinates = {block: _coordinates(list(kept.values())) for block, kept in self._outputs.items() if kept}
        rank = max((c.shape[1] for c in coordinates.values()), default=0)
        outputs = torch.zeros(branches, self.schedule.rows, self.schedule.blocks, rank)
        for block, values in coordinates.items():
            for (branch, row), value in zip(self._outputs[block], values, strict=True):
                outputs[branch, row, block, : len(value)] = value
        return WindowTrace(self.schedule, self.volatile, self.changes, outputs)


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
        cls, generation: Generation, channels: int, scale: int, per_latent_frame: int, max_samples: int = MAX_SAMPLES
    ) -> TraceSize:
        """Computes the bounds.

        Args:
            generation: Arguments of the pipeline call.
            channels: Of the model's output.
            scale: Pixels per latent pixel, in each direction.
            per_latent_frame: Frames per latent frame.
            max_samples: Elements of a block's output that are kept.
        """
        lengths = windows_of(generation, per_latent_frame)
        blocks, windows = lengths[0] // generation.causal_block_size, len(lengths)
        branches = 2 if generation.guidance_scale > 1 else 1
        return cls.bound(generation, channels, scale, blocks, windows, branches, max_samples)

    @classmethod
    def bound(
        cls,
        generation: Generation,
        channels: int,
        scale: int,
        blocks: int,
        windows: int,
        branches: int,
        max_samples: int = MAX_SAMPLES,
    ) -> TraceSize:
        """As `of`, from the number of blocks of a window, of windows, and of outputs recorded per block and row."""
        steps = generation.num_inference_steps
        rows = steps + generation.ar_step * (blocks - 1)
        elements = channels * generation.causal_block_size * (generation.height // scale) * (generation.width // scale)
        samples = min(elements, max_samples)
        rank = min(steps * branches, samples)
        per_row_and_block = branches * rank * 4 + 8 + 8 + 1  # coordinates, change, sigma, phase
        return cls(
            file_bytes=windows * rows * blocks * per_row_and_block,
            memory_bytes=windows * blocks * steps * branches * samples * 4,
            share=samples / elements,
        )

    def __str__(self) -> str:
        return (
            f"at most {self.file_bytes / _MEBIBYTE:.2g} MiB on disk and {self.memory_bytes / _MEBIBYTE:.2g} MiB of "
            f"host memory while recording, from {self.share:.0%} of the elements"
        )
