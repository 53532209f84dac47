"""How a study is run: when the search ends, what clips are judged by, when times are believed, what is exported."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from calibrate.spec.strict import Strict

Rule = Literal["fastest", "best-quality", "knee"]


class Budget(Strict):
    """When the search ends: after `trials` different policies, or when `minutes` of this run would not suffice.

    `equivalents` ends it when so many full generations per search prompt have been spent, baselines included: a run
    that evaluates a quarter of the blocks counts a quarter.

    `minutes` counts from the start of the command and leaves room for the held-out measurement and the export.
    """

    trials: int = Field(default=24, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    equivalents: float | None = Field(default=None, ge=2)


class Score(Strict):
    """A score of the user's own, reported as evidence beside the built-in proxies; `floors.scores` may ask for it too.

    `function` is called as `function(prompt, frames, **options)` for single clips, or with `of: pair` as
    `function(stock_frames, frames, **options)`; frames are float32 [T, H, W, 3] in [0, 1], and it returns a number.

    For floors: a `slow` one is measured only on clips whose candidate can still hold the floors that are not. `best` is
    the best value there is; it lets a candidate end early whose mean cannot be reached any more.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    of: Literal["clip", "pair"] = "clip"
    options: dict[str, Any] = {}
    slow: bool = False
    best: float | None = None

    def measured_by(self) -> dict[str, Any]:
        """What its values depend on, as JSON."""
        return self.model_dump(mode="json", include={"function", "of", "options"})


class QualityChecks(Strict):
    """What held-out clips are judged by beside the built-in proxies."""

    scores: list[Score] = []

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [score.name for score in self.scores]
        for name in names:
            if names.count(name) > 1 or name in ("ms_ssim", "vmaf") or name.removesuffix("_stock") in {*names} - {name}:
                raise ValueError(f"scores must have names of their own, but {name!r} is taken; choose another")
        return self


class Timing(Strict):
    """When held-out wall-clock times are believed.

    Cases are timed again until the coefficient of variation is at most `max_variation`, or `max_repeats` times.
    """

    max_variation: float = Field(default=0.10, gt=0)
    max_repeats: int = Field(default=4, ge=0)


class Tracking(Strict):
    """Where else a study is told of: an MLflow server, or an SQLite file of MLflow's."""

    mlflow: Annotated[str, Field(min_length=1)]

    @field_validator("mlflow")
    @classmethod
    def _plain_address(cls, address: str) -> str:
        """Refuses what would have to be hidden wherever a study is shown or kept."""
        parts = urlsplit(address)
        if address.startswith("sqlite:///") and not parts.query:
            return address
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should be the address of a server (https://host) or a file (sqlite:///runs/mlflow.db)")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "must hold no user, password or query; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, in the environment"
            )
        return address


class Export(Strict):
    """Which policy of the search becomes the profile, and where it is written."""

    rule: Rule = "fastest"
    min_speedup: float | None = Field(default=None, ge=1)
    path: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.rule == "best-quality" and self.min_speedup is None:
            raise ValueError("rule best-quality needs min_speedup: the speed-up above which quality is to be best")
        return self
