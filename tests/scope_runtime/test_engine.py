"""One window without a model: what is asked of it, what is reused instead, and what is remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from scope_runtime import MODULATED_INPUT, Policy, Schedule
from scope_runtime.context import Context, Pass
from scope_runtime.engine import Engine
from scope_runtime.indicator import relative_l1
from tests.scope_runtime.test_policy import staggered

Value = Callable[[int, int], torch.Tensor]


@dataclass
class Fake:
    """A model that says what it was asked for; output and modulated input are functions of row and block."""

    output: Value = lambda row, block: torch.full((2,), 1.0 + block)
    modulated: Value = lambda row, block: torch.full((2,), 1.0 + 0.5 * row)
    row: int = 0

    def __post_init__(self) -> None:
        self.passes: list[Pass] = []
        self.looks: list[tuple[int, ...]] = []

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        self.passes.append(request)
        for block in request.keep:
            pair = torch.full((1, 1, 1, 2), float(self.row)), torch.full((1, 1, 1, 2), -float(self.row))
            request.context.store(0, block, *pair)
        return {block: self.output(self.row, block) for block in request.blocks}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        self.looks.append(blocks)
        return {block: self.modulated(self.row, block) for block in blocks}


def run(engine: Engine, *models: Fake, rows: int | None = None) -> list[dict[int, torch.Tensor]]:
    """Runs the window, a branch per model; returns the first branch's outputs row by row."""
    found = []
    for row in range(engine.schedule.rows if rows is None else rows):
        outputs = []
        for i, model in enumerate(models):
            model.row = row
            outputs.append(engine.run(f"branch {i}", model))
        found.append(outputs[0])
    return found


def letters(engine: Engine) -> str:
    """Modes of the only block."""
    return "".join(engine.report.modes)


def one_block(steps: int = 8) -> Schedule:
    return staggered(blocks=1, steps=steps)


