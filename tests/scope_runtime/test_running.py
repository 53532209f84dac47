"""What really runs, looked at before every generation: what is noticed, what is refused, and what goes on working."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PyramidAttentionBroadcastConfig, UniPCMultistepScheduler
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache, apply_group_offloading
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2AttnProcessor,
    SkyReelsV2Transformer3DModel,
    SkyReelsV2TransformerBlock,
)
from peft import LoraConfig

from scope_runtime import (
    AttachError,
    ModelIdentity,
    Policy,
    Preparation,
    Profile,
    ProfileError,
    ProfileMismatch,
    Scheduler,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, latents, tiny_pipeline

POLICY = Policy(warmup=2, max_skip=2)
LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)


def with_lora(pipe: Any, name: str = "default") -> Any:
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LORA, name)
    return pipe


def skips(scope: Any) -> bool:
    return "P" in "".join(scope.report.modes) or "C" in "".join(scope.report.modes)


BASE = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).config


OTHERS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "karras sigmas": (UniPCMultistepScheduler, {}, {"use_karras_sigmas": True}),
    "exponential sigmas": (UniPCMultistepScheduler, {}, {"use_exponential_sigmas": True}),
    "beta sigmas": (UniPCMultistepScheduler, {}, {"use_beta_sigmas": True}),
    "last sigma": (UniPCMultistepScheduler, {}, {"final_sigmas_type": "sigma_min"}),
    "training steps": (UniPCMultistepScheduler, {}, {"num_train_timesteps": 900}),
    "order at the end": (UniPCMultistepScheduler, {}, {"lower_order_final": False}),
    "corrector": (UniPCMultistepScheduler, {}, {"disable_corrector": [0]}),
    "stochastic": (DPMSolverMultistepScheduler, {}, {"algorithm_type": "sde-dpmsolver++"}),
    "Euler at the end": (DPMSolverMultistepScheduler, {}, {"euler_at_final": True}),
    "a default that was left": (UniPCMultistepScheduler, {"use_karras_sigmas": True}, {"use_karras_sigmas": False}),
}  # fmt: skip


class _Slower(UniPCMultistepScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any: ...


class TestScheduler:
    @pytest.mark.parametrize(("kind", "calibrated", "used"), OTHERS.values(), ids=OTHERS.keys())
    def test_every_key_that_shapes_noise_levels_or_steps_is_seen(
        self, pipe: Any, kind: Any, calibrated: dict[str, Any], used: dict[str, Any]
    ) -> None:
        pipe = copy.copy(pipe)
        pipe.scheduler = kind.from_config(BASE, **calibrated)
        profile = make_profile(pipe)
        pipe.scheduler = kind.from_config(BASE, **used)
        (key,) = used
        with apply_scope(pipe, profile, on_mismatch="raise"), pytest.raises(ProfileMismatch, match=key) as error:
            latents(pipe)
        assert error.value.field == "settings.scheduler"

    @pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
    @pytest.mark.parametrize("key", [None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
    def test_what_a_call_would_run_with_is_what_it_runs_with(self, pipe: Any, kind: Any, key: str | None) -> None:
        pipe = copy.copy(pipe)
        pipe.scheduler = kind.from_config(BASE, **({key: True} if key else {}))
        seen: list[Settings] = []
        attachment = _seeing(pipe, seen)
        try:
            latents(pipe)
        finally:
            attachment.detach()
        assert seen == [dataclasses.replace(Settings.of(pipe, **CALL), preparation=Preparation("native"))]
        assert len(seen[0].scheduler.sigmas) == CALL["num_inference_steps"] + 1

    def test_settings_of_a_call_leave_the_scheduler_as_it_is(self, pipe: Any) -> None:
        pipe.scheduler.set_timesteps(5)
        Settings.of(pipe, **CALL)
        assert len(pipe.scheduler.timesteps) == 5

    def test_noise_levels_are_compared_with_a_tolerance(self) -> None:
        mine = Scheduler("A", sigmas=(1.0, 0.5, 0.0))
        assert mine.mismatches(Scheduler("A", sigmas=(1.0, 0.500001, 0.0))) == []
        assert mine.mismatches(Scheduler("A", sigmas=(1.0, 0.5001, 0.0))) == [
            "scheduler has noise level 0.5001 at step 1, calibrated for 0.5"
        ]

    def test_a_key_that_only_one_version_of_the_class_knows_must_be_at_its_default(self) -> None:
        old = Scheduler("A", {"shift": 3.0}, {"order": 2})
        assert old.mismatches(Scheduler("A", {"shift": 3.0}, {"order": 2, "new": None})) == []
        assert Scheduler("A", {"shift": 3.0}, {"order": 2, "new": None}).mismatches(old) == []
        assert old.mismatches(Scheduler("A", {"shift": 3.0, "new": 1}, {"order": 2})) == [
            "scheduler has new=1, calibrated for its default"
        ]
        assert Scheduler("A", {"shift": 3.0, "new": 1}, {"order": 2}).mismatches(old) == [
            "scheduler has no new, calibrated for new=1"
        ]

    def test_a_default_that_another_version_changed_is_compared_by_value(self) -> None:
        old = Scheduler("A", {}, {"order": 2})
        assert old.mismatches(Scheduler("A", {"order": 2}, {})) == []
        assert old.mismatches(Scheduler("A", {}, {"order": 3})) == ["scheduler has order=3, calibrated for order=2"]

    def test_what_steps_read_from_attributes_and_a_replaced_step_are_seen(self, pipe: Any) -> None:
        profile = make_profile(pipe)
        for change in (
            lambda scheduler: setattr(scheduler, "disable_corrector", [0, 1]),
            lambda scheduler: setattr(scheduler, "step", lambda *a, **k: None),
            lambda scheduler: setattr(scheduler, "__class__", type(type(scheduler).__name__, (_Slower,), {})),
        ):
            other = copy.copy(pipe)
            other.scheduler = copy.deepcopy(pipe.scheduler)
            change(other.scheduler)
            assert profile.settings.mismatches(Settings.of(other, **CALL))

    def test_replaced_while_attached(self, pipe: Any) -> None:
        pipe = copy.copy(pipe)
        with apply_scope(pipe, make_profile(pipe)) as scope:
            latents(pipe)
            assert skips(scope)
            pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
            with pytest.warns(ScopeWarning, match="use_karras_sigmas=True"):
                latents(pipe)
            assert not skips(scope)


def _seeing(pipe: Any, seen: list[Settings]) -> Any:
    from scope_runtime.adapters.skyreels_v2 import SkyReelsV2Attachment

    def exactly(settings: Settings, changes: Any) -> tuple[None, str]:
        seen.append(settings)
        return None, ""

    return SkyReelsV2Attachment(pipe, exactly)


class TestVersion1:
    """A profile that version 1 wrote for the tiny pipeline."""

    @pytest.fixture
    def old(self, pipe: Any) -> Profile:
        profile = Profile.load(Path(__file__).parent / "data/profile-version-1.json")
        # Random weights are not promised to be the same on every machine.
        return dataclasses.replace(profile, model=ModelIdentity.of(pipe))

    def test_it_loads_applies_and_survives_being_written_again(self, pipe: Any, old: Profile) -> None:
        assert Profile.from_dict(old.to_dict()) == old
        with warnings.catch_warnings(), apply_scope(pipe, old) as scope:
            warnings.simplefilter("error", ScopeWarning)
            latents(pipe)
        assert skips(scope)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"flow_shift": 8.0}, "flow_shift=8.0, calibrated for flow_shift=3.0"),
            ({"solver_order": 3}, "solver_order=3, calibrated for solver_order=2"),
            ({"use_karras_sigmas": True}, "use_karras_sigmas=True, calibrated for its default"),
            ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type=sigma_min, calibrated for its default"),
        ],
    )
    def test_it_is_checked_as_far_as_it_says_and_the_rest_must_be_default(
        self, pipe: Any, old: Profile, change: dict[str, Any], complaint: str
    ) -> None:
        pipe = copy.copy(pipe)
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **change)
        with apply_scope(pipe, old, on_mismatch="raise"), pytest.raises(ProfileMismatch, match=complaint):
            latents(pipe)

    def test_the_digest_of_plain_weights_is_what_it_was(self, pipe: Any) -> None:
        import hashlib

        digest = hashlib.sha256()
        for name, parameter in pipe.transformer.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)].to(torch.bfloat16)
            digest.update(sample.view(torch.uint8).numpy().tobytes())
        assert ModelIdentity.of(pipe).weights == digest.hexdigest()[:16]


def add_lora(pipe: Any) -> None:
    with_lora(pipe)


def write(pipe: Any) -> None:
    with torch.no_grad():
        pipe.transformer.blocks[1].attn1.to_q.weight[0, 1] += 1.0


def write_data(pipe: Any) -> None:
    pipe.transformer.blocks[1].ffn.net[2].weight.data.mul_(1.01)


def replace_parameter(pipe: Any) -> None:
    layer = pipe.transformer.proj_out
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.01)


def write_buffer(pipe: Any) -> None:
    next(pipe.transformer.buffers()).add_(0.5)


def replace_layer(pipe: Any) -> None:
    layer = pipe.transformer.proj_out
    pipe.transformer.proj_out = torch.nn.Sequential(layer, torch.nn.Identity())


def swap_blocks(pipe: Any) -> None:
    first, second = pipe.transformer.blocks
    first.ffn, second.ffn = second.ffn, first.ffn


def to_bfloat16(pipe: Any) -> None:
    pipe.transformer.to(torch.bfloat16)


def one_layer_to_half(pipe: Any) -> None:
    norm = pipe.transformer.blocks[0].norm2
    norm.weight = torch.nn.Parameter(norm.weight.detach().double())


def cast_by_layers(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def hook_a_block(pipe: Any) -> None:
    def larger(module: Any, args: Any) -> Any:
        return (args[0] * 1.01, *args[1:])

    pipe.transformer.blocks[0].register_forward_pre_hook(larger)


def hook_the_transformer(pipe: Any) -> None:
    def larger(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 1.01}

    pipe.transformer.register_forward_pre_hook(larger, with_kwargs=True)


def patch_a_layer(pipe: Any) -> None:
    original = pipe.transformer.proj_out.forward
    pipe.transformer.proj_out.forward = lambda hidden: original(hidden) * 1.01


def change_config(pipe: Any) -> None:
    pipe.transformer.register_to_config(rope_max_seq_len=64)


def another_transformer(pipe: Any) -> None:
    pipe.transformer = tiny_pipeline(seed=5).transformer


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "LoRA added": (add_lora, "adapters are default at 1, were absent"),
    "weight written": (write, "weights: blocks.1.attn1.to_q.weight was written to"),
    "weight written unseen by torch": (write_data, "weights: blocks.1.ffn.net.2.weight has other values"),
    "parameter replaced": (replace_parameter, "weights: proj_out.weight has other values"),
    "buffer written": (write_buffer, "weights: rope"),
    "layer replaced": (replace_layer, "modules: proj_out is a Sequential, was a Linear"),
    "layers swapped": (swap_blocks, "weights: blocks.0.ffn"),
    "dtype": (to_bfloat16, "dtype is 'bfloat16', calibrated for 'float32'"),
    "dtype of one parameter": (one_layer_to_half, r"norm2.weight is Tensor of float64 \[24\], was Tensor of float"),
    "layerwise casting": (cast_by_layers, "from bfloat16"),
    "hook on a block": (hook_a_block, "larger on transformer.blocks.0"),
    "hook on the transformer": (hook_the_transformer, "larger on transformer"),
    "forward of a layer": (patch_a_layer, "transformer.proj_out.forward, which is .*patch_a_layer"),
    "configuration": (change_config, "config.rope_max_seq_len is 64, was 32"),
    "transformer replaced": (another_transformer, "weights: .* has other values"),
}


class TestModelChangedWhileAttached:
    @pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES.keys())
    def test_the_next_generation_is_exact_and_says_what_changed(self, change: Any, name: str) -> None:
        pipe, changed = tiny_pipeline(), tiny_pipeline()
        with apply_scope(pipe, make_profile(pipe)) as scope:
            latents(pipe)
            assert skips(scope)
            change(pipe)
            with pytest.warns(ScopeWarning, match=name):
                made = latents(pipe)
            assert not skips(scope)
            assert scope.report.evaluations < scope.report.stock_evaluations
        change(changed)
        stock = latents(changed)
        rounding = 0.2 if "bfloat16" in Settings.of(pipe, **CALL).dtype.split(" ")[0] else 1e-4
        assert (made - stock).abs().max() <= rounding
        assert torch.equal(latents(pipe), stock)  # the pipeline with its change, and nothing of ours

    @pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES.keys())
    def test_or_it_raises(self, change: Any, name: str) -> None:
        pipe = tiny_pipeline()
        with apply_scope(pipe, make_profile(pipe), on_mismatch="raise"):
            change(pipe)
            with pytest.raises(ProfileMismatch, match=name):
                latents(pipe)

    @pytest.mark.parametrize("change", [write, write_data, hook_a_block, patch_a_layer, another_transformer])
    def test_without_a_profile_nothing_was_promised_about_the_model(self, change: Any) -> None:
        pipe, stock = tiny_pipeline(), tiny_pipeline()
        with warnings.catch_warnings(), exact(pipe) as scope:
            warnings.simplefilter("error", ScopeWarning)
            change(pipe)
            made = latents(pipe)
        assert 0 < scope.report.evaluations < scope.report.stock_evaluations
        change(stock)
        assert (made - latents(stock)).abs().max() <= 1e-4

    def test_what_treats_tokens_its_own_way_is_named_in_the_report(self) -> None:
        pipe = tiny_pipeline()
        hook_a_block(pipe)
        with exact(pipe) as scope:
            latents(pipe)
        assert "treated alike by hook" in scope.report.notes[0]

    def test_a_change_that_was_taken_back_is_none(self) -> None:
        pipe = tiny_pipeline()
        with warnings.catch_warnings(), apply_scope(pipe, make_profile(pipe)) as scope:
            warnings.simplefilter("error", ScopeWarning)
            transformer, pipe.transformer = pipe.transformer, tiny_pipeline().transformer
            latents(pipe)
            assert skips(scope)  # another object, the same model
            assert "forward" not in vars(transformer) or transformer.forward.__func__ is type(transformer).forward
            pipe.transformer = transformer
            add_lora(pipe)
            pipe.transformer.delete_adapters("default")
            _without_peft_layers(pipe.transformer)
            latents(pipe)
            assert skips(scope)

    def test_a_transformer_that_cannot_be_held_is_refused_and_the_old_one_comes_back(self) -> None:
        pipe = tiny_pipeline()
        stock, mine = latents(pipe), pipe.transformer
        with exact(pipe):
            pipe.transformer = torch.compile(tiny_pipeline().transformer, backend="eager")
            with pytest.raises(AttachError, match="compile_repeated_blocks"):
                latents(pipe)
            pipe.transformer = None
            with pytest.raises(AttachError, match="NoneType"):
                latents(pipe)
            pipe.transformer = mine
            assert (latents(pipe) - stock).abs().max() <= 1e-4
        assert torch.equal(latents(pipe), stock)


def _without_peft_layers(transformer: Any) -> None:
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(transformer)


ADAPTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "weighted": (lambda t: t.set_adapters("default", 0.5), "adapters are default at 0.5, were default at 1"),
    "scaled": (lambda t: t.blocks[0].attn1.to_q.scale_layer(2.0), "adapters are default at 1; default at 2"),
    "disabled": (lambda t: t.disable_adapters(), "adapters are disabled, were default at 1"),
    "fused": (lambda t: t.fuse_lora(), "adapters are default at 1, merged default, were default at 1"),
    "removed": (lambda t: t.delete_adapters("default"), "adapters are none active, were default at 1"),
    "another": (lambda t: t.add_adapter(LORA, "other"), "adapters are other at 1, were default at 1"),
    "written": (lambda t: t.blocks[0].attn1.to_q.lora_B["default"].weight.data.add_(1), "lora_B.default.weight"),
}  # fmt: skip


class TestLora:
    """A profile that was calibrated with an adapter holds for that adapter as it was."""

    @pytest.mark.parametrize(("change", "name"), ADAPTED.values(), ids=ADAPTED.keys())
    def test_a_change_is_noticed_while_attached_and_before(self, change: Any, name: str) -> None:
        pipe = with_lora(tiny_pipeline())
        profile = make_profile(pipe)
        assert profile.model.adapters == "default at 1"
        assert Profile.from_dict(profile.to_dict()) == profile
        with warnings.catch_warnings(), apply_scope(pipe, profile) as scope:
            warnings.simplefilter("error", ScopeWarning)
            latents(pipe)
            assert skips(scope)
        with apply_scope(pipe, profile) as scope:
            change(pipe.transformer)
            with pytest.warns(ScopeWarning, match=name):
                latents(pipe)
            assert not skips(scope)
        with pytest.raises(ProfileMismatch, match=r"model\.(adapters|weights) is"):
            apply_scope(pipe, profile)

    def test_a_scale_that_a_call_brings_along_is_a_setting(self) -> None:
        pipe = with_lora(tiny_pipeline())
        half = {"attention_kwargs": {"scale": 0.5}}
        assert Settings.of(pipe, **CALL, **half).lora_scale == 0.5
        stock = latents(pipe, **half)
        with apply_scope(pipe, make_profile(pipe)), pytest.warns(ScopeWarning, match="lora_scale is 0.5"):
            assert (latents(pipe, **half) - stock).abs().max() <= 1e-4

    def test_a_scale_without_an_adapter_is_none(self, pipe: Any) -> None:
        assert Settings.of(pipe, **CALL, attention_kwargs={"scale": 0.5}).lora_scale == 1.0


def teacache(pipe: Any) -> None:
    """Patches the forward as TeaCache's examples do."""
    transformer, original, kept = pipe.transformer, pipe.transformer.forward, {"n": 0}

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept["n"] += 1
        if kept["n"] > 4 and kept["n"] % 4 >= 2:
            return kept[kept["n"] % 2]
        kept[kept["n"] % 2] = original(*args, **kwargs)
        return kept[kept["n"] % 2]

    transformer.forward = types.MethodType(forward, transformer)


