"""Generations in turns: one at a time, and one pilot that sees all of them as one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest
import torch

from calibrate.errors import CalibrateError
from calibrate.families.turns import Turns
from scope_runtime import Schedule
from scope_runtime.policy import Mode
from tests.scope_runtime.test_policy import staggered

CLIPS, ROWS = 3, 4
SCHEDULE = staggered(blocks=1, steps=ROWS, lag=1)


class Summing:
    """Adds the state to the outputs, and notes what it saw."""

    def __init__(self) -> None:
        self.begun: list[Schedule] = []
        self.seen: list[tuple[int, list[float]]] = []

    def begin(self, schedule: Schedule) -> None:
        self.begun.append(schedule)

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Mapping[int, torch.Tensor],
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        assert (branch, modes) == ("guided", {0: Mode.RECOMPUTE})
        self.seen.append((row, outputs[0].flatten().tolist()))
        return {0: outputs[0] + state(0)}


def generation(
    turns: Turns, told: list[tuple[int, str]], schedule: Callable[[int], Schedule]
) -> Callable[[int], float]:
    """Row r of clip c hands over 10 c + r, at state 100; gives the sum of what it got."""

    def generate(clip: int) -> float:
        total = 0.0
        turns.begin(schedule(clip))
        for row in range(ROWS):
            told.append((row, threading.current_thread().name))
            output, state = torch.tensor([[10.0 * clip + row]]), torch.tensor([[100.0]])
            total += float(turns.hand_over(row, "guided", {0: Mode.RECOMPUTE}, {0: output}, lambda _, s=state: s)[0])  # type: ignore[misc]
        return total

    return generate


def test_all_clips_are_seen_row_by_row_and_get_their_own() -> None:
    pilot, told = Summing(), list[tuple[int, str]]()
    turns = Turns(pilot, CLIPS)
    found = turns.run(generation(turns, told, lambda _: SCHEDULE))
    assert pilot.begun == [SCHEDULE]
    assert pilot.seen == [(row, [10.0 * clip + row for clip in range(CLIPS)]) for row in range(ROWS)]
    assert found == [ROWS * (100 + 10 * clip) + sum(range(ROWS)) for clip in range(CLIPS)]
    assert [row for row, _ in told] == sorted(row for row, _ in told), "nobody runs ahead"
    assert len({thread for _, thread in told}) == CLIPS


@pytest.mark.parametrize("broken", range(CLIPS))
def test_the_first_failure_ends_all(broken: int) -> None:
    turns = Turns(Summing(), CLIPS)
    generate, ended = generation(turns, [], lambda _: SCHEDULE), list[int]()

    def failing(clip: int) -> float:
        try:
            if clip == broken:
                turns.begin(SCHEDULE)
                raise MemoryError("no memory")
            return generate(clip)
        finally:
            ended.append(clip)

    with pytest.raises(MemoryError, match="no memory"):
        turns.run(failing)
    assert broken in ended
    assert not [thread for thread in threading.enumerate() if thread.daemon and "work" in thread.name]


def test_clips_of_other_rows_are_refused() -> None:
    turns = Turns(Summing(), 2)
    other = staggered(blocks=1, steps=ROWS + 1, lag=1)
    with pytest.raises(CalibrateError, match=r"^search\.learned: .* different rows"):
        turns.run(generation(turns, [], lambda clip: (SCHEDULE, other)[clip]))