class TestExact:
    def test_every_active_block_is_computed_in_every_row_and_clean_ones_once(self) -> None:
        # Block 0 is complete from row 4 on, block 1 from row 6 on.
        engine, model = Engine(staggered(blocks=3, steps=4, lag=2), None), Fake()
        outputs = run(engine, model)
        assert [request.blocks for request in model.passes] == [
            (0,), (0,), (0, 1), (0, 1), (0, 1, 2), (1, 2), (1, 2), (2,),
        ]  # fmt: skip
        assert [request.keep for request in model.passes] == [(), (), (), (), (0,), (), (1,), ()]
        assert all(request.causal for request in model.passes)
        assert engine.report.modes == ["R..", "R..", "RR.", "RR.", "KRR", ".RR", ".KR", "..R"]
        assert [sorted(row) for row in outputs] == [[0], [0], [0, 1], [0, 1], [1, 2], [1, 2], [2], [2]]
        assert float(outputs[4][2][0]) == 3.0
        context = model.passes[-1].context
        assert (context.blocks, context.captured) == ([0, 1], {0, 1})
        assert (engine.report.evaluations, engine.report.stock_evaluations) == (14, 24)
        assert engine.report.context_bytes == 2 * 2 * 2 * 4
        assert (engine.report.history_bytes, engine.report.plan) == (0, None)
        assert engine.report.prediction_errors == []
        assert model.looks == []

    def test_under_bidirectional_attention_every_block_is_computed_and_nothing_kept(self) -> None:
        engine, model = Engine(staggered(blocks=2, steps=3, lag=2, causal=False), None), Fake()
        run(engine, model)
        assert {(request.blocks, request.keep, request.causal) for request in model.passes} == {((0, 1), (), False)}
        assert all(request.context.blocks == [] for request in model.passes)
        assert engine.report.modes == ["R#", "R#", "RR", "#R", "#R"]
        skipping, model = Engine(engine.schedule, Policy(plan=("R.", "P.", "PR", ".C", ".R"))), Fake()
        run(skipping, model)
        assert [(request.blocks, request.keep) for request in model.passes] == [((0, 1), ())] * 3
        assert skipping.report.modes == ["R#", "P.", "PR", ".C", "#R"]

    def test_branches_have_contexts_of_their_own_and_one_row_of_letters(self) -> None:
        engine, models = Engine(staggered(blocks=2, steps=3, lag=2), None), (Fake(), Fake())
        run(engine, *models)
        assert [m.passes[-1].context.blocks for m in models] == [[0], [0]]
        assert models[0].passes[-1].context is not models[1].passes[-1].context
        assert len(engine.report.modes) == engine.schedule.rows
        assert engine.report.stock_evaluations == 2 * 2 * 5
        assert engine.report.evaluations == 2 * sum(len(request.blocks) for request in models[0].passes)
        assert engine.report.context_bytes == 2 * 2 * 2 * 4

    def test_evaluations_are_those_of_the_row(self) -> None:
        """Guidance branches of one call and what stock computes in it change from row to row."""
        branches = (("N", "N", "."), ("N", ".", "."))
        engine = Engine(replace(one_block(3), branches=branches, stock=(5, 6, 8)), None)
        counts = []
        for row in range(3):
            engine.run("one", Fake(row=row))
            counts.append((engine.report.evaluations, engine.report.stock_evaluations))
        assert counts == [(2, 5), (3, 11), (3, 19)]

    @pytest.mark.parametrize("offload", [False, True])
    def test_context_is_kept_where_it_should_be(self, offload: bool) -> None:
        engine, model = Engine(one_block(3), None, offload=offload), Fake()
        run(engine, model)
        assert model.passes[0].context._offload is offload
        run(Engine(one_block(3), None), model := Fake())
        assert model.passes[0].context._offload is Context()._offload is False

    def test_more_rows_than_the_plan_has_are_refused(self) -> None:
        engine, model = Engine(one_block(3), None), Fake()
        assert engine.row == 0
        run(engine, model)
        assert engine.row == 3
        with pytest.raises(IndexError, match="the plan has 3 rows, but row 3 was asked for"):
            engine.run("branch 0", model)

    def test_the_row_is_the_furthest_branchs(self) -> None:
        engine = Engine(one_block(3), None)
        engine.run("one", Fake())
        engine.run("two", Fake())
        engine.run("one", Fake())
        assert engine.row == 2

    def test_a_volatile_prefix_is_computed_whenever_a_later_block_is_and_never_captured(self) -> None:
        phase = staggered(blocks=3, steps=2, lag=2)
        # From row 4 on blocks 0 and 1 are complete and only block 2 is active.
        engine, model = Engine(phase, None, volatile=frozenset({1})), Fake()
        run(engine, model)
        # Block 0 comes before the volatile one and is captured; block 1 never is.
        assert [(request.blocks, request.keep) for request in model.passes][2:] == [
            ((0, 1), (0,)), ((1,), ()), ((1, 2), ()), ((1, 2), ()),
        ]  # fmt: skip
        assert engine.report.modes[2:] == ["KR.", ".R.", ".#R", ".#R"]
        assert model.passes[-1].context.captured == {0}

    def test_blocks_after_a_volatile_one_are_volatile_too(self) -> None:
        engine, model = Engine(staggered(blocks=3, steps=2, lag=2), None, volatile=frozenset({0})), Fake()
        run(engine, model)
        assert {request.keep for request in model.passes} == {()}
        assert engine.report.modes == ["R..", "R..", "#R.", "#R.", "##R", "##R"]

    def test_what_is_offered_once_is_captured_whether_or_not_anything_is_computed(self) -> None:
        schedule = replace(staggered(blocks=2, steps=3, lag=1), offered_once=True)
        # Both branches of a plan that skips row 3, the row after block 0's completion.
        engine, model = Engine(schedule, Policy(plan=("R.", "RR", "RR", ".P"))), Fake()
        run(engine, model)
        assert (model.passes[-1].blocks, model.passes[-1].keep) == ((0,), (0,))
        assert engine.report.modes[-1] == "KP"
        later = Engine(staggered(blocks=2, steps=3, lag=1), Policy(plan=("R.", "RR", "RR", ".P")))
        run(later, model := Fake())
        assert len(model.passes) == 3, "nobody reads it: it is not computed"
        assert later.report.modes[-1] == ".P"
        assert later.report.evaluations == 1 + 2 + 2


