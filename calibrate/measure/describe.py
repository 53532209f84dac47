"""What can be said of a target once it is loaded, which whoever records its generations must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calibrate.families.target import Target
from calibrate.measure import environment
from scope_runtime import ModelIdentity, Settings


@dataclass(frozen=True)
class Description:
    """A loaded target.

    Attributes:
        model: Its identity and the digests of its content, as the store keeps them.
        identity: Of the model, as a profile keeps it.
        settings: What all generations run with.
        device: Type of the device, such as ``cuda``.
        trace_size: What recording a baseline's trace takes, in words.
        hardware: What it runs on; see `calibrate.measure.environment`.
        versions: And with which libraries.
    """

    model: dict[str, Any]
    identity: ModelIdentity
    settings: Settings
    device: str
    trace_size: str
    hardware: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Describe:
    """The job of describing a target."""

    def __str__(self) -> str:
        return "loading the model"

    def run(self, target: Target, stopping: Callable[[], bool]) -> Description:
        """Loads the target, if that has not been done."""
        return Description(
            model=target.model,
            identity=ModelIdentity.of(target.pipe),
            settings=target.settings,
            device=target.device.type,
            trace_size=str(target.trace_size()),
            hardware=environment.hardware(target.device),
            versions=environment.versions(),
        )
