"""The YAML that a user writes: one study, checked in full before anything runs.

Paths that a study reads (`model.path`) are relative to the study file; paths that it writes (`storage`, `cache`,
`export.path`) are relative to the folder in which the command runs.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from calibrate.errors import CalibrateError
from calibrate.files import digest, file_failure, read_text
from calibrate.store import Heartbeat, has_secrets, masked_url, without_secrets
from calibrate.study_yaml import read_yaml
from scope_runtime import Policy, ProfileError
from scope_runtime.errors import named, shown

Axis = Literal["noise-level", "step"]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Rule = Literal["fastest", "best-quality", "knee"]

# A study with thousands of prompts fits.
_MOST_BYTES = 1 << 20
# What settings of profiles and columns of databases hold.
_LARGEST = 2**31 - 1


class _Strict(BaseModel):
    """Refuses unknown fields, silent conversions and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_kept(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses text that no database holds, and whole numbers beyond 32 bits where a field sets no limit."""
        if isinstance(value, str) and (problem := _not_to_be_kept(value)):
            raise ValueError(problem)
        limits = cls.model_fields[str(info.field_name)].metadata
        limited = any(hasattr(limit, name) for limit in limits for name in ("le", "lt"))
        if isinstance(value, int) and not limited and abs(value) > _LARGEST:
            raise ValueError(f"should be at most {_LARGEST}")
        return value


def _not_to_be_kept(text: str) -> str | None:
    """Names a character that databases or paths do not take: a control character but white space, or half of a pair."""
    for character in text:
        if character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs"):
            return f"must not hold the character U+{ord(character):04X}; remove it"
    return None


class ModelSpec(_Strict):
    """Which model to calibrate, and on what.

    `skyreels_v2`: `path` is a diffusers folder, `variant` is that of its weights' file names if they have one (such as
    fp16), and `flow_shift` replaces that of the checkpoint's scheduler. `magi_1`: `path` is a checkout of the official
    repository, `config` its configuration's JSON, and `weights` the folder that the paths in there are relative to (by
    default the checkout); both are relative to `path`.
    """

    path: str = Field(min_length=1)
    family: Literal["skyreels_v2", "magi_1"] = "skyreels_v2"
    pipeline_class: Literal["SkyReelsV2DiffusionForcingPipeline"] = "SkyReelsV2DiffusionForcingPipeline"
    torch_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field(default="cpu", pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")
    threads: int | None = Field(default=None, ge=1, le=4096)
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$", max_length=40)
    flow_shift: float | None = Field(default=None, gt=0)
    config: str | None = Field(default=None, min_length=1)
    weights: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _of_one_family(self) -> Self:
        if self.family == "magi_1" and self.config is None:
            raise ValueError("config must name MAGI-1's configuration, such as example/4.5B/4.5B_base_config.json")
        foreign = ("flow_shift", "variant") if self.family == "magi_1" else ("config", "weights")
        for name in foreign:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} means nothing to family {self.family}; remove it or change family")
        return self


class Generation(_Strict):
    """What all generations of the study share: arguments of the pipeline call.

    For MAGI-1 these are settings of its configuration: `guidance_scale` is its `cfg_number` (3 or 1),
    `causal_block_size` its `chunk_width`, and `ar_step` is `num_steps / window_size`, the steps of a stage.
    """

    height: int = Field(ge=16, multiple_of=16)
    width: int = Field(ge=16, multiple_of=16)
    num_frames: int = Field(ge=5)
    num_inference_steps: int = Field(ge=2)
    guidance_scale: float = Field(ge=0)
    ar_step: int = Field(ge=0)
    causal_block_size: int = Field(ge=1)
    fps: int = Field(default=24, ge=1)
    negative_prompt: str = ""
    max_sequence_length: int = Field(default=512, ge=1)
    overlap_history: int | None = Field(default=None, ge=1)
    addnoise_condition: float = Field(default=0, ge=0)
    base_num_frames: int = Field(default=97, ge=5)


class Case(_Strict):
    """One prompt with one seed."""

    prompt: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**63)

    @property
    def label(self) -> str:
        """How tables and evidence name the case."""
        return f"{self.prompt} (seed {self.seed})"


class IntRange(_Strict):
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class FloatRange(_Strict):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Quantiles(FloatRange):
    """A range within [0, 1]."""

    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class Candidate(_Strict):
    """A point of the search space to try before the search draws its own; what is left out is the space's first choice.

    A `predict_quantile` asks for a searched `predict_threshold`; without one there is none.
    """

    warmup: int
    max_skip: int
    tail: int | None = None
    order: int | None = None
    axis: str | None = None
    cache_quantile: float | None = None
    predict_quantile: float | None = None
    granularity: str | None = None
    indicator: str | None = None
    context_window: int | None = None
    context_dtype: str | None = None

    def given(self) -> dict[str, Any]:
        """The parameters that are given, the kind of predict threshold included."""
        kind = "never" if self.predict_quantile is None else "searched"
        return {"predict_threshold": kind, **self.model_dump(exclude_none=True)}


class SearchSpace(_Strict):
    """What the search may choose from.

    `axis` is what predictions are extrapolated along, whatever their `order`. By default (null) order 1 is tried along
    the steps and along the noise level, and order 2 along the steps alone: along the noise level it is ruinous.

    Thresholds are searched as quantiles of the accumulated change that recorded runs showed, so that every value within
    [0, 1] makes a difference: `cache_quantile` 0 never caches, and `predict_quantile` is the share of the way from the
    cache threshold up to the largest change. With `predict_threshold: never` there is no such limit, and `warmup` and
    `max_skip` alone give a periodic schedule. `stale_quantile` is on the same scale (null is strict), and
    `error_budget` is taken as it is (null is none). `context_window` and `context_dtype` bound the context's memory
    (null is exact), which is for studies with `floors.max_memory`. `candidates` are tried first, in place of the
    periodic schedules that every study begins with; with as many as `budget.trials` the study consists of them.
    `method` may change while a study lasts: `replay` screens candidates on recorded traces and runs the promising ones,
    `plain` draws them from the results of real runs alone.
    """

    method: Literal["replay", "plain"] = "replay"
    cache_quantile: Quantiles = Quantiles(low=0.0, high=0.4)
    predict_threshold: Annotated[list[Literal["never", "searched"]], Field(min_length=1)] = ["never", "searched"]
    predict_quantile: Quantiles = Quantiles(low=0.3, high=1.0)
    max_skip: IntRange = IntRange(low=1, high=6)
    warmup: IntRange = IntRange(low=1, high=6)
    tail: IntRange = IntRange(low=0, high=1)
    order: Annotated[list[Literal[0, 1, 2]], Field(min_length=1)] = [1, 2]
    axis: Annotated[list[Axis], Field(min_length=1)] | None = None
    granularity: Annotated[list[Literal["prefix", "step"]], Field(min_length=1)] = ["prefix"]
    indicator: Annotated[list[Literal["noise-level", "modulated-input"]], Field(min_length=1)] = [
        "noise-level",
        "modulated-input",
    ]
    max_step_ratio: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    magnitude_bound: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    stale_quantile: Annotated[list[Annotated[float, Field(ge=0, le=1)] | None], Field(min_length=1)] = [None]
    error_budget: Annotated[list[Annotated[float, Field(gt=0)] | None], Field(min_length=1)] = [None]
    context_window: Annotated[list[Annotated[int, Field(ge=1)] | None], Field(min_length=1)] = [None]
    context_dtype: Annotated[list[Literal["float32", "bfloat16", "float16"] | None], Field(min_length=1)] = [None]
    candidates: Annotated[list[Candidate], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _policies_allow(self) -> Self:
        """What is offered must make a policy; what a policy refuses is for `Policy` alone to say."""
        for name in SearchSpace.model_fields:
            if name in Policy.__dataclass_fields__ and name != "predict_threshold":
                offered = getattr(self, name)
                values: Sequence[Any] = (offered.low, offered.high) if isinstance(offered, IntRange) else offered or ()
                for value in values:
                    try:
                        Policy(**{name: value})
                    except ProfileError as error:
                        raise ValueError(f"{name} {error.problem}") from error
        return self

    @model_validator(mode="after")
    def _candidates_within(self) -> Self:
        for number, candidate in enumerate(self.candidates or ()):
            order = self.first_order if candidate.order is None else candidate.order
            for name, value in candidate.given().items():
                allowed = self.axes(order) if name == "axis" else getattr(self, name)
                within = value in allowed if isinstance(allowed, list) else allowed.low <= value <= allowed.high
                if not within:
                    of_order = f" for order {order} (only {' and '.join(allowed) or 'none'})" if name == "axis" else ""
                    raise ValueError(
                        f"candidates.{number}.{name} is {value!r}, which search.{name} does not allow{of_order}"
                    )
        return self

    @property
    def first_order(self) -> int:
        """The order of candidates that name none."""
        return 1 if 1 in self.order else self.order[0]

    def axes(self, order: int) -> list[Axis]:
        """The axes to choose from for predictions of an order; of order 0 nothing is extrapolated along any."""
        if order == 0:
            return []
        if self.axis is not None:
            return self.axis
        return ["step", "noise-level"] if order == 1 else ["step"]


# The floors that a safety margin is added to.
_WITH_MARGIN = ("psnr_db", "psnr_worst_prompt_db")


class Floors(_Strict):
    """Quality that a policy must reach; a floor left out is not asked for. `max_memory` (such as 40GB) is a ceiling.

    `psnr_db` is the mean over prompts of the PSNR of each clip's mean squared error. `safety_margin_db` is added to it
    and to the worst prompt's floor while searching and picking, because a policy that only just holds on the search
    prompts will not hold on others. Held-out evidence is judged by the floors themselves.
    """

    psnr_db: float | None = Field(default=35.0, ge=0, le=100)
    psnr_worst_prompt_db: float | None = Field(default=30.0, ge=0, le=100)
    psnr_worst_frame_db: float | None = Field(default=None, ge=0, le=100)
    psnr_worst_block_db: float | None = Field(default=None, ge=0, le=100)
    ssim: float | None = Field(default=None, ge=0, le=1)
    temporal_psnr_db: float | None = Field(default=None, ge=0, le=100)
    max_memory: ByteSize | None = Field(default=None, gt=0, lt=10**18)
    safety_margin_db: float = Field(default=1.0, ge=0)

    def shortfalls(self, figures: dict[str, float], *, margin: bool) -> dict[str, float]:
        """By how much `figures` miss each floor that is asked for; zero or less means that it is met.

        Args:
            figures: What `calibrate.quality.floor_figures` returns.
            margin: Whether to ask for the safety margin on top.
        """
        # What was never measured cannot be said to hold.
        missed = {name: asked - figures.get(name, -math.inf) for name, asked in self.demands(margin=margin).items()}
        if self.max_memory is not None and "memory_bytes" in figures:
            missed["max_memory"] = figures["memory_bytes"] - self.max_memory
        return missed

    def demands(self, *, margin: bool) -> dict[str, float]:
        """What each floor that is asked for comes to; see `shortfalls`."""
        floors = self.model_dump(exclude={"safety_margin_db", "max_memory"}, exclude_none=True)
        extra = self.safety_margin_db if margin else 0.0
        return {name: floor + extra * (name in _WITH_MARGIN) for name, floor in floors.items()}

    def told_missed(self, figures: dict[str, float], *, margin: bool) -> list[str]:
        """One phrase per floor that `figures` miss, with what the floor asks for; see `shortfalls`."""
        return [
            f"{name} by {_amount(name, by)} ({self.told(name, margin=margin)})"
            for name, by in self.shortfalls(figures, margin=margin).items()
            if by > 0
        ]

    def told(self, name: str, *, margin: bool) -> str:
        """A floor in words, such as "floor 35 dB with its margin of 1 dB"."""
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


class Budget(_Strict):
    """When the search ends: after `trials` different policies, or when `minutes` of this run would not suffice.

    `equivalents` ends it when so many full generations per search prompt have been spent, baselines included: a run
    that evaluates a quarter of the blocks counts a quarter.

    `minutes` counts from the start of the command and leaves room for the held-out measurement and the export.
    """

    trials: int = Field(default=24, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    equivalents: float | None = Field(default=None, ge=2)


class Score(_Strict):
    """A score of the user's own, reported as evidence beside the built-in proxies.

    `function` is called as `function(prompt, frames, **options)` for single clips, or with `of: pair` as
    `function(stock_frames, frames, **options)`; frames are float32 [T, H, W, 3] in [0, 1], and it returns a number.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    of: Literal["clip", "pair"] = "clip"
    options: dict[str, Any] = {}