class TestObserving:
    def test_changes_of_input_and_output_are_measured_from_row_to_row(self) -> None:
        outputs = [1.0, 3.0, 4.5, 4.5]
        model = Fake(output=lambda row, block: torch.full((2,), outputs[row]))
        engine = Engine(one_block(4), None, observe=True)
        run(engine, model)
        assert model.looks == [(0,)] * 4
        found = [(o.row, o.block, o.modulated_input, o.output_change) for o in engine.report.observations]
        assert found == [(1, 0, 0.5, 2.0), (2, 0, pytest.approx(1 / 3), 0.5), (3, 0, 0.25, 0.0)]
        assert [(o.sigma_before, o.sigma) for o in engine.report.observations] == [
            (1.0, 0.75), (0.75, 0.5), (0.5, 0.25),
        ]  # fmt: skip

    def test_blocks_are_observed_from_their_second_update_on(self) -> None:
        engine = Engine(staggered(blocks=2, steps=3, lag=1), None, observe=True)
        run(engine, Fake())
        assert [(o.row, o.block) for o in engine.report.observations] == [(1, 0), (2, 0), (2, 1), (3, 1)]

    def test_of_two_branches_the_larger_change_stays_and_the_first_ones_input(self) -> None:
        engine = Engine(one_block(2), None, observe=True)
        quiet = Fake(output=lambda row, block: torch.full((2,), 2.0 + row))
        loud = Fake(output=lambda row, block: torch.full((2,), 2.0 + 4 * row), modulated=quiet.output)
        run(engine, quiet, loud)
        (found,) = engine.report.observations
        assert (found.modulated_input, found.output_change) == (0.5, 2.0)
        assert loud.looks == []

    def test_across_a_restart_nothing_is_observed_but_the_next_row_is(self) -> None:
        schedule = replace(staggered(blocks=2, steps=4, lag=0), restarts=frozenset({(2, 0)}))
        engine = Engine(schedule, None, observe=True)
        run(engine, Fake())
        assert [(o.row, o.block) for o in engine.report.observations] == [(1, 0), (1, 1), (2, 1), (3, 0), (3, 1)]

    def test_without_observing_nothing_is_looked_at_or_recorded(self) -> None:
        engine = Engine(one_block(4), None, recorder=(recorder := Recorder()))
        run(engine, model := Fake())
        assert (model.looks, engine.report.observations, recorder.rows) == ([], [], [])

    def test_a_recorder_is_told_of_the_window_and_of_every_call(self) -> None:
        recorder = Recorder()
        schedule = staggered(blocks=2, steps=2, lag=1)
        engine = Engine(schedule, None, observe=True, recorder=recorder, volatile=frozenset({1}))
        run(engine, Fake(), Fake())
        assert recorder.begun == [(schedule, frozenset({1}))]
        assert [(row, branch) for row, branch, _, _ in recorder.rows] == [
            (row, f"branch {i}") for row in range(3) for i in range(2)
        ]
        assert [changes for _, _, changes, _ in recorder.rows][::2] == [{}, {0: 0.5}, {1: pytest.approx(1 / 3)}]
        assert [outputs for _, _, _, outputs in recorder.rows][::2] == [{0: 1.0}, {0: 1.0, 1: 2.0}, {1: 2.0}]


class Recorder:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[Schedule, frozenset[int]]] = []
        self.rows: list[tuple[int, str, dict[int, float], dict[int, float]]] = []

    def begin(self, schedule: Schedule, volatile: frozenset[int]) -> None:
        self.begun.append((schedule, volatile))

    def record(self, row: int, branch: str, changes: Mapping[int, float], outputs: Mapping[int, torch.Tensor]) -> None:
        self.rows.append((row, branch, dict(changes), {b: float(o[0]) for b, o in outputs.items()}))


