"""Learned weights and captures without a clean pass: by hand on outputs that are known, and on real pipelines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from scope_runtime import (
    ContextTooLarge,
    GapWeights,
    ModelIdentity,
    Policy,
    Profile,
    ProfileError,
    ProfileMismatch,
    Schedule,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.context import Pass
from scope_runtime.engine import Engine
from scope_runtime.gap_weights import NEWEST, WeightedOutputs, plan_digest, scheduler_digest
from scope_runtime.policy import needs_stale_context
from tests.magi_1 import STAND_IN, Magi, counted, imported
from tests.scope_runtime.test_engine import Fake, run
from tests.scope_runtime.test_policy import staggered
from tests.scope_runtime.test_profile import EVIDENCE
from tests.tiny import CALL, latents, tiny_pipeline

Table = dict[tuple[int, int, str], tuple[float, ...]]

PLAN = ("R..", "R..", "RR.", "RR.", "RRR", "PRR", "RRR", "CPR", ".RP", ".PR", "..P", "..R")
"""For `CALL`: the newest of several recomputes are followed by gaps of one row."""


def weights_of(plan: tuple[str, ...], table: Table, /, **changes: Any) -> GapWeights:
    """Weights that no settings are asked about."""
    fields: dict[str, Any] = {
        "depth": 3, "classes": (0, 1), "weights": tuple((*key, table[key]) for key in sorted(table)),
        "num_inference_steps": 8, "guidance_scale": 3.0, "scheduler": "any", "plan": plan_digest(plan),
    }  # fmt: skip
    return GapWeights(**fields | changes)


def learned(plan: tuple[str, ...], table: Table, **changes: Any) -> Policy:
    return Policy(plan=plan, gap_weights=weights_of(plan, table, **changes))


def everywhere(*weights: float) -> Table:
    """The same weights for every gap of the tiny pipeline."""
    return {(kind, step, branch): weights for kind in (0, 1) for step in range(8) for branch in ("cond", "uncond")}


def fitted(pipe: Any, plan: tuple[str, ...], table: Table) -> GapWeights:
    """Weights for the tiny pipeline's usual call."""
    return GapWeights.fitted(plan, Settings.of(pipe, **CALL), depth=3, classes=(0, 1), weights=table)


class Course:
    """A model of blocks whose outputs in every row are given: 2, 3, 5, 7, 11, ... times 10 to the block's number."""

    PRIMES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0)

    def __init__(self, dtype: torch.dtype = torch.float32, sign: float = 1.0) -> None:
        self.dtype = dtype
        self.sign = sign
        self.row = 0

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        value = self.sign * self.PRIMES[self.row]
        return {block: torch.full((2,), value * 10**block, dtype=self.dtype) for block in request.blocks}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        raise AssertionError("a frozen plan looks at nothing")


def handed_over(policy: Policy, schedule: Schedule, branch: str = "cond") -> tuple[list[dict[int, float]], Engine]:
    engine, course = Engine(schedule, policy), Course()
    found = []
    for course.row in range(schedule.rows):
        found.append({block: float(output[0]) for block, output in engine.run(branch, course).items()})
    return found, engine


def one_block(steps: int = 8) -> Schedule:
    return staggered(blocks=1, steps=steps)


