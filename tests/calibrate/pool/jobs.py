"""Small jobs, and what they are run with in the place of a target."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import Reference
from scope_runtime import ProfileError


def load() -> Any:
    return "target"


class NotLoadable:
    """Cannot be sent to where the program is not installed."""

    def __call__(self) -> Any:
        raise AssertionError

    def __reduce__(self) -> Any:
        return _not_there, ()


def _not_there() -> Any:
    raise ModuleNotFoundError("No module named 'calibrate'")


@dataclass(frozen=True)
class Echo:
    """Gives back what it has, and where it was."""

    number: int

    def run(self, target: Any, stopping: Callable[[], bool]) -> Any:
        return self.number, target, os.getpid()


@dataclass(frozen=True)
class Fail:
    kind: str

    def run(self, target: Any, stopping: Callable[[], bool]) -> Any:
        if self.kind == "calibrate":
            raise CalibrateError("cache: is full; make room.")
        raise ProfileError("policy.max_skip", "is negative") if self.kind == "profile" else ZeroDivisionError("by 0")


@dataclass(frozen=True)
class Sleep:
    """Sleeps until it is no longer wanted; kills its process if that takes too long."""

    seconds: float

    def __str__(self) -> str:
        return "sleep"

    def run(self, target: Any, stopping: Callable[[], bool]) -> Any:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if stopping():
                return "stopped"
            time.sleep(0.05)
        return "slept"


@dataclass(frozen=True)
class Die:
    """Kills its process as often as the file has fewer lines than `times`."""

    file: Path
    times: int

    def run(self, target: Any, stopping: Callable[[], bool]) -> Any:
        with self.file.open("a+") as file:
            file.seek(0)
            before = len(file.readlines())
            file.write("death\n")
        if before < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return before


@dataclass(frozen=True)
class MeanOf:
    """The mean of a stock clip."""

    reference: Reference | None = None

    def run(self, target: Any, stopping: Callable[[], bool]) -> Any:
        assert self.reference is not None
        return float(self.reference.frames.mean()), self.reference.frames.shape