class TestReuse:
    def test_a_cached_block_gives_its_newest_output_and_a_predicted_one_its_course(self) -> None:
        # Noise levels fall by an eighth, and the output with them.
        model = Fake(output=lambda row, block: torch.full((2,), 8.0 - row))
        engine = Engine(one_block(), Policy(plan=tuple("RRPCRPPR")))
        outputs = [float(row[0][0]) for row in run(engine, model)]
        # Rows 0 and 1 give 8 and 7; from row 4 (4) the slope of 1 and 4 goes on.
        assert outputs == pytest.approx([8.0, 7.0, 6.0, 7.0, 4.0, 3.0, 2.0, 1.0])
        assert [len(request.blocks) for request in model.passes] == [1] * 4
        assert engine.report.evaluations == 4
        assert engine.report.max_skip_seen == 2
        assert engine.report.history_bytes == 2 * 2 * 4

    def test_the_longest_skip_is_counted_from_the_last_recompute(self) -> None:
        engine = Engine(one_block(), Policy(plan=tuple("RPRPPPRP")))
        run(engine, Fake())
        assert engine.report.max_skip_seen == 3

    def test_histories_are_each_branchs_own(self) -> None:
        engine = Engine(one_block(4), Policy(plan=tuple("RRPP")))
        up, down = (
            Fake(output=lambda row, block, slope=slope: torch.full((2,), 9.0 + slope * row)) for slope in (1, -1)
        )
        for row in range(4):
            up.row = down.row = row
            outputs = float(engine.run("up", up)[0][0]), float(engine.run("down", down)[0][0])
            assert outputs == pytest.approx((9.0 + row, 9.0 - row))
        assert engine.report.history_bytes == 2 * 2 * 2 * 4

    def test_the_order_is_lowered_where_a_prediction_reaches_too_far(self) -> None:
        model = Fake(output=lambda row, block: torch.full((2,), 8.0 - row))
        engine = Engine(one_block(4), Policy(plan=tuple("RRPP"), max_step_ratio=1.0))
        assert [float(row[0][0]) for row in run(engine, model)] == pytest.approx([8.0, 7.0, 6.0, 7.0])

    def test_what_a_prediction_would_have_given_is_checked_at_every_recompute(self) -> None:
        outputs = [4.0, 4.0, 6.0, 4.0]
        model = Fake(output=lambda row, block: torch.full((2,), outputs[row]))
        engine = Engine(one_block(4), Policy(max_skip=0))
        run(engine, model)
        checks = [(e.row, e.block, e.branch, e.sigma, e.order) for e in engine.report.prediction_errors]
        assert checks == [(1, 0, "branch 0", 0.75, 0), (2, 0, "branch 0", 0.5, 1), (3, 0, "branch 0", 0.25, 1)]
        # Row 2: 4 was expected of a 6; row 3: 8 of a 4.
        assert [e.error for e in engine.report.prediction_errors] == pytest.approx([0.0, 1 / 3, 1.0])

    def test_a_check_uses_the_order_that_a_prediction_would_have_had(self) -> None:
        engine = Engine(one_block(), Policy(plan=tuple("RRPPRRRR"), max_step_ratio=1.0))
        run(engine, Fake())
        assert [(e.row, e.order) for e in engine.report.prediction_errors] == [
            (1, 0), (4, 0), (5, 1), (6, 1), (7, 1),
        ]  # fmt: skip

    def test_after_a_restart_there_is_nothing_to_check_or_to_continue(self) -> None:
        schedule = replace(one_block(), restarts=frozenset({(3, 0)}))
        model = Fake(output=lambda row, block: torch.full((2,), 8.0 - row if row < 3 else 100.0 + row))
        engine = Engine(schedule, Policy(plan=tuple("RRRRPRRR")))
        outputs = [float(row[0][0]) for row in run(engine, model)]
        assert outputs[3:5] == [103.0, 103.0]
        assert [(e.row, e.order) for e in engine.report.prediction_errors] == [(1, 0), (2, 1), (5, 0), (6, 1), (7, 1)]

    def test_an_output_of_nothing_is_checked_without_dividing_by_it(self) -> None:
        model = Fake(output=lambda row, block: torch.zeros(2))
        engine = Engine(one_block(3), Policy(max_skip=0))
        run(engine, model)
        assert [e.error for e in engine.report.prediction_errors] == [0.0, 0.0]

    def test_context_is_kept_of_active_blocks_where_later_ones_will_see_it_stale(self) -> None:
        schedule = staggered(blocks=2, steps=3, lag=0)
        engine, model = Engine(schedule, Policy(granularity="block", plan=("RR", "RR", "PR"))), Fake()
        run(engine, model)
        assert [(request.blocks, request.keep) for request in model.passes] == [
            ((0, 1), (0,)), ((0, 1), (0,)), ((1,), ()),
        ]  # fmt: skip
        assert model.passes[-1].context.captured == set()
        fresh, model = Engine(schedule, Policy(plan=("RR", "RR", "RP"))), Fake()
        run(fresh, model)
        assert {request.keep for request in model.passes} == {()}

    def test_the_policys_context_is_what_every_branch_gets(self) -> None:
        schedule = staggered(blocks=3, steps=2, lag=2)
        policy = Policy(max_skip=0, context_window=1, context_dtype="bfloat16")
        engine, model = Engine(schedule, policy), Fake()
        run(engine, model)
        context = model.passes[-1].context
        assert context.blocks == [1]
        assert {t.dtype for held in context._layers.values() for pair in held.values() for t in pair} == {
            torch.bfloat16
        }
        assert engine.report.context_bytes == 2 * 2 * 2

    def test_the_plan_is_in_the_report_unless_content_decides(self) -> None:
        assert Engine(one_block(4), Policy(warmup=2)).report.plan == ("R", "R", "P", "P")
        assert Engine(one_block(4), Policy(indicator=MODULATED_INPUT)).report.plan is None