def patched_block(pipe: Any) -> None:
    block = pipe.transformer.blocks[1]
    block.forward = lambda hidden, *args: hidden


def patched_attention(pipe: Any) -> None:
    pipe.transformer.blocks[1].attn1.forward = lambda hidden, *args: hidden


def foreign_block(pipe: Any) -> None:
    class Block(SkyReelsV2TransformerBlock):
        def forward(self, hidden: Any, *args: Any) -> Any:
            return hidden

    pipe.transformer.blocks[1].__class__ = Block


def broadcast(pipe: Any) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 900),
        current_timestep_callback=lambda: 500,
    )
    pipe.transformer.enable_cache(config)


def first_block(pipe: Any) -> None:
    """diffusers' cache without `enable_cache`, so that the transformer does not know of it."""
    TransformerBlockRegistry.register(
        SkyReelsV2TransformerBlock,
        TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))


def cache_dit(pipe: Any) -> None:
    import cache_dit as library

    config = library.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.5, max_warmup_steps=2
    )
    library.enable_cache(pipe, cache_config=config)


def other_processors(pipe: Any) -> None:
    class Processor(SkyReelsV2AttnProcessor):
        pass

    pipe.transformer.set_attn_processor(Processor())


def cross_processors(pipe: Any) -> None:
    class Processor(SkyReelsV2AttnProcessor):
        pass

    pipe.transformer.blocks[0].attn2.set_processor(Processor())


