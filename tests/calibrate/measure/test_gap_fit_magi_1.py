"""The fit of learned weights on MAGI-1's stand-in: clips in turns, known jumps, and what its runtime applies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrate.families import load_target
from calibrate.families.magi_1.spec import Magi1Spec
from calibrate.families.magi_1.target import Magi1Target
from calibrate.families.target import Target
from calibrate.measure.baseline import Baseline, MakeBaseline
from calibrate.measure.gap_fit import Fitted, FitWeights, GapFit, Truth
from calibrate.replay.trace import TraceRecorder, kept_elements
from calibrate.search.plans import rows_of
from calibrate.spec.generation import Case, Generation
from scope_runtime import (
    GapWeights,
    ModelIdentity,
    Policy,
    Profile,
    ProfileMismatch,
    Schedule,
    ScopeWarning,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.policy import Mode
from tests.magi_1 import CHECKOUT, needs_checkout, save_checkout, set_aside
from tests.scope_runtime.test_gap_weights import EVIDENCE

CASES = (Case(prompt="a red circle", seed=1), Case(prompt="a green circle moving up", seed=3))
OTHERS = (Case(prompt="a striped square", seed=5), Case(prompt="a blue circle moving left and down", seed=6))
STEPS, CHUNKS = 16, 2


@dataclass(frozen=True)
class Setup:
    """A model, its full runs, and weights that were fitted on them."""

    target: Target
    baselines: list[Baseline]
    policy: Policy
    fitted: Fitted

    @property
    def schedule(self) -> Schedule:
        return self.baselines[0].trace.windows[0].schedule

    @property
    def full(self) -> torch.Tensor:
        return torch.cat([baseline.latents for baseline in self.baselines])

    @property
    def weights(self) -> GapWeights:
        assert self.fitted.policy.gap_weights is not None
        return self.fitted.policy.gap_weights

    def generated(self, policy: Policy) -> torch.Tensor:
        with run_policy(self.target.pipe, policy):
            return torch.cat([self.target.denoise(case).latents for case in CASES])

    def error(self, policy: Policy) -> float:
        return float((self.generated(policy) - self.full).square().mean())


def fitted_on(target: Target, policy: Policy, baselines: list[Baseline]) -> Fitted:
    return FitWeights(0, policy, 3, CASES, Truth.of(baselines)).run(target, lambda: False)


@pytest.fixture(
    scope="module",
    params=[(3, 4), (1, 4), (3, 1), (1, 1)],
    ids=["three branches, window of four", "one branch, window of four", "three, window of one", "one, window of one"],
)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    guidance, window = request.param
    folder = tmp_path_factory.mktemp("fit")
    with set_aside():
        save_checkout(folder / "magi", cfg_number=guidance)
        generation = Generation(
            height=32, width=32, num_frames=8 * CHUNKS, num_inference_steps=STEPS, guidance_scale=guidance,
            ar_step=STEPS // window, causal_block_size=2,
        )  # fmt: skip
        target = load_target(folder / "magi", Magi1Spec(path="magi", config="config.json", threads=1), generation)
        baselines = [MakeBaseline(case).run(target, lambda: False) for case in CASES]
        policy = Policy(plan=rows_of(baselines[0].trace.windows[0].schedule, 4, ((2, 0), (6, 1))))
        yield Setup(target, baselines, policy, fitted_on(target, policy, baselines))


def test_states_are_those_of_the_full_run(setup: Setup) -> None:
    states = Truth.of(setup.baselines).windows[0]
    assert states.shape == (len(CASES), STEPS, CHUNKS, 4 * 2 * 4 * 4)
    final = torch.stack(setup.full.split(2, dim=2), dim=1).flatten(2)
    torch.testing.assert_close(states[:, -1], final, atol=5e-5, rtol=0)
    window = setup.baselines[0].trace.windows[0]
    kept = window.outputs.numel() + (0 if window.states is None else window.states.numel())
    assert 4 * kept <= setup.target.trace_size().file_bytes


class Constant:
    """Hands over a chunk's first output for good, and notes where that should lead."""

    def __init__(self, ahead: Any) -> None:
        self.ahead = ahead
        self.first: dict[int, torch.Tensor] = {}
        self.expected: dict[int, torch.Tensor] = {}

    def begin(self, schedule: Schedule) -> None:
        self.ahead.begin(schedule.blocks * schedule.block_frames)

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Mapping[int, torch.Tensor],
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        assert list(self.ahead.shares) == [branch]
        for block in modes:
            if block not in self.first:
                self.first[block] = outputs[block]
                (end,) = self.ahead.ahead(range(2), state(block), range(STEPS), outputs[block][None])
                self.expected[block] = end
        return {block: self.first[block] for block in modes}


