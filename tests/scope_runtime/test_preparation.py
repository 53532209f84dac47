"""What a pipeline is set up with beside the policy: set as a profile asks, named where it is not so, given back."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from scope_runtime import (
    AttachError,
    Policy,
    Preparation,
    Profile,
    ProfileError,
    ProfileMismatch,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    prepare,
    run_policy,
)
from scope_runtime.adapters._preparing import preparation_of
from tests.chunked import helios_latents, tiny_framepack, tiny_helios
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, latents, tiny_pipeline

POLICY = Policy(warmup=2, max_skip=2)
EVERY = {
    "attention": Preparation(attention_backend="_native_flash"),
    "bfloat16": Preparation(weights="bfloat16"),
    "int8": Preparation(weights="int8"),
    "float8": Preparation(weights="float8"),
    "dynamic int8": Preparation(weights="dynamic-int8"),
    "compiled": Preparation(compiled=True),
    "all": Preparation("_native_math", "int8", compiled=True),
}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """Blocks are handed to the compiler, which takes a minute, and run without it."""
    with torch.compiler.set_stance("force_eager"):
        yield


def asking(pipe: Any, preparation: Preparation, **policy: Any) -> Profile:
    profile = make_profile(pipe, **policy)
    return dataclasses.replace(profile, settings=dataclasses.replace(profile.settings, preparation=preparation))


def state_of(transformer: torch.nn.Module) -> dict[str, Any]:
    """All that a preparation may touch: which objects there are, what they have, and the values of tensors."""
    default, _ = _AttentionBackendRegistry.get_active_backend()
    state: dict[str, Any] = {"default": default}
    for name, module in transformer.named_modules():
        processor = getattr(module, "processor", None)
        compiled = vars(module).get("_compiled_call_impl")
        state[name] = id(module), compiled, set(vars(module)), vars(processor).copy() if processor else None
    for name, parameter in transformer.named_parameters():
        kind = type(parameter)
        values = parameter.tolist() if kind is torch.nn.Parameter else None
        state[f"{name}, a parameter"] = id(parameter), kind, parameter.dtype, values
    return state


@pytest.mark.parametrize("preparation", EVERY.values(), ids=EVERY.keys())
def test_it_is_set_and_given_back_bit_for_bit(preparation: Preparation) -> None:
    pipe = tiny_pipeline(layers=1)
    before = state_of(pipe.transformer)
    with pytest.raises(KeyError), prepare(pipe, preparation):
        now = preparation_of(pipe.transformer)
        assert preparation.mismatches(now) == []
        assert now.weights == (None if preparation.dtype else preparation.weights)
        assert pipe.transformer.dtype == getattr(torch, preparation.dtype or "float32")
        assert state_of(pipe.transformer) != before
        assert _AttentionBackendRegistry.get_active_backend()[0] == before["default"]
        raise KeyError
    assert state_of(pipe.transformer) == before


@pytest.mark.parametrize("name", ["bfloat16", "all"])
def test_a_profile_that_asks_for_it_runs_with_prepare_and_leaves_a_stock_pipeline(name: str) -> None:
    pipe = tiny_pipeline()
    stock, profile = latents(pipe), asking(pipe, EVERY[name])
    with warnings.catch_warnings(), apply_scope(pipe, profile, prepare=True) as scope:
        warnings.simplefilter("error", ScopeWarning)
        assert not torch.equal(latents(pipe), stock)
        assert scope.report.speedup_evaluations > 1.2
    assert torch.equal(latents(pipe), stock)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "attention",
            r"preparation\.attention_backend is native, calibrated for _native_flash \(apply_scope with prep",
        ),
        ("int8", r"preparation\.weights is as loaded, calibrated for int8"),
        ("compiled", r"preparation\.compiled is false, calibrated for true"),
        ("bfloat16", r"dtype is 'float32', calibrated for 'bfloat16' \(apply_scope with prepare=True sets it\)"),
    ],
)
def test_without_prepare_a_difference_is_named(pipe: Any, name: str, said: str) -> None:
    profile = asking(pipe, EVERY[name])
    with apply_scope(pipe, profile, on_mismatch="raise"), pytest.raises(ProfileMismatch, match=said) as error:
        latents(pipe)
    assert error.value.field == f"settings.{'dtype' if name == 'bfloat16' else said.split(' ')[0].replace(chr(92), '')}"


def test_without_prepare_a_pipeline_that_is_set_up_already_fits(pipe: Any) -> None:
    """And a profile that asks for nothing fits whatever attention and compiled blocks there are."""
    for profile in (asking(pipe, EVERY["attention"]), make_profile(pipe)):
        with warnings.catch_warnings(), prepare(pipe, Preparation("_native_flash", compiled=True)):
            warnings.simplefilter("error", ScopeWarning)
            with apply_scope(pipe, profile) as scope:
                latents(pipe)
            assert scope.report.speedup_evaluations > 1.2


def test_attention_that_takes_no_mask_is_for_attention_without_one_alone(pipe: Any) -> None:
    """Stock attention over causal blocks needs a mask; torch's own flash kernel refuses it, as others do."""
    stock = latents(pipe)
    with prepare(pipe, EVERY["attention"]):
        with pytest.raises(ValueError, match="attn_mask"):
            latents(pipe)
        with exact(pipe):
            assert (latents(pipe) - stock).abs().max() <= 1e-4


