"""Several generations of one model in lockstep, where its own loop makes one clip at a time.

Every generation runs in a thread of its own, and one of them at a time: it goes on until its row's outputs are handed
over, and then it is the next one's turn. When all are there, one pilot answers for all of them as for one batch. What
a thread has of its own, such as whether gradients are kept, the loop has to set itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from calibrate.errors import CalibrateError
from scope_runtime import Schedule
from scope_runtime.engine import Pilot
from scope_runtime.policy import Mode

T = TypeVar("T")
Outputs = Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class _Part:
    """What one generation comes with; see `scope_runtime.engine.Pilot`."""

    row: int
    branch: str
    modes: Mapping[int, Mode]
    outputs: Outputs
    state: Callable[[int], torch.Tensor]


class _GivenUp(Exception):
    """Another generation has failed."""


class Turns:
    """Generations that take turns; itself the pilot that each of them has.

    Args:
        pilot: Sees all of them as one batch, in the order of the clips.
        clips: How many there are.
    """

    def __init__(self, pilot: Pilot, clips: int) -> None:
        self._pilot = pilot
        self._clips = clips
        self._changed = threading.Condition()
        self._clip_of: dict[int, int] = {}
        self._turn = 0
        self._parts: dict[int, _Part] = {}
        self._answers: dict[int, dict[int, torch.Tensor]] = {}
        self._failure: BaseException | None = None
        self._schedule: Schedule | None = None

    def run(self, generate: Callable[[int], T]) -> list[T]:
        """Runs ``generate`` for every clip, and gives what each call gave.

        Raises:
            BaseException: The first that a generation ended with; the others are ended then.
        """
        results: dict[int, T] = {}

        def work(clip: int) -> None:
            self._clip_of[threading.get_ident()] = clip
            try:
                self._await_turn(clip)
                results[clip] = generate(clip)
            except _GivenUp:
                pass
            except BaseException as error:
                self._give_up(error)
            self._pass_on(clip)

        # Daemons: a process that must end does not wait for them.
        threads = [threading.Thread(target=work, args=(clip,), daemon=True) for clip in range(self._clips)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            self._give_up(error)
            for thread in threads:
                thread.join()
            raise
        if self._failure is not None:
            raise self._failure
        return [results[clip] for clip in range(self._clips)]

    def begin(self, schedule: Schedule) -> None:
        """A window begins: the same for all clips."""
        if self._schedule is None:
            self._schedule = schedule
            self._pilot.begin(schedule)
        elif self._schedule != schedule:
            raise CalibrateError("search.learned: generations of these prompts have different rows; leave it out.")

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Outputs,
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        """A clip's part of what the pilot gives for all of them."""
        if self._failure is not None:
            raise _GivenUp
        clip = self._clip_of[threading.get_ident()]
        self._parts[clip] = _Part(row, branch, modes, outputs, state)
        if len(self._parts) == self._clips:
            self._answer()
        else:
            self._pass_on(clip)
            self._await_turn(clip)
        return self._answers.pop(clip)

    def _answer(self) -> None:
        parts = [self._parts.pop(clip) for clip in range(self._clips)]
        first = parts[0]
        outputs = {block: torch.cat([part.outputs[block] for part in parts]) for block in first.outputs}
        answered = self._pilot.hand_over(
            first.row,
            first.branch,
            first.modes,
            outputs,
            lambda block: torch.cat([part.state(block) for part in parts]),
        )
        own = {block: output.chunk(self._clips) for block, output in answered.items()}
        self._answers = {clip: {block: own[block][clip] for block in own} for clip in range(self._clips)}

    def _await_turn(self, clip: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._turn == clip)
            if self._failure is not None:
                raise _GivenUp

    def _pass_on(self, clip: int) -> None:
        with self._changed:
            self._turn = (clip + 1) % self._clips
            self._changed.notify_all()

    def _give_up(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
