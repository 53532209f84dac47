"""The fit of learned weights: that it finds what is best, leaves the pipeline alone, and says what it cannot do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrate.errors import CalibrateError
from calibrate.families import load_target
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.families.target import Target
from calibrate.measure.baseline import Baseline, MakeBaseline, NotUsable
from calibrate.measure.gap_fit import Fitted, FitWeights, GapFit, Truth
from calibrate.search.plans import rows_of
from calibrate.spec.generation import Case, Generation
from scope_runtime import GapWeights, Policy, Preparation, Schedule, run_policy
from tests.tiny import CALL

CASES = (
    Case(prompt="a red circle moving left", seed=1),
    Case(prompt="a blue square moving right", seed=2),
    Case(prompt="a green circle moving up", seed=3),
)


def opened(folder: Path, **changes: Any) -> Target:
    return load_target(folder, SkyReelsV2Spec(path=str(folder), threads=1), Generation(**CALL | changes))


def baselines_of(target: Target) -> list[Baseline]:
    return [MakeBaseline(case).run(target, lambda: False) for case in CASES]


@pytest.fixture(scope="module")
def target(tiny_folder: Path) -> Target:
    return opened(tiny_folder)


@pytest.fixture(scope="module")
def baselines(target: Target) -> list[Baseline]:
    return baselines_of(target)


@pytest.fixture(scope="module")
def schedule(baselines: Sequence[Baseline]) -> Schedule:
    return baselines[0].trace.windows[0].schedule


@pytest.fixture(scope="module", params=["last", "clean"])
def policy(request: pytest.FixtureRequest, schedule: Schedule) -> Policy:
    return Policy(plan=rows_of(schedule, 3, ((1, 0),)), captures=request.param)


def fitted_on(target: Target, policy: Policy, baselines: Sequence[Baseline]) -> Fitted:
    cases = tuple(baseline.case for baseline in baselines)
    return FitWeights(0, policy, 3, cases, Truth.of(baselines)).run(target, lambda: False)


@pytest.fixture(scope="module")
def fitted(target: Target, policy: Policy, baselines: Sequence[Baseline]) -> Fitted:
    return fitted_on(target, policy, baselines)


def weights_of(policy: Policy) -> GapWeights:
    assert policy.gap_weights is not None
    return policy.gap_weights


def generated(target: Target, policy: Policy) -> torch.Tensor:
    with run_policy(target.pipe, policy):
        return torch.cat([target.denoise(case).latents for case in CASES])


def full(baselines: Sequence[Baseline]) -> torch.Tensor:
    return torch.cat([baseline.latents for baseline in baselines])


def test_what_was_fitted_is_what_runs(target: Target, policy: Policy, baselines: list[Baseline]) -> None:
    """The latents of the run that weights are fitted in are those of every run under them."""
    assert policy.plan is not None
    with target.lookahead() as ahead:
        fit = GapFit(policy.plan, Truth.of(baselines), ahead, depth=3)
        during = target.denoise_together(CASES, policy, fit).latents
    weights = GapWeights.fitted(policy.plan, target.settings, depth=3, classes=range(3), weights=fit.weights[0])
    found = generated(target, dataclasses.replace(policy, gap_weights=weights))
    torch.testing.assert_close(during, found, atol=1e-4, rtol=0)
    assert (found - full(baselines)).abs().max() > 1e-2


def test_what_is_fitted_is_nearer_to_the_full_run(
    target: Target, policy: Policy, fitted: Fitted, baselines: list[Baseline]
) -> None:
    def error(candidate: Policy) -> float:
        return float((generated(target, candidate) - full(baselines)).square().mean())

    others = [dataclasses.replace(policy, order=order, axis=axis) for order, axis in ((0, "step"), (1, "step"))]
    others.append(dataclasses.replace(policy, order=1))
    assert error(fitted.policy) < 0.9 * min(map(error, others))


def test_a_fit_is_counted_and_described(target: Target, policy: Policy, fitted: Fitted) -> None:
    with run_policy(target.pipe, policy) as scope:
        target.denoise(CASES[0])
    assert fitted.evaluations == 3 * scope.report.evaluations
    assert fitted.stock_evaluations == 3 * scope.report.stock_evaluations
    assert fitted.finished >= fitted.started
    assert fitted.seconds > 0
    assert fitted.settings == target.settings
    assert fitted.policy == dataclasses.replace(policy, gap_weights=fitted.policy.gap_weights)
    assert {branch for _, _, branch, _ in weights_of(fitted.policy).weights} == {"cond", "uncond"}


def test_every_recompute_has_weights_of_as_many_outputs_as_there_are(policy: Policy, fitted: Fitted) -> None:
    assert policy.plan is not None
    for block in range(3):
        letters = [row[block] for row in policy.plan if row[block] != "."]
        steps = [step for step, letter in enumerate(letters) if letter == "R"]
        for branch in ("cond", "uncond"):
            own = {s: len(w) for b, s, name, w in weights_of(fitted.policy).weights if (b, name) == (block, branch)}
            assert own == {step: min(number + 1, 3) for number, step in enumerate(steps)}


def test_a_plan_that_recomputes_everything_needs_no_weights(
    target: Target, schedule: Schedule, baselines: list[Baseline]
) -> None:
    policy = Policy(plan=rows_of(schedule, 1, ()))
    found = fitted_on(target, policy, baselines)
    for _, _, _, weights in weights_of(found.policy).weights:
        assert weights == pytest.approx((1.0, 0.0, 0.0)[: len(weights)], abs=0.02)
    torch.testing.assert_close(generated(target, found.policy), full(baselines), atol=1e-4, rtol=0)


def test_clips_in_lockstep_are_those_that_each_prompt_gets_alone(target: Target, fitted: Fitted) -> None:
    together = target.denoise_together(CASES, fitted.policy).latents
    torch.testing.assert_close(together, generated(target, fitted.policy), atol=1e-4, rtol=0)
    assert target.denoise_together(CASES[:1], fitted.policy).latents.shape == together[:1].shape


def test_a_fit_leaves_the_pipeline_as_it_was(target: Target, fitted: Fitted, baselines: list[Baseline]) -> None:
    assert torch.equal(target.denoise(CASES[0]).latents, baselines[0].latents)
    assert "__deepcopy__" not in vars(target.pipe.scheduler)


def test_a_fit_that_fails_leaves_the_pipeline_as_it_was(
    target: Target, policy: Policy, baselines: list[Baseline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(GapFit, "_solve", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        fitted_on(target, policy, baselines)
    assert "__deepcopy__" not in vars(target.pipe.scheduler)
    assert torch.equal(target.denoise(CASES[0]).latents, baselines[0].latents)


class TestSetUp:
    """In a pipeline that is set up otherwise."""

    def test_a_fit_is_of_what_runs_there(self, target: Target, policy: Policy, baselines: list[Baseline]) -> None:
        half = Preparation(weights="bfloat16")
        fitted = FitWeights(0, policy, 3, tuple(CASES), Truth.of(baselines), half).run(target, lambda: False)
        assert fitted.settings == dataclasses.replace(target.settings, preparation=half)

        def error(candidate: Policy) -> float:
            with target.set_up(half):
                return float((generated(target, candidate) - full(baselines)).square().mean())

        others = [dataclasses.replace(policy, order=order, axis=axis) for order, axis in ((0, "step"), (1, "step"))]
        assert error(fitted.policy) < 0.9 * min(map(error, others))
        assert torch.equal(target.denoise(CASES[0]).latents, baselines[0].latents)

    def test_what_fails_there_can_be_told_from_what_no_plan_can_mend(
        self, target: Target, policy: Policy, baselines: list[Baseline], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("no such kernel")

        monkeypatch.setattr(GapFit, "_solve", broken)
        job = FitWeights(0, policy, 3, tuple(CASES), Truth.of(baselines), Preparation(weights="bfloat16"))
        with pytest.raises(NotUsable, match="fitting its weights: RuntimeError: no such kernel"):
            job.run(target, lambda: False)
        assert torch.equal(target.denoise(CASES[0]).latents, baselines[0].latents)


class TestOneBranch:
    """Without guidance there is one branch, and no second one to make up for what the first handed over."""

    @pytest.fixture(scope="class")
    def plain(self, tiny_folder: Path) -> tuple[Target, list[Baseline]]:
        target = opened(tiny_folder, guidance_scale=1.0)
        return target, baselines_of(target)

    def test_it_is_fitted_alone(self, plain: tuple[Target, list[Baseline]], policy: Policy) -> None:
        target, baselines = plain
        found = fitted_on(target, policy, baselines)
        assert {branch for _, _, branch, _ in weights_of(found.policy).weights} == {"cond"}
        errors = [
            float((generated(target, candidate) - full(baselines)).square().mean())
            for candidate in (found.policy, policy, dataclasses.replace(policy, axis="step"))
        ]
        assert errors[0] < min(errors[1:])


class TestTruth:
    def test_states_end_with_the_final_latents(self, baselines: list[Baseline]) -> None:
        truth = Truth.of(baselines)
        assert truth.windows[0].shape == (3, 8, 3, 16 * 3 * 2 * 2)
        assert torch.equal(truth.elements, torch.arange(16 * 3 * 2 * 2))
        last = truth.windows[0][:, -1].reshape(3, 3, 16, 3, 2, 2)
        ends = torch.stack([full(baselines)[:, :, 3 * block : 3 * block + 3] for block in range(3)], dim=1)
        # States are those of exact mode, latents those of stock.
        torch.testing.assert_close(last, ends, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("missing", ["several windows", "no states"])
    def test_runs_that_could_not_be_looked_at_are_refused(self, baselines: list[Baseline], missing: str) -> None:
        trace = baselines[0].trace
        window = trace.windows[0]
        windows = (window, window) if missing == "several windows" else (dataclasses.replace(window, states=None),)
        unseen = dataclasses.replace(baselines[0], trace=dataclasses.replace(trace, windows=windows))
        with pytest.raises(CalibrateError, match=r"^search\.learned: .*; leave it out\.$"):
            Truth.of([*baselines[1:], unseen])

    def test_a_long_video_has_no_lookahead(self, tiny_folder: Path) -> None:
        target = opened(tiny_folder, num_frames=45, base_num_frames=33, overlap_history=9)
        with pytest.raises(CalibrateError, match=r"^search\.learned: .*one window only"):
            target.lookahead()
