"""What every pool does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from calibrate.errors import CalibrateError
from calibrate.families.target import Target

MOST_DEATHS = 3
"""Work over which so many processes died (out of host memory, say) is given up."""

GIVEN_UP = f"{MOST_DEATHS} processes died while they measured it"
"""What is recorded of it."""

DEATH_HINT = "out of host memory, perhaps: take fewer devices, or look into Ray's logs"


class Job(Protocol):
    """A piece of work on a loaded target: plain data that can be sent to another machine.

    `reference`, where a job has one that is not None, is what many jobs share; a pool may send it ahead
    once.
    """

    def run(self, target: Target, stopping: Callable[[], bool]) -> Any:
        """Does it.

        Args:
            target: What is generated with.
            stopping: Says whether what comes of the job is no longer wanted.
        """


@dataclass(frozen=True)
class Done:
    """How a job ended.

    Attributes:
        job: The one that was submitted.
        died: Whether the process that ran it died, so that nothing came of it; it may be submitted again. So it ends
            too when `Pool.stop` was faster than the device that it waited for.
    """

    job: Any
    value: Any = None
    error: Exception | None = None
    died: bool = False

    def result(self) -> Any:
        """What the job gave.

        Raises:
            Exception: What the job raised.
        """
        if self.error is not None:
            raise self.error
        return self.value


@dataclass
class Deaths:
    """The processes that died over a piece of work, which takes several jobs, since one of these last came to an end.

    Processes that worked at it at the same time and died, with their machine perhaps, count as one.

    Attributes:
        count: How many.
    """

    count: int = 0
    # Jobs that are being run, with the count when each was submitted.
    _running: dict[Job, int] = field(default_factory=dict)

    @property
    def too_many(self) -> bool:
        """Whether the work is to be given up."""
        return self.count >= MOST_DEATHS

    def submitted(self, job: Job) -> None:
        """One of its jobs is given to a pool."""
        self._running[job] = self.count

    def ended(self, done: Done) -> None:
        """That job came back."""
        before = self._running.pop(done.job)
        if done.died:
            self.count += self.count == before
        else:
            self.count = 0


@dataclass(frozen=True)
class Activity:
    """What a device does.

    Attributes:
        device: Its name.
        job: What it runs; None if it waits for work or is being started.
        since: Value of `time.time` at which that began.
        ready: Whether it can run jobs.
    """

    device: str
    job: Any = None
    since: float = field(default_factory=time.time)
    ready: bool = True


@dataclass(frozen=True)
class Where:
    """What a command line says of where to run.

    Attributes:
        devices: How many devices; None: one, or of a cluster all that it has.
        ray: Address of a Ray cluster: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None: this machine.
    """

    devices: int | None = None
    ray: str | None = None


class Pool(Protocol):
    """Devices that run jobs, one at a time each; to be used in a `with` block.

    Attributes:
        size: How many devices there are.
        here: Whether jobs run in this process, which then dies with them.
        changed: Called by `next` when what devices do has changed; whoever looks on sets it.
    """

    size: int
    here: bool
    changed: Callable[[], None]

    def submit(self, job: Job) -> None:
        """Has a job run by the next free device."""

    def next(self) -> Done:
        """Waits for a job that has been submitted to end."""

    def stop(self, job: Job) -> None:
        """Says that what comes of a job is no longer wanted. It still ends as all do, sooner if it can."""

    def activity(self) -> Sequence[Activity]:
        """What each device does."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_error: object) -> None: ...


def call(pool: Pool, job: Job, most_deaths: int = MOST_DEATHS) -> Any:
    """Runs one job while nothing else runs; again, if the process that ran it has died.

    Raises:
        Exception: What the job raised.
        CalibrateError: If its processes die again and again.
    """
    for attempt in range(1, most_deaths + 1):
        pool.submit(job)
        done = pool.next()
        if not done.died:
            break
        if attempt == most_deaths:
            raise CalibrateError(
                f"--devices: {most_deaths} processes died while they ran one job ({job}); {DEATH_HINT}"
            )
    return done.result()
