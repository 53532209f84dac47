"""What every adapter must do, on a small stand-in of each family: a new family is one more entry in `FAMILIES`."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from scope_runtime import (
    MODULATED_INPUT,
    AttachError,
    ConcurrentCallError,
    ModelIdentity,
    Policy,
    Profile,
    ProfileMismatch,
    Report,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from tests.chunked import (
    FRAMEPACK_CALL,
    HELIOS_CALL,
    framepack_latents,
    helios_latents,
    tiny_framepack,
    tiny_helios,
    undecoded,
)
from tests.magi_1 import STAND_IN, Magi, imported
from tests.scope_runtime.test_profile import EVIDENCE
from tests.tiny import CALL, latents, tiny_pipeline

POLICY = Policy(warmup=2, max_skip=2)
MIDST = 7
"""After how many steps, or calls of a layer, something happens in the midst of a generation."""


@dataclass(frozen=True, eq=False)
class Family:
    """A family as this suite sees it.

    Attributes:
        build: Makes what is accelerated, with the same weights every time.
        generate: Gives the latents of ``generate(pipe, meddle, **call)``; ``meddle`` is called once, in its midst.
        call: What it is called with.
        other_steps: What makes it a call with another number of steps.
        tolerance: By how much exact mode may differ from stock.
        ready: What must hold while it is in use.
        model: Where its weights are.
        offloading: Ways of offloading that it knows.
        takes_turns: Whether generations of it may take turns; otherwise a second one is refused.
        copied: Whether it can be copied while it is held.
        changes: What may be done to its model before a profile is made for it.
    """

    build: Callable[[], Any]
    generate: Callable[..., torch.Tensor]
    call: dict[str, Any]
    other_steps: dict[str, Any]
    tolerance: float = 0.0
    ready: Callable[[], AbstractContextManager[Any]] = nullcontext
    model: Callable[[Any], torch.nn.Module] = lambda pipe: pipe.transformer
    offloading: tuple[str, ...] = ("model", "sequential", "groups of blocks", "groups of leaves on disk")
    takes_turns: bool = False
    copied: bool = True
    changes: tuple[str, ...] = ("int8 weights",)

    def latents(self, pipe: Any, meddle: Callable[[], Any] | None = None, **changes: Any) -> torch.Tensor:
        return self.generate(pipe, meddle, **self.call | changes)

    def profile(self, pipe: Any) -> Profile:
        settings = Settings.of(pipe, **self.call) if self.call else Settings.of(pipe)
        return Profile(POLICY, settings, ModelIdentity.of(pipe), EVIDENCE)

    def same(self, ours: torch.Tensor, stock: torch.Tensor) -> bool:
        return bool((ours - stock).abs().max() <= self.tolerance)

    def parts(self, pipe: Any) -> list[Any]:
        """What an attachment might leave something on."""
        return [pipe, *filter(None, (getattr(pipe, "scheduler", None),)), *self.model(pipe).modules()]


def stepwise(generate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A diffusers pipeline's generation, which can be meddled with after every step."""

    def run(pipe: Any, meddle: Callable[[], Any] | None = None, **call: Any) -> torch.Tensor:
        steps = itertools.count(1)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if meddle and next(steps) == MIDST:
                meddle()
            return {}

        return generate(pipe, callback_on_step_end=after_step, **call)

    return run


def magi_model() -> Any:
    from inference.pipeline import pipeline

    return Magi.stand_in(pipeline, num_steps=16, num_frames=24).model


def magi_latents(model: Any, meddle: Callable[[], Any] | None = None, **runtime: Any) -> torch.Tensor:
    from inference.pipeline import pipeline

    configured, calls = dict(vars(model.runtime_config)), itertools.count(1)
    first = model.videodit_blocks.layers[0]
    hook = first.register_forward_pre_hook(lambda *_: meddle() if meddle and next(calls) == MIDST else None)
    vars(model.runtime_config).update(runtime)
    try:
        return Magi(pipeline, model).latents()
    finally:
        hook.remove()
        vars(model.runtime_config).update(configured)


