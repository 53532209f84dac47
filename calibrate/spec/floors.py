"""The quality that a policy must reach."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import (
    ByteSize,
    Field,
)

from calibrate.spec.score_floor import SCORES, ScoreDemand, ScoreFloor
from calibrate.spec.strict import Strict

# The floors that a safety margin is added to.
_WITH_MARGIN = ("psnr_db", "psnr_worst_prompt_db")
# Floors that hold or not for each prompt by itself, with the figure of one prompt that each asks about.
_OF_EACH_PROMPT = {
    "psnr_worst_prompt_db": "psnr_db",
    "psnr_worst_frame_db": "psnr_worst_frame_db",
    "psnr_worst_block_db": "psnr_worst_block_db",
}
_OF_MEANS = ("psnr_db", "ssim", "temporal_psnr_db")


class Floors(Strict):
    """Quality that a policy must reach; a floor left out is not asked for. `max_memory` (such as 40GB) is a ceiling.

    `psnr_db` is the mean over prompts of the PSNR of each clip's mean squared error. `safety_margin_db` is added to it
    and to the worst prompt's floor while searching and picking, because a policy that only just holds on the search
    prompts will not hold on others. Held-out evidence is judged by the floors themselves. In a study with a `guarantee`
    it is 0 unless it is given: there tests on further prompts decide.

    `scores` holds floors on scores of `quality.scores`, by their names. No margin is added to these.
    """

    psnr_db: float | None = Field(default=35.0, ge=0, le=100)
    psnr_worst_prompt_db: float | None = Field(default=30.0, ge=0, le=100)
    psnr_worst_frame_db: float | None = Field(default=None, ge=0, le=100)
    psnr_worst_block_db: float | None = Field(default=None, ge=0, le=100)
    ssim: float | None = Field(default=None, ge=0, le=1)
    temporal_psnr_db: float | None = Field(default=None, ge=0, le=100)
    max_memory: ByteSize | None = Field(default=None, gt=0, lt=10**18)
    scores: dict[str, ScoreFloor] = {}
    safety_margin_db: float = Field(default=1.0, ge=0)

    def shortfalls(self, figures: dict[str, float], *, margin: bool) -> dict[str, float]:
        """By how much `figures` miss each floor that is asked for; zero or less means that it is met.

        Floors on scores go by names such as `scores.caption.below_stock`.

        Args:
            figures: What `calibrate.quality.metrics.floor_figures` and `calibrate.quality.score_figures` return.
            margin: Whether to ask for the safety margin on top.
        """
        # What was never measured cannot be said to hold.
        missed = {name: asked - figures.get(name, -math.inf) for name, asked in self.demands(margin=margin).items()}
        if self.max_memory is not None and "memory_bytes" in figures:
            missed["max_memory"] = figures["memory_bytes"] - self.max_memory
        return missed | {demand.name: demand.shortfall(figures) for demand in self.score_demands()}

    def score_demands(self) -> list[ScoreDemand]:
        """What is asked of scores, bound by bound."""
        return [demand for score, floor in self.scores.items() for demand in floor.demands(score)]

    def without_scores(self, names: Collection[str]) -> Self:
        """The floors without those on some scores."""
        kept = {name: floor for name, floor in self.scores.items() if name not in names}
        return self.model_copy(update={"scores": kept})

    def unmeasured(self, figures: dict[str, float]) -> bool:
        """Whether `figures`, as far as they go, hold the floors, and do not go far enough to tell."""
        missed = self.shortfalls(figures, margin=False).values()
        return math.inf in missed and all(by <= 0 for by in missed if by != math.inf)

    def demands(self, *, margin: bool) -> dict[str, float]:
        """What each floor on a built-in figure comes to; see `shortfalls`."""
        floors = self.model_dump(exclude={"safety_margin_db", "max_memory", "scores"}, exclude_none=True)
        extra = self.safety_margin_db if margin else 0.0
        return {name: floor + extra * (name in _WITH_MARGIN) for name, floor in floors.items()}

    def missed(self, figures: dict[str, float]) -> dict[str, float]:
        """The floors that `figures` miss, without the safety margin, and by how much; see `shortfalls`."""
        return {name: by for name, by in self.shortfalls(figures, margin=False).items() if by > 0}

    @property
    def of_each_prompt(self) -> dict[str, float]:
        """The floors that are asked for of every prompt by itself; what `of_one` gives must come to them."""
        own = {name: value for name in _OF_EACH_PROMPT if (value := getattr(self, name)) is not None}
        return own | {demand.name: demand.value for demand in self.score_demands() if demand.per_prompt}

    @property
    def of_means(self) -> dict[str, float]:
        """The floors that are asked for of means over prompts; what `of_one` gives must come to them in the mean."""
        own = {name: value for name in _OF_MEANS if (value := getattr(self, name)) is not None}
        return own | {demand.name: demand.value for demand in self.score_demands() if not demand.per_prompt}

    def of_one(self, name: str, figures: Mapping[str, Any]) -> float:
        """What one prompt comes to for a floor; minus infinity where it was not measured.

        Args:
            name: The floor's, as `of_each_prompt` or `of_means` has it.
            figures: Of one clip, as `calibrate.quality.metrics.Quality.to_dict` returns them, with its scores beside
                them or under `scores`.
        """
        for demand in self.score_demands():
            if demand.name == name:
                return demand.of_clip(figures.get(SCORES, figures))
        return float(figures.get(_OF_EACH_PROMPT.get(name, name), -math.inf))

    def missed_by_prompt(self, figures: Mapping[str, Any]) -> list[str]:
        """Which of the floors `of_each_prompt` one prompt's figures miss; what was not measured is missed.

        Args:
            figures: See `of_one`.
        """
        return [name for name, floor in self.of_each_prompt.items() if not self.of_one(name, figures) >= floor]

    def told_missed(self, figures: dict[str, float], *, margin: bool) -> list[str]:
        """One phrase per floor that `figures` miss, with what the floor asks for; see `shortfalls`."""
        return [
            f"{name} {'by ' + _amount(name, by) if by < math.inf else 'unmeasured'} ({self.told(name, margin=margin)})"
            for name, by in self.shortfalls(figures, margin=margin).items()
            if by > 0
        ]

    def told(self, name: str, *, margin: bool) -> str:
        """A floor in words, such as "floor 35 dB with its margin of 1 dB"; `name` as `shortfalls` has it."""
        for demand in self.score_demands():
            if demand.name == name:
                return demand.told
        value = _amount(name, getattr(self, name), ".10g")
        if name == "max_memory":
            return f"at most {value}"
        if name not in _WITH_MARGIN or not self.safety_margin_db:
            return f"floor {value}"
        return f"floor {value} {'with' if margin else 'without'} its margin of {self.safety_margin_db:g} dB"

    @property
    def with_margin(self) -> str:
        """What "above the floors" means while searching and picking: words to put behind these."""
        asked = any(getattr(self, name) is not None for name in _WITH_MARGIN)
        return f" with their safety margin of {self.safety_margin_db:g} dB" if asked and self.safety_margin_db else ""


def _amount(name: str, value: float, form: str = ".3g") -> str:
    """A figure that a floor is set on, with its unit."""
    if name == "max_memory":
        return f"{value / 1e9:{form}} GB"
    return f"{value:{form}} dB" if name.endswith("_db") else f"{value:{form}}"