class QualityChecks(_Strict):
    """What held-out clips are judged by beside the built-in proxies."""

    scores: list[Score] = []

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [score.name for score in self.scores]
        for name in names:
            if names.count(name) > 1 or name in ("ms_ssim", "vmaf"):
                raise ValueError(f"scores must have names of their own, but {name!r} is taken; choose another")
        return self


class Timing(_Strict):
    """When held-out wall-clock times are believed.

    Cases are timed again until the coefficient of variation is at most `max_variation`, or `max_repeats` times.
    """

    max_variation: float = Field(default=0.10, gt=0)
    max_repeats: int = Field(default=4, ge=0)


class Workers(_Strict):
    """How workers on one study know of each other; the same for all of them.

    Each shows every `heartbeat_seconds` that it lives. One that has been silent for `grace_seconds` counts as dead, and
    others take over what it was doing.
    """

    heartbeat_seconds: int = Field(default=30, ge=1)
    grace_seconds: int = Field(default=120, ge=2)

    @model_validator(mode="after")
    def _patient(self) -> Self:
        if self.grace_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("grace_seconds must be at least twice heartbeat_seconds, or living workers count as dead")
        return self

    @property
    def heartbeat(self) -> Heartbeat:
        """As the store takes it."""
        return Heartbeat(interval=self.heartbeat_seconds, grace=self.grace_seconds)


