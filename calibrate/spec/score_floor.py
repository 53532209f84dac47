"""Floors on scores of the user's own: how the figures of a score are called, and what a floor asks of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from calibrate.spec.strict import Strict

Statistic = Literal["mean", "min", "max"]

SCORES = "scores"
"""Where a clip's scores stand among its metrics."""


def score_figure(score: str, statistic: Statistic, *, over_stock: bool = False) -> str:
    """What a figure of a score over prompts is called; `over_stock`: of the score less that of the stock clip."""
    return f"score.{score}.{'over_stock_' if over_stock else ''}{statistic}"


def stock_name(score: str) -> str:
    """What a score of the stock clip is called."""
    return f"{score}_stock"


def is_score_mean(figure: str) -> bool:
    """Whether a figure is the mean of a score."""
    return figure.startswith("score.") and figure == score_figure(score_of(figure), "mean")


def score_of(figure: str) -> str:
    """The score that a figure is of."""
    return figure.split(".")[1]


@dataclass(frozen=True)
class ScoreDemand:
    """One bound of a floor on a score.

    Attributes:
        name: Its place among a study's floors, such as `scores.caption.below_stock`.
        figure: The figure that it is set on; see `score_figure`.
        sign: 1 where more is better, -1 where less is.
        value: What the figure, times `sign`, must come to.
        per_prompt: Whether every prompt must hold it, or their mean.
        bound: In words, of one score.
    """

    name: str
    figure: str
    sign: float
    value: float
    per_prompt: bool
    bound: str

    @property
    def told(self) -> str:
        """In words, with what it is asked of."""
        return f"{self.bound} {'for every prompt' if self.per_prompt else 'in the mean'}"

    def shortfall(self, figures: Mapping[str, float]) -> float:
        """By how much figures miss it; zero or less means that it is met, infinity that it was not measured."""
        return self.value - self.sign * figures[self.figure] if self.figure in figures else math.inf

    def of_clip(self, scores: Mapping[str, float]) -> float:
        """What one clip comes to, so that more is better; minus infinity where it was not measured.

        Args:
            scores: Of the clip, with those of the stock clip; see `calibrate.quality.score_figures`.
        """
        own = score_of(self.figure)
        needed = [own, stock_name(own)] if ".over_stock_" in self.figure else [own]
        if any(name not in scores for name in needed):
            return -math.inf
        return self.sign * (scores[own] - (scores[needed[1]] if needed[1:] else 0.0))


class ScoreFloor(Strict):
    """What a score must come to: as a number, or beside the score of the stock clip of the same case.

    `below_stock`: it may fall by at most so much. `above_stock`, for scores of which less is better: it may rise by at
    most so much. `per: prompt` asks it of every prompt, `per: mean` of their mean.
    """

    at_least: float | None = None
    at_most: float | None = None
    below_stock: float | None = Field(default=None, ge=0)
    above_stock: float | None = Field(default=None, ge=0)
    per: Literal["prompt", "mean"] = "mean"

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not list(self.demands("")):
            raise ValueError("should say at_least, at_most, below_stock or above_stock")
        return self

    @property
    def relative(self) -> str | None:
        """The first of its bounds that needs the stock clip's score, or None."""
        return next((name for name in ("below_stock", "above_stock") if getattr(self, name) is not None), None)

    def demands(self, score: str) -> Iterator[ScoreDemand]:
        """What it asks of the figures of a score, bound by bound."""
        per_prompt = self.per == "prompt"
        for bound, told in (
            ("at_least", "at least {:.10g}"),
            ("at_most", "at most {:.10g}"),
            ("below_stock", "at most {:.10g} below stock"),
            ("above_stock", "at most {:.10g} above stock"),
        ):
            asked = getattr(self, bound)
            if asked is None:
                continue
            more_is_better = bound in ("at_least", "below_stock")
            worst: Statistic = "min" if more_is_better else "max"
            yield ScoreDemand(
                name=f"scores.{score}.{bound}",
                figure=score_figure(score, worst if per_prompt else "mean", over_stock=bound.endswith("_stock")),
                sign=1.0 if more_is_better else -1.0,
                value=asked if bound == "at_least" else -asked,
                per_prompt=per_prompt,
                bound=told.format(asked),
            )
