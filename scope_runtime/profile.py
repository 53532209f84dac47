"""The profile: one JSON file that holds the policy, what it was calibrated for, and why to trust it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scope_runtime import _check, hub
from scope_runtime.errors import ProfileError, ProfileMismatch, named, shown
from scope_runtime.evidence import check_evidence
from scope_runtime.files import read_text, write_atomically
from scope_runtime.identity import ModelIdentity
from scope_runtime.policy import Policy
from scope_runtime.settings import Scheduler, Settings

FORMAT = "scope-profile"
FORMAT_VERSION = 2
"""Since 2 the scheduler is described completely, with its noise levels. A reader of version 1 would not know what to
compare, and has to say so; profiles of version 1 are read, and checked as far as they say."""

MOST_BYTES = 64 << 20
"""Many times what a profile with a frozen plan and hundreds of prompts takes."""

# Python takes long to read numbers of very many digits, and refuses to print them.
_MOST_DIGITS = 400


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
        self.policy.check_settings(self.settings)
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
        if version > FORMAT_VERSION:
            raise ProfileError(
                "format_version",
                f"is {version}, but this scope_runtime reads up to {FORMAT_VERSION}: upgrade scope_runtime",
            )
        _check.complete(data, known, "")
        return cls(
            policy=Policy.from_dict(data["policy"]),
            settings=Settings.from_dict(_settings_of_version_1(data) if version == 1 else data["settings"]),
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

        Args:
            path: A file, or ``hf://owner/name/profile.json`` on the Hugging Face Hub (``hf://owner/name@revision/...``
                for a branch, a tag or a commit), which takes ``scope-calibrate[hub]``.

        Raises:
            ProfileError: If the file is missing, is not JSON, or any field is wrong; the message names file and field.
        """
        file = hub.download(os.fspath(path), MOST_BYTES) if hub.is_address(path) else path
        try:
            text = read_text(file, MOST_BYTES)
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

    def push(self, address: str, *, private: bool | None = True, message: str = "Upload a SCOPE profile") -> str:
        """Puts the profile on the Hugging Face Hub, with the account that `hf auth login` or ``HF_TOKEN`` names.

        Args:
            address: ``hf://owner/name/profile.json``, or ``hf://owner/name@branch/profile.json``.
            private: Whether a repository that is made for it is private: a profile holds its prompts. None leaves it
                to the account.
            message: Of the commit.

        Returns:
            The profile's address at the new commit, for `load`.

        Raises:
            ProfileError: If the address is malformed, or the Hub does not take it.
        """
        if not hub.is_address(address):
            raise ProfileError("", f"a profile is pushed to {hub.PREFIX}owner/name/profile.json; for a file use save")
        return hub.upload(self.to_json().encode(), address, private=private, message=message)

    def check_model(self, pipe: Any) -> None:
        """Refuses a pipeline whose model is not the calibrated one.

        Raises:
            ProfileMismatch: Naming every field that differs.
        """
        self.check_identity(ModelIdentity.of(pipe))

    def check_identity(self, model: ModelIdentity) -> None:
        """As `check_model`, for a model whose identity is known."""
        found = self.model.mismatches(model)
        if found:
            raise ProfileMismatch(
                found[0].split()[0],
                f"this profile was calibrated on another model ({'; '.join(found)}): calibrate this model first",
            )


def _settings_of_version_1(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A profile's settings as of version 2: of the scheduler, version 1 has six keys in one line."""
    settings = _check.mapping(data["settings"], "settings")
    if "scheduler" not in settings:
        return settings
    line = _check.string(settings, "scheduler", "settings")
    return {"lora_scale": 1.0, "last_num_frames": None, **settings, "scheduler": asdict(Scheduler.from_line(line))}


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
