"""Decisions without a model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scope_runtime import (
    MODULATED_INPUT,
    ChangeMap,
    Decider,
    Mode,
    Phase,
    Policy,
    ProfileError,
    Schedule,
    plan_of,
)
from scope_runtime.policy import GRANULARITIES, needs_stale_context

C, P, R = Mode.CACHE, Mode.PREDICT, Mode.RECOMPUTE


def staggered(blocks: int = 3, steps: int = 10, lag: int = 2, causal: bool = True) -> Schedule:
    """Blocks that start ``lag`` rows after each other and take ``steps`` updates at evenly falling noise levels."""
    rows = steps + lag * (blocks - 1)
    index = [[min(max(r - lag * b + 1, 0), steps + 1) for b in range(blocks)] for r in range(rows)]
    update = [[0 < k <= steps for k in row] for row in index]
    return Schedule.from_step_index(index, update, [1 - i / steps for i in range(steps)], 5, causal)


def run(policy: Policy, schedule: Schedule, changes: float | None = None) -> list[dict[int, Mode]]:
    decider = Decider(policy, schedule)
    return [
        decider.decide(r, {} if changes is None else dict.fromkeys(schedule.active(r), changes))
        for r in range(schedule.rows)
    ]


def of_block(modes: list[dict[int, Mode]], block: int) -> str:
    return "".join(row[block].name[0] for row in modes if block in row)


def test_schedule_knows_phases_steps_and_levels() -> None:
    schedule = staggered()
    assert (schedule.rows, schedule.blocks) == (14, 3)
    assert schedule.active(0) == (0,)
    assert schedule.active(5) == (0, 1, 2)
    assert schedule.complete(11) == (0,)
    assert schedule.phase[0][1] is Phase.WAITING
    assert schedule.sigma[0][1] == 1.0
    assert schedule.sigma[11][0] == 0.0
    assert (schedule.step(4, 1), schedule.steps_left(4, 1)) == (2, 7)
    assert schedule.noise_levels(2, 1) is None
    assert schedule.noise_levels(3, 1) == pytest.approx((1.0, 0.9))
    assert [schedule.position(row, 1, "step") for row in (2, 3, 11)] == [0, 1, 9]
    assert [schedule.position(row, 1, "noise-level") for row in (2, 3)] == pytest.approx([1.0, 0.9])


def test_warmup_and_max_skip_alone_make_a_periodic_schedule() -> None:
    modes = run(Policy(warmup=3, max_skip=2), staggered(blocks=1))
    assert of_block(modes, 0) == "RRRPPRPPRP"


def test_tail_recomputes_the_last_updates() -> None:
    assert of_block(run(Policy(warmup=1, max_skip=9, tail=2), staggered(blocks=1)), 0) == "RPPPPPPPRR"


def test_thresholds_act_on_the_accumulated_change() -> None:
    # The noise level falls by 0.1 in every row.
    policy = Policy(warmup=1, max_skip=9, cache_threshold=0.15, predict_threshold=0.35)
    assert of_block(run(policy, staggered(blocks=1)), 0) == "RCPPRCPPRC"


def test_a_change_that_equals_a_threshold_is_not_below_it() -> None:
    # The noise level falls by an eighth in every row, and eighths add up without rounding.
    schedule = staggered(blocks=1, steps=8)
    shared = {"warmup": 1, "max_skip": 9}
    assert of_block(run(Policy(**shared, cache_threshold=0.25), schedule), 0) == "RCPPPPPP"
    assert of_block(run(Policy(**shared, cache_threshold=math.nextafter(0.25, 1)), schedule), 0) == "RCCPPPPP"
    assert of_block(run(Policy(**shared, predict_threshold=0.25), schedule), 0) == "RPRPRPRP"
    assert of_block(run(Policy(**shared, predict_threshold=math.nextafter(0.25, 1)), schedule), 0) == "RPPRPPRP"
    # Where both thresholds are one, nothing lies between them to be predicted.
    assert of_block(run(Policy(**shared, cache_threshold=0.25, predict_threshold=0.25), schedule), 0) == "RCRCRCRC"
    assert of_block(run(Policy(**shared, cache_threshold=0.0, predict_threshold=0.0), schedule), 0) == "RRRRRRRR"


def test_a_change_that_equals_the_stale_tolerance_is_borne() -> None:
    schedule = staggered(blocks=2, steps=8)
    borne = run(Policy(warmup=4, max_skip=9, stale_tolerance=0.125), schedule)
    below = run(Policy(warmup=4, max_skip=9, stale_tolerance=math.nextafter(0.125, 0)), schedule)
    assert of_block(borne, 0) == "RRRRPRPP"
    assert of_block(below, 0) == "RRRRRRPP"


def test_an_error_that_equals_the_budget_is_within_it() -> None:
    schedule = staggered(blocks=1, steps=8)
    for budget, expected in ((0.125, "RPPRRRRR"), (math.nextafter(0.125, 0), "RPRRRRRR")):
        decider = Decider(Policy(warmup=1, max_skip=9, error_budget=budget), schedule)
        rows = [decider.decide(r, {}, local_error=lambda block, mode: 0.5) for r in range(schedule.rows)]
        assert of_block(rows, 0) == expected


def test_change_map_is_applied_before_accumulating() -> None:
    doubled = ChangeMap((0.0, 1.0), (0.0, 2.0))
    policy = Policy(warmup=1, max_skip=9, cache_threshold=0.15, predict_threshold=0.5, change_map=doubled)
    assert of_block(run(policy, staggered(blocks=1)), 0) == "RPPRPPRPPR"


def test_a_map_of_noise_levels_tells_change_from_one_level_to_the_next() -> None:
    # Nearly all change happens above noise level 0.5: there every row is recomputed, and below it hardly any.
    early = ChangeMap((0.0, 0.5, 1.0), (0.0, 0.01, 5.0))
    policy = Policy(warmup=1, max_skip=9, cache_threshold=0.0, predict_threshold=0.5, noise_map=early)
    assert of_block(run(policy, staggered(blocks=1)), 0) == "RRRRRRPPPP"


def test_a_map_of_content_takes_the_change_itself() -> None:
    flat = ChangeMap((0.0, 1.0), (0.3, 0.3))
    policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=0.5, change_map=flat)
    assert of_block(run(policy, staggered(blocks=1), changes=0.2), 0) == "RPRPRPRPRP"


def test_content_indicator_decides_by_content() -> None:
    policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, cache_threshold=0.25, predict_threshold=0.45)
    assert of_block(run(policy, staggered(blocks=1), changes=0.2), 0) == "RCPRCPRCPR"


@pytest.mark.parametrize("change", [None, math.nan, math.inf])
def test_unknown_or_broken_content_change_is_recomputed(change: float | None) -> None:
    policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9)
    assert set(of_block(run(policy, staggered(blocks=1), changes=change), 0)) == {"R"}


def test_prefix_recomputes_every_earlier_active_block() -> None:
    for row in run(Policy(warmup=2, max_skip=3), staggered()):
        recomputed = [b for b, mode in row.items() if mode is R]
        assert all(row[b] is R for b in row if recomputed and b <= max(recomputed))


def test_prefix_leaves_later_blocks_their_own_mode() -> None:
    policy = Policy(granularity="prefix", indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=0.5)
    schedule = staggered(lag=1)
    decider = Decider(policy, schedule)
    for row in range(4):
        modes = decider.decide(row, {0: 0.1, 1: 0.9 if row == 3 else 0.1, 2: 0.1})
    assert modes == {0: R, 1: R, 2: P}


def test_a_stale_tolerance_spares_earlier_blocks_a_later_ones_warmup() -> None:
    # Each row changes a block by 0.1: one row of staleness is borne, two are not.
    strict = run(Policy(warmup=4, max_skip=9), staggered())
    tolerant = run(Policy(warmup=4, max_skip=9, stale_tolerance=0.15), staggered())
    assert (of_block(strict, 0), of_block(strict, 2)) == ("RRRRRRRRPP", "RRRRPPPPPP")
    assert (of_block(tolerant, 0), of_block(tolerant, 2)) == ("RRRRPRPRPP", "RRRRPPPPPP")
    assert needs_stale_context(Policy(stale_tolerance=0.0), staggered())


def test_step_gives_one_mode_to_the_row() -> None:
    modes = run(Policy(granularity="step", warmup=2, max_skip=3, cache_threshold=0.15), staggered())
    assert all(len(set(row.values())) == 1 for row in modes)
    assert {mode for row in modes for mode in row.values()} == {C, P, R}


def test_bidirectional_attention_forces_step() -> None:
    modes = run(Policy(granularity="prefix", warmup=2, max_skip=3), staggered(lag=1, causal=False))
    assert all(len(set(row.values())) == 1 for row in modes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("max_skip", [0, 1, 4])
def test_no_block_ever_goes_longer_than_max_skip(granularity: str, max_skip: int) -> None:
    modes = run(Policy(granularity=granularity, warmup=1, max_skip=max_skip), staggered())
    for block in range(3):
        runs = of_block(modes, block).replace("C", "P").split("R")
        assert max(map(len, runs)) <= max_skip


def test_distrusted_history_is_recomputed_and_counted() -> None:
    schedule = staggered(blocks=2)
    decider = Decider(Policy(warmup=1, max_skip=9), schedule)
    modes = [decider.decide(r, {}, lambda block, mode: block != 1) for r in range(schedule.rows)]
    assert of_block(modes, 1) == "R" * 10
    assert decider.fallbacks == 9
    # Block 0 comes before block 1, so it is recomputed with it while both are active.
    assert of_block(modes, 0) == "RPRRRRRRRR"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("granularity", "frame"),
        ("stale_tolerance", -0.5),
        ("error_budget", -1),
        ("error_growth", None),
        ("context_window", 0),
        ("context_dtype", "int4"),
        ("plan", []),
        ("plan", ["RR", "R"]),
        ("plan", ["RX"]),
        ("plan", "RR"),
        ("indicator", "magic"),
        ("cache_threshold", -0.1),
        ("cache_threshold", math.nan),
        ("cache_threshold", "0.1"),
        ("predict_threshold", math.inf),
        ("max_skip", -1),
        ("max_skip", 2.5),
        ("order", 3),
        ("axis", "sigma"),
        ("axis", None),
        ("axis", ["step"]),
        ("warmup", 0),
        ("tail", True),
        ("max_step_ratio", -1),
        ("magnitude_bound", math.nan),
        ("magnitude_bound", -1),
        ("error_growth", -1),
        ("predict_threshold", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ProfileError, match=f"policy.{field}") as error:
        Policy.from_dict({field: value})
    assert error.value.field.startswith(f"policy.{field}")


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ProfileError, match="policy.predict_threshold: must not be below cache_threshold"):
        Policy(cache_threshold=0.3, predict_threshold=0.2)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ProfileError, match="policy.max_skips: unknown field"):
        Policy.from_dict({"max_skips": 3})


def test_policy_round_trips() -> None:
    policy = Policy(
        change_map=ChangeMap((0.1, 0.2), (0.0, 0.5)), predict_threshold=0.7, magnitude_bound=1.0, axis="step"
    )
    assert policy.to_dict()["axis"] == "step"
    assert Policy.from_dict(policy.to_dict()) == policy


def test_a_policy_from_before_there_was_a_choice_of_axis_extrapolates_along_the_noise_level() -> None:
    old = Policy(order=2).to_dict()
    del old["axis"]
    assert Policy.from_dict(old) == Policy(order=2, axis="noise-level")


def test_a_map_with_plateaus_still_loads() -> None:
    plateaus = {"x": [0.1, 0.2, 0.3, 0.4], "y": [0.5, 0.5, 0.5, 0.7]}
    policy = Policy.from_dict({"change_map": plateaus, "noise_map": plateaus})
    assert policy.change_map is not None
    assert [policy.change_map(value) for value in (0.15, 0.3)] == [0.5, 0.5]


def test_change_map_is_clamped_and_linear_between_knots() -> None:
    g = ChangeMap((0.1, 0.3), (0.0, 1.0))
    assert [g(0.0), g(0.1), g(0.2), g(0.3), g(9.0)] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("x", "y"), [((), ()), ((1, 2), (1,)), ((2, 1), (1, 2)), ((1, 2), (2, 1)), ((1,), (-1,)), ((1,), (math.nan,))]
)
def test_a_change_map_that_is_not_monotone_is_refused(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    with pytest.raises(ProfileError, match="policy.change_map"):
        ChangeMap(x, y)


def test_the_plan_is_known_beforehand_and_can_be_frozen() -> None:
    schedule = staggered()
    policy = Policy(warmup=2, max_skip=3, cache_threshold=0.15)
    plan = plan_of(policy, schedule)
    assert plan is not None
    assert plan[0] == "R.."
    decided = run(policy, schedule)
    assert decided == run(Policy(plan=plan), schedule)
    assert [{b: m.name[0] for b, m in row.items()} for row in decided] == [
        {b: letter for b, letter in enumerate(row) if letter != "."} for row in plan
    ]


def test_a_plan_that_depends_on_content_is_not_known() -> None:
    assert plan_of(Policy(indicator=MODULATED_INPUT), staggered()) is None


@pytest.mark.parametrize(
    ("row", "letters", "complaint"),
    [
        (0, "P..", "must recompute block 0 at its first update"),
        (0, "...", "must update block 0"),
        (0, "RR.", "must leave idle block 1"),
    ],
)
def test_a_frozen_plan_must_fit_the_generation(row: int, letters: str, complaint: str) -> None:
    schedule = staggered()
    plan = list(plan_of(Policy(), schedule) or ())
    plan[row] = letters
    with pytest.raises(ProfileError, match=complaint) as error:
        Decider(Policy(plan=tuple(plan)), schedule)
    assert error.value.field == f"policy.plan[{row}]"


def test_a_frozen_plan_for_other_settings_is_refused() -> None:
    plan = plan_of(Policy(), staggered())
    with pytest.raises(ProfileError, match="14 rows of 3 blocks, but this generation has 15 rows of 3"):
        Decider(Policy(plan=plan), staggered(steps=11))


def test_block_granularity_recomputes_only_who_asks() -> None:
    policy = Policy(granularity="block", warmup=1, max_skip=3)
    modes = run(policy, staggered())
    assert modes[2] == {0: P, 1: R}
    assert needs_stale_context(policy, staggered())
    assert not needs_stale_context(Policy(), staggered())
    assert needs_stale_context(Policy(plan=("R.", "RR", "PR")), staggered())
    assert not needs_stale_context(Policy(plan=("R.", "RR", "RP")), staggered())


def test_the_error_budget_forces_an_earlier_recompute() -> None:
    schedule = staggered(blocks=1)

    def run_with(budget: float | None, growth: float = 0.0) -> tuple[str, int]:
        decider = Decider(Policy(warmup=1, max_skip=9, error_budget=budget, error_growth=growth), schedule)
        rows = [decider.decide(r, {}, local_error=lambda block, mode: 0.5) for r in range(schedule.rows)]
        return of_block(rows, 0), decider.over_budget

    # Every skipped row moves the level by 0.1 at an error of 0.5: it adds 0.05.
    assert run_with(None) == ("RPPPPPPPPP", 0)
    assert run_with(0.16) == ("RPPPRRRRRR", 6)
    assert run_with(0.0) == ("RRRRRRRRRR", 9)
    assert run_with(0.16, growth=5.0)[0] == "RPPRRRRRRR"


def content(granularity: str, causal: bool, changes: dict[int, float]) -> dict[int, Mode]:
    """Modes of three blocks in their second row, by content alone."""
    policy = Policy(
        granularity=granularity, indicator=MODULATED_INPUT, warmup=1, cache_threshold=0.2, predict_threshold=0.5
    )
    decider = Decider(policy, staggered(lag=0, causal=causal))
    decider.decide(0, {})
    return decider.decide(1, changes)


@pytest.mark.parametrize(
    ("granularity", "causal", "changes", "expected"),
    [
        ("prefix", True, (0.3, 0.9, 0.1), (R, R, C)),
        ("block", True, (0.3, 0.9, 0.1), (P, R, C)),
        ("step", True, (0.3, 0.9, 0.1), (R, R, R)),
        ("step", True, (0.1, 0.3, 0.1), (P, P, P)),
        ("step", True, (0.1, 0.1, 0.1), (C, C, C)),
        ("prefix", True, (0.1, 0.3, 0.1), (C, P, C)),
        # Under bidirectional attention every granularity is a step.
        ("prefix", False, (0.9, 0.3, 0.1), (R, R, R)),
        ("block", False, (0.1, 0.3, 0.1), (P, P, P)),
    ],
)
def test_the_granularity_says_whom_a_recompute_takes_along(
    granularity: str, causal: bool, changes: tuple[float, ...], expected: tuple[Mode, ...]
) -> None:
    assert content(granularity, causal, dict(enumerate(changes))) == dict(enumerate(expected))


def test_history_and_error_are_asked_about_the_mode_that_is_meant() -> None:
    schedule = staggered(blocks=1, steps=8)
    decider = Decider(Policy(warmup=1, max_skip=9, cache_threshold=0.25, error_budget=9.0), schedule)
    asked: list[tuple[str, int, Mode]] = []

    def trusted(block: int, mode: Mode) -> bool:
        asked.append(("trusted", block, mode))
        return True

    def local_error(block: int, mode: Mode) -> float:
        asked.append(("error", block, mode))
        return 0.0

    rows = [decider.decide(row, {}, trusted, local_error) for row in range(3)]
    assert of_block(rows, 0) == "RCP"
    assert asked == [(who, 0, mode) for mode in (C, P) for who in ("trusted", "error", "error")]


def test_a_distrusted_block_takes_only_the_blocks_before_it_along() -> None:
    schedule = staggered(lag=0)
    decider = Decider(Policy(warmup=1, max_skip=9), schedule)
    decider.decide(0, {})
    assert decider.decide(1, {}, lambda block, mode: block != 1) == {0: R, 1: R, 2: P}
    assert (decider.fallbacks, decider.over_budget) == (1, 0)
    # Who was recomputed begins anew; who was not goes on.
    assert (decider._skipped, decider._accumulated) == ([0, 0, 1], pytest.approx([0.0, 0.0, 0.1]))


def test_a_block_that_is_both_distrusted_and_too_dear_is_counted_once() -> None:
    decider = Decider(Policy(warmup=1, max_skip=9, error_budget=0.0), staggered(lag=0))
    decider.decide(0, {})
    modes = decider.decide(1, {}, lambda block, mode: block != 0, lambda block, mode: 1.0 if block < 2 else 0.0)
    assert modes == {0: R, 1: R, 2: P}
    assert (decider.fallbacks, decider.over_budget) == (1, 1)


def test_the_error_grows_with_the_solvers_steps_and_is_not_healed_by_a_recompute() -> None:
    schedule = staggered(blocks=1, steps=8)
    decider = Decider(Policy(warmup=1, max_skip=2, error_budget=9.0, error_growth=4.0), schedule)
    spent = []
    for row in range(4):
        decider.decide(row, {}, local_error=lambda block, mode: 0.5)
        spent.append(decider._error[0])
    # Every step is an eighth: E <- 1.5 E + 0.5 / 8 while skipping, E <- 1.5 E at a recompute.
    assert spent == [0.0, 0.0625, 0.15625, 0.234375]


def test_without_a_budget_no_error_is_asked_for() -> None:
    def local_error(block: int, mode: Mode) -> float:
        raise AssertionError("nobody needs it")

    decider = Decider(Policy(warmup=1), staggered())
    for row in range(decider.schedule.rows):
        decider.decide(row, {}, local_error=local_error)


def test_a_restart_is_recomputed_whatever_the_thresholds_say() -> None:
    plain = staggered(blocks=1)
    schedule = Schedule(plain.sigma, plain.phase, 5, restarts=frozenset({(4, 0)}))
    assert of_block(run(Policy(warmup=1, max_skip=9), schedule), 0) == "RPPPRPPPPP"
    assert of_block(run(Policy(plan=("R", "P", "P", "P", "R", *"CCCCC")), schedule), 0) == "RPPPRCCCCC"
    for letter in "PC":
        with pytest.raises(ProfileError, match="block 0, whose guidance or context changes there") as error:
            Decider(Policy(plan=("R", *"PPP", letter, *"PPPPP")), schedule)
        assert error.value.field == "policy.plan[4]"


def test_the_first_update_of_a_frozen_plan_is_neither_predicted_nor_cached() -> None:
    for letter in "PC":
        with pytest.raises(ProfileError, match="must recompute block 0 at its first update"):
            Decider(Policy(plan=(letter, *"RRRRRRRRR")), staggered(blocks=1))


def test_a_frozen_plan_for_other_blocks_names_the_field() -> None:
    for plan in (("RR",) * 10, ("R",) * 9):
        with pytest.raises(ProfileError, match="made for other settings") as error:
            Decider(Policy(plan=plan), staggered(blocks=1))
        assert error.value.field == "policy.plan"


def test_a_frozen_plan_holds_every_letter_in_one_row() -> None:
    assert Policy(plan=("RPC.", "....")).plan == ("RPC.", "....")
    with pytest.raises(ProfileError, match=r"policy.plan\[1\]: letters must be R, P, C or '.', not 'RPc.'"):
        Policy(plan=("RPC.", "RPc."))


@pytest.mark.parametrize("plan", ["R", [], (), ("",), (1,), ("R", None)])
def test_a_plan_is_a_list_of_rows(plan: Any) -> None:
    with pytest.raises(ProfileError, match="must be a list of strings, one per row, or null") as error:
        Policy(plan=plan)
    assert error.value.field == "policy.plan"


def test_rows_of_different_lengths_are_no_plan() -> None:
    with pytest.raises(ProfileError, match="every row must have one letter per block") as error:
        Policy(plan=("R.", "R"))
    assert error.value.field == "policy.plan"


@pytest.mark.parametrize(
    ("policy", "causal", "stale"),
    [
        ({"granularity": "block"}, True, True),
        ({"granularity": "block"}, False, False),
        ({"granularity": "step", "stale_tolerance": 0.1}, True, False),
        ({"granularity": "prefix", "stale_tolerance": 0.1}, True, True),
        ({"granularity": "prefix"}, True, False),
        ({"captures": "last"}, True, True),
        ({"captures": "last"}, False, False),
        # A plan says by itself who sees what, whatever the granularity is.
        ({"granularity": "block", "plan": ("RRR", "RRP")}, True, False),
        ({"plan": ("RRR", "CR.")}, True, True),
        ({"plan": ("RRR", "PR.")}, True, True),
        ({"plan": ("RRR", "RPR")}, True, True),
        ({"plan": ("RRR", ".RP", "PPP", "...")}, True, False),
        ({"plan": ("RRR", "PR.")}, False, False),
    ],
)
def test_context_is_stale_where_a_block_is_skipped_before_one_that_is_recomputed(
    policy: dict[str, Any], causal: bool, stale: bool
) -> None:
    assert needs_stale_context(Policy(**policy), staggered(causal=causal)) is stale


@pytest.mark.parametrize(
    ("policy", "content", "guard", "order"),
    [
        ({}, False, True, 1),
        ({"indicator": MODULATED_INPUT}, True, True, 1),
        ({"indicator": MODULATED_INPUT, "plan": ("R",)}, False, False, 1),
        ({"plan": ("R",), "magnitude_bound": 0.0}, False, True, 1),
        ({"plan": ("R",), "error_budget": 0.0}, False, True, 2),
        ({"order": 2}, False, True, 2),
        ({"order": 0, "error_budget": 1.0}, False, True, 1),
    ],
)
def test_a_policy_knows_what_it_needs(policy: dict[str, Any], content: bool, guard: bool, order: int) -> None:
    found = Policy(**policy)
    assert (found.needs_content, found.needs_guard, found.history_order) == (content, guard, order)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stale_tolerance", 0),
        ("cache_threshold", 0),
        ("predict_threshold", 0),
        ("max_skip", 0),
        ("max_skip", 10_000),
        ("order", 0),
        ("order", 2),
        ("warmup", 1),
        ("warmup", 10_000),
        ("tail", 0),
        ("tail", 10_000),
        ("max_step_ratio", 0),
        ("magnitude_bound", 0),
        ("error_budget", 0),
        ("error_growth", 0),
        ("context_window", 1),
        ("context_dtype", "float16"),
    ],
)
def test_what_stands_at_the_edge_of_its_range_is_allowed(field: str, value: Any) -> None:
    assert getattr(Policy.from_dict({field: value}), field) == value


@pytest.mark.parametrize("field", ["max_skip", "warmup", "tail"])
def test_more_rows_than_any_generation_has_are_refused(field: str) -> None:
    with pytest.raises(ProfileError, match="must be between . and 10000, not 10001") as error:
        Policy.from_dict({field: 10_001})
    assert error.value.field == f"policy.{field}"


@pytest.mark.parametrize("field", ["noise_map", "change_map"])
def test_a_map_that_is_none_is_refused_by_name(field: str) -> None:
    with pytest.raises(ProfileError, match="must be a ChangeMap or None") as error:
        Policy(**{field: {"x": [1], "y": [1]}})
    assert error.value.field == f"policy.{field}"
    with pytest.raises(ProfileError) as error:
        Policy.from_dict({field: {"x": [2, 1], "y": [1, 1]}})
    assert error.value.field == f"policy.{field}.x"


def test_every_field_is_written_out_as_plain_json_and_read_again() -> None:
    policy = Policy(
        noise_map=ChangeMap((0.1, 0.2), (0.0, 0.5)), change_map=ChangeMap((0.3,), (0.4,)), plan=("R.", "PR")
    )
    data = policy.to_dict()
    assert list(data) == [
        name for name in Policy.__dataclass_fields__ if name not in ("captures", "gap_weights", "first_window")
    ]
    assert (data["noise_map"], data["change_map"]) == ({"x": [0.1, 0.2], "y": [0.0, 0.5]}, {"x": [0.3], "y": [0.4]})
    assert data["plan"] == ["R.", "PR"]
    assert Policy.from_dict(data) == policy
    assert Policy.from_dict(Policy().to_dict()) == Policy()
    assert Policy().to_dict()["plan"] is None
    with pytest.raises(ProfileError) as error:
        Policy.from_dict([])
    assert error.value.field == "policy"


class TestFirstWindow:
    """The rules of a generation's first window, where they are others."""

    def test_they_hold_for_the_first_window_alone(self) -> None:
        first = Policy(warmup=8, max_skip=0)
        policy = Policy(max_skip=5, first_window=first)
        assert [policy.of_window(number) for number in range(3)] == [first, policy, policy]
        assert [Policy().of_window(number) for number in range(2)] == [Policy(), Policy()]

    def test_they_are_written_where_there_are_some_and_read_again(self) -> None:
        first = Policy(noise_map=ChangeMap((0.1, 0.2), (0.0, 0.5)), warmup=7, plan=("R", "P"))
        policy = Policy(max_skip=5, first_window=first)
        data = policy.to_dict()
        assert data["first_window"] == first.to_dict()
        assert list(data)[-1] == "first_window"
        assert data["first_window"]["plan"] == ["R", "P"]
        assert Policy.from_dict(data) == policy
        assert Policy.from_dict({**data, "first_window": None}) == Policy(max_skip=5)
        assert Policy.from_dict({"first_window": {}}).first_window == Policy()
        assert "first_window" not in Policy(max_skip=5).to_dict()

    @pytest.mark.parametrize(
        ("nested", "field"),
        [
            ({"warmup": 0}, "warmup"),
            ({"max_skips": 3}, "max_skips"),
            ({"plan": ["RX"]}, "plan[0]"),
            ({"noise_map": {"x": [2, 1], "y": [1, 1]}}, "noise_map.x"),
            ({"cache_threshold": 0.3, "predict_threshold": 0.2}, "predict_threshold"),
            ({"gap_weights": {}}, "gap_weights.depth"),
            ({"first_window": {}}, "first_window"),
            ({"first_window": {"warmup": 0}}, "first_window.warmup"),
        ],
    )
    def test_what_is_wrong_with_them_is_named_where_it_stands(self, nested: Any, field: str) -> None:
        with pytest.raises(ProfileError) as error:
            Policy.from_dict({"first_window": nested})
        assert error.value.field == f"policy.first_window.{field}"
        assert str(error.value) == f"policy.first_window.{field}: {error.value.problem}"

    @pytest.mark.parametrize("junk", [1, "R", [], True])
    def test_what_is_no_policy_is_refused_by_name(self, junk: Any) -> None:
        with pytest.raises(ProfileError, match="^policy.first_window: ") as error:
            Policy.from_dict({"first_window": junk})
        assert error.value.field == "policy.first_window"
        with pytest.raises(ProfileError, match="^policy.first_window: must be a Policy or None"):
            Policy(first_window=junk)

    def test_they_have_no_first_window_of_their_own(self) -> None:
        with pytest.raises(ProfileError, match="must be null: there is one first window") as error:
            Policy(first_window=Policy(first_window=Policy()))
        assert error.value.field == "policy.first_window.first_window"


