"""Where a block's present state leads if the model's output stays what it is, and what branches count for in it.

Diffusers' schedulers are asked themselves. A pipeline that gives every frame a copy of its scheduler lets those copies
be seen as they are made. Ahead of time, copies of these copies are stepped, for many outputs at once along the batch
dimension; the pipeline's own are not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

import torch


class Lookahead(Protocol):
    """What a family tells of its running generations; weights are fitted with it.

    Attributes:
        shares: What each guidance branch counts for in the guided output, in the order in which they are called.
        opens_raw: Whether the first row of a generation hands over raw outputs, whatever the weights are.
    """

    shares: Mapping[str, float]
    opens_raw: bool

    def begin(self, frames: int) -> None:
        """A window of so many latent frames begins."""

    def ahead(self, frames: range, state: torch.Tensor, updates: range, outputs: torch.Tensor) -> torch.Tensor:
        """The states that some updates lead to under outputs that stay the same.

        Args:
            frames: Latent frames of a block.
            state: Their latents [batch, channels, frames, h, w] before the first of these updates.
            updates: Numbers of the block's updates, 0 its first.
            outputs: Several guided outputs [n, batch, channels, frames, h, w].

        Returns:
            Latents [n, batch, channels, frames, h, w].
        """


class SchedulerLookahead:
    """The diffusers schedulers of a running generation, frame by frame; see `Lookahead`."""

    opens_raw = False

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares = shares
        self._made: list[Any] = []

    @classmethod
    @contextmanager
    def of(cls, scheduler: Any, shares: Mapping[str, float]) -> Iterator[Self]:
        """Sees the copies that are made of a scheduler meanwhile."""
        seen = cls(shares)

        def copied(memo: dict[int, Any]) -> Any:
            made = object.__new__(type(scheduler))
            memo[id(scheduler)] = made
            state = {name: value for name, value in vars(scheduler).items() if name != "__deepcopy__"}
            vars(made).update(copy.deepcopy(state, memo))
            seen._made.append(made)
            return made

        scheduler.__deepcopy__ = copied
        try:
            yield seen
        finally:
            del scheduler.__deepcopy__

    def begin(self, frames: int) -> None:
        """The newest copies are those of the window's frames, in order."""
        self._made = self._made[-frames:]

    def ahead(self, frames: range, state: torch.Tensor, updates: range, outputs: torch.Tensor) -> torch.Tensor:
        """By stepping copies of the frames' schedulers."""
        results = []
        for number, frame in enumerate(frames):
            # One frame of every output and clip, as one batch.
            output = outputs[:, :, :, number].flatten(0, 1)
            scheduler = _repeated(self._made[frame], outputs.shape[0], state[:, :, number].shape)
            # As the pipeline does it: schedulers keep views of the latents, which see what is written into them later.
            latents = state[:, :, number].repeat(outputs.shape[0], 1, 1, 1)
            for timestep in scheduler.timesteps[updates.start : updates.stop]:
                latents[:] = scheduler.step(output, timestep, latents[:], return_dict=False)[0]
            results.append(latents.unflatten(0, outputs.shape[:2]))
        return torch.stack(results, dim=3)


class ChunkLookahead:
    """The diffusers scheduler of a running chunk, which steps all of its frames together; see `Lookahead`.

    Args:
        scheduler: The pipeline's.
        shares: See `Lookahead`.
    """

    opens_raw = False

    def __init__(self, scheduler: Any, shares: Mapping[str, float]) -> None:
        self.shares = shares
        self._scheduler = scheduler

    def begin(self, frames: int) -> None:
        """The scheduler knows that a chunk has begun: it was set for it."""

    def ahead(self, frames: range, state: torch.Tensor, updates: range, outputs: torch.Tensor) -> torch.Tensor:
        """By stepping a copy of the scheduler, every output and clip as one batch."""
        scheduler = _repeated(self._scheduler, outputs.shape[0], state.shape)
        latents, output = state.repeat(outputs.shape[0], 1, 1, 1, 1), outputs.flatten(0, 1)
        for timestep in scheduler.timesteps[updates.start : updates.stop]:
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        return latents.unflatten(0, outputs.shape[:2])


def _repeated(scheduler: Any, times: int, shape: Sequence[int]) -> Any:
    """A copy whose tensors of the latents' shape are repeated along the batch dimension."""

    def repeat(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.shape == torch.Size(shape):
            return value.repeat(times, *[1] * (value.dim() - 1))
        if isinstance(value, list):
            return [repeat(item) for item in value]
        return value

    made = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        setattr(made, name, repeat(value) if isinstance(value, (torch.Tensor, list)) else value)
    return made
