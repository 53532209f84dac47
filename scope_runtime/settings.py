"""The generation settings that a policy is calibrated for, and those that a call really runs with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from scope_runtime import _check
from scope_runtime.errors import ProfileError, named, shown
from scope_runtime.families import adapter_class
from scope_runtime.preparation import MEND, Preparation

_SIGMA_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Scheduler:
    """Everything that decides the noise levels and the step from one to the next.

    Attributes:
        name: Its class.
        config: What of its configuration is not the default of its class.
        defaults: The rest of its configuration, at the defaults of the class as it was installed. Written down because
            another version of the class may have other keys and other defaults.
        sigmas: Noise levels at which the steps start, and the last one. Empty: not known, as in profiles of version 1.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = "settings.scheduler"
        _check.string(vars(self), "name", where)
        for key in ("config", "defaults"):
            _check.plain_json(_check.mapping(getattr(self, key), f"{where}.{key}"), f"{where}.{key}")
        object.__setattr__(self, "sigmas", _check.array_of_numbers(vars(self), "sigmas", where))

    def mismatches(self, actual: Scheduler) -> list[str]:
        """One phrase per thing in which ``actual`` is another scheduler.

        A key that only one of the two knows must be at its default there: a new version may bring a new key.
        """
        if actual.name != self.name:
            return [f"scheduler is {named(actual.name)}, calibrated for {named(self.name)}"]
        mine, theirs = {**self.defaults, **self.config}, {**actual.defaults, **actual.config}
        found = []
        for key in sorted(mine.keys() | theirs.keys()):
            now, calibrated = (f"{named(key)}={named(str(values.get(key)))}" for values in (theirs, mine))
            if key in mine and key in theirs:
                if not _same(mine[key], theirs[key]):
                    found.append(f"scheduler has {now}, calibrated for {calibrated}")
            elif key in actual.config:
                found.append(f"scheduler has {now}, calibrated for its default")
            elif key in self.config:
                found.append(f"scheduler has no {named(key)}, calibrated for {calibrated}")
        # Another number of noise levels is another number of steps, which is a setting of its own.
        if len(self.sigmas) == len(actual.sigmas):
            for i, (mine_, theirs_) in enumerate(zip(self.sigmas, actual.sigmas, strict=True)):
                if not math.isclose(mine_, theirs_, rel_tol=_SIGMA_TOLERANCE, abs_tol=_SIGMA_TOLERANCE):
                    found.append(f"scheduler has noise level {theirs_:.5g} at step {i}, calibrated for {mine_:.5g}")
                    break
        return found

    @classmethod
    def from_line(cls, line: str) -> Scheduler:
        """From ``Name(key=value, ...)``, as profiles of version 1 have it: values are text, the rest is unknown."""
        name, _, inner = line.partition("(")
        pairs = (pair.partition("=") for pair in re.split(r", (?=\w+=)", inner.removesuffix(")")))
        return cls(name, {key: value for key, _, value in pairs if key})

    @classmethod
    def from_dict(cls, data: Any) -> Scheduler:
        """Inverse of ``dataclasses.asdict``; every field must be there."""
        return cls(**_check.complete(data, [f.name for f in fields(cls)], "settings.scheduler"))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.config.items())})"


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a configuration are the same; those of profiles of version 1 are text."""
    return bool(one == other) or str(one) == str(other)


@dataclass(frozen=True)
class Settings:
    """The generation settings that a policy is calibrated for, as far as they change the denoising.

    Attributes:
        height: Pixels.
        width: Pixels.
        num_frames: Frames of one window.
        num_inference_steps: Updates per block.
        guidance_scale: Guidance; at most 1 means none. MAGI-1: its number of guidance branches, 3 or 1.
        ar_step: Rows by which a block lags behind the one before it.
        causal_block_size: Latent frames per block.
        dtype: What the transformer computes in, such as ``"bfloat16"``.
        scheduler: Noise levels and what shapes them and the step; MAGI-1: guidance and context by noise level too.
        prefix: Whether windows may start with finished frames (long video, video-to-video).
        noised_prefix: Whether such a prefix is noised anew in every row (``addnoise_condition``).
        last_num_frames: Frames of a long video's last window, where that one is shorter; None where it is not.
        lora_scale: What the call multiplies the scales of LoRA adapters by (``attention_kwargs={"scale": ...}``).
        options: Further arguments of the call that change the denoising, by name, where a family has such.
        preparation: What the pipeline is set up with beyond how it was loaded, ``dtype`` being that of loading.
    """

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    ar_step: int
    causal_block_size: int
    dtype: str
    scheduler: Scheduler
    prefix: bool = False
    noised_prefix: bool = False
    lora_scale: float = 1.0
    last_num_frames: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    preparation: Preparation = field(default_factory=Preparation)

    def __post_init__(self) -> None:
        data = vars(self)
        for key in ("height", "width", "num_frames", "num_inference_steps", "causal_block_size"):
            _check.integer(data, key, "settings", minimum=1)
        _check.integer(data, "ar_step", "settings", minimum=0)
        _check.integer(data, "last_num_frames", "settings", minimum=1, optional=True)
        _check.number(data, "guidance_scale", "settings", minimum=0)
        _check.number(data, "lora_scale", "settings")
        _check.string(data, "dtype", "settings")
        if not isinstance(self.scheduler, Scheduler):
            raise ProfileError("settings.scheduler", f"must be a Scheduler, not {type(self.scheduler).__name__}")
        if not isinstance(self.preparation, Preparation):
            raise ProfileError("settings.preparation", f"must be a Preparation, not {type(self.preparation).__name__}")
        _check.plain_json(_check.mapping(self.options, "settings.options"), "settings.options")
        for key in ("prefix", "noised_prefix"):
            if not isinstance(data[key], bool):
                raise ProfileError(f"settings.{key}", f"must be true or false, not {shown(data[key])}")

    @classmethod
    def of(cls, pipe: Any, **call: Any) -> Settings:
        """The settings that ``pipe`` would run with when called with ``call``; what is left out is its default."""
        return adapter_class(pipe).settings(pipe, **call)

    def mismatches(self, actual: Settings) -> list[str]:
        """One phrase per setting in which ``actual`` leaves what was calibrated, beginning with the field's name."""
        found = []
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(actual, f.name)
            if isinstance(mine, Scheduler):
                found += mine.mismatches(theirs)
                continue
            if isinstance(mine, Preparation):
                found += mine.mismatches(theirs)
                continue
            if f.name == "options":
                found += _other_options(mine, theirs)
                continue
            if f.name == "dtype":
                mine = self.preparation.dtype or mine
            # A profile for windowed video also fits its first window, which has no prefix.
            fits = theirs <= mine if isinstance(mine, bool) else theirs == mine
            if f.name == "num_frames":
                fits |= theirs == self.last_num_frames and actual.prefix == self.prefix
            if f.name == "last_num_frames":
                mine = mine or self.num_frames
                fits = theirs in (None, mine, self.num_frames)
            if not fits:
                mend = f" ({MEND})" if f.name == "dtype" and self.preparation.dtype else ""
                found.append(f"{f.name} is {theirs!r}, calibrated for {mine!r}{mend}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        data = asdict(self)
        data["scheduler"]["sigmas"] = list(self.scheduler.sigmas)
        if not self.options:
            del data["options"]  # families without any are written as they were before there were some
        if not self.preparation:
            del data["preparation"]  # nor did it exist
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Settings:
        """Inverse of `to_dict`; every field must be there."""
        if isinstance(data, Mapping):
            data = {"options": {}, "preparation": Preparation().to_dict(), **data}
        known = _check.complete(data, [f.name for f in fields(cls)], "settings")
        parts = {
            "scheduler": Scheduler.from_dict(known["scheduler"]),
            "preparation": Preparation.from_dict(known["preparation"]),
        }
        return cls(**{**known, **parts})


def _other_options(calibrated: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """One phrase per option that is another one."""
    return [
        f"options.{named(key)} is {shown(actual.get(key))}, calibrated for {shown(calibrated.get(key))}"
        for key in sorted(calibrated.keys() | actual.keys())
        if calibrated.get(key) != actual.get(key)
    ]