class TestContent:
    def test_content_decides_by_how_far_the_modulated_input_moved(self) -> None:
        moved = [1.0, 1.0, 1.5, 1.5, 4.0, 4.0, 4.0, 4.0]
        model = Fake(modulated=lambda row, block: torch.full((2,), moved[row]))
        policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, cache_threshold=0.25, predict_threshold=0.75)
        engine = Engine(one_block(), policy)
        run(engine, model)
        assert letters(engine) == "RCPPRCCC"
        assert model.looks == [(0,)] * 8

    def test_only_blocks_that_were_active_in_the_row_before_have_moved(self) -> None:
        policy = Policy(granularity="block", indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=2.0)
        engine = Engine(staggered(blocks=2, steps=3, lag=1), policy)
        run(engine, model := Fake())
        assert engine.report.modes == ["R.", "PR", "PP", ".P"]
        assert model.looks == [(0,), (0, 1), (0, 1), (1,)]

    def test_changes_and_norms_go_to_the_blocks_and_branches_they_were_measured_on(self) -> None:
        """With a guard: block 1 of the second branch moves too far, and nothing else does."""
        schedule = staggered(blocks=2, steps=4, lag=0)
        policy = Policy(granularity="block", indicator=MODULATED_INPUT, warmup=2, max_skip=9, magnitude_bound=0.5)

        def output(branch: int) -> Value:
            return lambda row, block: torch.full((2,), 8.0 - row * (4.0 if (branch, block) == (1, 1) else 1.0))

        engine = Engine(schedule, policy)
        run(engine, *(Fake(output=output(branch)) for branch in (0, 1)))
        assert engine.report.modes[:3] == ["RR", "RR", "PR"]
        assert engine.report.fallbacks >= 1

    def test_what_decisions_rest_on_is_shared_between_processes(self) -> None:
        shared: list[torch.Tensor] = []

        def share(values: torch.Tensor) -> None:
            shared.append(values.clone())
            values.mul_(0)

        policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=0.1)
        engine = Engine(one_block(3), policy, share=share)
        run(engine, Fake())
        # What this process measured alone would have been recomputed.
        assert letters(engine) == "RPP"
        expected = [float(relative_l1(torch.full((2,), 1 + 0.5 * r), torch.full((2,), 0.5 + 0.5 * r))) for r in (1, 2)]
        # Change of the input, and at first the norm of the one output (1, 1).
        assert [values.tolist() for values in shared] == [
            pytest.approx([expected[0], math.sqrt(2)]), pytest.approx([expected[1]]),
        ]  # fmt: skip
        alone = Engine(one_block(3), policy)
        run(alone, Fake())
        assert letters(alone) == "RRR"

    def test_the_guard_goes_by_the_norms_that_all_processes_agreed_on(self) -> None:
        def at_rest(values: torch.Tensor) -> None:
            values[1:] = 0  # every difference; the newest output comes first

        policy = Policy(warmup=2, max_skip=9, magnitude_bound=0.1)
        for share, expected in ((at_rest, "RRPPPPPP"), (None, "RRRRRRRR")):
            engine = Engine(one_block(), policy, share=share)
            run(engine, Fake(output=lambda row, block: torch.full((4,), 8.0 - row)))
            assert letters(engine) == expected

    def test_a_frozen_plan_without_a_guard_reads_nothing(self) -> None:
        def share(values: torch.Tensor) -> None:
            raise AssertionError("nothing has to be agreed on")

        run(Engine(one_block(4), Policy(plan=tuple("RRPC")), share=share), Fake())