class Export(_Strict):
    """Which policy of the search becomes the profile, and where it is written."""

    rule: Rule = "fastest"
    min_speedup: float | None = Field(default=None, ge=1)
    path: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.rule == "best-quality" and self.min_speedup is None:
            raise ValueError("rule best-quality needs min_speedup: the speed-up above which quality is to be best")
        return self


class Study(_Strict):
    """A whole study file."""

    name: Name
    model: ModelSpec
    generation: Generation
    search_cases: Annotated[list[Case], Field(min_length=1)]
    held_out_cases: Annotated[list[Case], Field(min_length=1)]
    search: SearchSpace = SearchSpace()
    floors: Floors = Floors()
    budget: Budget = Budget()
    workers: Workers = Workers()
    quality: QualityChecks = QualityChecks()
    timing: Timing = Timing()
    seed: int = Field(default=0, ge=0, lt=2**32)
    storage: str | None = Field(default=None, min_length=1)
    cache: str | None = Field(default=None, min_length=1)
    clip_megabytes: float = Field(default=500.0, ge=0, le=1e9)
    export: Export = Export()

    @model_validator(mode="after")
    def _cases_apart(self) -> Self:
        for field in ("search_cases", "held_out_cases"):
            cases = getattr(self, field)
            if len(set(cases)) != len(cases):
                raise ValueError(f"{field} holds the same prompt and seed twice; remove one of them")
        searched = {case.prompt for case in self.search_cases}
        for case in self.held_out_cases:
            if case.prompt in searched:
                raise ValueError(
                    f"held_out_cases must share no prompt with search_cases, but both hold {case.prompt!r}; "
                    "change one of them"
                )
        return self

    @model_validator(mode="after")
    def _fits_family(self) -> Self:
        if self.model.family != "magi_1":
            return self
        settings = self.generation
        if settings.guidance_scale not in (1, 3):
            raise ValueError(
                f"generation.guidance_scale must be MAGI-1's cfg_number, 3 or (distilled) 1, not "
                f"{settings.guidance_scale:g}"
            )
        if settings.ar_step < 1 or settings.num_inference_steps % settings.ar_step:
            raise ValueError(
                "generation.ar_step must be MAGI-1's num_steps / window_size and so divide num_inference_steps "
                f"({settings.num_inference_steps}), not {settings.ar_step}"
            )
        for name in ("negative_prompt", "overlap_history", "addnoise_condition"):
            if getattr(settings, name):
                raise ValueError(f"generation.{name} means nothing to family magi_1; remove it")
        for name in ("stale_quantile", "context_window", "context_dtype"):
            if getattr(self.search, name) != [None]:
                raise ValueError(f"search.{name} must be [null]: keys and values are kept by MAGI-1's own code")
        return self

    @property
    def storage_url(self) -> str:
        """The database, with a file in `runs/` as the default."""
        return self.storage or f"sqlite:///runs/{self.name}.db"

    @property
    def cache_folder(self) -> Path:
        """Where latents and frames of full-compute runs are kept."""
        return Path(self.cache or f"runs/{self.name}")

    @property
    def clip_folder(self) -> Path:
        """Where comparison clips of candidates are kept, up to `clip_megabytes`."""
        return self.cache_folder / "clips"

    @property
    def profile_path(self) -> Path:
        """Where the export goes."""
        return Path(self.export.path or f"profiles/{self.name}.json")

    def fixed_parts(self) -> dict[str, Any]:
        """What must stay the same for measurements of one study to be comparable."""
        parts = self.model_dump(mode="json", include={"model", "generation", "search_cases", "search"})
        # Where the search begins and how it goes about it is no part of what it may choose from.
        del parts["search"]["candidates"]
        del parts["search"]["method"]
        return parts

    def fixed_digest(self) -> str:
        """A digest of `fixed_parts`."""
        return digest(self.fixed_parts())


