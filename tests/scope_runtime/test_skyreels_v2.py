"""The runtime on a real diffusers pipeline with random weights."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock

from scope_runtime import (
    MODULATED_INPUT,
    AttachError,
    ConcurrentCallError,
    Decider,
    Policy,
    Profile,
    ProfileMismatch,
    ScopeWarning,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.adapters.skyreels_v2 import _Call
from scope_runtime.engine import Engine
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, latents, tiny_pipeline

MODES = {
    "asynchronous": {},
    "block by block": {"ar_step": 8},
    "without guidance": {"guidance_scale": 1.0},
    "synchronous": {"ar_step": 0},
    "long video": {"num_frames": 57, "base_num_frames": 33, "overlap_history": 9},
    "batch of two": {"prompt": ["a red circle", "a blue square moving up"]},
}


@pytest.mark.parametrize("changes", MODES.values(), ids=MODES.keys())
def test_exact_equals_stock(pipe: Any, changes: dict[str, Any]) -> None:
    stock = latents(pipe, **changes)
    with exact(pipe) as scope:
        ours = latents(pipe, **changes)
    assert stock.std() > 0.1
    assert (ours - stock).abs().max() <= 1e-4
    if changes.get("ar_step") != 0:
        assert scope.report.evaluations < scope.report.stock_evaluations


def test_exact_leaves_out_what_it_should(pipe: Any) -> None:
    with exact(pipe) as scope:
        latents(pipe)
    report = scope.report
    # 3 blocks of 8 updates, 2 clean passes; 12 rows of 3 blocks in stock; two guidance branches.
    assert (report.evaluations, report.stock_evaluations) == (2 * (24 + 2), 2 * 36)
    assert ["".join(block) for block in zip(*report.modes, strict=True)] == [
        "RRRRRRRRK...",
        "..RRRRRRRRK.",
        "....RRRRRRRR",
    ]


def test_exact_says_where_nothing_can_be_left_out(pipe: Any) -> None:
    changes = {"causal_block_size": 1, "ar_step": 0}
    stock = latents(pipe, **changes)
    with exact(pipe) as scope:
        ours = latents(pipe, **changes)
    assert torch.equal(ours, stock)
    assert scope.report.evaluations == scope.report.stock_evaluations
    assert "bidirectional" in str(scope.report)


def test_condition_noise_keeps_exactness_by_recomputing_the_prefix(pipe: Any) -> None:
    changes = MODES["long video"] | {"addnoise_condition": 20}
    torch.manual_seed(0)
    stock = latents(pipe, **changes)
    torch.manual_seed(0)
    with exact(pipe) as scope:
        ours = latents(pipe, **changes)
    assert (ours - stock).abs().max() <= 1e-4
    assert any("addnoise_condition" in note for note in scope.report.notes)


def test_a_policy_of_max_skip_zero_is_exact(pipe: Any) -> None:
    with exact(pipe):
        expected = latents(pipe)
    with run_policy(pipe, Policy(max_skip=0)):
        assert torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("granularity", ["prefix", "step"])
@pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
@pytest.mark.parametrize(
    ("order", "axis"), [(0, "noise-level"), (1, "noise-level"), (2, "noise-level"), (1, "step"), (2, "step")]
)
def test_policies_skip_within_their_bounds(pipe: Any, granularity: str, indicator: str, order: int, axis: str) -> None:
    stock = latents(pipe)
    policy = Policy(granularity=granularity, indicator=indicator, order=order, axis=axis, warmup=2, max_skip=2, tail=1)
    with run_policy(pipe, policy) as scope:
        ours = latents(pipe)
    report = scope.report
    assert torch.isfinite(ours).all()
    assert 0 < (ours - stock).abs().max() < 5 * stock.std()
    assert report.speedup_evaluations > 1.6
    assert 1 <= report.max_skip_seen <= 2
    for block in zip(*report.modes, strict=True):
        updates = "".join(block).replace(".", "").replace("K", "")
        assert len(updates) == 8
        assert updates.startswith("RR")
        assert updates.endswith("R")


def test_the_content_indicator_is_the_input_of_the_first_block(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`modulated_input` must be what the first attention really receives."""
    computed: list[torch.Tensor] = []
    received: list[torch.Tensor] = []
    measure = _Call.modulated_input

    def keep(call: _Call, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        modulated = measure(call, blocks)
        computed.append(torch.cat(list(modulated.values()), dim=1))
        return modulated

    monkeypatch.setattr(_Call, "modulated_input", keep)
    hook = pipe.transformer.blocks[0].attn1.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    with run_policy(pipe, Policy(indicator=MODULATED_INPUT, max_skip=0)):
        latents(pipe, guidance_scale=1.0)
    hook.remove()
    for ours, real in zip(computed[:8], received[:8], strict=True):
        torch.testing.assert_close(ours, real, rtol=1e-4, atol=1e-5)


def test_observations_cover_every_update_but_the_first(pipe: Any) -> None:
    with exact(pipe, observe=True) as scope:
        latents(pipe)
    observations = scope.report.observations
    assert {(o.block, o.row) for o in observations} == {(b, r) for b in range(3) for r in range(2 * b + 1, 2 * b + 8)}
    assert all(o.sigma_before > o.sigma and o.modulated_input > 0 and o.output_change > 0 for o in observations)


def test_every_recompute_after_the_first_checks_the_prediction(pipe: Any) -> None:
    with run_policy(pipe, Policy(warmup=2, max_skip=1)) as scope:
        latents(pipe)
    errors = scope.report.prediction_errors
    recomputes = "".join(scope.report.modes).count("R")
    assert len(errors) == 2 * (recomputes - 3)  # two branches; the first of each of three blocks has no history
    assert all(0 <= e.error < 10 for e in errors)
    assert "relative error that predicting would have made" in str(scope.report)


def test_the_magnitude_guard_recomputes(pipe: Any) -> None:
    with run_policy(pipe, Policy(warmup=1, max_skip=9, order=1)) as free:
        latents(pipe)
    with run_policy(pipe, Policy(warmup=1, max_skip=9, order=1, magnitude_bound=1e-6)) as guarded:
        latents(pipe)
    assert free.report.fallbacks == 0
    assert guarded.report.fallbacks > 0
    assert guarded.report.evaluations > free.report.evaluations


def test_the_error_budget_recomputes(pipe: Any) -> None:
    policy = {"warmup": 3, "max_skip": 4}
    with run_policy(pipe, Policy(**policy, error_budget=1e6)) as free:
        latents(pipe)
    with run_policy(pipe, Policy(**policy, error_budget=1e-3)) as bounded:
        latents(pipe)
    assert free.report.over_budget == 0
    assert bounded.report.over_budget > 0
    assert bounded.report.evaluations > free.report.evaluations


def test_outputs_that_are_not_finite_are_never_reused(pipe: Any) -> None:
    real = pipe.transformer.proj_out.forward
    calls = []

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(hidden) * (float("nan") if len(calls) == 3 else 1.0)

    pipe.transformer.proj_out.forward = broken
    try:
        with run_policy(pipe, Policy(warmup=1, max_skip=3)) as scope:
            latents(pipe, guidance_scale=1.0)
    finally:
        del pipe.transformer.proj_out.forward
    assert scope.report.fallbacks > 0


class TestProfiles:
    def test_calibrated_settings_run_the_policy(self, pipe: Any) -> None:
        with warnings.catch_warnings(), apply_scope(pipe, make_profile(pipe, warmup=2)) as scope:
            warnings.simplefilter("error", ScopeWarning)
            latents(pipe)
        assert "P" in "".join(scope.report.modes)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_inference_steps", 9),
            ("guidance_scale", 2.0),
            ("ar_step", 3),
            ("height", 32),
            ("num_frames", 45),
        ],
    )
    def test_other_settings_run_exact_with_a_warning(self, pipe: Any, field: str, value: Any) -> None:
        stock = latents(pipe, **{field: value})
        with apply_scope(pipe, make_profile(pipe)) as scope, pytest.warns(ScopeWarning, match=field):
            ours = latents(pipe, **{field: value})
        assert (ours - stock).abs().max() <= 1e-4
        assert field in scope.report.notes[0]

    def test_other_settings_raise_on_request_and_leave_a_clean_pipeline(self, pipe: Any) -> None:
        stock = latents(pipe)
        with apply_scope(pipe, make_profile(pipe), on_mismatch="raise"):
            with pytest.raises(ProfileMismatch, match="settings.ar_step") as error:
                latents(pipe, ar_step=3)
            assert error.value.field == "settings.ar_step"
            latents(pipe)
        assert torch.equal(latents(pipe), stock)

    def test_another_scheduler_is_another_setting(self) -> None:
        calibrated, shifted = tiny_pipeline(), tiny_pipeline(flow_shift=8.0)
        with apply_scope(shifted, make_profile(calibrated)), pytest.warns(ScopeWarning, match="flow_shift=8.0"):
            latents(shifted)

    def test_another_model_is_refused_before_anything_is_touched(self, pipe: Any) -> None:
        other = tiny_pipeline(seed=1)
        with pytest.raises(ProfileMismatch, match="model.weights"):
            apply_scope(other, make_profile(pipe))
        assert "generate_timestep_matrix" not in vars(other)