class TestGuard:
    """The magnitude guard: a reuse that would move too far from the newest output is recomputed."""

    @staticmethod
    def falling(policy: dict[str, Any]) -> Engine:
        """Outputs 8, 7, ... while the noise level falls by eighths: a prediction k rows on moves by k."""
        engine = Engine(one_block(), Policy(warmup=2, max_skip=9, **policy))
        run(engine, Fake(output=lambda row, block: torch.full((4,), 8.0 - row)))
        return engine

    def test_a_displacement_up_to_the_bound_is_trusted_and_beyond_it_is_not(self) -> None:
        # From 7 on, the first prediction moves by 1/7 and the second by 2/7.
        assert letters(self.falling({"magnitude_bound": 0.28})).startswith("RRPR")
        assert letters(self.falling({"magnitude_bound": 0.29})).startswith("RRPPR")
        assert letters(self.falling({"magnitude_bound": 0.14})) == "RRRRRRRR"
        assert self.falling({"magnitude_bound": 0.14}).report.fallbacks == 6
        free = self.falling({})
        assert (letters(free), free.report.fallbacks) == ("RRPPPPPP", 0)

    def test_a_displacement_that_equals_the_bound_is_trusted(self) -> None:
        still = Engine(one_block(), Policy(warmup=1, max_skip=9, order=0, magnitude_bound=0.0))
        run(still, Fake())
        assert letters(still) == "RPPPPPPP"

    def test_what_is_cached_does_not_move(self) -> None:
        engine = self.falling({"magnitude_bound": 0.0, "cache_threshold": 9.0})
        assert letters(engine) == "RRCCCCCC"

    def test_the_displacement_is_that_of_the_order_really_used(self) -> None:
        # A reach of more than 1 is held still by order 0.
        assert letters(self.falling({"magnitude_bound": 0.15, "max_step_ratio": 1.0})) == "RRPPPPPP"

    def test_one_branch_that_moves_too_far_is_enough(self) -> None:
        for order in (1, -1):
            engine = Engine(one_block(4), Policy(warmup=2, max_skip=9, magnitude_bound=0.1))
            models = Fake(), Fake(output=lambda row, block: torch.full((4,), 8.0 - row))
            run(engine, *models[::order])
            assert letters(engine) == "RRRR"

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("bound", [None, 1e9])
    def test_outputs_that_are_not_finite_are_never_reused(self, bad: float, bound: float | None) -> None:
        engine = Engine(one_block(), Policy(warmup=1, max_skip=9, cache_threshold=9.0, magnitude_bound=bound))
        run(engine, Fake(output=lambda row, block: torch.full((2,), bad if row == 3 else 1.0)))
        assert letters(engine) == "RCCCCCCC"
        engine = Engine(one_block(), Policy(warmup=4, max_skip=9, cache_threshold=9.0, magnitude_bound=bound))
        run(engine, Fake(output=lambda row, block: torch.full((2,), bad if row == 3 else 1.0)))
        assert letters(engine) == "RRRRRCCC"

    def test_from_nothing_to_something_is_too_far_without_a_bound_too(self) -> None:
        outputs = [1.0, 0.0, 0.0, 0.0]
        engine = Engine(one_block(4), Policy(warmup=2, max_skip=9))
        run(engine, Fake(output=lambda row, block: torch.full((2,), outputs[row])))
        assert letters(engine) == "RRRP"

    def test_a_branch_without_a_history_bears_no_reuse(self) -> None:
        """A branch that joins late has nothing to reuse: the row is recomputed for all."""
        engine = Engine(one_block(4), Policy(warmup=1, max_skip=9))
        engine.run("first", Fake())
        engine._new_branch("second").row = 1
        engine.run("first", Fake())
        assert letters(engine) == "RR"
        assert engine.report.fallbacks == 1
        assert float(engine.run("second", Fake())[0][0]) == 1.0

    def test_a_frozen_plan_is_guarded_where_a_bound_asks_for_it(self) -> None:
        plan = tuple("RRPPPPPP")
        free, bound = self.falling({"plan": plan}), self.falling({"plan": plan, "magnitude_bound": 0.1})
        assert (letters(free), free.report.fallbacks) == ("RRPPPPPP", 0)
        assert (letters(bound), bound.report.fallbacks) == ("RRRRRRRR", 6)


