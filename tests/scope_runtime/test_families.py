from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from scope_runtime import AttachError, ModelIdentity, Scheduler, Settings, exact, families
from scope_runtime.adapters import adapter_for
from scope_runtime.families import Family

SETTINGS = Settings(
    height=16, width=16, num_frames=9, num_inference_steps=4, guidance_scale=1.0, ar_step=0, causal_block_size=3,
    dtype="float32", scheduler=Scheduler("Toy"),
)  # fmt: skip


class ToyPipeline:
    """What no adapter here knows."""


class ToyAttachment:
    report: Any = None

    def __init__(self, pipe: Any, policy_for: Any, **options: Any) -> None:
        pipe.held = True
        self._pipe = pipe

    def detach(self) -> None:
        self._pipe.held = False

    @classmethod
    def identity(cls, pipe: Any) -> ModelIdentity:
        return ModelIdentity("ToyPipeline", "Toy", "c", "w")

    @classmethod
    def settings(cls, pipe: Any, **call: Any) -> Settings:
        return SETTINGS


def test_a_new_family_needs_its_adapter_and_its_registration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = ToyPipeline()
    with pytest.raises(
        AttachError,
        match="ToyPipeline is not a pipeline that scope_runtime knows: it accelerates SkyReels-V2 diffusion-forcing "
        "pipelines of diffusers, MAGI-1's own model or pipeline, HeliosPipeline of diffusers and "
        "HunyuanVideoFramepackPipeline of diffusers$",
    ):
        exact(pipe)
    adapter = ModuleType("scope_runtime.adapters.toy")
    monkeypatch.setattr(adapter, "ToyAttachment", ToyAttachment, raising=False)
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    toys = Family("toys", ("Toy",), "toy", "ToyAttachment")
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, toys))
    assert adapter_for(pipe) is ToyAttachment
    assert ModelIdentity.of(pipe).pipeline == "ToyPipeline"
    assert Settings.of(pipe) is SETTINGS
    with exact(pipe):
        assert pipe.held
    assert not pipe.held
    with pytest.raises(AttachError, match=r"HunyuanVideoFramepackPipeline of diffusers and toys$"):
        exact(object())