TWO_CHUNKS = {"num_frames": 66, "num_inference_steps": 5}

FAMILIES = {
    "SkyReels-V2": Family(
        tiny_pipeline,
        stepwise(latents),
        CALL | {"num_frames": 21, "num_inference_steps": 6},
        {"num_inference_steps": 7},
        tolerance=1e-5,
    ),
    "MAGI-1": Family(
        magi_model,
        magi_latents,
        {},
        {"num_steps": 8},
        tolerance=1e-5,
        ready=lambda: imported(STAND_IN),
        model=lambda model: model,
        offloading=(),
        takes_turns=True,
        copied=False,
        changes=(),
    ),
    "Helios": Family(
        lambda: undecoded(tiny_helios(layers=1)),
        stepwise(helios_latents),
        HELIOS_CALL | TWO_CHUNKS,
        {"num_inference_steps": 6},
        changes=("compiled blocks", "int8 weights"),
    ),
    "FramePack, last to first": Family(
        tiny_framepack,
        stepwise(framepack_latents),
        FRAMEPACK_CALL | TWO_CHUNKS | {"sampling_type": "inverted_anti_drifting"},
        {"num_inference_steps": 6},
    ),
    "FramePack, first to last, true guidance": Family(
        tiny_framepack,
        stepwise(framepack_latents),
        FRAMEPACK_CALL
        | TWO_CHUNKS
        | {"sampling_type": "vanilla", "true_cfg_scale": 2.0, "negative_prompt": "a blue square"},
        {"num_inference_steps": 6},
        offloading=("model",),
        changes=(),
    ),
}