def test_what_is_changed_of_prepared_weights_is_noticed(pipe: Any) -> None:
    with apply_scope(pipe, asking(pipe, EVERY["int8"]), prepare=True):
        layer = pipe.transformer.blocks[0].attn1.to_q
        before = layer.bias.data.clone()
        with torch.no_grad():
            layer.bias.add_(1.0)
        with pytest.warns(ScopeWarning, match=r"weights: blocks\.0\.attn1\.to_q\.bias"):
            latents(pipe)
        layer.bias.data = before


def test_another_model_is_refused_before_anything_is_touched(pipe: Any) -> None:
    before = state_of(pipe.transformer)
    with pytest.raises(ProfileMismatch, match=r"model\.weights"):
        apply_scope(pipe, asking(tiny_pipeline(seed=1), EVERY["int8"]), prepare=True)
    assert state_of(pipe.transformer) == before


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        (Preparation("sage", weights="int8"), r"attention_backend: sage cannot be set here .*sageattention"),
        (Preparation("sage_hub", weights="int8"), r"attention_backend: 'sage_hub' is none of native"),
        (Preparation(weights="int4"), r"weights: 'int4' is none of bfloat16"),
    ],
)
def test_what_cannot_be_set_is_refused_and_the_rest_taken_back(pipe: Any, preparation: Preparation, said: str) -> None:
    before = state_of(pipe.transformer)
    with pytest.raises(AttachError, match=rf"^settings\.preparation\.{said}"):
        apply_scope(pipe, asking(pipe, preparation), prepare=True)
    assert state_of(pipe.transformer) == before
    with exact(pipe):
        pass


def test_weights_that_cannot_be_replaced_are_refused() -> None:
    half = tiny_pipeline(layers=1)
    half.transformer.to(torch.bfloat16)
    offloaded = tiny_pipeline(layers=1)
    offloaded.enable_model_cpu_offload(device="cpu")
    for pipe, preparation, said in (
        (half, EVERY["dynamic int8"], "is for float32 on a CPU, and this model is in bfloat16 on cpu"),
        (offloaded, EVERY["int8"], "offloaded"),
    ):
        with pytest.raises(AttachError, match=said), prepare(pipe, preparation):
            pass
    pipe = tiny_pipeline(layers=1)
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(pipe.transformer.blocks, torchao.Int8WeightOnlyConfig(version=2))
    with pytest.raises(AttachError, match="quantised already"), prepare(pipe, EVERY["bfloat16"]):
        pass


def test_one_at_a_time_and_no_copies(pipe: Any) -> None:
    with prepare(pipe, EVERY["int8"]):
        with pytest.raises(AttachError, match="already prepared"), prepare(pipe, EVERY["attention"]):
            pass
        with exact(pipe) as scope:
            for what in (pipe, pipe.transformer):
                with pytest.raises(AttachError, match=r"is prepared \(int8 weights\): copy it before or after"):
                    copy.deepcopy(what)
            latents(pipe)
            assert scope.report.evaluations
    with exact(pipe), pytest.raises(AttachError, match="already accelerated"), prepare(pipe, EVERY["int8"]):
        pass
    copy.deepcopy(pipe.transformer)


def test_chunk_by_chunk() -> None:
    pipe, short = tiny_helios(layers=1), {"num_frames": 33, "num_inference_steps": 4}
    with exact(pipe):
        pass  # leaves the transformer diffusers' registry of hooks, empty
    before = state_of(pipe.transformer)
    with prepare(pipe, EVERY["all"]), run_policy(pipe, POLICY) as scope:
        assert torch.isfinite(helios_latents(pipe, **short)).all()
        assert scope.report.speedup_evaluations > 1
    assert state_of(pipe.transformer) == before
    framepack = tiny_framepack()
    said = r"compiled: True cannot be set here \(`_repeated_blocks`"
    with pytest.raises(AttachError, match=said), prepare(framepack, EVERY["compiled"]):
        pass


class TestValue:
    def test_settings_hold_it_and_leave_it_out_where_there_is_none(self, pipe: Any) -> None:
        plain = Settings.of(pipe, **CALL)
        assert "preparation" not in plain.to_dict()
        assert Settings.from_dict(plain.to_dict()) == plain
        asked = dataclasses.replace(plain, preparation=EVERY["all"])
        assert Settings.from_dict(asked.to_dict()) == asked != plain
        assert asked.to_dict()["preparation"] == {
            "attention_backend": "_native_math", "weights": "int8", "compiled": True,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("data", "field"),
        [
            ({"attention_backend": "", "weights": None, "compiled": False}, "attention_backend"),
            ({"attention_backend": None, "weights": 8, "compiled": False}, "weights"),
            ({"attention_backend": None, "weights": None, "compiled": 1}, "compiled"),
            ({"attention_backend": None, "weights": None}, "compiled"),
            ({"attention_backend": None, "weights": None, "compiled": True, "fast": True}, "fast"),
        ],
    )
    def test_what_is_wrong_is_named(self, data: dict[str, Any], field: str) -> None:
        with pytest.raises(ProfileError) as error:
            Preparation.from_dict(data)
        assert error.value.field == f"settings.preparation.{field}"

    def test_it_is_told_in_words(self) -> None:
        assert str(Preparation()) == "as loaded"
        assert str(EVERY["all"]) == "_native_math attention, int8 weights, compiled blocks"
        assert Preparation(compiled=True)
        assert not Preparation()