def dropout_in_training(pipe: Any) -> None:
    pipe.transformer.blocks[0].ffn.net.insert(1, torch.nn.Dropout(0.5))
    pipe.transformer.train()


FOREIGN: dict[str, tuple[Callable[[Any], None], str]] = {
    "forward patched": (teacache, "transformer.forward, which is .*teacache"),
    "forward of a block": (patched_block, "transformer.blocks.1.forward, which is .*patched_block"),
    "forward of an attention": (patched_attention, "transformer.blocks.1.attn1.forward"),
    "class of a block": (foreign_block, "transformer.blocks.1.forward, which is .*Block.forward"),
    "PAB": (broadcast, r"PyramidAttentionBroadcastConfig.*disable_cache\(\)"),
    "first block cache": (first_block, r"hook 'fbc_leader_block_hook' on transformer.blocks.0 \(and 1 more\)"),
    "cache-dit": (cache_dit, "transformer.forward, which is cache_dit"),
    "processors": (other_processors, r"blocks\.0 .*Processor"),
    "processors of cross-attention": (cross_processors, "blocks.0 uses Processor"),
    "dropout": (dropout_in_training, r"transformer.eval\(\)"),
}


@pytest.fixture
def _no_cache_dit() -> Iterator[None]:
    """cache-dit patches the pipeline's class as well."""
    kind = type(tiny_pipeline())
    before = dict(vars(kind))
    yield
    for name in vars(kind).keys() - before.keys():
        delattr(kind, name)
    if vars(kind).get("__call__") is not before.get("__call__"):
        kind.__call__ = before["__call__"]