class TestBudget:
    def test_the_larger_of_the_branches_errors_counts(self) -> None:
        """Order 0 leaves out the slope: a branch at rest adds nothing, one that falls spends the budget."""
        for order in (1, -1):
            engine = Engine(one_block(4), Policy(warmup=2, max_skip=9, order=0, error_budget=0.02))
            models = Fake(), Fake(output=lambda row, block: torch.full((4,), 8.0 - row))
            run(engine, *models[::order])
            # Row 2 adds a quarter (the solver's step) of 1/7 at once.
            assert letters(engine) == "RRRR"
            assert engine.report.over_budget == 2
        engine = Engine(one_block(4), Policy(warmup=2, max_skip=9, order=0, error_budget=0.02))
        run(engine, Fake(), Fake())
        assert (letters(engine), engine.report.over_budget) == ("RRPP", 0)

    def test_the_error_of_a_mode_is_that_of_the_order_it_uses(self) -> None:
        """A straight course costs nothing to predict and something to cache."""
        straight = Fake(output=lambda row, block: torch.full((4,), 8.0 - row))
        predicted = Engine(one_block(), Policy(warmup=3, max_skip=9, error_budget=1e-5))
        run(predicted, straight)
        assert letters(predicted) == "RRRPPPPP"
        cached = Engine(one_block(), Policy(warmup=3, max_skip=9, error_budget=1e-5, cache_threshold=9.0))
        run(cached, straight)
        assert letters(cached) == "RRRRRRRR"
        assert cached.report.over_budget == 5

    def test_the_error_is_that_of_a_lowered_order(self) -> None:
        engine = Engine(one_block(), Policy(warmup=3, max_skip=9, error_budget=1e-5, max_step_ratio=1.0))
        run(engine, Fake(output=lambda row, block: torch.full((4,), 8.0 - row)))
        # Order 1 is exact as far as the last two recomputes are apart; beyond that order 0 takes its place.
        assert letters(engine) == "RRRPRPPR"