class TestByHand:
    def test_a_gap_hands_over_the_sum_of_the_newest_raw_outputs(self) -> None:
        table = {(0, 3, "cond"): (2.0, -1.0), (0, 5, "cond"): (1.5, 0.5, -1.0)}
        found, engine = handed_over(learned(tuple("RRRRPRPC"), table), one_block())
        at_3 = 2 * 7 - 5.0
        at_5 = 1.5 * 13 + 0.5 * 7 - 5.0  # of what was computed at steps 5, 3 and 2, not of what was handed over
        assert [row[0] for row in found] == [2, 3, 5, at_3, at_3, at_5, at_5, at_5]
        assert engine.report.evaluations == 5
        assert engine.report.modes == list("RRRRPRPC")
        # A weighted recompute is a recompute; what the gap before handed over is checked against what was computed.
        checks = [(e.row, e.order, e.predicted, e.error) for e in engine.report.prediction_errors]
        assert checks == [
            (row, 0, None, pytest.approx(abs(before - now) / now))
            for row, before, now in ((1, 2, 3), (2, 3, 5), (3, 5, 7), (5, at_3, 13))
        ]

    def test_skipped_rows_hand_over_the_very_tensor_of_the_recompute(self) -> None:
        engine, course = Engine(one_block(4), learned(tuple("RRPC"), {(0, 1, "cond"): (0.5, 0.5)})), Course()
        given = []
        for course.row in range(4):
            given.append(engine.run("cond", course)[0])
        assert given[1] is given[2] is given[3]
        assert given[0] is not given[1]

    def test_with_fewer_outputs_than_weights_those_there_are_count(self) -> None:
        table = {(0, 0, "cond"): (0.5, 9.0, 9.0), (0, 1, "cond"): (2.0, 1.0, 9.0)}
        found, _ = handed_over(learned(tuple("RRPP"), table), one_block(4))
        assert [row[0] for row in found] == [1, 8, 8, 8]

    def test_no_more_outputs_are_kept_than_the_depth(self) -> None:
        for depth, weights in ((1, (3.0,)), (2, (3.0, 1.0)), (3, (3.0, 1.0, -1.0))):
            found, engine = handed_over(learned(tuple("RRRRPP"), {(0, 3, "cond"): weights}, depth=depth), one_block(6))
            newest = (7.0, 5.0, 3.0)
            assert found[5][0] == sum(w * v for w, v in zip(weights, newest, strict=False))
            assert engine.report.history_bytes == depth * 2 * 4

    def test_the_key_is_class_own_step_and_branch(self) -> None:
        plan = ("RR.", "RRR", "PPR", "..P")
        index = [[1, 1, 0], [2, 2, 1], [3, 3, 2], [4, 4, 3]]
        update = [[letter != "." for letter in row] for row in plan]
        schedule = Schedule.from_step_index(index, update, [1.0, 0.6, 0.3], 5)
        table = {(7, 1, "cond"): (2.0,), (4, 1, "cond"): (1.0, 1.0), (4, 1, "uncond"): (-1.0,), (4, 2, "cond"): (9.0,)}
        policy = learned(plan, table, classes=(7, 4))
        found, _ = handed_over(policy, schedule)
        # Blocks 1 and 2 are of class 4; block 2 makes its update 1 in row 2.
        assert found == [{0: 2, 1: 20}, {0: 6, 1: 50, 2: 300}, {0: 6, 1: 50, 2: 800}, {2: 800}]
        other, _ = handed_over(policy, schedule, branch="uncond")
        assert other == [{0: 2, 1: 20}, {0: 3, 1: -30, 2: 300}, {0: 3, 1: -30, 2: -500}, {2: -500}]
        plain, _ = handed_over(policy, schedule, branch="another")
        assert plain == [{0: 2, 1: 20}, {0: 3, 1: 30, 2: 300}, {0: 3, 1: 30, 2: 500}, {2: 500}]

    def test_branches_keep_outputs_of_their_own(self) -> None:
        policy = learned(tuple("RRP"), {(0, 1, name): (1.0, 1.0) for name in ("cond", "uncond")})
        engine, models = Engine(one_block(3), policy), {"cond": Course(), "uncond": Course(sign=-1)}
        for row in range(3):
            found = {}
            for name, model in models.items():
                model.row = row
                found[name] = float(engine.run(name, model)[0][0])
        assert found == {"cond": 5.0, "uncond": -5.0}
        # Of two outputs a branch keeps the older one and their sum.
        assert engine.report.history_bytes == 2 * 3 * 2 * 4

    def test_a_restart_forgets_what_was_before_it(self) -> None:
        table = {(0, 1, "cond"): (1.0, 1.0), (0, 2, "cond"): (1.0, 10.0, 100.0), (0, 4, "cond"): (1.0, 10.0, 100.0)}
        schedule = replace(one_block(6), restarts=frozenset({(2, 0)}))
        found, engine = handed_over(learned(tuple("RRRPRP"), table), schedule)
        assert [row[0] for row in found] == [2, 5, 5, 5, 11 + 10 * 5, 11 + 10 * 5]
        assert [(e.row, e.error) for e in engine.report.prediction_errors] == [
            (1, pytest.approx(1 / 3)), (4, pytest.approx(6 / 11)),
        ]  # fmt: skip

    def test_an_output_without_weight_may_be_anything(self) -> None:
        history = WeightedOutputs(3, lambda row: (1.0, 0.0, -0.5)[: 1 + 2 * (row == 2)])
        for row, value in enumerate((4.0, torch.nan, 8.0)):
            handed = history.record(row, torch.full((2,), value))
        assert handed.tolist() == [6.0, 6.0]
        nothing = WeightedOutputs(2, lambda row: (0.0, 0.0))
        assert nothing.empty
        assert nothing.record(0, torch.ones(2)).tolist() == [0.0, 0.0]
        assert not nothing.empty
        nothing.clear()
        assert (nothing.empty, nothing.bytes) == (True, 0)

    def test_what_is_recorded_may_change_afterwards(self) -> None:
        """Outputs are views of what a pass gave, which must not be kept alive nor be relied on."""
        history = WeightedOutputs(2, lambda row: (1.0, 1.0) if row else NEWEST)
        whole = torch.arange(8.0)
        assert history.record(0, whole[:4]).tolist() == [0, 1, 2, 3]
        whole.zero_()
        assert history.output(0, cached=True).tolist() == [0, 1, 2, 3]
        assert history.record(1, torch.ones(4)).tolist() == [1, 2, 3, 4]
        assert history.bytes == 2 * 4 * 4

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sums_are_made_in_float32_and_kept_in_the_models_type(self, dtype: torch.dtype) -> None:
        values = [torch.tensor([1.0, 3.0]).to(dtype) + i for i in range(3)]
        weights = (1.7, -1.1, 0.4)
        history = WeightedOutputs(3, lambda row: weights if row == 2 else NEWEST)
        for row, value in enumerate(values):
            handed = history.record(row, value)
        exact_sum = sum(w * v.float() for w, v in zip(weights, values[::-1], strict=True))
        assert isinstance(exact_sum, torch.Tensor)
        assert torch.equal(handed, exact_sum.to(dtype))
        assert history.bytes == 3 * 2 * 2