@pytest.mark.usefixtures("_no_cache_dit")
class TestForeign:
    @pytest.mark.parametrize(("put", "name"), FOREIGN.values(), ids=FOREIGN.keys())
    @pytest.mark.parametrize("how", ["exact", "policy", "profile"])
    def test_refused_before_attaching(self, put: Any, name: str, how: str) -> None:
        pipe, profile = tiny_pipeline(), make_profile(tiny_pipeline())
        put(pipe)
        before = dict(vars(pipe))
        attach = {
            "exact": lambda: exact(pipe),
            "policy": lambda: run_policy(pipe, POLICY),
            "profile": lambda: apply_scope(pipe, profile),
        }[how]
        with pytest.raises(AttachError, match=name):
            attach()
        assert vars(pipe) == before

    @pytest.mark.parametrize(("put", "name"), FOREIGN.values(), ids=FOREIGN.keys())
    @pytest.mark.parametrize("on_mismatch", ["exact", "raise"])
    def test_refused_at_the_next_generation_before_anything_is_computed(
        self, put: Any, name: str, on_mismatch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipe = tiny_pipeline()
        scope = apply_scope(pipe, make_profile(pipe), on_mismatch=on_mismatch)
        put(pipe)
        with monkeypatch.context() as patch, pytest.raises(AttachError, match=name):
            patch.setattr(pipe, "encode_prompt", lambda *a, **k: pytest.fail("something was computed"))
            latents(pipe)
        assert not scope.report.windows
        scope.close()
        scope.close()

    @pytest.mark.parametrize("way", ["model offloading", "group offloading"])
    def test_offloading_around_it_does_not_hide_it(self, way: str, tmp_path: Path) -> None:
        before, while_attached = tiny_pipeline(), tiny_pipeline()
        teacache(before)
        WAYS[way](before, tmp_path)
        with pytest.raises(AttachError, match="transformer.forward, which is .*teacache"):
            exact(before)
        with exact(while_attached):
            teacache(while_attached)
            WAYS[way](while_attached, tmp_path)
            with pytest.raises(AttachError, match="transformer.forward, which is .*teacache"):
                latents(while_attached)

    def test_blocks_that_are_taken_out_or_put_in_another_order_are_refused(self) -> None:
        pipe = tiny_pipeline()
        with exact(pipe):
            last = pipe.transformer.blocks.pop(1)
            with pytest.raises(AttachError, match=r"blocks.1 was changed .*is gone"):
                latents(pipe)
            pipe.transformer.blocks.insert(0, last)
            with pytest.raises(AttachError, match=r"blocks.0 was changed .*PrefixAttention"):
                latents(pipe)

    def test_a_patched_class_is_refused(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any: ...

        for kind, method in ((SkyReelsV2Transformer3DModel, "forward"), (SkyReelsV2AttnProcessor, "__call__")):
            with monkeypatch.context() as patch:
                patch.setattr(kind, method, forward)
                with pytest.raises(AttachError, match="forward, which is|does not know as it is"):
                    exact(pipe)

    def test_a_cache_that_was_taken_off_is_none(self) -> None:
        pipe = tiny_pipeline()
        stock = latents(pipe)
        with exact(pipe):
            broadcast(pipe)
            with pytest.raises(AttachError):
                latents(pipe)
            pipe.transformer.disable_cache()
            assert (latents(pipe) - stock).abs().max() <= 1e-4
            forward = pipe.transformer.forward
            teacache(pipe)
            with pytest.raises(AttachError):
                latents(pipe)
            pipe.transformer.forward = forward
            assert (latents(pipe) - stock).abs().max() <= 1e-4
        assert torch.equal(latents(pipe), stock)

    def test_what_others_put_there_meanwhile_stays_theirs(self) -> None:
        pipe = tiny_pipeline()
        stock = latents(pipe)
        scope = exact(pipe)
        other_processors(pipe)
        theirs = [block.attn1.processor for block in pipe.transformer.blocks]
        scope.close()
        assert [block.attn1.processor for block in pipe.transformer.blocks] == theirs
        assert torch.equal(latents(pipe), stock)

    @pytest.mark.parametrize("name", ["generate_timestep_matrix", "check_inputs"])
    def test_methods_of_the_pipeline(self, name: str) -> None:
        """Put there before attaching, they are used and come back; put there later, they are noticed or served."""
        pipe, used = tiny_pipeline(), []
        stock = latents(pipe)
        original = getattr(pipe, name)

        def theirs(*args: Any, **kwargs: Any) -> Any:
            used.append(name)
            return original(*args, **kwargs)

        setattr(pipe, name, theirs)
        with exact(pipe):
            latents(pipe)
        assert used == [name]
        assert vars(pipe)[name] is theirs
        delattr(pipe, name)
        with exact(pipe) as scope:
            setattr(pipe, name, theirs)
            if name == "generate_timestep_matrix":
                with pytest.raises(AttachError, match="generate_timestep_matrix was replaced"):
                    latents(pipe)
            else:
                assert (latents(pipe) - stock).abs().max() <= 1e-4
                assert scope.report.windows
                patched_block(pipe)
                with pytest.raises(AttachError, match="blocks.1.forward"):
                    latents(pipe)
        assert vars(pipe)[name] is theirs


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "model offloading": lambda pipe, folder: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offloading": lambda pipe, folder: _sequential(pipe),
    "group offloading": lambda pipe, folder: _groups(pipe, None),
    "group offloading to disk": lambda pipe, folder: _groups(pipe, folder),
    "attention backend": lambda pipe, folder: pipe.transformer.set_attention_backend("native"),
    "moved": lambda pipe, folder: pipe.transformer.to("cpu").requires_grad_(False),
    "compiled blocks": lambda pipe, folder: pipe.transformer.compile_repeated_blocks(backend="eager"),
    "moved to other storage": lambda pipe, folder: _other_storage(pipe),
}


class TestLegitimate:
    """What moves weights, stores them or computes attention goes on working, under a profile and without a word."""

    @pytest.mark.parametrize("when", ["before", "while attached"])
    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
    def test_the_policy_runs_in_every_generation(self, way: Any, when: str, tmp_path: Path) -> None:
        pipe = tiny_pipeline()
        profile = make_profile(pipe)
        if when == "before":
            if way is WAYS["group offloading to disk"]:
                return  # a profile has to see the weights: test_coverage.py
            way(pipe, tmp_path)
        with warnings.catch_warnings(), apply_scope(pipe, profile) as scope:
            warnings.simplefilter("error", ScopeWarning)
            if when == "while attached":
                latents(pipe)
                way(pipe, tmp_path)
            for _ in range(2):
                latents(pipe)
                assert skips(scope)

    def test_offloading_that_ends_while_attached_does_not_take_the_runtime_with_it(self) -> None:
        """diffusers links its hooks anew, past one that answers by itself."""
        pipe = tiny_pipeline()
        stock = latents(pipe)
        _groups(pipe, None)
        with exact(pipe) as scope:
            HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook("group_offloading", recurse=True)
            assert (latents(pipe) - stock).abs().max() <= 1e-4
            assert 0 < scope.report.evaluations < scope.report.stock_evaluations
        assert pipe.transformer.forward.__func__ is type(pipe.transformer).forward
        assert torch.equal(latents(pipe), stock)

    def test_a_callback_that_adds_an_adapter_is_noticed_at_the_next_generation(self) -> None:
        pipe = tiny_pipeline()

        def add(pipe: Any, row: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            if row == 11:
                add_lora(pipe)
            return {}

        with apply_scope(pipe, make_profile(pipe)):
            latents(pipe, callback_on_step_end=add)
            with pytest.warns(ScopeWarning, match="adapters"):
                latents(pipe)

    def test_autocast_is_a_setting(self, pipe: Any) -> None:
        profile = make_profile(pipe)
        with apply_scope(pipe, profile), torch.autocast("cpu", torch.bfloat16):
            assert Settings.of(pipe, **CALL).dtype == "float32 under autocast to bfloat16"
            with pytest.warns(ScopeWarning, match="autocast"):
                latents(pipe)

    def test_training_mode_without_dropout_changes_nothing(self) -> None:
        pipe = tiny_pipeline()
        with warnings.catch_warnings(), apply_scope(pipe, make_profile(pipe)) as scope:
            warnings.simplefilter("error", ScopeWarning)
            pipe.transformer.train()
            latents(pipe)
        assert skips(scope)

    def test_a_block_size_that_another_call_left_behind_is_no_other_model(self, pipe: Any) -> None:
        with warnings.catch_warnings(), apply_scope(pipe, make_profile(pipe)) as scope:
            pipe.transformer._set_ar_attention(1)
            warnings.simplefilter("error", ScopeWarning)
            latents(pipe)
        assert skips(scope)


def _sequential(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"), offload_buffers=False)


def _groups(pipe: Any, folder: Path | None) -> None:
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        offload_to_disk_path=str(folder) if folder else None,
    )


def _other_storage(pipe: Any) -> None:
    for tensor in (*pipe.transformer.parameters(), *pipe.transformer.buffers()):
        tensor.data = tensor.data.clone()


class TestCopies:
    @pytest.mark.parametrize("what", ["pipeline", "transformer"])
    def test_a_copy_of_an_attached_pipeline_is_plain_stock_and_can_be_attached(self, what: str) -> None:
        pipe = tiny_pipeline()
        stock = latents(pipe)
        with apply_scope(pipe, make_profile(pipe)) as scope:
            skipped = latents(pipe)
            if what == "pipeline":
                other = copy.deepcopy(pipe)
            else:
                other = tiny_pipeline(seed=1)
                other.transformer = copy.deepcopy(pipe.transformer)
            for module in other.transformer.modules():
                assert not {"__deepcopy__", "_is_cached"} & vars(module).keys()
                assert not module._forward_hooks
            assert not {"__deepcopy__", "check_inputs", "generate_timestep_matrix"} & vars(other).keys()
            parameters = zip(other.transformer.parameters(), pipe.transformer.parameters(), strict=True)
            assert all(a is not b and torch.equal(a, b) for a, b in parameters)
            if what == "pipeline":
                assert torch.equal(latents(other), stock)
                with exact(other):
                    assert (latents(other) - stock).abs().max() <= 1e-4
                assert torch.equal(latents(other), stock)
            # The original is what it was.
            assert torch.equal(latents(pipe), skipped)
            assert skips(scope)
        assert torch.equal(latents(pipe), stock)
        assert "__deepcopy__" not in vars(pipe)

    def test_a_copy_is_independent_of_the_original(self) -> None:
        pipe = tiny_pipeline()
        with exact(pipe):
            other = copy.deepcopy(pipe)
        with torch.no_grad():
            for parameter in pipe.transformer.parameters():
                parameter.zero_()
        with exact(other) as scope:
            assert (latents(other) - latents(tiny_pipeline())).abs().max() <= 1e-4
        assert scope.report.windows

    def test_in_mid_generation_there_is_no_copy(self, pipe: Any) -> None:
        def clone(pipe: Any, row: int, timestep: Any, tensors: Any) -> dict[str, Any]:
            if row == 3:
                with pytest.raises(AttachError, match="copy it before or after"):
                    copy.deepcopy(pipe)
            return {}

        with exact(pipe) as scope:
            latents(pipe, callback_on_step_end=clone)
        assert len(scope.report.modes) == 12

    def test_pickling_is_refused_in_one_sentence(self, pipe: Any) -> None:
        with exact(pipe) as scope:
            for what in (pipe, pipe.transformer, scope):
                with pytest.raises(AttachError, match="before attaching or after closing"):
                    pickle.dumps(what)
        pickle.dumps(pipe.transformer)


class TestQuantised:
    @staticmethod
    def quantised(name: str, seed: int = 0) -> Any:
        torchao = pytest.importorskip("torchao.quantization")
        pipe = tiny_pipeline(seed=seed)
        pipe.transformer.to(torch.bfloat16)
        torchao.quantize_(pipe.transformer.blocks, getattr(torchao, name)())
        return pipe

    @pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
    def test_the_digest_is_of_what_is_stored(self, name: str) -> None:
        pipe = self.quantised(name)
        identity = ModelIdentity.of(pipe)
        assert identity == ModelIdentity.of(self.quantised(name))
        assert identity.weights != ModelIdentity.of(self.quantised(name, seed=1)).weights
        assert identity.weights != ModelIdentity.of(tiny_pipeline()).weights
        with warnings.catch_warnings(), apply_scope(pipe, make_profile(pipe)) as scope:
            warnings.simplefilter("error", ScopeWarning)
            latents(pipe)
        assert skips(scope)

    def test_a_change_shows(self) -> None:
        pipe = self.quantised("Int8WeightOnlyConfig")
        identity = ModelIdentity.of(pipe)
        layer = pipe.transformer.blocks[0].attn1.to_q
        other = self.quantised("Int8WeightOnlyConfig", seed=1).transformer.blocks[0].attn1.to_q
        with apply_scope(pipe, make_profile(pipe)):
            layer.weight = other.weight
            with pytest.warns(ScopeWarning, match=r"weights: blocks\.0\.attn1\.to_q\.weight\..* has other values"):
                latents(pipe)
        assert identity.mismatches(ModelIdentity.of(pipe))

    def test_quantised_while_attached(self) -> None:
        torchao = pytest.importorskip("torchao.quantization")
        pipe = tiny_pipeline()
        with apply_scope(pipe, make_profile(pipe)):
            torchao.quantize_(pipe.transformer.blocks, torchao.Int8WeightOnlyConfig())
            with pytest.warns(ScopeWarning, match="weights: blocks"):
                latents(pipe)

    def test_a_tensor_that_cannot_be_read_is_named(self) -> None:
        """In the digest; where it was put there while attached, it is another model."""

        class Closed(torch.Tensor):
            def __tensor_flatten__(self) -> Any:
                raise NotImplementedError

        pipe = tiny_pipeline()
        layer = pipe.transformer.proj_out
        layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Closed))
        with pytest.raises(ProfileError, match=r"model.weights: cannot be read: proj_out.weight is a Closed"):
            ModelIdentity.of(pipe)
        pipe.transformer.proj_out = layer_before = torch.nn.Linear(layer.in_features, layer.out_features)
        with apply_scope(pipe, make_profile(pipe)):
            layer_before.weight = layer.weight
            with pytest.warns(ScopeWarning, match="proj_out.weight"):
                latents(pipe)
