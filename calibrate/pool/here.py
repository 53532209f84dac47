"""A pool of one: this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self

from calibrate.families.target import Target
from calibrate.pool.pool import Activity, Done, Job


class Here:
    """Runs jobs in this process, each when it is waited for."""

    size = 1
    here = True

    def __init__(self, load: Callable[[], Target]) -> None:
        """`load` gives the target; it is called with the first job."""
        self._load = load
        self._waiting: deque[Job] = deque()
        self._activity = Activity("this process")
        self.changed: Callable[[], None] = lambda: None

    @cached_property
    def _target(self) -> Target:
        return self._load()

    def submit(self, job: Job) -> None:
        """See `Pool.submit`."""
        self._waiting.append(job)
        self._activity = Activity(self._activity.device, job)

    def next(self) -> Done:
        """See `Pool.next`."""
        job = self._waiting.popleft()
        self.changed()
        try:
            return Done(job, job.run(self._target, lambda: False))
        except Exception as error:
            return Done(job, error=error)
        finally:
            self._activity = Activity(self._activity.device)

    def stop(self, job: Job) -> None:
        """Nothing: a job is asked for only when it is waited for."""

    def activity(self) -> Sequence[Activity]:
        """See `Pool.activity`."""
        return [self._activity]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None
