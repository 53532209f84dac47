"""The profile: one JSON file that holds the policy, what it was calibrated for, and why to trust it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scope_runtime import _check
from scope_runtime.adapters import adapter_for
from scope_runtime.errors import ProfileError, ProfileMismatch, named, shown
from scope_runtime.evidence import check_evidence
from scope_runtime.files import read_text, write_atomically
from scope_runtime.policy import Policy

FORMAT = "scope-profile"
FORMAT_VERSION = 1

MOST_BYTES = 64 << 20
"""Many times what a profile with a frozen plan and hundreds of prompts takes."""

# Python takes long to read numbers of very many digits, and refuses to print them.
_MOST_DIGITS = 400

_SAMPLES_PER_TENSOR = 64


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
        dtype: Of the transformer, such as ``"bfloat16"``.
        scheduler: Class and the configuration that shapes its noise levels; MAGI-1: guidance and context by noise level
            too.
        prefix: Whether windows may start with finished frames (long video, video-to-video).
        noised_prefix: Whether such a prefix is noised anew in every row (``addnoise_condition``).
    """

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    ar_step: int
    causal_block_size: int
    dtype: str
    scheduler: str
    prefix: bool = False
    noised_prefix: bool = False

    def __post_init__(self) -> None:
        data = asdict(self)
        for key in ("height", "width", "num_frames", "num_inference_steps", "causal_block_size"):
            _check.integer(data, key, "settings", minimum=1)
        _check.integer(data, "ar_step", "settings", minimum=0)
        _check.number(data, "guidance_scale", "settings", minimum=0)
        _check.string(data, "dtype", "settings")
        _check.string(data, "scheduler", "settings")
        for key in ("prefix", "noised_prefix"):
            if not isinstance(data[key], bool):
                raise ProfileError(f"settings.{key}", f"must be true or false, not {shown(data[key])}")

    @classmethod
    def of(cls, pipe: Any, **call: Any) -> Settings:
        """The settings that ``pipe`` would run with when called with ``call``; what is left out is its default."""
        return adapter_for(pipe).settings(pipe, **call)

    def mismatches(self, actual: Settings) -> list[str]:
        """One phrase per setting in which ``actual`` leaves what was calibrated, naming the field."""
        found = []
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(actual, f.name)
            # A profile for windowed video also fits its first window, which has no prefix.
            fits = theirs <= mine if isinstance(mine, bool) else theirs == mine
            if not fits:
                found.append(f"{f.name} is {theirs!r}, calibrated for {mine!r}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Settings:
        """Inverse of `to_dict`; every field must be there."""
        return _from_complete_dict(cls, data, "settings")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a policy belongs to.

    Attributes:
        pipeline: Class name of the pipeline.
        transformer: Class name of the transformer.
        config: Digest of the transformer's configuration.
        weights: Digest of a sample of every weight tensor (names, shapes and 64 values each, in bfloat16, so that
            loading the same checkpoint in another dtype gives the same digest). A changed or merged weight shows, and
            a 14B model takes about a second.
    """

    pipeline: str
    transformer: str
    config: str
    weights: str

    def __post_init__(self) -> None:
        for f in fields(self):
            _check.string(asdict(self), f.name, "model")

    @classmethod
    def of(cls, pipe: Any) -> ModelIdentity:
        """Identity of a loaded pipeline."""
        return adapter_for(pipe).identity(pipe)

    def mismatches(self, actual: ModelIdentity) -> list[str]:
        """One phrase per field in which ``actual`` is another model."""
        return [
            f"model.{f.name} is {getattr(actual, f.name)}, calibrated for {getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(actual, f.name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> ModelIdentity:
        """Inverse of `to_dict`; every field must be there."""
        return _from_complete_dict(cls, data, "model")


def _from_complete_dict(cls: Any, data: Any, where: str) -> Any:
    names = [f.name for f in fields(cls)]
    _check.reject_unknown(data, names, where)
    for name in names:
        if name not in data:
            raise ProfileError(f"{where}.{name}", "is missing")
    return cls(**data)


def config_digest(config: Mapping[str, Any]) -> str:
    """A short name for a model's configuration."""
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


@torch.no_grad()
def weights_digest(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A short name for a model's weights, from a sample of every tensor; see `ModelIdentity.weights`."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)].to("cpu", torch.bfloat16).contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Profile:
    """A calibrated policy with everything needed to use it safely and to judge it.

    Attributes:
        policy: The rules.
        settings: The generation settings it was calibrated for.
        model: The model it was calibrated on.
        evidence: Measured on held-out prompts by real runs; see `scope_runtime.evidence`.
        provenance: Where it comes from: study, trial, versions, cases.
        created: UTC time, ISO 8601.
    """

    policy: Policy
    settings: Settings
    model: ModelIdentity
    evidence: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        check_evidence(self.evidence)
        _check.plain_json(_check.mapping(self.provenance, "provenance"), "provenance")
        try:
            datetime.fromisoformat(self.created)
        except (TypeError, ValueError):
            raise ProfileError("created", f"must be an ISO 8601 time, not {shown(self.created)}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "policy": self.policy.to_dict(),
            "settings": self.settings.to_dict(),
            "model": self.model.to_dict(),
            "evidence": dict(self.evidence),
            "provenance": dict(self.provenance),
        }

    def to_json(self) -> str:
        """The content of a profile's file."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Any) -> Profile:
        """Inverse of `to_dict`.

        Raises:
            ProfileError: Naming the first field that is missing, unknown or out of range.
        """
        known = ("format", "format_version", "created", "policy", "settings", "model", "evidence", "provenance")
        _check.mapping(data, "")
        if data.get("format") != FORMAT:
            raise ProfileError("format", f"must be {FORMAT!r}: this is not a SCOPE profile")
        version = _check.integer(data, "format_version", "", minimum=1)
        if version != FORMAT_VERSION:
            raise ProfileError(
                "format_version", f"is {version}, but this scope_runtime reads {FORMAT_VERSION}: upgrade scope_runtime"
            )
        _check.reject_unknown(data, known, "")
        for key in known:
            if key not in data:
                raise ProfileError(key, "is missing")
        return cls(
            policy=Policy.from_dict(data["policy"]),
            settings=Settings.from_dict(data["settings"]),
            model=ModelIdentity.from_dict(data["model"]),
            evidence=data["evidence"],
            provenance=data["provenance"],
            created=data["created"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile as JSON: to a temporary name first, so that no reader ever sees half of it."""
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Reads and checks a profile.

        Raises:
            ProfileError: If the file is missing, is not JSON, or any field is wrong; the message names file and field.
        """
        try:
            text = read_text(path, MOST_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ProfileError("", f"cannot read profile {path}: {reason}") from error
        try:
            data = json.loads(
                text, parse_constant=_refuse_constant, parse_int=_parse_int, object_pairs_hook=_refuse_duplicates
            )
            return cls.from_dict(data)
        except json.JSONDecodeError as error:
            raise ProfileError("", f"{path} is not complete JSON ({error}): export the profile again") from error
        except RecursionError as error:
            raise ProfileError("", f"{path} is nested too deeply: export the profile again") from error
        except ProfileError as error:
            raise type(error)(error.field, f"{_problem(error)} (in {path})") from error

    def check_model(self, pipe: Any) -> None:
        """Refuses a pipeline whose model is not the calibrated one.

        Raises:
            ProfileMismatch: Naming every field that differs.
        """
        found = self.model.mismatches(ModelIdentity.of(pipe))
        if found:
            raise ProfileMismatch(
                found[0].split(" ", 1)[0],
                f"this profile was calibrated on another model ({'; '.join(found)}): calibrate this model first",
            )


def _problem(error: ProfileError) -> str:
    return str(error).removeprefix(f"{error.field}: ")


def _refuse_constant(name: str) -> Any:
    raise ProfileError("", f"{name} is not a number that JSON allows")


def _parse_int(digits: str) -> int | float:
    """A whole number; one of hundreds of digits becomes infinite, which is refused with its field's name."""
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ProfileError(named(twice), "is given twice")
    return data
