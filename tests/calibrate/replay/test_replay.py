"""Traces and replay against the runtime on a tiny pipeline."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from calibrate.replay.change_scale import COLUMNS, Observations
from calibrate.replay.replay import CONTEXT, LEVELS, Replay
from calibrate.replay.trace import Trace, TraceRecorder, TraceSize
from calibrate.search.space import Space
from calibrate.spec.generation import Generation
from calibrate.spec.search_space import SearchSpace
from scope_runtime import Decider, GapWeights, Policy, Settings, exact, run_policy
from scope_runtime.schedule import AXES
from tests.tiny import CALL, latents, tiny_pipeline

PROMPTS = ("a red circle moving left", "a blue square moving right")


@pytest.fixture(scope="module")
def recorded() -> tuple[Any, list[Trace]]:
    pipe = tiny_pipeline()
    return pipe, [record(pipe, prompt)[0] for prompt in PROMPTS]


def record(pipe: Any, prompt: str) -> tuple[Trace, Observations]:
    recorder = TraceRecorder(CALL["guidance_scale"])
    with exact(pipe, observe=True, recorder=recorder) as scope:
        latents(pipe, prompt)
    observed = [[getattr(observation, name) for name in COLUMNS] for observation in scope.report.observations]
    return recorder.trace(), np.array(observed, dtype=np.float64)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(warmup=2, max_skip=2),
        Policy(warmup=1, max_skip=3, order=2, tail=1, granularity="step"),
        Policy(warmup=2, max_skip=3, order=2, axis="step", error_budget=0.02),
        Policy(warmup=1, max_skip=3, stale_tolerance=0.2),
        Policy(warmup=1, max_skip=3, cache_threshold=0.1, predict_threshold=0.3),
        Policy(warmup=1, max_skip=3, context_window=1),
    ],
    ids=["periodic", "step", "axis", "stale", "thresholds", "window"],
)
def test_a_replay_does_what_a_real_run_does(recorded: tuple[Any, list[Trace]], policy: Policy) -> None:
    pipe, traces = recorded
    replayed = Replay(traces).run(policy)
    with run_policy(pipe, policy) as scope:
        latents(pipe)
    assert list(replayed.plans[0]) == scope.report.modes
    assert replayed.evaluations == (scope.report.evaluations,) * 2
    assert replayed.stock_evaluations == (scope.report.stock_evaluations,) * 2


LEARNED = ("R..", "R..", "RR.", "RR.", "RRR", "RRR", "PPP", "PPP", ".RR", ".PP", "..P", "..R")


def learned(pipe: Any, *weights: float, **changes: Any) -> Policy:
    """One set of weights for both branches and every gap."""
    table = {(0, step, branch): weights for step in range(8) for branch in ("cond", "uncond")}
    found = GapWeights.fitted(LEARNED, Settings.of(pipe, **CALL), depth=3, classes=(0,), weights=table)
    return Policy(plan=LEARNED, gap_weights=found, **changes)


@pytest.mark.parametrize("captures", ["clean", "last"])
def test_a_learned_policy_is_replayed_as_it_runs(
    recorded: tuple[Any, list[Trace]], captures: Literal["clean", "last"]
) -> None:
    pipe, traces = recorded
    policy = learned(pipe, 1.5, -0.5, captures=captures)
    replayed = Replay(traces).run(policy)
    with run_policy(pipe, policy) as scope:
        latents(pipe)
    assert list(replayed.plans[0]) == scope.report.modes
    assert replayed.evaluations == (scope.report.evaluations,) * 2
    assert replayed.stock_evaluations == (scope.report.stock_evaluations,) * 2


def test_what_is_learned_tells_policies_of_one_plan_apart(recorded: tuple[Any, list[Trace]]) -> None:
    pipe, traces = recorded
    replay = Replay(traces)
    plain, weighted, other = (replay.run(learned(pipe, *weights)) for weights in ((1.0,), (1.5, -0.5), (1.5, -0.4)))
    newest = replay.run(Policy(plan=LEARNED, order=0))
    last = replay.run(learned(pipe, 1.0, captures="last"))
    assert len({run.key for run in (plain, weighted, other, newest, last)}) == 5
    # Weights of 1 are the newest output, whether branches are replayed one by one or combined.
    np.testing.assert_allclose(plain.errors, newest.errors, rtol=1e-4, atol=1e-6)
    assert (weighted.errors != other.errors).any()


def test_predicting_without_an_order_is_caching_and_no_other_candidate(recorded: tuple[Any, list[Trace]]) -> None:
    pipe, traces = recorded
    cached = tuple(row.replace("P", "C") for row in LEARNED)
    replay = Replay(traces)
    clips = []
    for order, candidates in ((0, 1), (1, 2)):
        policies = [Policy(plan=plan, order=order) for plan in (LEARNED, cached)]
        played = [replay.run(policy) for policy in policies]
        assert played[0].plans != played[1].plans
        assert len({run.key for run in played}) == candidates
        for policy in policies:
            with run_policy(pipe, policy):
                clips.append(latents(pipe))
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[2], clips[3])


def test_recomputing_everything_has_no_error(recorded: tuple[Any, list[Trace]]) -> None:
    for indicator in ("noise-level", "modulated-input"):
        replayed = Replay(recorded[1]).run(Policy(warmup=1000, indicator=indicator))
        assert not replayed.errors.any()
        assert set("".join(replayed.plans[0])) <= set("RK.")


def test_what_a_context_leaves_out_is_told_apart_and_costs_more_the_more_it_is(
    recorded: tuple[Any, list[Trace]],
) -> None:
    replay = Replay(recorded[1])
    played = [
        replay.run(Policy(warmup=2, max_skip=2, **context))
        for context in ({}, {"context_dtype": "float16"}, {"context_dtype": "bfloat16"}, {"context_window": 1})
    ]
    assert len({run.key for run in played}) == 4
    assert len({run.plans for run in played}) == 1
    cost = [float(run.errors[..., CONTEXT].sum()) for run in played]
    assert cost[0] == 0
    assert cost == sorted(set(cost))


def test_the_content_indicator_decides_on_what_was_recorded(recorded: tuple[Any, list[Trace]]) -> None:
    pipe, traces = recorded
    policy = Policy(warmup=1, max_skip=4, indicator="modulated-input", predict_threshold=0.5)
    replayed = Replay(traces).run(policy)
    assert "P" in "".join(replayed.plans[0])
    assert replayed.plans[0] != replayed.plans[1] or replayed.evaluations[0] == replayed.evaluations[1]
    # Up to its first skip a real run sees just what the full-compute run saw.
    with run_policy(pipe, policy) as scope:
        latents(pipe, PROMPTS[0])
    first = next(row for row, letters in enumerate(scope.report.modes) if "P" in letters)
    assert list(replayed.plans[0][: first + 1]) == scope.report.modes[: first + 1]


@pytest.fixture(scope="module")
def searched() -> tuple[list[Trace], Space]:
    """Recorded runs and the space that is learned from them."""
    recorded = [record(tiny_pipeline(), prompt) for prompt in PROMPTS]
    spec = SearchSpace.model_validate({"max_skip": {"low": 1, "high": 4}})
    return [trace for trace, _ in recorded], Space(spec, [observed for _, observed in recorded])


def threshold_policies(space: Space, indicator: str, quantile: float, factor: float = 1.0) -> list[Policy]:
    """Policies that a quantile of accumulated change decides, with the threshold moved by a factor."""
    scale = space.scales[indicator]
    threshold = factor * scale.threshold(quantile)
    shared = {
        "indicator": indicator,
        "noise_map": scale.noise_map,
        "change_map": scale.change_map,
        "warmup": 1,
        "max_skip": 4,
    }
    return [
        Policy(**shared, cache_threshold=threshold),
        Policy(**shared, predict_threshold=threshold),
        Policy(**shared, predict_threshold=space.scales[indicator].threshold(0.5), stale_tolerance=threshold),
    ]


QUANTILES = [float(quantile) for quantile in np.arange(0.0, 1.001, 0.02)]


@pytest.mark.parametrize("indicator", ["noise-level", "modulated-input"])
def test_no_decision_hangs_on_a_hair_of_a_threshold(searched: tuple[list[Trace], Space], indicator: str) -> None:
    traces, space = searched
    replay = Replay(traces)
    for quantile in QUANTILES:
        plans = [replay.run(policy).plans for policy in threshold_policies(space, indicator, quantile)]
        for factor in (1 - 1e-6, 1 + 1e-6):
            moved = threshold_policies(space, indicator, quantile, factor)
            assert [replay.run(policy).plans for policy in moved] == plans, (quantile, factor)


# All blocks and prompts share the eight noise levels of the tiny schedule, so one value of theirs is many updates.
@pytest.mark.parametrize(("indicator", "most"), [("noise-level", 0.15), ("modulated-input", 0.08)])
def test_neighbouring_quantiles_give_neighbouring_plans(
    searched: tuple[list[Trace], Space], indicator: str, most: float
) -> None:
    """A step of 0.02 changes how much is cached, predicted and recomputed by a little, and the whole way by much."""
    traces, space = searched
    replay = Replay(traces)
    changed = []
    for policies in zip(*(threshold_policies(space, indicator, quantile) for quantile in QUANTILES), strict=True):
        plans = ["".join(map("".join, replay.run(policy).plans)) for policy in policies]
        shares = np.array([[plan.count(letter) for letter in "CPR"] for plan in plans]) / sum(
            map(plans[0].count, "CPR")
        )
        assert np.abs(np.diff(shares, axis=0)).max() <= most
        changed.append(np.ptp(shares, axis=0).max())
    assert min(changed[:2]) > 0.5
    assert changed[2] > 0


@pytest.mark.parametrize("indicator", ["noise-level", "modulated-input"])
def test_replay_decides_as_the_runtime_would_on_what_was_recorded(
    searched: tuple[list[Trace], Space], indicator: str
) -> None:
    """At every threshold that the space can propose."""
    traces, space = searched
    window = traces[0].windows[0]
    schedule = window.schedule
    for quantile in QUANTILES:
        for policy in threshold_policies(space, indicator, quantile):
            decider = Decider(policy, schedule)
            decided = []
            for row in range(schedule.rows):
                known = [b for b in schedule.active(row) if np.isfinite(window.changes[row, b])]
                modes = decider.decide(row, {b: float(window.changes[row, b]) for b in known})
                decided.append("".join(modes[b].name[0] if b in modes else "." for b in range(schedule.blocks)))
            replayed = [row.replace("K", ".") for row in Replay(traces[:1]).run(policy).plans[0]]
            assert replayed == decided, (quantile, policy)


@pytest.mark.parametrize("axis", AXES)
def test_replayed_errors_are_those_of_the_outputs_themselves(recorded: tuple[Any, list[Trace]], axis: str) -> None:
    """One skipped update, by hand: the first-order prediction from the two recomputes before it."""
    trace = recorded[1][0]
    window = trace.windows[0]
    schedule = window.schedule
    rows = [row for row in range(schedule.rows) if 0 in schedule.active(row)]
    plan = [
        "".join("." if block not in schedule.active(row) else "R" for block in range(schedule.blocks))
        for row in range(schedule.rows)
    ]
    plan[rows[3]] = "P" + plan[rows[3]][1:]
    replayed = Replay([trace]).run(Policy(plan=tuple(plan), axis=axis))
    cond, uncond = window.outputs
    guided = uncond + trace.guidance_scale * (cond - uncond)
    s1, s0, s = (1, 2, 3) if axis == "step" else (schedule.sigma[row][0] for row in rows[1:4])
    v1, v0, v = (guided[row, 0] for row in rows[1:4])
    error = (v0 + (s - s0) * (v0 - v1) / (s0 - s1) - v).norm() * schedule.step_size(rows[3], 0)
    assert replayed.errors[0, 0, :LEVELS].sum() == pytest.approx(float(error), rel=1e-4)
    assert not replayed.errors[0, 1:, :LEVELS].any()
    assert replayed.errors[0, 1:, LEVELS].any(), "later blocks saw an older row of this one"


def test_a_trace_keeps_the_geometry_of_the_outputs() -> None:
    pipe, seen = tiny_pipeline(), {}

    class Both(TraceRecorder):
        def record(self, row: int, branch: str, changes: Any, outputs: Any) -> None:
            super().record(row, branch, changes, outputs)
            seen[branch, row] = {block: output.clone() for block, output in outputs.items()}

    recorder = Both(3.0)
    with exact(pipe, observe=True, recorder=recorder):
        latents(pipe)
    window = recorder.trace().windows[0]
    a, b = seen["cond", 3][0], seen["uncond", 5][0]
    kept = 2 * window.outputs[0, 3, 0] - window.outputs[1, 5, 0]
    assert float(kept.norm()) == pytest.approx(float((2 * a - b).square().mean().sqrt()), rel=1e-4)


def test_a_trace_survives_its_file(recorded: tuple[Any, list[Trace]]) -> None:
    trace = recorded[1][0]
    tensors, about = trace.to_tensors()
    back = Trace.from_tensors(tensors, about)
    assert back.windows[0].schedule == trace.windows[0].schedule
    assert back.branches == ("cond", "uncond")
    assert torch.equal(back.windows[0].outputs, trace.windows[0].outputs)
    assert np.array_equal(back.windows[0].changes, trace.windows[0].changes, equal_nan=True)


@pytest.mark.parametrize("samples", [16, 10_000])
def test_the_size_said_beforehand_holds(samples: int) -> None:
    pipe = tiny_pipeline()
    size = TraceSize.of(
        Generation(**CALL), channels=16, scale=pipe.vae_scale_factor_spatial, blocks=3, windows=1, branches=2,
        max_samples=samples,
    )  # fmt: skip
    recorder = TraceRecorder(CALL["guidance_scale"], max_samples=samples)

    def after_row(_pipe: Any, row: int, _timesteps: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        recorder.after_row(row, tensors["latents"])
        return {}

    with exact(pipe, observe=True, recorder=recorder):
        latents(pipe, callback_on_step_end=after_row)
    windows = recorder._windows
    held = sum(o.numel() * 4 for w in windows for kept in w._outputs.values() for o in kept.values())
    held += sum(state.numel() * 4 for w in windows for states in w._states.values() for state in states)
    tensors, _ = recorder.trace().to_tensors()
    assert 0 < held <= size.memory_bytes
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= size.file_bytes
    assert "MiB" in str(size)