class TestAttaching:
    def test_an_unknown_pipeline_is_refused(self) -> None:
        with pytest.raises(AttachError, match="object is not a pipeline"):
            exact(object())

    def test_another_cache_is_refused(self) -> None:
        pipe = tiny_pipeline()
        TransformerBlockRegistry.register(
            SkyReelsV2TransformerBlock,
            TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
        )
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(AttachError, match="disable_cache"):
            exact(pipe)

    def test_the_transformer_can_be_called_outside_a_generation(self, pipe: Any) -> None:
        arguments = {
            "hidden_states": torch.randn(1, 16, 3, 2, 2),
            "timestep": torch.full((1, 3), 500),
            "encoder_hidden_states": torch.randn(1, 4, 32),
            "enable_diffusion_forcing": True,
        }
        with torch.no_grad():
            stock = pipe.transformer(**arguments).sample
            with exact(pipe):
                assert torch.equal(pipe.transformer(**arguments).sample, stock)

    def test_settings_default_to_the_pipelines_own(self, pipe: Any) -> None:
        with exact(pipe), pytest.raises(ValueError, match="divisible by 16"):
            pipe("a", height=17, width=17)
        assert latents(pipe, **CALL).shape == (1, 16, 9, 2, 2)


class TestPlans:
    def test_the_plan_is_known_before_the_first_row(self, pipe: Any) -> None:
        seen: list[Any] = []

        def look(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(scope.plan)
            return {}

        with run_policy(pipe, Policy(warmup=2)) as scope:
            assert scope.plan is None
            latents(pipe, callback_on_step_end=look)
        done = [row.replace("K", ".") for row in scope.report.modes]
        assert list(seen[0]) == done

    def test_a_frozen_plan_repeats_what_was_decided(self, pipe: Any) -> None:
        with run_policy(pipe, Policy(warmup=2)) as scope:
            decided = latents(pipe)
        with run_policy(pipe, Policy(plan=scope.plan)) as frozen:
            assert torch.equal(latents(pipe), decided)
        assert frozen.report.modes == scope.report.modes

    def test_a_frozen_plan_travels_in_a_profile(
        self, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = list(_plan(pipe))
        plan[plan.index("RRR") + 1] = "RRC"  # no rule would do this
        make_profile(pipe, plan=tuple(plan)).save(tmp_path / "plan.json")
        profile = Profile.load(tmp_path / "plan.json")
        monkeypatch.setattr(Decider, "_wish", lambda *_: pytest.fail("a frozen plan was decided upon"))
        with apply_scope(pipe, profile) as scope:
            latents(pipe)
        assert [row.replace("K", ".") for row in scope.report.modes] == plan
        assert list(scope.plan or ()) == plan

    def test_a_frozen_plan_never_looks_at_outputs(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = _plan(pipe)
        monkeypatch.setattr(torch.Tensor, "tolist", _refuse_after_the_plan(pipe))
        with run_policy(pipe, Policy(plan=plan)):
            latents(pipe)

    def test_a_plan_with_holes_runs_on_stale_context(self, pipe: Any) -> None:
        plan = list(_plan(pipe))
        row = next(i for i, letters in enumerate(plan) if letters == "RRR")
        plan[row] = "PRR"
        with run_policy(pipe, Policy(plan=tuple(plan))) as scope:
            assert torch.isfinite(latents(pipe)).all()
        assert scope.report.modes[row] == "PRR"

    def test_block_granularity_runs_on_stale_context(self, pipe: Any) -> None:
        with run_policy(pipe, Policy(granularity="block", warmup=2, max_skip=2)) as scope:
            assert torch.isfinite(latents(pipe)).all()
        assert any("P" in row and row.rstrip(".").endswith("R") for row in scope.report.modes)

    @pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
    def test_a_row_costs_at_most_one_copy_to_the_host(
        self, pipe: Any, indicator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies: list[str] = []
        real = Engine._read_device

        def watch(engine: Engine, *args: Any) -> None:
            with monkeypatch.context() as patch:
                tolist = torch.Tensor.tolist
                patch.setattr(torch.Tensor, "tolist", lambda t: (copies.append("copy"), tolist(t))[1])
                real(engine, *args)

        monkeypatch.setattr(Engine, "_read_device", watch)
        with run_policy(pipe, Policy(indicator=indicator, magnitude_bound=10.0)) as scope:
            latents(pipe)
        assert 0 < len(copies) <= len(scope.report.modes)


def _plan(pipe: Any) -> tuple[str, ...]:
    with run_policy(pipe, Policy(warmup=2)) as scope:
        latents(pipe)
    assert scope.plan is not None
    return scope.plan


def _refuse_after_the_plan(pipe: Any) -> Any:
    """A `Tensor.tolist` that only works before the first row."""
    tolist = torch.Tensor.tolist

    def guarded(tensor: torch.Tensor) -> Any:
        running = pipe.__dict__.get("generate_timestep_matrix")
        engine = running.__self__._engine if running else None
        assert engine is None, "a frozen plan copied a tensor to the host in mid-generation"
        return tolist(tensor)

    return guarded


class TestSafety:
    def test_two_pipelines_are_independent(self, pipe: Any) -> None:
        other = tiny_pipeline(seed=1)
        alone, other_alone = latents(pipe), latents(other)

        def interleave(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if row == 4:
                assert (latents(other) - other_alone).abs().max() <= 1e-4
            return {}

        with exact(pipe), exact(other):
            assert (latents(pipe, callback_on_step_end=interleave) - alone).abs().max() <= 1e-4

    def test_calls_from_many_threads_are_right_or_refused(self, pipe: Any) -> None:
        prompts = ("a red circle", "a blue square moving up", "a green circle")
        stock = {prompt: latents(pipe, prompt) for prompt in prompts}
        together, wrong, refused = threading.Barrier(len(prompts)), [], []

        def call(prompt: str) -> None:
            for _ in range(4):
                together.wait()
                try:
                    if (latents(pipe, prompt) - stock[prompt]).abs().max() > 1e-4:
                        wrong.append(prompt)
                except ConcurrentCallError as error:
                    refused.append(error)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=call, args=(prompt,)) for prompt in prompts]
        patience = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with exact(pipe):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            sys.setswitchinterval(patience)
        assert not wrong
        assert 1 <= len(refused) <= 4 * (len(prompts) - 1)

    def test_another_thread_cannot_use_the_transformer_meanwhile(self, pipe: Any) -> None:
        """Two pipelines may share a transformer, but not at the same time."""
        found: list[Any] = []

        def use() -> None:
            try:
                pipe.transformer(torch.zeros(1, 16, 9, 2, 2), torch.zeros(1, 9), torch.zeros(1, 4, 32))
            except ConcurrentCallError as error:
                found.append(error)

        def meddle(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if row == 4:
                thread = threading.Thread(target=use)
                thread.start()
                thread.join()
            return {}

        with exact(pipe):
            latents(pipe, callback_on_step_end=meddle)
        assert len(found) == 1

    def test_an_exception_frees_the_context(self, pipe: Any) -> None:
        held: list[Any] = []

        def fail(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if row == 10:
                attachment = vars(pipe)["generate_timestep_matrix"].__self__
                contexts = [branch.context for branch in attachment._engine._branches.values()]
                assert all(context.bytes > 0 for context in contexts)
                held.extend(weakref.ref(context) for context in contexts)
                raise RuntimeError("out of memory")
            return {}

        with exact(pipe):
            with contextlib.suppress(RuntimeError):
                latents(pipe, callback_on_step_end=fail)
            gc.collect()
            assert [context() for context in held] == [None, None]

    def test_after_an_exception_the_transformer_is_its_own_again(self, pipe: Any) -> None:
        def fail(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            raise RuntimeError("stop")

        arguments = torch.randn(1, 16, 3, 2, 2), torch.full((1, 3), 500), torch.randn(1, 4, 32)
        with torch.no_grad():
            stock = pipe.transformer(*arguments, enable_diffusion_forcing=True).sample
            # The exception is kept, and with it every local of the call.
            with exact(pipe), pytest.raises(RuntimeError, match="stop"):
                try:
                    latents(pipe, callback_on_step_end=fail)
                finally:
                    sample = pipe.transformer(*arguments, enable_diffusion_forcing=True).sample
        assert torch.equal(sample, stock)

    def test_an_interrupt_leaves_a_clean_pipeline(self, pipe: Any) -> None:
        stock = latents(pipe)

        def interrupt(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = row >= 5
            return {}

        with exact(pipe) as scope:
            latents(pipe, callback_on_step_end=interrupt)
            assert len(scope.report.modes) == 6
            assert (latents(pipe) - stock).abs().max() <= 1e-4
        assert torch.equal(latents(pipe), stock)

    def test_a_callback_may_change_latents(self, pipe: Any) -> None:
        def halve(pipe: Any, row: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": tensors["latents"] * 0.5 if row == 4 else tensors["latents"]}

        stock = latents(pipe, callback_on_step_end=halve)
        with exact(pipe):
            assert (latents(pipe, callback_on_step_end=halve) - stock).abs().max() <= 1e-4