@pytest.fixture(params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    with request.param.ready():
        yield request.param


@pytest.fixture
def held(family: Family) -> Any:
    """What is accelerated."""
    return family.build()


@functools.cache
def stock_of(family: Family, steps: str = "usual") -> torch.Tensor:
    return family.latents(family.build(), **family.other_steps if steps == "other" else {})


def complete(report: Report) -> bool:
    """Whether every window ran to its end."""
    return bool(report.windows) and all(len(window.modes) == window.schedule.rows for window in report.windows)


def skips(report: Report) -> bool:
    return bool({"P", "C"} & set("".join(report.modes)))


def own_methods(part: Any) -> dict[str, Any]:
    """Methods that an object has of its own, in place of those of its class."""
    found = {name: value for name, value in vars(part).items() if callable(value)}
    return {k: v for k, v in found.items() if getattr(type(part), k, None) is not getattr(v, "__func__", v)}


def hooks(part: Any) -> set[Any]:
    """What is hooked on a module."""
    registry = vars(part).get("_diffusers_hook")
    torch_hooks = {key for kind in ("_forward_hooks", "_forward_pre_hooks") for key in vars(part).get(kind, ())}
    return torch_hooks | set(registry.hooks if registry else ())


def test_exact_mode_is_stock(family: Family, held: Any) -> None:
    stock = stock_of(family)
    with exact(held) as scope:
        assert family.same(family.latents(held), stock)
        assert complete(scope.report)
        assert not skips(scope.report)
        assert 0 < scope.report.evaluations <= scope.report.stock_evaluations
    assert stock.std() > 0.1


def test_a_policy_evaluates_less_and_says_so(family: Family, held: Any) -> None:
    stock = stock_of(family)
    with run_policy(held, POLICY) as scope:
        skipped = family.latents(held)
    report = scope.report
    assert torch.isfinite(skipped).all()
    assert 0 < (skipped - stock).abs().max() < 5 * stock.std()
    assert complete(report)
    assert skips(report)
    assert 1 <= report.max_skip_seen <= POLICY.max_skip
    assert report.evaluations < report.stock_evaluations
    assert report.speedup_evaluations > 1.2
    assert scope.plan == tuple(row.replace("K", ".") for row in report.windows[-1].modes)


def test_rules_of_the_first_window_hold_for_it_alone(family: Family, held: Any) -> None:
    with run_policy(held, Policy(max_skip=0, first_window=POLICY)) as scope:
        family.latents(held)
    first, *later = ("".join(window.modes) for window in scope.report.windows)
    assert "P" in first
    assert not {"P", "C"} & set("".join(later))


def test_after_closing_nothing_is_left(family: Family, held: Any) -> None:
    stock = stock_of(family)
    assert torch.equal(family.latents(held), stock)
    before = [(own_methods(part), hooks(part)) for part in family.parts(held)]
    for attach in (exact, lambda pipe: run_policy(pipe, POLICY)):
        scope = attach(held)
        family.latents(held)
        scope.close()
        scope.close()
        assert [(own_methods(part), hooks(part)) for part in family.parts(held)] == before
    assert torch.equal(family.latents(held), stock)


def test_an_exception_in_mid_generation_leaves_a_pipeline_that_works(family: Family, held: Any) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with run_policy(held, POLICY) as scope:
        with pytest.raises(KeyboardInterrupt):
            family.latents(held, fail)
        assert not complete(scope.report)
        family.latents(held)
        assert complete(scope.report)
    with exact(held) as scope:
        with pytest.raises(KeyboardInterrupt):
            family.latents(held, fail)
        assert family.same(family.latents(held), stock_of(family))
        with pytest.raises(KeyboardInterrupt):
            family.latents(held, fail)
    assert torch.equal(family.latents(held), stock_of(family))


@pytest.mark.parametrize("where", ["another thread", "a callback"])
def test_a_second_call_is_refused_and_the_first_goes_on(family: Family, held: Any, where: str) -> None:
    """Or both are what they are alone, where a family's generations may take turns."""
    second: list[Any] = []

    def call() -> None:
        try:
            second.append(family.latents(held))
        except ConcurrentCallError as error:
            second.append(str(error))

    def meddle() -> None:
        if where == "a callback":
            call()
            return
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    with exact(held) as scope:
        assert family.same(family.latents(held, meddle), stock_of(family))
        if family.takes_turns:
            assert family.same(second[0], stock_of(family))
        else:
            assert "one video at a time" in second[0]
        assert complete(scope.report)
        assert family.same(family.latents(held), stock_of(family))


def test_a_profile_applies(family: Family, held: Any, tmp_path: Path) -> None:
    family.profile(held).save(tmp_path / "profile.json")
    profile = Profile.load(tmp_path / "profile.json")
    with warnings.catch_warnings(), apply_scope(held, profile, on_mismatch="raise") as scope:
        warnings.simplefilter("error", ScopeWarning)
        family.latents(held)
    assert complete(scope.report)
    assert skips(scope.report)


def test_another_number_of_steps_runs_exact_with_a_warning_or_raises(family: Family, held: Any) -> None:
    profile = family.profile(held)
    with apply_scope(held, profile) as scope:
        with pytest.warns(ScopeWarning, match="num_inference_steps"):
            ours = family.latents(held, **family.other_steps)
        assert family.same(ours, stock_of(family, "other"))
        assert "num_inference_steps" in scope.report.notes[0]
        family.latents(held)
        assert skips(scope.report)
    with apply_scope(held, profile, on_mismatch="raise"):
        with pytest.raises(ProfileMismatch) as error:
            family.latents(held, **family.other_steps)
        assert error.value.field == "settings.num_inference_steps"
    assert torch.equal(family.latents(held), stock_of(family))


def test_other_weights_run_exact_with_a_warning_or_raise(family: Family, held: Any) -> None:
    profile = family.profile(held)
    with apply_scope(held, profile) as scope, torch.no_grad():
        next(family.model(held).parameters()).mul_(1.1)
        with pytest.warns(ScopeWarning, match="weights: "):
            ours = family.latents(held)
        assert not skips(scope.report)
        assert "weights: " in scope.report.notes[0]
    stock = family.latents(held)
    assert family.same(ours, stock)
    assert not torch.equal(stock, stock_of(family))
    with pytest.raises(ProfileMismatch, match="model.weights"):
        apply_scope(held, profile)
    with apply_scope(held, family.profile(held), on_mismatch="raise"), torch.no_grad():
        next(family.model(held).parameters()).mul_(1.1)
        with pytest.raises(ProfileMismatch, match="weights: ") as error:
            family.latents(held)
        assert error.value.field == "model"


def test_attaching_twice_is_refused(family: Family, held: Any) -> None:
    profile = family.profile(held)
    with exact(held):
        for attach in (exact, lambda pipe: run_policy(pipe, POLICY), lambda pipe: apply_scope(pipe, profile)):
            with pytest.raises(AttachError, match="already accelerated"):
                attach(held)
    with exact(held):
        pass


def test_a_copy_made_while_attached_is_stock(family: Family, held: Any) -> None:
    """Or there is none, where a family cannot be copied."""
    before = [own_methods(part).keys() for part in family.parts(held)]
    with run_policy(held, POLICY) as scope:
        if not family.copied:
            with pytest.raises(AttachError, match="before attaching or after closing"):
                copy.deepcopy(held)
            return
        other = copy.deepcopy(held)
        assert [own_methods(part).keys() for part in family.parts(other)] == before
        assert not set.union(*map(hooks, family.parts(other)))
        assert torch.equal(family.latents(other), stock_of(family))
        assert not scope.report.windows
        with exact(other):
            assert family.same(family.latents(other), stock_of(family))
        family.latents(held)
        assert skips(scope.report)


def offload(pipe: Any, way: str, folder: Path) -> None:
    """On a machine without a GPU; accelerate's and those on disk are really gone while they are not needed."""
    cpu = torch.device("cpu")
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "sequential":
        cpu_offload(pipe.transformer, execution_device=cpu, offload_buffers=False)
    elif way == "groups of blocks":
        apply_group_offloading(
            pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type="block_level",
            num_blocks_per_group=1, offload_to_disk_path=str(folder),
        )  # fmt: skip
    else:
        apply_group_offloading(
            pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level",
            offload_to_disk_path=str(folder),
        )  # fmt: skip


BY_CONTENT = Policy(indicator=MODULATED_INPUT, warmup=2, max_skip=2, predict_threshold=1.0)


@functools.cache
def skipped_by_content(family: Family) -> tuple[torch.Tensor, list[str]]:
    pipe = family.build()
    with run_policy(pipe, BY_CONTENT) as scope:
        return family.latents(pipe), scope.report.modes


@pytest.mark.parametrize(
    ("family", "way"),
    [pytest.param(f, way, id=f"{name}-{way}") for name, f in FAMILIES.items() for way in f.offloading],
    indirect=["family"],
)
def test_offloading_after_or_before_attaching_changes_nothing(
    family: Family, held: Any, way: str, tmp_path: Path
) -> None:
    """Up to rounding, which depends on where in memory weights come to lie."""
    skipped, modes = skipped_by_content(family)
    with run_policy(held, BY_CONTENT) as scope:
        offload(held, way, tmp_path)
        for _ in range(2):
            assert (family.latents(held) - skipped).abs().max() <= 1e-4
            assert scope.report.modes == modes
    with exact(held) as scope:
        assert (family.latents(held) - stock_of(family)).abs().max() <= 1e-4
        assert complete(scope.report)


@pytest.mark.parametrize(
    ("family", "change"),
    [pytest.param(f, change, id=f"{name}-{change}") for name, f in FAMILIES.items() for change in f.changes],
    indirect=["family"],
)
def test_compiled_blocks_and_quantised_weights_run_as_they_are(family: Family, held: Any, change: str) -> None:
    torch._dynamo.reset()
    model = family.model(held)
    if change == "compiled blocks":
        # SkyReels-V2's has a test that counts graphs, and diffusers knows no repeated blocks of FramePack's.
        model.compile_repeated_blocks(backend="eager")
    else:
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    stock = family.latents(held)
    with exact(held) as scope:
        assert family.same(family.latents(held), stock)
        assert complete(scope.report)
    with warnings.catch_warnings(), apply_scope(held, family.profile(held), on_mismatch="raise") as scope:
        warnings.simplefilter("error", ScopeWarning)
        skipped = family.latents(held)
    assert skips(scope.report)
    assert torch.isfinite(skipped).all()
    assert torch.equal(family.latents(held), stock)
