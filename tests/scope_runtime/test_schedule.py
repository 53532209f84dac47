"""The plan of a window: phases, levels, steps and what guidance branches cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scope_runtime import Phase, Schedule
from scope_runtime.schedule import window_lengths

# Two blocks of three steps, the second two rows behind: block 0 is complete from row 3 on.
INDEX = [[1, 0], [2, 0], [3, 1], [4, 2], [4, 3]]
UPDATE = [[True, False], [True, False], [True, True], [False, True], [False, True]]
LEVELS = [1.0, 0.75, 0.5]


@pytest.fixture
def schedule() -> Schedule:
    return Schedule.from_step_index(INDEX, UPDATE, LEVELS, 5)


def test_levels_and_phases_come_from_the_step_counters(schedule: Schedule) -> None:
    assert schedule.sigma == ((1.0, 1.0), (0.75, 1.0), (0.5, 1.0), (0.0, 0.75), (0.0, 0.5))
    waiting, active, complete = Phase.WAITING, Phase.ACTIVE, Phase.COMPLETE
    assert schedule.phase == (
        (active, waiting), (active, waiting), (active, active), (complete, active), (complete, active),
    )  # fmt: skip
    assert (schedule.rows, schedule.blocks, schedule.block_frames, schedule.causal) == (5, 2, 5, True)
    assert [schedule.active(row) for row in range(5)] == [(0,), (0,), (0, 1), (1,), (1,)]
    assert [schedule.complete(row) for row in range(5)] == [(), (), (), (0,), (0,)]


def test_a_block_that_has_not_started_stands_at_pure_noise_wherever_the_levels_begin() -> None:
    late = Schedule.from_step_index([[0, 1]], [[False, True]], [0.9], 5, causal=False)
    assert late.sigma == ((1.0, 0.9),)
    assert not late.causal


def test_a_schedule_without_rows_has_no_blocks() -> None:
    assert (Schedule((), (), 5).rows, Schedule((), (), 5).blocks) == (0, 0)


@pytest.mark.parametrize(("index", "update"), [([[1], [2]], [[True]]), ([[1, 1]], [[True]])])
def test_counters_and_updates_of_different_shapes_are_refused(index: list[list[int]], update: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="zip"):
        Schedule.from_step_index(index, update, LEVELS, 5)


def test_steps_are_the_blocks_own(schedule: Schedule) -> None:
    assert [schedule.step(row, 1) for row in (2, 3, 4)] == [0, 1, 2]
    assert [schedule.steps_left(row, 1) for row in (2, 3, 4)] == [2, 1, 0]
    assert [schedule.noise_levels(row, 1) for row in (2, 3, 4)] == [None, (1.0, 0.75), (0.75, 0.5)]


def test_a_step_goes_to_the_blocks_next_level_and_the_last_one_to_zero() -> None:
    levels = [1.0, 0.75, 0.625]  # every step has a size of its own
    schedule = Schedule.from_step_index(INDEX, UPDATE, levels, 5)
    assert [schedule.step_size(row, 0) for row in (0, 1, 2)] == [0.25, 0.125, 0.625]
    assert [schedule.step_size(row, 1) for row in (2, 3, 4)] == [0.25, 0.125, 0.625]


def test_a_step_that_renoises_has_a_size_too() -> None:
    rising = Schedule(((0.5,), (0.75,)), ((Phase.ACTIVE,), (Phase.ACTIVE,)), 5)
    assert rising.step_size(0, 0) == 0.25


# One row of four blocks under two guidance branches.
BRANCHED = Schedule(((1.0,) * 4,), ((Phase.ACTIVE,) * 4,), 5, branches=(("aNa.",), ("a.aN",)))


@pytest.mark.parametrize(
    ("blocks", "first", "second"),
    [
        ((0, 1, 2, 3), (0, 1), (0, 2, 3)),
        ((0, 1), (0, 1), ()),
        ((1,), (1,), ()),
        ((0, 2), (), ()),  # computed along with nothing
        ((2, 3), (), (2, 3)),
        ((), (), ()),
    ],
)
def test_a_branch_computes_along_only_what_a_needed_block_follows(
    blocks: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    assert BRANCHED.computed(0, 0, blocks) == first
    assert BRANCHED.computed(1, 0, blocks) == second
    assert BRANCHED.evaluations(0, blocks) == len(first) + len(second)


def test_without_branches_every_block_asked_for_is_one_evaluation(schedule: Schedule) -> None:
    assert schedule.evaluations(2, (0, 1)) == 2
    assert schedule.stock_evaluations(0) == 2
    assert replace(schedule, stock=(1, 1, 2, 3, 4)).stock_evaluations(3) == 3


@pytest.mark.parametrize(
    ("frames", "overlap", "expected"),
    [
        (9, None, (9,)),
        (30, None, (30,)),  # no long video
        (5, 2, (5,)),
        (9, 2, (9,)),
        (10, 2, (9, 3)),
        (16, 2, (9, 9)),
        (17, 2, (9, 9, 3)),
        (25, 2, (9, 9, 9, 4)),
        (11, 8, (9, 9, 9)),
        (9, 9, (9,)),
    ],
)
def test_a_long_video_is_cut_into_windows_that_overlap(
    frames: int, overlap: int | None, expected: tuple[int, ...]
) -> None:
    assert window_lengths(frames, 9, overlap) == expected


@pytest.mark.parametrize("overlap", [9, 10])
def test_windows_that_overlap_by_their_whole_length_are_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"windows of 9 latent frames cannot overlap by {overlap}"):
        window_lengths(10, 9, overlap)


def test_a_block_that_rests_between_its_steps_waits() -> None:
    steps = [Schedule.from_step_index([[k]], [[False]], LEVELS, 5).phase[0][0] for k in range(5)]
    assert steps == [Phase.WAITING] * 4 + [Phase.COMPLETE]