def test_constant_velocities_lead_where_the_loop_leads(setup: Setup) -> None:
    with setup.target.lookahead() as ahead:
        pilot = Constant(ahead)
        found = setup.target.denoise_together(CASES, setup.policy, pilot).latents
    expected = torch.cat([pilot.expected[block] for block in range(CHUNKS)], dim=2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_what_was_fitted_is_what_runs(setup: Setup) -> None:
    assert setup.policy.plan is not None
    with setup.target.lookahead() as ahead:
        fit = GapFit(setup.policy.plan, Truth.of(setup.baselines), ahead, depth=3)
        during = setup.target.denoise_together(CASES, setup.policy, fit).latents
    found = setup.generated(setup.fitted.policy)
    torch.testing.assert_close(during, found, atol=1e-4, rtol=0)
    together = setup.target.denoise_together(CASES, setup.fitted.policy)
    assert torch.equal(together.latents, found)
    assert setup.fitted.evaluations == len(CASES) * together.report.evaluations
    assert setup.fitted.stock_evaluations == len(CASES) * together.report.stock_evaluations


def test_what_is_fitted_is_nearer_to_the_full_run(setup: Setup) -> None:
    steps = dataclasses.replace(setup.policy, axis="step")
    assert setup.error(setup.fitted.policy) < 0.9 * min(setup.error(steps), setup.error(setup.policy))


def test_a_plan_that_recomputes_everything_needs_no_weights(setup: Setup) -> None:
    found = fitted_on(setup.target, Policy(plan=rows_of(setup.schedule, 1, ())), setup.baselines).policy
    assert found.gap_weights is not None
    for _, _, _, weights in found.gap_weights.weights:
        assert weights == pytest.approx((1.0, 0.0, 0.0)[: len(weights)], abs=0.02)
    torch.testing.assert_close(setup.generated(found), setup.full, atol=5e-5, rtol=0)


def test_weights_are_of_the_outputs_since_the_last_known_jump(setup: Setup) -> None:
    assert setup.policy.plan is not None
    table = {(block, step): weights for block, step, _, weights in setup.weights.weights}
    assert {branch for _, _, branch, _ in setup.weights.weights} == {"guided"}
    expected = {}
    for row, letters in enumerate(setup.policy.plan):
        for block, letter in enumerate(letters):
            if letter == "R":
                step = setup.schedule.step(row, block)
                before = 0 if step == 0 or (row, block) in setup.schedule.restarts else expected[block]
                expected[block] = min(before + 1, 3)
                assert len(table.pop((block, step))) == expected[block], (row, block)
    assert not table
    # A generation's first call is answered before its policy is known.
    assert setup.weights.of(0, 0, "guided") == (1.0,)
    assert setup.weights.of(1, 0, "guided") != (1.0,)


def test_a_profile_holds_them_and_holds_for_their_settings_alone(setup: Setup, tmp_path: Path) -> None:
    target, model = setup.target, setup.target.pipe
    Profile(setup.fitted.policy, target.settings, ModelIdentity.of(model), EVIDENCE).save(tmp_path / "magi.json")
    profile = Profile.load(tmp_path / "magi.json")
    assert profile.policy == setup.fitted.policy
    with apply_scope(model, profile):
        ours = target.denoise(CASES[0]).latents
    assert torch.equal(ours, setup.generated(setup.fitted.policy)[:1])
    model.runtime_config.num_steps //= 2
    try:
        with exact(model):
            expected = target.denoise(CASES[0]).latents
        with apply_scope(model, profile), pytest.warns(ScopeWarning, match="num_inference_steps is 8, calibrated for"):
            assert torch.equal(target.denoise(CASES[0]).latents, expected)
        with run_policy(model, setup.fitted.policy), pytest.raises(ProfileMismatch, match="fit weights for") as error:
            target.denoise(CASES[0])
        assert error.value.field == "policy.gap_weights.num_inference_steps"
    finally:
        model.runtime_config.num_steps *= 2
    other = dataclasses.replace(target.settings, guidance_scale=4.0)
    with pytest.raises(ProfileMismatch) as error:
        dataclasses.replace(profile, settings=other)
    assert error.value.field == "policy.gap_weights.guidance_scale"


def test_a_fit_that_fails_leaves_the_model_as_it_was(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(GapFit, "_solve", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            fitted_on(setup.target, setup.policy, setup.baselines)
    assert "forward_dispatcher" not in vars(setup.target.pipe)
    assert torch.equal(setup.target.denoise(CASES[0]).latents, setup.baselines[0].latents)


@needs_checkout
@pytest.mark.parametrize("window", [4, 1])
@pytest.mark.parametrize("guidance", [3, 1])
def test_on_the_official_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: int, window: int) -> None:
    from tests.magi_1_official import official, official_model, on_the_cpu

    changes = {"num_steps": STEPS, "num_frames": 8 * CHUNKS, "cfg_number": guidance, "window_size": window}
    generation = Generation(
        height=32, width=32, num_frames=8 * CHUNKS, num_inference_steps=STEPS, guidance_scale=guidance,
        ar_step=STEPS // window, causal_block_size=2,
    )  # fmt: skip
    with official(Path(str(CHECKOUT))) as package:
        magi = official_model(package, tmp_path, **changes)
        target = Magi1Target(package, magi.model, None, generation, {})
        monkeypatch.setattr(target, "_encode", lambda prompt: magi.encode(prompt, magi.model))
        # What is meant for a GPU is sent elsewhere in every thread.
        generate = target._generate
        monkeypatch.setattr(target, "_generate", lambda *args: on_the_cpu(lambda: generate(*args)))
        full, states = [], []
        for case in CASES:
            recorder = TraceRecorder(guidance)
            with exact(target.pipe, observe=True, recorder=recorder):
                full.append(target.denoise(case, after_row=recorder.after_row).latents)
            window_trace = recorder.trace().windows[0]
            assert window_trace.states is not None
            states.append(window_trace.states)
        truth = Truth((torch.stack(states),), kept_elements(states[0].shape[-1]))
        final = torch.stack(torch.cat(full).split(2, dim=2), dim=1).flatten(2)
        assert torch.equal(truth.windows[0][:, -1], final)

        def fitted(period: int) -> tuple[Policy, Policy]:
            plan = Policy(plan=rows_of(window_trace.schedule, period, ()))
            return plan, FitWeights(0, plan, 3, CASES, truth).run(target, lambda: False).policy

        with exact(target.pipe):
            others = torch.cat([target.denoise(case).latents for case in OTHERS])

        def errors(policy: Policy) -> tuple[float, float]:
            """On the prompts that weights were fitted on, and on others."""
            found = target.denoise_together((*CASES, *OTHERS), policy).latents
            differences = (found - torch.cat([*full, others])).square().flatten(1).mean(dim=1)
            return float(differences[: len(CASES)].mean()), float(differences[len(CASES) :].mean())

        everything = target.denoise_together(CASES, fitted(1)[1]).latents
        torch.testing.assert_close(everything, torch.cat(full), atol=5e-5, rtol=0)
        plan, learned = fitted(4)
        ours, taylor = errors(learned), errors(dataclasses.replace(plan, axis="step"))
        speedup = target.denoise_together(CASES[:1], learned).report.speedup_evaluations
        print(
            f"\n{guidance} branches, window of {window}, {speedup:.2f}x: error {ours[0]:.1e}, Taylor {taylor[0]:.1e}, "
            f"on other prompts {ours[1]:.1e} and {taylor[1]:.1e}"
        )
        assert ours[0] < taylor[0]