class TestCaptures:
    def test_the_last_recomputes_context_stands_for_the_clean_pass(self) -> None:
        schedule = staggered(blocks=3, steps=3, lag=2)
        plan = ("R..", "R..", "RR.", ".R.", ".RR", "..R", "..P")
        engine, model = Engine(schedule, Policy(plan=plan, captures="last")), Fake()
        run(engine, model)
        assert [(request.blocks, request.keep) for request in model.passes] == [
            ((0,), (0,)), ((0,), (0,)), ((0, 1), (0, 1)), ((1,), (1,)), ((1, 2), (1,)), ((2,), ()),
        ]  # fmt: skip
        assert engine.report.modes == list(plan)
        context = model.passes[-1].context
        assert (context.blocks, context.captured) == ([0, 1], {0, 1})
        # Block 0 was computed last in row 2, block 1 in row 4.
        assert [float(context._layers[0][block][0].flatten()[0]) for block in (0, 1)] == [2.0, 4.0]
        clean = Engine(schedule, Policy(plan=plan))
        run(clean, Fake())
        assert clean.report.modes == ["R..", "R..", "RR.", "KR.", ".RR", ".KR", "..P"]
        assert (engine.report.evaluations, clean.report.evaluations) == (8, 10)

    def test_blocks_that_are_given_are_captured_all_the_same(self) -> None:
        index = [[4, 1], [4, 2], [4, 3]]
        schedule = Schedule.from_step_index(index, [[False, True]] * 3, [1.0, 0.6, 0.3], 5)
        engine, model = Engine(schedule, Policy(max_skip=0, captures="last")), Fake()
        run(engine, model)
        assert engine.report.modes == ["KR", ".R", ".R"]
        assert model.passes[0].keep == (0,)

    def test_a_prefix_that_is_noised_anew_is_computed_and_later_blocks_are_taken_as_they_were(self) -> None:
        index = [[4, 1, 0], [4, 2, 0], [4, 3, 1], [4, 4, 2], [4, 4, 3]]
        update = [[False, 0 < row[1] <= 3, 0 < row[2] <= 3] for row in index]
        schedule = Schedule.from_step_index(index, update, [1.0, 0.6, 0.3], 5)
        engine = Engine(schedule, Policy(max_skip=0, captures="last"), volatile=frozenset({0}))
        run(engine, Fake())
        assert engine.report.modes == ["#R.", "#R.", "#RR", "#.R", "#.R"]

    def test_a_window_lets_go_of_the_oldest(self) -> None:
        schedule = staggered(blocks=4, steps=2, lag=2)
        engine, model = Engine(schedule, Policy(max_skip=0, captures="last", context_window=1)), Fake()
        run(engine, model)
        context = model.passes[-1].context
        assert (context.blocks, context.captured) == ([2], {0, 1, 2})
        assert "K" not in "".join(engine.report.modes)

    def test_under_bidirectional_attention_it_is_refused(self) -> None:
        with pytest.raises(ProfileError, match="bidirectional") as error:
            Engine(staggered(causal=False), Policy(captures="last"))
        assert error.value.field == "policy.captures"

    def test_context_is_kept_of_every_recompute(self) -> None:
        assert needs_stale_context(Policy(captures="last"), staggered())
        assert needs_stale_context(Policy(plan=("RRR", "RRR"), captures="last"), staggered())


