"""The asynchronous schedule of one generation window: which block stands at which noise level in which row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property


class Phase(IntEnum):
    """Where a block stands in a row."""

    WAITING = 0
    """Not started: pure noise, not updated in this row."""
    ACTIVE = 1
    """Updated in this row."""
    COMPLETE = 2
    """Denoised: it only serves as context for later blocks."""


NEEDED = "N"
ALONG = "a"

NOISE_LEVEL_AXIS = "noise-level"
STEP_AXIS = "step"
AXES = (NOISE_LEVEL_AXIS, STEP_AXIS)
"""What outputs are extrapolated along."""


def window_lengths(frames: int, base: int, overlap: int | None) -> tuple[int, ...]:
    """Latent frames of each window of a video, as SkyReels-V2 cuts it; all are `base` long but for the last.

    Args:
        frames: Of the whole video.
        base: Of a window; a video that is no longer is one window of its own length.
        overlap: Frames at the end of a window that the next one starts with; None is no long video.

    Raises:
        ValueError: If windows overlap by their whole length.
    """
    if overlap is None or frames <= base:
        return (frames,)
    if overlap >= base:
        raise ValueError(f"windows of {base} latent frames cannot overlap by {overlap}")
    more = 1 + (frames - base - 1) // (base - overlap)
    return (base,) * more + (frames - more * (base - overlap),)


@dataclass(frozen=True)
class Schedule:
    """The whole plan of one window, known before its first row.

    Attributes:
        sigma: Noise level, ``sigma[row][block]``; 1 is pure noise, 0 is clean. Always the scheduler's own float
            values: integer timesteps are truncated and must not be differentiated on.
        phase: ``phase[row][block]``.
        block_frames: Latent frames per block.
        causal: True when a block never attends to later blocks. Only then may blocks be dropped from a computation
            without changing the others.
        restarts: Updates (row, block) before which the model's output is known to jump, because its guidance or its
            context changes: they are recomputed, and the block's history begins anew.
        offered_once: True when a complete block can be captured only in the first row after its completion, so that
            this row captures it whether or not anything else is computed.
        branches: Guidance branches that one model call consists of, as one string per row with one letter per block:
            ``N`` where the branch's output for the block carries weight, ``a`` where the branch only computes the block
            along with a later ``N``, ``.`` elsewhere. Empty: every call is one branch.
        stock: Block evaluations of the stock pipeline in each row. Empty: it computes every block once per call.
    """

    sigma: tuple[tuple[float, ...], ...]
    phase: tuple[tuple[Phase, ...], ...]
    block_frames: int
    causal: bool = True
    restarts: frozenset[tuple[int, int]] = frozenset()
    offered_once: bool = False
    branches: tuple[tuple[str, ...], ...] = ()
    stock: tuple[int, ...] = ()

    @classmethod
    def from_step_index(
        cls,
        step_index: Sequence[Sequence[int]],
        update: Sequence[Sequence[bool]],
        sigmas: Sequence[float],
        block_frames: int,
        causal: bool = True,
    ) -> Schedule:
        """Builds the schedule from step counters.

        Args:
            step_index: ``[rows][blocks]``; 0 = not started, k in 1..N = about to take step k, N + 1 = complete.
            update: ``[rows][blocks]``; True where the row updates the block.
            sigmas: The N noise levels at which steps 1..N start.
            block_frames: Latent frames per block.
            causal: Whether attention is block-causal.
        """
        table = (1.0, *(float(s) for s in sigmas), 0.0)
        done = len(sigmas) + 1

        def phase(index: int, updated: bool) -> Phase:
            if updated:
                return Phase.ACTIVE
            return Phase.COMPLETE if index >= done else Phase.WAITING

        return cls(
            sigma=tuple(tuple(table[k] for k in row) for row in step_index),
            phase=tuple(
                tuple(phase(k, u) for k, u in zip(ks, us, strict=True))
                for ks, us in zip(step_index, update, strict=True)
            ),
            block_frames=block_frames,
            causal=causal,
        )

    @classmethod
    def of_one_block(cls, sigmas: Sequence[float], block_frames: int) -> Schedule:
        """The schedule of a window that is one block, all of whose frames take every step together.

        Args:
            sigmas: The noise levels at which the steps start.
            block_frames: Latent frames of the window.
        """
        steps = len(sigmas)
        return cls.from_step_index(
            [[step] for step in range(1, steps + 1)], [[True]] * steps, sigmas, block_frames, causal=False
        )

    @property
    def rows(self) -> int:
        """Number of rows (iterations of the denoising loop)."""
        return len(self.phase)

    @property
    def blocks(self) -> int:
        """Number of blocks in the window."""
        return len(self.phase[0]) if self.phase else 0

    def active(self, row: int) -> tuple[int, ...]:
        """Blocks that ``row`` updates, in order: the active interval."""
        return tuple(b for b, p in enumerate(self.phase[row]) if p is Phase.ACTIVE)

    def complete(self, row: int) -> tuple[int, ...]:
        """Blocks that are clean before ``row``, in order."""
        return tuple(b for b, p in enumerate(self.phase[row]) if p is Phase.COMPLETE)

    def computed(self, branch: int, row: int, blocks: Sequence[int]) -> tuple[int, ...]:
        """Those of ``blocks`` that a guidance branch has to compute in ``row`` when ``blocks`` are asked for."""
        letters = self.branches[branch][row]
        last = max((b for b in blocks if letters[b] == NEEDED), default=-1)
        return tuple(b for b in blocks if letters[b] == NEEDED or (letters[b] == ALONG and b < last))

    def evaluations(self, row: int, blocks: Sequence[int]) -> int:
        """Block evaluations that one model call of ``row`` takes when ``blocks`` are asked for."""
        if not self.branches:
            return len(blocks)
        return sum(len(self.computed(branch, row, blocks)) for branch in range(len(self.branches)))

    def stock_evaluations(self, row: int) -> int:
        """Block evaluations of the stock pipeline in one model call of ``row``."""
        return self.stock[row] if self.stock else self.blocks

    @cached_property
    def _active_rows(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(r for r in range(self.rows) if self.phase[r][b] is Phase.ACTIVE) for b in range(self.blocks))

    @cached_property
    def _step_of(self) -> tuple[dict[int, int], ...]:
        return tuple({row: step for step, row in enumerate(rows)} for rows in self._active_rows)

    def step(self, row: int, block: int) -> int:
        """How many updates ``block`` has had before ``row`` (it must be active there); 0 at its first."""
        return self._step_of[block][row]

    def position(self, row: int, block: int, axis: str) -> float:
        """Where the update of ``block`` in ``row`` stands on an axis of `AXES` (the block must be active there).

        On the step axis that is the block's own count of updates, which goes up by one from each to the next however
        far the noise level moves.
        """
        return float(self.step(row, block)) if axis == STEP_AXIS else self.sigma[row][block]

    def steps_left(self, row: int, block: int) -> int:
        """How many updates remain after ``row`` (the block must be active there); 0 at its last."""
        return len(self._active_rows[block]) - 1 - self._step_of[block][row]

    def noise_levels(self, row: int, block: int) -> tuple[float, float] | None:
        """Noise level at the block's previous update and at this one (it must be active), or None at its first."""
        step = self.step(row, block)
        if step == 0:
            return None
        previous = self._active_rows[block][step - 1]
        return self.sigma[previous][block], self.sigma[row][block]

    def step_size(self, row: int, block: int) -> float:
        """How far the update of ``block`` in ``row`` moves its noise level (the block must be active there)."""
        rows, step = self._active_rows[block], self._step_of[block][row]
        after = self.sigma[rows[step + 1]][block] if step + 1 < len(rows) else 0.0
        return abs(self.sigma[row][block] - after)