def recorded_study(yaml_text: str) -> Study:
    """A study from the text that its record keeps.

    Raises:
        CalibrateError: If this version of the program does not read it, naming the field.
    """
    try:
        return Study.model_validate(read_yaml(yaml_text))
    except ValidationError as error:
        problem = _explain(error)
    except CalibrateError as error:
        problem = str(error)
    raise CalibrateError(f"The recorded study file is not one that this version reads: {problem}")


class StudyFile:
    """A study together with where it was read from.

    Attributes:
        study: The checked content.
        path: The file.
        text: The file as written, for the record.
    """

    def __init__(self, path: Path) -> None:
        """Reads and checks a study.

        Raises:
            CalibrateError: If the file is missing or anything in it is wrong, naming the field.
        """
        self.path = path
        try:
            self.text = read_text(path, _MOST_BYTES)
        except FileNotFoundError as error:
            raise CalibrateError(f"{path}: there is no such study file; check the path.") from error
        except UnicodeDecodeError as error:
            raise CalibrateError(f"{path}: this is not a text file; give the path of a study's YAML.") from error
        except OSError as error:
            raise CalibrateError(f"{path}: {file_failure(error)}.") from error
        try:
            data = read_yaml(self.text)
        except CalibrateError as error:
            raise CalibrateError(f"{path}: {error}") from error
        if not isinstance(data, dict):
            raise CalibrateError(f"{path}: a study is a YAML mapping that starts with `name:`; see studies/.")
        try:
            self.study = Study.model_validate(data)
            self._data = data
        except ValidationError as error:
            raise CalibrateError(f"{path}: {_explain(error)}") from error

    def aim(
        self,
        *,
        target_speedup: float | None = None,
        min_psnr: float | None = None,
        min_ssim: float | None = None,
        max_memory: str | None = None,
    ) -> None:
        """Puts goals in the place of the study's own floors and export rule; None leaves the study's.

        Args:
            target_speedup: In block evaluations. Of the policies that reach it, the best in quality is wanted.
            min_psnr: Mean PSNR in dB; also lowers the worst prompt's floor where that asks for more.
            min_ssim: Mean SSIM.
            max_memory: Such as ``40GB``.

        Raises:
            CalibrateError: If a goal is out of range, naming it.
        """
        study = self.study.model_dump()
        if min_psnr is not None:
            worst = study["floors"]["psnr_worst_prompt_db"]
            study["floors"] |= {
                "psnr_db": min_psnr,
                "psnr_worst_prompt_db": None if worst is None else min(worst, min_psnr),
            }
        if min_ssim is not None:
            study["floors"]["ssim"] = min_ssim
        if max_memory is not None:
            study["floors"]["max_memory"] = max_memory
        if target_speedup is not None:
            study["export"] |= {"rule": "best-quality", "min_speedup": target_speedup}
        try:
            self.study = Study.model_validate(study)
        except ValidationError as error:
            raise CalibrateError(_explain(error)) from error

    def export_settings(self, rule: str | None, output: Path | None) -> Export:
        """The study's export settings with what the command line says instead, checked in the same way.

        Raises:
            CalibrateError: If the settings do not fit together, naming the field.
        """
        given = {"rule": rule, "path": str(output) if output else None}
        changed = {name: value for name, value in given.items() if value is not None}
        try:
            return Export.model_validate(self.study.export.model_dump() | changed)
        except ValidationError as error:
            raise CalibrateError(f"export: {_explain(error)}") from error

    @property
    def masked_text(self) -> str:
        """The text for the record, without passwords; a file that holds one is written out anew without comments."""
        url = self.study.storage_url
        if has_secrets(url):
            return without_secrets(yaml.safe_dump({**self._data, "storage": masked_url(url)}, sort_keys=False))
        return without_secrets(self.text)

    @property
    def model_path(self) -> Path:
        """The pipeline's folder."""
        return self.path.parent / self.study.model.path


def _explain(error: ValidationError) -> str:
    """The first problem of a validation as one sentence."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(named(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_fields_beside(problem["loc"]))
        return f"{field}: unknown field; known here: {known}."
    if problem["type"] == "missing":
        return f"{field}: this field is missing; add it."
    if problem["type"] in ("model_type", "dict_type"):
        return f"{field}: should be a mapping, one `field: value` per line."
    given = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_unicode":
        message = _not_to_be_kept(given) or message
    prefix = f"{field}: " if field else ""
    # What is wrong with a URL may be its password.
    tellable = isinstance(given, (str, int, float, type(None))) and "storage" not in problem["loc"]
    told = f", not {without_secrets(shown(given))}" if tellable else ""
    # To YAML, no and on are booleans and 12:30 is a number.
    mend = "; put it in quotes" if problem["type"] == "string_type" and isinstance(given, (int, float)) else ""
    return f"{prefix}{message[0].lower()}{message[1:]}{told}{mend}."


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """The field names that the model around `location` knows."""
    model: type[BaseModel] = Study
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = annotation.__args__[0]
        model = annotation
    return list(model.model_fields)