def test_thresholds_that_are_one_are_in_order() -> None:
    assert Policy(cache_threshold=0.3, predict_threshold=0.3).predict_threshold == 0.3


def test_a_change_that_is_not_a_number_stays_unknown_until_a_recompute() -> None:
    policy = Policy(granularity="block", indicator=MODULATED_INPUT, warmup=1, max_skip=9, stale_tolerance=1.0)
    decider = Decider(policy, staggered(blocks=1, lag=0))
    decider.decide(0, {})
    assert decider.decide(1, {0: math.nan}) == {0: R}
    assert decider.decide(2, {0: 0.1}) == {0: P}


def test_a_change_map_sees_the_change_and_not_its_sum() -> None:
    convex = ChangeMap((0.0, 0.25, 1.0), (0.0, 0.0, 1.0))
    policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=0.1, change_map=convex)
    assert of_block(run(policy, staggered(blocks=1), changes=0.25), 0) == "RPPPPPPPPP"


def test_a_row_without_active_blocks_has_no_modes() -> None:
    waiting = Schedule(((1.0,), (1.0,)), ((Phase.WAITING,), (Phase.ACTIVE,)), 5)
    for granularity in GRANULARITIES:
        assert Decider(Policy(granularity=granularity), waiting).decide(0, {}) == {}
    assert plan_of(Policy(), waiting) == (".", "R")