class TestForm:
    def test_weights_round_trip_and_compare_by_value(self) -> None:
        weights = weights_of(("R",), {(0, 0, "cond"): (1, 0.5), (1, 3, "a"): (2,)}, classes=[0, 1], guidance_scale=3)
        data = json.loads(json.dumps(weights.to_dict()))
        assert data["weights"] == [[0, 0, "cond", [1.0, 0.5]], [1, 3, "a", [2.0]]]
        again = GapWeights.from_dict(data)
        assert again == weights
        assert hash(again) == hash(weights)
        assert hash(learned(("R",), {})) == hash(learned(("R",), {}))
        assert weights != replace(weights, depth=2)

    def test_a_gap_that_nothing_was_fitted_for_repeats_the_newest_output(self) -> None:
        weights = weights_of(("R",), {(0, 2, "cond"): (0.5,), (1, 2, "cond"): (0.25,)})
        assert weights.of(0, 2, "cond") == (0.5,)
        assert weights.of(1, 2, "cond") == weights.of(9, 2, "cond") == (0.25,)
        assert weights.of(0, 3, "cond") == weights.of(0, 2, "uncond") == (1.0,)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"depth": 0}, "depth"),
            ({"depth": 17}, "depth"),
            ({"depth": True}, "depth"),
            ({"classes": ()}, "classes"),
            ({"classes": 3}, "classes"),
            ({"classes": (0,) * 10_001}, "classes"),
            ({"classes": (0, -1)}, "classes.1"),
            ({"classes": (0, 1.0)}, "classes.1"),
            ({"num_inference_steps": 0}, "num_inference_steps"),
            ({"num_inference_steps": 10_001}, "num_inference_steps"),
            ({"guidance_scale": -1.0}, "guidance_scale"),
            ({"guidance_scale": float("nan")}, "guidance_scale"),
            ({"scheduler": ""}, "scheduler"),
            ({"plan": None}, "plan"),
            ({"weights": None}, "weights"),
            ({"weights": ((0, 0, "a", (1.0,)),) * 100_001}, "weights"),
            ({"weights": ((0, 0, "a", (1.0,)), 5)}, "weights.1"),
            ({"weights": ((0, 0, "a"),)}, "weights.0"),
            ({"weights": ((-1, 0, "a", (1.0,)),)}, "weights.0.class"),
            ({"weights": ((2, 0, "a", (1.0,)),)}, "weights.0.class"),
            ({"weights": ((0, 8, "a", (1.0,)),)}, "weights.0.step"),
            ({"weights": ((0, -1, "a", (1.0,)),)}, "weights.0.step"),
            ({"weights": ((0, 0, "", (1.0,)),)}, "weights.0.branch"),
            ({"weights": ((0, 0, "a", 1.0),)}, "weights.0.weights"),
            ({"weights": ((0, 0, "a", ()),)}, "weights.0.weights"),
            ({"weights": ((0, 0, "a", (1.0,) * 4),)}, "weights.0.weights"),
            ({"weights": ((0, 0, "a", (1.0, float("inf"))),)}, "weights.0.weights.1"),
            ({"weights": ((0, 0, "a", (1.0, -1001.0)),)}, "weights.0.weights.1"),
            ({"weights": ((0, 0, "a", (1.0, "2")),)}, "weights.0.weights.1"),
            ({"weights": ((0, 0, "a", (1.0,)), (0, 0, "a", (2.0,)))}, "weights.1"),
            ({"weights": ((0, 1, "a", (1.0,)), (0, 0, "b", (2.0,)))}, "weights.1"),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, changes: dict[str, Any], field: str) -> None:
        with pytest.raises(ProfileError) as error:
            weights_of(("R",), {}, **changes)
        assert error.value.field == f"policy.gap_weights.{field}"

    def test_values_at_the_edges_are_allowed(self) -> None:
        entry = (1, 9_999, "a", (1000.0, -1000.0))
        weights_of(("R",), {}, depth=16, weights=(entry,), num_inference_steps=10_000, guidance_scale=0)
        weights_of(("R",), {}, classes=(0,) * 10_000)

    def test_fields_are_complete(self) -> None:
        data = weights_of(("R",), {}).to_dict()
        for name in data:
            with pytest.raises(ProfileError, match="is missing") as error:
                GapWeights.from_dict({key: value for key, value in data.items() if key != name})
            assert error.value.field == f"policy.gap_weights.{name}"
        with pytest.raises(ProfileError, match="unknown field"):
            GapWeights.from_dict(data | {"more": 1})
        with pytest.raises(ProfileError, match="must be a JSON object"):
            Policy.from_dict({"plan": ["R"], "gap_weights": [1]})

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"order": 0}, "policy.order"),
            ({"order": 2}, "policy.order"),
            ({"axis": "step"}, "policy.axis"),
            ({"max_step_ratio": 2.0}, "policy.max_step_ratio"),
            ({"magnitude_bound": 1.0}, "policy.magnitude_bound"),
            ({"error_budget": 1.0}, "policy.error_budget"),
            ({"plan": None}, "policy.gap_weights"),
            ({"plan": ("RR",)}, "policy.gap_weights.plan"),
            ({"gap_weights": {}}, "policy.gap_weights"),
            ({"captures": "never"}, "policy.captures"),
            ({"captures": None}, "policy.captures"),
        ],
    )
    def test_a_policy_refuses_what_does_not_go_with_weights(self, changes: dict[str, Any], field: str) -> None:
        fields: dict[str, Any] = {"plan": ("R",), "gap_weights": weights_of(("R",), {})}
        with pytest.raises(ProfileError) as error:
            Policy(**fields | changes)
        assert error.value.field == field

    def test_a_learned_policy_looks_at_no_output(self) -> None:
        found = learned(("R",), {})
        assert (found.needs_content, found.needs_guard) == (False, False)
        assert Policy.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_plain_weights_are_the_newest_output_bit_for_bit(pipe: Any) -> None:
    with run_policy(pipe, Policy(plan=PLAN, order=0)) as scope:
        expected = latents(pipe)
    for weights in ((1.0, 0.0, 0.0), (1.0,)):
        with run_policy(pipe, Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(*weights)))) as learned_scope:
            assert torch.equal(latents(pipe), expected)
        assert learned_scope.report.modes == scope.report.modes
        assert learned_scope.report.evaluations == scope.report.evaluations
    with run_policy(pipe, Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, {}))):
        assert torch.equal(latents(pipe), expected)


