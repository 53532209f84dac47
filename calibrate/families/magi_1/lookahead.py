"""Where MAGI-1's loop leads: its steps are Euler's, and it hands over one velocity per chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class EulerLookahead:
    """States after steps under a velocity that stays the same; see `calibrate.families.lookahead.Lookahead`."""

    # Guidance branches are combined before anything is kept of them.
    shares: Mapping[str, float] = {"guided": 1.0}
    # The adapter answers a generation's first call before its policy is known.
    opens_raw = True

    def __init__(self, sigmas: Sequence[float]) -> None:
        """Takes the noise levels at every step, and at the end."""
        self._sigmas = sigmas

    def begin(self, frames: int) -> None:
        """Nothing depends on the window."""

    def ahead(self, frames: range, state: torch.Tensor, updates: range, outputs: torch.Tensor) -> torch.Tensor:
        """The sum of the steps times the velocity, in closed form."""
        return state + (self._sigmas[updates.start] - self._sigmas[updates.stop]) * outputs
