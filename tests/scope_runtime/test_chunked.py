"""What is peculiar to pipelines that make a video chunk by chunk: every line of their tables in docs/coverage.md."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeliosPyramidPipeline
from peft import LoraConfig

from scope_runtime import (
    MODULATED_INPUT,
    AttachError,
    GapWeights,
    ModelIdentity,
    Policy,
    Preparation,
    Profile,
    ProfileError,
    ProfileMismatch,
    Scope,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.adapters import adapter_for
from scope_runtime.adapters._chunked import _Call
from tests.chunked import (
    FRAMEPACK_CALL,
    HELIOS_CALL,
    framepack_latents,
    helios_latents,
    picture,
    tiny_framepack,
    tiny_helios,
    undecoded,
)
from tests.scope_runtime.test_profile import EVIDENCE

TWO_CHUNKS = {"num_frames": 66, "num_inference_steps": 5}
HELIOS, FRAMEPACK = HELIOS_CALL | TWO_CHUNKS, FRAMEPACK_CALL | TWO_CHUNKS
POLICY = Policy(warmup=2, max_skip=2)
VANILLA = {"sampling_type": "vanilla"}
TRUE_GUIDANCE = {"true_cfg_scale": 2.0, "negative_prompt": "a blue square moving up"}

Made = tuple[Any, Callable[..., torch.Tensor], dict[str, Any]]


def helios(**scheduler: Any) -> Any:
    return undecoded(tiny_helios(layers=1, **scheduler))


def generate_helios(pipe: Any, **changes: Any) -> torch.Tensor:
    return helios_latents(pipe, **HELIOS | changes)


def generate_framepack(pipe: Any, **changes: Any) -> torch.Tensor:
    return framepack_latents(pipe, **FRAMEPACK | changes)


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., torch.Tensor], dict[str, Any]]] = {
    "Helios": (helios, generate_helios, HELIOS),
    "FramePack": (tiny_framepack, generate_framepack, FRAMEPACK),
}


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest) -> Made:
    """A pipeline, what generates with it, and the call."""
    build, generate, call = FAMILIES[request.param]
    return build(), generate, call


@functools.cache
def stock_of(name: str) -> torch.Tensor:
    build, generate, _ = FAMILIES[name]
    return generate(build())


def stock_for(pipe: Any) -> torch.Tensor:
    return stock_of("Helios" if "Helios" in type(pipe).__name__ else "FramePack")


def profile_of(pipe: Any, policy: Policy = POLICY, **call: Any) -> Profile:
    return Profile(policy, Settings.of(pipe, **call), ModelIdentity.of(pipe), EVIDENCE)


def seeing(pipe: Any, seen: list[Settings]) -> Scope:
    """Exact mode that notes the settings of every chunk."""

    def exactly(settings: Settings, _: Any) -> tuple[None, str]:
        seen.append(settings)
        return None, ""

    return Scope(adapter_for(pipe)(pipe, exactly))


def first_block(pipe: Any) -> Any:
    transformer = pipe.transformer
    return (transformer.blocks if hasattr(transformer, "blocks") else transformer.transformer_blocks)[0]


def counted(pipe: Any, generate: Callable[..., torch.Tensor], **changes: Any) -> tuple[torch.Tensor, int]:
    """Latents, and how often the transformer really ran."""
    calls: list[Any] = []
    hook = first_block(pipe).register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        return generate(pipe, **changes), len(calls)
    finally:
        hook.remove()


def windows(scope: Any) -> list[str]:
    """One string per chunk, one letter per step."""
    return ["".join(window.modes) for window in scope.report.windows]


PROMPTS = {"prompt": ["a red circle", "a blue square moving up"]}
EVERY_MODE: dict[str, tuple[Callable[[], Any], Callable[..., torch.Tensor], dict[str, Any]]] = {
    "Helios, text": (helios, generate_helios, {}),
    "Helios, image": (helios, generate_helios, {"image": picture()}),
    "Helios, video": (helios, generate_helios, {"video": [picture(i) for i in range(33)]}),
    "Helios, without guidance": (helios, generate_helios, {"guidance_scale": 1.0}),
    "Helios, two prompts": (helios, generate_helios, PROMPTS),
    "Helios, Euler": (lambda: helios(scheduler_type="euler"), generate_helios, {}),
    "Helios, UniPC": (lambda: helios(scheduler_type="unipc"), generate_helios, {}),
    "Helios, without shift": (lambda: helios(use_dynamic_shifting=False), generate_helios, {}),
    "Helios, sigmas": (helios, generate_helios, {"sigmas": np.linspace(0.9, 0.1, 4)}),
    "Helios, short chunks": (helios, generate_helios, {"num_latent_frames_per_chunk": 5}),
    "Helios, short history": (helios, generate_helios, {"history_sizes": [1, 2, 8]}),
    "FramePack, last to first": (tiny_framepack, generate_framepack, {}),
    "FramePack, first to last": (tiny_framepack, generate_framepack, VANILLA),
    "FramePack, last image": (tiny_framepack, generate_framepack, {"last_image": picture(1)}),
    "FramePack, true guidance": (tiny_framepack, generate_framepack, TRUE_GUIDANCE),
    "FramePack, many sections": (tiny_framepack, generate_framepack, {"num_frames": 5 * 33}),
    "FramePack, two images": (tiny_framepack, generate_framepack, PROMPTS | {"image": [picture(1), picture(2)]}),
    "FramePack, sigmas": (tiny_framepack, generate_framepack, {"sigmas": [0.9, 0.6, 0.4, 0.1]}),
    "FramePack, short sections": (tiny_framepack, generate_framepack, {"latent_window_size": 5}),
}
"""Pipeline, generation and what it changes of the call."""


@pytest.mark.parametrize(("build", "generate", "changes"), EVERY_MODE.values(), ids=EVERY_MODE.keys())
def test_every_mode_is_exact_bit_for_bit_and_skips_with_a_policy(
    build: Callable[[], Any], generate: Callable[..., torch.Tensor], changes: dict[str, Any]
) -> None:
    pipe = build()
    seen: list[Settings] = []
    stock, work = counted(pipe, generate, **changes)
    with seeing(pipe, seen) as scope:
        assert torch.equal(generate(pipe, **changes), stock)
    assert scope.report.evaluations == scope.report.stock_evaluations == work
    assert "bidirectional" in str(scope.report)
    call = (HELIOS if generate is generate_helios else FRAMEPACK) | changes
    expected = dataclasses.replace(Settings.of(pipe, **call), preparation=Preparation("native"))
    assert seen == [expected] * len(scope.report.windows)  # in every chunk
    with run_policy(pipe, POLICY) as scope:
        skipped, less = counted(pipe, generate, **changes)
    assert torch.isfinite(skipped).all()
    assert 0 < (skipped - stock).abs().max() < 5 * stock.std()
    assert (scope.report.evaluations, scope.report.stock_evaluations) == (less, work)
    assert len(windows(scope)) >= 2
    assert set(windows(scope)) == {"RRPP" if "sigmas" in changes else "RRPPR"}


class TestHelios:
    def test_what_a_video_starts_from_is_a_setting(self) -> None:
        pipe = helios()
        profile, image = profile_of(pipe, **HELIOS), {"image": picture()}
        stock = generate_helios(pipe, **image)
        said = "options.starts_from is 'image', calibrated for 'nothing'"
        with apply_scope(pipe, profile) as scope:
            with pytest.warns(ScopeWarning, match=said):
                assert torch.equal(generate_helios(pipe, **image), stock)
            generate_helios(pipe)
            assert windows(scope) == ["RRPPR", "RRPPR"]
        with apply_scope(pipe, profile, on_mismatch="raise"), pytest.raises(ProfileMismatch, match=said) as error:
            generate_helios(pipe, **image)
        assert error.value.field == "settings.options.starts_from"
        assert Settings.of(pipe, **HELIOS | {"video": [picture()] * 33}).options["starts_from"] == "video"
        given = {"image_latents": torch.zeros(1, 16, 1, 2, 2)}
        assert Settings.of(pipe, **HELIOS | given).options["starts_from"] == "image"

    @pytest.mark.parametrize(
        ("option", "value"),
        [("history_sizes", [8, 2, 1]), ("is_skip_first_chunk", True)],
    )
    def test_what_a_chunk_sees_of_those_before_is_a_setting(self, option: str, value: Any) -> None:
        pipe = helios()
        with apply_scope(pipe, profile_of(pipe, **HELIOS)), pytest.warns(ScopeWarning, match=f"options.{option} is"):
            generate_helios(pipe, **{option: value})

    def test_the_pyramid_is_refused_by_name(self) -> None:
        pipe = helios()
        pyramid = HeliosPyramidPipeline(**pipe.components)
        with pytest.raises(AttachError, match="HeliosPyramidPipeline cannot be accelerated: its stages denoise at"):
            exact(pyramid)
        with pytest.raises(AttachError, match="HeliosPyramidPipeline cannot be accelerated"):
            Settings.of(pyramid)
        assert "check_inputs" not in vars(pyramid)


class TestFramePack:
    def test_branches_are_told_apart(self) -> None:
        """The pipeline names none: with true guidance they take turns, and each is extrapolated by itself."""
        pipe = tiny_framepack()
        plan = ("R", "R", "P", "R", "P")
        settings = Settings.of(pipe, **FRAMEPACK | TRUE_GUIDANCE)

        def with_weights(table: dict[tuple[int, int, str], tuple[float, ...]]) -> torch.Tensor:
            weights = GapWeights.fitted(plan, settings, depth=2, classes=(0,), weights=table)
            with run_policy(pipe, Policy(plan=plan, gap_weights=weights)):
                return generate_framepack(pipe, **TRUE_GUIDANCE)

        neither = with_weights({})
        one = with_weights({(0, 1, "cond"): (2.0, -1.0)})
        other = with_weights({(0, 1, "uncond"): (2.0, -1.0)})
        assert not torch.equal(neither, one)
        assert not torch.equal(neither, other)
        assert not torch.equal(one, other)
        with run_policy(pipe, POLICY) as scope:
            generate_framepack(pipe, **TRUE_GUIDANCE)
        assert {error.branch for error in scope.report.prediction_errors} == {"cond", "uncond"}

    def test_distilled_guidance_alone_is_one_branch_and_an_option(self) -> None:
        pipe = tiny_framepack()
        settings = Settings.of(pipe, **FRAMEPACK)
        assert (settings.guidance_scale, settings.options["distilled_guidance_scale"]) == (1.0, 6.0)
        with run_policy(pipe, POLICY) as scope:
            # Without a negative prompt there is no second branch, whatever its scale.
            _, calls = counted(pipe, generate_framepack, true_cfg_scale=2.0)
        assert calls == scope.report.evaluations == 2 * 3
        assert {error.branch for error in scope.report.prediction_errors} == {"cond"}
        with (
            apply_scope(pipe, profile_of(pipe, **FRAMEPACK)),
            pytest.warns(ScopeWarning, match="options.distilled_guidance_scale is 3.0, calibrated for 6.0"),
        ):
            generate_framepack(pipe, guidance_scale=3.0)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (VANILLA, "options.sampling_type is 'vanilla', calibrated for 'inverted_anti_drifting'"),
            ({"last_image": picture(1)}, "options.last_image is True, calibrated for False"),
            (TRUE_GUIDANCE, "guidance_scale is 2.0, calibrated for 1.0"),
        ],
        ids=["sampling type", "last image", "true guidance"],
    )
    def test_other_ways_of_sampling_are_other_settings(self, changes: dict[str, Any], said: str) -> None:
        pipe = tiny_framepack()
        stock = generate_framepack(pipe, **changes)
        with apply_scope(pipe, profile_of(pipe, **FRAMEPACK)), pytest.warns(ScopeWarning, match=said):
            assert torch.equal(generate_framepack(pipe, **changes), stock)

    def test_sections_are_windows_in_the_order_in_which_they_are_made(self) -> None:
        """Last to first: what the first window skips shows in the last frames, which no other section sees change."""
        pipe = tiny_framepack()
        stock = stock_for(pipe)
        with run_policy(pipe, Policy(max_skip=0, warmup=1, first_window=POLICY)) as scope:
            ours = generate_framepack(pipe)
        assert windows(scope) == ["RRPPR", "RRRRR"]
        assert not torch.equal(ours[:, :, -9:], stock[:, :, -9:])
        with run_policy(pipe, Policy(warmup=2, max_skip=2, first_window=Policy(max_skip=0))) as scope:
            ours = generate_framepack(pipe)
        assert windows(scope) == ["RRRRR", "RRPPR"]
        assert torch.equal(ours[:, :, -9:], stock[:, :, -9:])
        assert not torch.equal(ours[:, :, :9], stock[:, :, :9])


@pytest.mark.parametrize("changes", [{}, TRUE_GUIDANCE], ids=["usual", "true guidance"])
def test_the_content_indicator_is_the_input_of_the_first_attention(
    made: Made, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`modulated_input` must be what it really receives of the current chunk, with the prompt."""
    pipe, generate, _ = made
    if "Helios" in type(pipe).__name__:
        changes = {"guidance_scale": 1.0} if changes else {}
        attention, keyword = pipe.transformer.blocks[0].attn1, None
    else:
        attention, keyword = pipe.transformer.transformer_blocks[0].attn, "hidden_states"
    computed: list[torch.Tensor] = []
    received: list[torch.Tensor] = []
    measure = _Call.modulated_input

    def keep(call: _Call, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        found = measure(call, blocks)
        computed.append(found[0])
        return found

    def receive(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.append(kwargs[keyword] if keyword else args[0])

    monkeypatch.setattr(_Call, "modulated_input", keep)
    hook = attention.register_forward_pre_hook(receive, with_kwargs=True)
    with run_policy(pipe, Policy(indicator=MODULATED_INPUT, max_skip=0)) as scope:
        generate(pipe, **changes)
    hook.remove()
    branches = scope.report.evaluations // 10
    assert len(computed) == 10
    assert branches == (2 if changes == TRUE_GUIDANCE or (keyword is None and not changes) else 1)
    for ours, real in zip(computed, received[::branches], strict=True):
        assert real.shape[1] > ours.shape[1] == 9  # the history comes in front
        torch.testing.assert_close(ours, real[:, -ours.shape[1] :], rtol=1e-4, atol=1e-5)


def test_the_content_indicator_decides(made: Made) -> None:
    pipe, generate, _ = made
    found = []
    for threshold in (1e-6, 0.15, 10.0):
        policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, predict_threshold=threshold)
        with run_policy(pipe, policy) as scope:
            assert torch.isfinite(generate(pipe)).all()
        assert scope.plan is None
        found.append(scope.report.evaluations)
    assert found[0] == scope.report.stock_evaluations
    assert found[0] > found[1] > found[2] == scope.report.stock_evaluations // 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_bit_for_bit(made: Made, dtype: torch.dtype) -> None:
    pipe, generate, call = made
    pipe.transformer.to(dtype)
    stock = generate(pipe)
    assert Settings.of(pipe, **call).dtype == str(dtype).removeprefix("torch.")
    with exact(pipe):
        assert torch.equal(generate(pipe), stock)
    with run_policy(pipe, Policy(indicator=MODULATED_INPUT, warmup=2, max_skip=2)) as scope:
        assert torch.isfinite(generate(pipe)).all()
    assert windows(scope) == ["RRPPR", "RRPPR"]


def test_the_first_window_may_have_rules_of_its_own(made: Made) -> None:
    pipe, generate, call = made
    policy = Policy(warmup=1, max_skip=3, cache_threshold=9.0, first_window=Policy(warmup=3, max_skip=1))
    with apply_scope(pipe, profile_of(pipe, policy, **call)) as scope:
        for _ in range(2):  # a generation begins anew
            generate(pipe, num_frames=99)
            assert windows(scope) == ["RRRPR", "RCCCR", "RCCCR"]


def test_a_frozen_plan_with_learned_weights_holds_for_every_chunk(made: Made) -> None:
    pipe, generate, call = made
    plan = ("R", "R", "P", "R", "C")
    table = {(0, 1, "cond"): (2.0, -1.0), (0, 3, "uncond"): (1.5, -0.5)}
    weights = GapWeights.fitted(plan, Settings.of(pipe, **call), depth=2, classes=(0,), weights=table)
    policy = Policy(plan=plan, gap_weights=weights)
    with run_policy(pipe, Policy(plan=plan)) as scope:
        plain = generate(pipe)
    with apply_scope(pipe, profile_of(pipe, policy, **call)) as scope:
        learned = generate(pipe)
    assert windows(scope) == ["RRPRC", "RRPRC"]
    assert scope.plan == plan
    assert torch.isfinite(learned).all()
    assert not torch.equal(learned, plain)
    with run_policy(pipe, policy), pytest.raises(ProfileMismatch, match="num_inference_steps"):
        generate(pipe, num_inference_steps=6)
    with run_policy(pipe, Policy(plan=("R", "P"))), pytest.raises(ProfileError, match="2 rows of 1 blocks"):
        generate(pipe)
    assert torch.equal(generate(pipe), stock_for(pipe))


@pytest.mark.parametrize(
    ("field", "value"), [("context_window", 2), ("context_dtype", "bfloat16"), ("captures", "last")]
)
def test_what_there_is_no_context_for_is_refused_by_name(made: Made, field: str, value: Any) -> None:
    pipe, generate, _ = made
    for policy in (Policy(**{field: value}), Policy(first_window=Policy(**{field: value}))):
        with run_policy(pipe, policy), pytest.raises(ProfileError, match=f"^policy.{field}: must be") as error:
            generate(pipe)
        assert error.value.field == f"policy.{field}"


@pytest.mark.parametrize(
    ("policy", "speedup"),
    [(Policy(warmup=2, max_skip=2), 2.0), (Policy(warmup=1, max_skip=2), 3.0), (Policy(max_skip=0), 1.0)],
)
def test_policies_save_what_they_say(made: Made, policy: Policy, speedup: float) -> None:
    pipe, generate, _ = made
    with run_policy(pipe, policy) as scope:
        ours, calls = counted(pipe, generate, num_inference_steps=6)
    assert torch.isfinite(ours).all()
    assert scope.report.speedup_evaluations == speedup
    assert scope.report.stock_evaluations == speedup * calls


def test_a_profile_holds_for_any_number_of_chunks(made: Made) -> None:
    pipe, generate, call = made
    with warnings.catch_warnings(), apply_scope(pipe, profile_of(pipe, **call), on_mismatch="raise") as scope:
        warnings.simplefilter("error", ScopeWarning)
        for chunks in (1, 3):
            generate(pipe, num_frames=33 * chunks)
            assert windows(scope) == ["RRPPR"] * chunks


def test_nothing_is_kept_from_one_chunk_to_the_next(made: Made) -> None:
    """Neither outputs to extrapolate from, nor a chunk's state."""
    pipe, generate, _ = made
    with run_policy(pipe, Policy(warmup=1, max_skip=9, order=2)) as scope:
        generate(pipe)
    assert windows(scope) == ["RPPPP", "RPPPP"]
    with run_policy(pipe, POLICY) as scope:
        generate(pipe)
        attachment: Any = scope._attachment
        assert (attachment._engine, attachment._plan, attachment._gate.arguments) == (None, None, {})


def test_what_an_exception_left_behind_is_dropped_when_the_next_call_begins(made: Made) -> None:
    pipe, generate, _ = made

    def fail(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with run_policy(pipe, POLICY) as scope:
        attachment: Any = scope._attachment
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(pipe, callback_on_step_end=fail)
        assert attachment._engine is not None
        with pytest.raises(ValueError, match="divisible by 16"):
            generate(pipe, height=17)
        assert attachment._engine is None


class TestScheduler:
    def test_another_one_is_another_setting_and_exact(self, made: Made) -> None:
        pipe, generate, call = made
        profile = profile_of(pipe, **call)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.9)
        stock = generate(pipe)
        with apply_scope(pipe, profile), pytest.warns(ScopeWarning, match="scheduler (is Flow|has base_shift=0.9)"):
            assert torch.equal(generate(pipe), stock)

    def test_replaced_while_attached_it_is_noticed(self, made: Made) -> None:
        pipe, generate, call = made
        before = pipe.scheduler
        with apply_scope(pipe, profile_of(pipe, **call)) as scope:
            generate(pipe)
            pipe.scheduler = type(before).from_config(before.config)
            generate(pipe)
            assert windows(scope) == ["RRPPR", "RRPPR"]  # the same by another name
            assert not {"set_timesteps", "__deepcopy__"} & vars(before).keys()
            pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.9)
            with pytest.warns(ScopeWarning, match="scheduler"):
                generate(pipe)
            assert windows(scope) == ["RRRRR", "RRRRR"]
            last = pipe.scheduler
        assert not {"set_timesteps", "__deepcopy__"} & vars(last).keys()

    def test_replaced_in_mid_generation_it_is_refused(self, made: Made) -> None:
        pipe, generate, _ = made
        mine = pipe.scheduler

        def replace(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            if step == 4:
                pipe.scheduler = type(mine).from_config(mine.config)
            return {}

        with exact(pipe):
            with pytest.raises(AttachError, match="scheduler was replaced in the middle of a generation"):
                generate(pipe, callback_on_step_end=replace)
            assert torch.equal(generate(pipe), stock_for(pipe))

    def test_set_by_the_user_between_generations_it_begins_no_chunk(self, made: Made) -> None:
        pipe, generate, call = made
        with run_policy(pipe, POLICY) as scope:
            pipe.scheduler.set_timesteps(7, sigmas=np.linspace(0.9, 0.1, 7), mu=1.0)
            assert len(pipe.scheduler.timesteps) == 7
            assert not scope.report.windows
            skipped = generate(pipe)
            pipe.scheduler.set_timesteps(7, sigmas=np.linspace(0.9, 0.1, 7), mu=1.0)
            assert windows(scope) == ["RRPPR", "RRPPR"]
            assert Settings.of(pipe, **call).num_inference_steps == 5
            assert len(pipe.scheduler.timesteps) == 7
            assert torch.equal(generate(pipe), skipped)

    def test_whoever_keeps_what_stands_in_for_its_method_keeps_a_stock_method(self, made: Made) -> None:
        pipe, generate, _ = made
        scheduler = pipe.scheduler
        with exact(pipe) as scope:
            ours = scheduler.set_timesteps

            @functools.wraps(ours)  # FramePack looks at its signature
            def theirs(*args: Any, **kwargs: Any) -> Any:
                return ours(*args, **kwargs)

            scheduler.set_timesteps = theirs
            assert torch.equal(generate(pipe), stock_for(pipe))
            assert windows(scope) == ["RRRRR", "RRRRR"]
        assert scheduler.set_timesteps is theirs
        assert torch.equal(generate(pipe), stock_for(pipe))

    def test_a_copy_of_it_is_stock(self, made: Made) -> None:
        """Also in mid-generation, where a callback may ask for the settings of a call."""
        pipe, generate, call = made
        copies: list[Any] = []

        def clone(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            if step == 3:
                copies.append(copy.deepcopy(pipe.scheduler))
                assert Settings.of(pipe, **call).num_inference_steps == 5
            return {}

        with run_policy(pipe, POLICY) as scope:
            generate(pipe, callback_on_step_end=clone)
            assert windows(scope) == ["RRPPR", "RRPPR"]
            copies.append(copy.deepcopy(pipe.scheduler))
            for clone_of_it in copies:
                assert not {"set_timesteps", "__deepcopy__"} & vars(clone_of_it).keys()
                clone_of_it.set_timesteps(3, sigmas=np.linspace(0.9, 0.1, 3), mu=1.0)
            assert [len(one.timesteps) for one in (*copies, pipe.scheduler)] == [3, 3, 3, 5]
        pipe.scheduler = copies[0]
        assert torch.equal(generate(pipe), stock_for(pipe))

    def test_one_that_another_scope_holds_is_refused(self, made: Made) -> None:
        pipe, generate, _ = made
        other = FAMILIES["Helios" if generate is generate_helios else "FramePack"][0]()
        own, other.scheduler = other.scheduler, pipe.scheduler
        with exact(pipe):
            with pytest.raises(AttachError, match="pipe.scheduler is that of another accelerated pipeline"):
                exact(other)
            assert "check_inputs" not in vars(other)
            other.scheduler = own
            with exact(other):
                other.scheduler = pipe.scheduler
                with pytest.raises(AttachError, match="pipe.scheduler is that of another accelerated pipeline"):
                    generate(other)
        assert torch.equal(generate(other), stock_for(pipe))

    def test_one_that_needs_several_evaluations_a_step_is_refused(self, made: Made) -> None:
        class Twice(FlowMatchEulerDiscreteScheduler):
            timesteps: Any

            def set_timesteps(self, steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
                super().set_timesteps(steps, device, sigmas, mu)
                self.timesteps = self.timesteps.repeat_interleave(2)

        pipe, generate, _ = made
        pipe.scheduler = Twice()
        with exact(pipe), pytest.raises(AttachError, match="Twice has 5 noise levels for 10 steps"):
            generate(pipe)


def patched_forward(pipe: Any) -> None:
    forward = pipe.transformer.forward
    pipe.transformer.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def patched_block(pipe: Any) -> None:
    forward = first_block(pipe).forward
    first_block(pipe).forward = lambda *args: forward(*args)


def compiled(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (patched_forward, "transformer.forward, which is .*patched_forward"),
        (patched_block, r"transformer.(transformer_)?blocks.0.forward, which is .*patched_block"),
        (compiled, r"compile_repeated_blocks\(\)"),
    ],
    ids=["forward", "block", "compiled"],
)
def test_what_may_answer_in_the_models_place_is_refused(made: Made, put: Callable[[Any], None], said: str) -> None:
    pipe, generate, _ = made
    with exact(pipe) as scope:
        put(pipe)
        with pytest.raises(AttachError, match=said):
            generate(pipe)
        assert not scope.report.windows
    with pytest.raises(AttachError, match=said):
        exact(pipe)
    assert not {"check_inputs", "__deepcopy__"} & vars(pipe).keys()
    assert not {"set_timesteps", "__deepcopy__"} & vars(pipe.scheduler).keys()


def test_lora_is_exact_and_another_model(made: Made) -> None:
    pipe, generate, call = made
    profile = profile_of(pipe, **call)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    half = {"attention_kwargs": {"scale": 0.5}}
    stock, weaker = generate(pipe), generate(pipe, **half)
    assert not torch.equal(stock, weaker)
    with pytest.raises(ProfileMismatch, match="model.weights"):
        apply_scope(pipe, profile)
    with apply_scope(pipe, profile_of(pipe, **call)) as scope:
        generate(pipe)
        assert windows(scope) == ["RRPPR", "RRPPR"]
        with pytest.warns(ScopeWarning, match="lora_scale is 0.5, calibrated for 1.0"):
            assert torch.equal(generate(pipe, **half), weaker)
    with exact(pipe):
        assert torch.equal(generate(pipe), stock)


def test_other_attention_processors_are_another_model(made: Made) -> None:
    pipe, generate, call = made
    attention = first_block(pipe).attn1 if generate is generate_helios else first_block(pipe).attn
    stock_processor = attention.processor

    class Processor(type(stock_processor)):  # type: ignore[misc]
        @functools.wraps(type(stock_processor).__call__)  # what it is given is what it says it takes
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    with apply_scope(pipe, profile_of(pipe, **call)) as scope:
        attention.set_processor(Processor())
        with pytest.warns(ScopeWarning, match=r"attention processor .*Processor on transformer\..*blocks\.0\.attn"):
            assert torch.equal(generate(pipe), stock_for(pipe))
        attention.set_processor(stock_processor)
        generate(pipe)
        assert windows(scope) == ["RRPPR", "RRPPR"]


def test_another_transformer_is_taken_hold_of(made: Made) -> None:
    pipe, generate, call = made
    other = tiny_helios(seed=1, layers=1) if generate is generate_helios else tiny_framepack(seed=1)
    mine, theirs = pipe.transformer, other.transformer
    with apply_scope(pipe, profile_of(pipe, **call)) as scope:
        generate(pipe)
        pipe.transformer = theirs
        with pytest.warns(ScopeWarning, match="weights: .* has other values"):
            ours = generate(pipe)
        assert windows(scope) == ["RRRRR", "RRRRR"]
        pipe.transformer = mine
        generate(pipe)
        assert windows(scope) == ["RRPPR", "RRPPR"]
    assert torch.equal(generate(pipe), stock_for(pipe))
    pipe.transformer = theirs
    assert torch.equal(generate(pipe), ours)


def test_layerwise_casting_is_a_setting(made: Made) -> None:
    pipe, generate, call = made
    with apply_scope(pipe, profile_of(pipe, **call)):
        pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        with pytest.warns(ScopeWarning, match="from bfloat16"):
            ours = generate(pipe)
    assert torch.equal(generate(pipe), ours)


def test_a_replaced_check_of_inputs_is_refused(made: Made) -> None:
    """What a call is given is read there; put there before attaching it is used and comes back."""
    pipe, generate, _ = made
    stock, original, used = stock_for(pipe), pipe.check_inputs, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        used.append(1)
        return original(*args, **kwargs)

    with exact(pipe):
        pipe.check_inputs = theirs
        with pytest.raises(AttachError, match="pipe.check_inputs was replaced while the pipeline was accelerated"):
            generate(pipe)
    assert vars(pipe)["check_inputs"] is theirs
    used.clear()
    with exact(pipe):
        assert torch.equal(generate(pipe), stock)
    assert used == [1]
    assert vars(pipe)["check_inputs"] is theirs


def test_an_interrupt_leaves_a_clean_pipeline(made: Made) -> None:
    pipe, generate, _ = made

    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2
        return {}

    with exact(pipe) as scope:
        generate(pipe, callback_on_step_end=interrupt)
        assert windows(scope) == ["RRR"]
        assert torch.equal(generate(pipe), stock_for(pipe))
    assert torch.equal(generate(pipe), stock_for(pipe))


def test_a_callback_may_change_latents(made: Made) -> None:
    pipe, generate, _ = made

    def halve(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.5 if step == 2 else tensors["latents"]}

    stock = generate(pipe, callback_on_step_end=halve)
    assert not torch.equal(stock, stock_for(pipe))
    with exact(pipe):
        assert torch.equal(generate(pipe, callback_on_step_end=halve), stock)