def test_weights_act_on_both_branches_and_are_counted(pipe: Any) -> None:
    found = []
    for branches in (("cond", "uncond"), ("cond",), ("uncond",), ()):
        table = {key: value for key, value in everywhere(1.25, -0.25).items() if key[2] in branches}
        with run_policy(pipe, Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, table))) as scope:
            found.append(latents(pipe))
    assert all(torch.isfinite(video).all() for video in found)
    assert all((one - other).abs().max() > 1e-4 for i, one in enumerate(found) for other in found[:i])
    # Per branch and block 3 tensors at most of 16 channels, 3 frames of 2 x 2; of plain reuse the sum is one of them.
    assert scope.report.history_bytes == 2 * 3 * 2 * 16 * 3 * 2 * 2 * 4
    with run_policy(pipe, Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(1.5, -0.5)))) as scope:
        latents(pipe)
    assert scope.report.history_bytes == 2 * 3 * 3 * 16 * 3 * 2 * 2 * 4
    assert scope.report.prediction_errors
    assert "relative error that predicting would have made" in str(scope.report)


def all_recomputed(plan: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(row.replace("P", "R").replace("C", "R") for row in plan)


def test_a_plan_that_recomputes_everything_is_exact_with_clean_captures_and_close_without(pipe: Any) -> None:
    plan = all_recomputed(PLAN)
    with exact(pipe) as scope:
        expected = latents(pipe)
    with run_policy(pipe, Policy(plan=plan, gap_weights=fitted(pipe, plan, everywhere(1.0)))) as clean:
        assert torch.equal(latents(pipe), expected)
    assert clean.report.modes == scope.report.modes
    with run_policy(pipe, Policy(plan=plan, captures="last")) as last:
        close = latents(pipe)
    assert tuple(last.report.modes) == plan == last.plan
    captured = "".join(clean.report.modes).count("K")
    assert captured == 2
    assert last.report.evaluations == clean.report.evaluations - 2 * captured
    assert 0 < (close - expected).abs().max() < 0.1 < expected.std()
    assert last.report.context_bytes == clean.report.context_bytes
    with run_policy(pipe, Policy(plan=plan, captures="last"), max_context_bytes=last.report.context_bytes):
        assert torch.equal(latents(pipe), close)
    with (
        run_policy(pipe, Policy(plan=plan, captures="last"), max_context_bytes=last.report.context_bytes - 1),
        pytest.raises(ContextTooLarge),
    ):
        latents(pipe)


def test_thresholds_do_without_clean_passes_too(pipe: Any) -> None:
    with run_policy(pipe, Policy(warmup=2, max_skip=2)) as clean:
        latents(pipe)
    with run_policy(pipe, Policy(warmup=2, max_skip=2, captures="last")) as last:
        assert torch.isfinite(latents(pipe)).all()
    assert last.report.modes == [row.replace("K", ".") for row in clean.report.modes]
    with run_policy(pipe, Policy(captures="last")), pytest.raises(ProfileError, match=r"policy\.captures"):
        latents(pipe, causal_block_size=1)
    assert torch.equal(latents(pipe), latents(pipe))


def test_bfloat16_keeps_outputs_in_the_models_type(pipe: Any) -> None:
    half = tiny_pipeline()
    half.transformer.to(torch.bfloat16)
    policy = Policy(plan=PLAN, gap_weights=fitted(half, PLAN, everywhere(1.5, -0.75, 0.25)), captures="last")
    with run_policy(half, policy) as scope:
        video = latents(half)
    assert torch.isfinite(video).all()
    with run_policy(pipe, policy) as full:
        assert (latents(pipe) - video).abs().max() < 0.3
    assert scope.report.history_bytes * 2 == full.report.history_bytes


class TestMismatch:
    """Weights hold for one plan, number of steps, guidance and scheduler."""

    @pytest.mark.parametrize(
        ("call", "field"),
        [
            ({"num_inference_steps": 9}, "num_inference_steps"),
            ({"guidance_scale": 4.0}, "guidance_scale"),
            ({"guidance_scale": 1.0}, "guidance_scale"),
        ],
    )
    def test_another_call_is_refused_by_name(self, pipe: Any, call: dict[str, Any], field: str) -> None:
        policy = Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(1.0)))
        with run_policy(pipe, policy), pytest.raises(ProfileMismatch, match="fit weights for these") as error:
            latents(pipe, **call)
        assert error.value.field == f"policy.gap_weights.{field}"

    def test_another_scheduler_is_refused_by_name(self, pipe: Any) -> None:
        policy = Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(1.0)))
        other = tiny_pipeline(flow_shift=5.0)
        with run_policy(other, policy), pytest.raises(ProfileMismatch) as error:
            latents(other)
        assert error.value.field == "policy.gap_weights.scheduler"
        assert "UniPCMultistepScheduler" in str(error.value)
        one, two = Settings.of(pipe, **CALL).scheduler, Settings.of(other, **CALL).scheduler
        assert scheduler_digest(one) != scheduler_digest(two)
        assert scheduler_digest(one) == scheduler_digest(type(one).from_dict(json.loads(json.dumps(vars(one)))))

    def test_a_profile_of_other_settings_is_no_profile(self, pipe: Any) -> None:
        settings, identity = Settings.of(pipe, **CALL), ModelIdentity.of(pipe)
        policy = Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(1.0)))
        profile = Profile(policy, settings, identity, EVIDENCE)
        scheduler = dataclasses.replace(settings.scheduler, name="Another")
        for name, value in (("num_inference_steps", 9), ("guidance_scale", 2.0), ("scheduler", scheduler)):
            with pytest.raises(ProfileMismatch) as error:
                dataclasses.replace(profile, settings=dataclasses.replace(settings, **{name: value}))
            assert error.value.field == f"policy.gap_weights.{name}"

    def test_a_profile_falls_back_to_exact_where_a_call_is_another(self, pipe: Any) -> None:
        policy = Policy(plan=PLAN, gap_weights=fitted(pipe, PLAN, everywhere(1.25, -0.25)), captures="last")
        profile = Profile(policy, Settings.of(pipe, **CALL), ModelIdentity.of(pipe), EVIDENCE)
        with exact(pipe):
            expected = latents(pipe, guidance_scale=4.0)
        with apply_scope(pipe, profile) as scope:
            latents(pipe)
            assert tuple(scope.report.modes) == PLAN
            with pytest.warns(ScopeWarning, match="guidance_scale is 4.0, calibrated for 3.0"):
                assert torch.equal(latents(pipe, guidance_scale=4.0), expected)


@pytest.fixture
def stand_in() -> Iterator[Any]:
    with imported(STAND_IN) as package:
        yield package


def magi_plan(magi: Magi) -> tuple[str, ...]:
    with run_policy(magi.model, Policy(warmup=2, max_skip=2)) as scope:
        magi.latents()
    assert scope.plan is not None
    return scope.plan


@pytest.mark.parametrize("guidance", [3, 1])
@pytest.mark.parametrize("window", [4, 1])
class TestMagi1:
    """Guidance branches of MAGI-1 are combined before anything is kept: they are one branch, ``guided``."""

    def build(self, package: Any, guidance: int, window: int) -> tuple[Magi, tuple[str, ...], Settings]:
        magi = Magi.stand_in(package, num_steps=16, num_frames=24, cfg_number=guidance, window_size=window)
        return magi, magi_plan(magi), Settings.of(magi.model)

    def test_weights_act_on_the_combined_output(self, stand_in: Any, guidance: int, window: int) -> None:
        magi, plan, settings = self.build(stand_in, guidance, window)

        def policy(*weights: float, branch: str = "guided") -> Policy:
            table = {(0, step, branch): weights for step in range(1, 16)}
            return Policy(
                plan=plan, gap_weights=GapWeights.fitted(plan, settings, depth=3, classes=(0,), weights=table)
            )

        with run_policy(magi.model, Policy(plan=plan, order=0)) as scope:
            expected, work = counted(magi)
        with run_policy(magi.model, policy(1.0, 0.0, 0.0)) as plain:
            assert torch.equal(magi.latents(), expected)
        assert (plain.report.modes, plain.report.evaluations) == (scope.report.modes, work)
        with run_policy(magi.model, policy(1.3, -0.4, 0.1, branch="cond")):
            assert torch.equal(magi.latents(), expected)
        with run_policy(magi.model, policy(1.3, -0.4, 0.1)) as weighted:
            found, weighted_work = counted(magi)
        assert torch.isfinite(found).all()
        assert (found - expected).abs().max() > 1e-3
        assert weighted.report.evaluations == weighted_work == work
        assert 0 < weighted.report.history_bytes <= 3 * expected.numel() * 4  # three outputs of every chunk
        restarts = weighted.report.windows[0].schedule.restarts
        assert not restarts & {(e.row, e.block) for e in weighted.report.prediction_errors}

    def test_what_the_family_cannot_do_is_refused(self, stand_in: Any, guidance: int, window: int) -> None:
        magi, plan, settings = self.build(stand_in, guidance, window)
        stock = magi.latents()
        first = GapWeights.fitted(plan, settings, depth=1, classes=(0, 1), weights={(0, 0, "guided"): (0.9,)})
        for policy, field in (
            (Policy(plan=plan, captures="last"), "policy.captures"),
            (Policy(plan=plan, gap_weights=first), "policy.gap_weights.weights"),
        ):
            with run_policy(magi.model, policy), pytest.raises(ProfileError) as error:
                magi.latents()
            assert error.value.field == field
        other = GapWeights.fitted(plan, replace(settings, guidance_scale=4.0), depth=1, classes=(0,), weights={})
        with (
            run_policy(magi.model, Policy(plan=plan, gap_weights=other)),
            pytest.raises(ProfileMismatch, match=r"gap_weights\.guidance_scale"),
        ):
            magi.latents()
        assert torch.equal(magi.latents(), stock)
