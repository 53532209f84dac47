"""MAGI-1: the runtime on a stand-in with the official call contract, and on the official code where it is at hand."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from scope_runtime import (
    MODULATED_INPUT,
    AttachError,
    ContextTooLarge,
    ModelIdentity,
    Policy,
    Preparation,
    Profile,
    ProfileError,
    ProfileMismatch,
    ScopeError,
    ScopeWarning,
    apply_scope,
    exact,
    prepare,
    run_policy,
)
from scope_runtime.adapters.magi_1 import Plan, _Call, _Opening, time_grid
from scope_runtime.schedule import AXES
from tests.magi_1 import (
    CHECKOUT,
    STAND_IN,
    TWICE,
    Magi,
    config_json,
    counted,
    imported,
    needs_checkout,
    profile_of,
    psnr,
)

SHORT = {"num_steps": 32, "num_frames": 24}
"""Three chunks, 32 updates each."""
GUIDANCE = {"three branches": {"cfg_number": 3}, "one branch": {"cfg_number": 1}}
WINDOWS = {"window of four": {"window_size": 4}, "window of one": {"window_size": 1}}
PREFIXES = {"text-to-video": 0, "image-to-video": 1, "video-to-video": 4}

guidances = pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE.keys())
windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
prefixes = pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES.keys())


@pytest.fixture
def package() -> Iterator[ModuleType]:
    with imported(STAND_IN) as found:
        yield found


@pytest.fixture
def build(package: ModuleType) -> Any:
    """Makes models; a test that leaves one accelerated fails its neighbours, so each is made anew."""
    return lambda **changes: Magi.stand_in(package, **SHORT | changes)


@pytest.fixture
def magi(build: Any) -> Magi:
    return build()


@guidances
@windows
@prefixes
def test_exact_equals_stock_and_a_policy_halves_the_work(build: Any, guidance: Any, window: Any, prefix: int) -> None:
    magi = build(**guidance, **window)
    stock, stock_work = counted(magi, prefix=prefix)
    with exact(magi.model) as scope:
        ours, work = counted(magi, prefix=prefix)
    assert stock.std() > 0.3
    assert (ours - stock).abs().max() <= 5e-5
    assert (scope.report.evaluations, scope.report.stock_evaluations) == (work, stock_work)
    assert work < stock_work or guidance["cfg_number"] == 1
    with run_policy(magi.model, TWICE) as scope:
        skipped, skipped_work = counted(magi, prefix=prefix)
    assert (scope.report.evaluations, scope.report.stock_evaluations) == (skipped_work, stock_work)
    assert scope.report.speedup_evaluations > 1.9
    assert scope.report.max_skip_seen == 2
    assert psnr(skipped, stock) > 15
    assert torch.equal(magi.latents(prefix=prefix), stock)


def test_quality_follows_cost(build: Any) -> None:
    magi = build()
    stock = magi.latents()
    found = []
    for policy in (Policy(warmup=8, max_skip=1), Policy(warmup=4, max_skip=2), Policy(warmup=1, max_skip=8, order=0)):
        with run_policy(magi.model, policy) as scope:
            found.append((psnr(magi.latents(), stock), scope.report.speedup_evaluations))
    assert found[0][0] > found[1][0] > found[2][0] + 3
    assert found[0][1] < found[1][1] < found[2][1]


def test_exact_leaves_out_branches_without_weight(magi: Magi) -> None:
    with exact(magi.model) as scope:
        magi.latents()
    # Three chunks of 32 updates, of which the last eight have no weight but on the branch without text. The text branch
    # is left out where no chunk of the window has weight on it: in the last stage, of eight rows and a clean chunk.
    context = 3 * 32 + 2
    text = context - 8 - 1
    assert scope.report.evaluations == context + text + 3 * 24
    assert scope.report.stock_evaluations == 3 * 3 * 32 + 2 * 2


def test_leading_parts_of_a_window_are_computed_exactly(build: Any) -> None:
    """A plan that skips only the last chunk of each row leaves the first chunks what they are in stock."""
    magi = build()
    stock = magi.latents()
    with exact(magi.model) as scope:
        magi.latents()
    schedule = scope.report.windows[0].schedule
    plan = []
    for row in range(schedule.rows):
        letters = ["R" if b in schedule.active(row) else "." for b in range(schedule.blocks)]
        may_skip = schedule.phase[row][2] == 1 and schedule.step(row, 2) > 1 and (row, 2) not in schedule.restarts
        letters[2] = "P" if may_skip else letters[2]
        plan.append("".join(letters))
    with run_policy(magi.model, Policy(plan=tuple(plan))) as scope:
        ours = magi.latents()
    assert "P" in "".join(scope.report.modes)
    width = magi.model.runtime_config.chunk_width
    assert (ours - stock)[:, :, : 2 * width].abs().max() <= 5e-5
    assert (ours - stock)[:, :, 2 * width :].abs().max() > 1e-3


@pytest.mark.parametrize("axis", AXES)
def test_known_jumps_are_recomputed_and_forgotten(build: Any, axis: str) -> None:
    magi = build(num_frames=48)
    with run_policy(magi.model, Policy(warmup=1, max_skip=20, axis=axis)) as scope:
        assert torch.isfinite(magi.latents()).all()
    window = scope.report.windows[0]
    schedule, modes = window.schedule, window.modes
    assert all(modes[row][block] == "R" for row, block in schedule.restarts)
    # The fifth chunk has a context that changes at every stage, and guidance that changes at the last two edges.
    assert {row for row, block in schedule.restarts if block == 4} == {40, 48, 56}
    # The first has no context; only its guidance changes.
    assert {row for row, block in schedule.restarts if block == 0} == {24}
    checked = {(error.row, error.block) for error in window.prediction_errors}
    assert checked
    assert not checked & schedule.restarts
    assert not {(o.row, o.block) for o in window.observations} & schedule.restarts


@guidances
def test_clean_chunks_are_written_although_nothing_else_is_computed(build: Any, guidance: Any) -> None:
    """Chunks near their end that attend to themselves alone know no jump, so a stage may begin without a recompute."""
    magi = build(**guidance, noise2clean_kvrange=[3, 1, 1, 1], window_size=2, distill_nearly_clean_chunk_threshold=2.0)
    with run_policy(magi.model, Policy(warmup=1, max_skip=20)) as scope:
        ours, work = counted(magi, prefix=2)
    assert any("K" in row and "R" not in row for row in scope.report.modes)
    assert work == scope.report.evaluations
    # Context that was never written is not a number in the stand-in.
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("granularity", ["prefix", "step"])
@pytest.mark.parametrize("indicator", ["noise-level", MODULATED_INPUT])
@guidances
def test_thresholds_decide(build: Any, granularity: str, indicator: str, guidance: Any) -> None:
    magi = build(**guidance)
    shared = {"granularity": granularity, "indicator": indicator, "warmup": 2, "max_skip": 8}
    evaluations = []
    for threshold in (1e-6, 0.1, 10.0):
        with run_policy(magi.model, Policy(**shared, cache_threshold=1e-7, predict_threshold=threshold)) as scope:
            assert torch.isfinite(magi.latents()).all()
        evaluations.append(scope.report.evaluations)
    assert evaluations[0] > evaluations[1] > evaluations[2]


@guidances
def test_the_content_indicator_is_what_the_first_block_works_with(
    build: Any, guidance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_indicator(build(**guidance, window_size=1), monkeypatch)


def check_indicator(magi: Magi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares the indicator's tensors with the first block's own, for the first chunk (one is computed at a time)."""
    layer, measure = magi.model.videodit_blocks.layers[0], _Call.modulated_input
    pending: list[torch.Tensor] = []
    normed: list[torch.Tensor] = []
    gates: list[torch.Tensor] = []
    by_row: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compare(measured: torch.Tensor, normed: list[torch.Tensor], gates: list[torch.Tensor]) -> None:
        # Of three passes, the one that writes the context is the second.
        used = 1 if len(normed) == 3 else 0
        gate = gates[used].tanh().chunk(2, dim=-1)[0].flatten(0, 1)[0]
        # A chunk that is nearly clean may come twice in one pass.
        by_row.append((normed[used].flatten(0, 1)[: len(measured)] * gate, measured))

    def keep(call: _Call, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        if pending:
            compare(pending.pop(), normed, gates)
        computed = list(normed), list(gates)
        found = measure(call, blocks)
        if isinstance(call, _Opening):  # computed before it is measured
            compare(found[blocks[0]], *computed)
        else:
            pending.append(found[blocks[0]])
        normed.clear()
        gates.clear()
        return found

    monkeypatch.setattr(_Call, "modulated_input", keep)
    hooks = [
        layer.self_attention.linear_qkv.layer_norm.register_forward_hook(lambda m, a, out: normed.append(out)),
        layer.ada_modulate_layer.register_forward_hook(lambda m, a, out: gates.append(out)),
    ]
    with run_policy(magi.model, Policy(indicator=MODULATED_INPUT, max_skip=0)):
        next(magi.chunks())
    for hook in hooks:
        hook.remove()
    assert len(by_row) >= magi.model.runtime_config.num_steps - 1
    for real, ours in by_row:
        torch.testing.assert_close(ours, real, rtol=1e-4, atol=1e-5)


def check_twelve_steps(magi: Magi) -> None:
    """Three of every four of sixteen steps: their noise levels, and how much each stands for, are not evenly spread."""
    stock, stock_work = counted(magi)
    with exact(magi.model) as scope:
        ours, work = counted(magi)
    assert stock.std() > 0.1
    assert (scope.report.evaluations, scope.report.stock_evaluations) == (work, stock_work)
    if magi.model.runtime_config.cfg_number == 1:
        assert torch.equal(ours, stock)
    else:
        assert work < stock_work
        assert (ours - stock).abs().max() <= 5e-5
    with run_policy(magi.model, Policy(warmup=1, max_skip=2)) as scope:
        skipped, skipped_work = counted(magi)
    assert scope.report.evaluations == skipped_work < work
    assert torch.isfinite(skipped).all()


@guidances
@pytest.mark.parametrize("mode", ["8,16,16", "16,16,8"])
def test_twelve_steps(build: Any, guidance: Any, mode: str) -> None:
    check_twelve_steps(build(num_steps=12, **guidance, shortcut_mode=mode))


class TestPlans:
    def test_the_plan_is_known_in_advance_and_can_be_frozen(self, magi: Magi) -> None:
        with run_policy(magi.model, TWICE) as scope:
            decided = magi.latents()
        assert scope.plan == tuple(row.replace("K", ".") for row in scope.report.modes)
        with run_policy(magi.model, Policy(plan=scope.plan)) as frozen:
            assert torch.equal(magi.latents(), decided)
        assert frozen.report.evaluations == scope.report.evaluations

    def test_a_plan_may_not_skip_a_known_jump(self, magi: Magi) -> None:
        with run_policy(magi.model, TWICE) as scope:
            magi.latents()
        assert scope.plan is not None
        schedule = scope.report.windows[0].schedule
        row, block = next(place for place in schedule.restarts if place[1] == schedule.active(place[0])[-1])
        plan = list(scope.plan)
        plan[row] = plan[row][:block] + "P" + plan[row][block + 1 :]
        with (
            run_policy(magi.model, Policy(plan=tuple(plan))),
            pytest.raises(ProfileError, match="guidance or context changes"),
        ):
            magi.latents()

    def test_twelve_steps_have_a_grid_of_their_own(self) -> None:
        grid = time_grid(12, "8,16,16")
        assert len(grid) == 13
        assert grid[0] == 0
        assert grid[3] == pytest.approx(0.0217, abs=1e-4)
        assert grid[12] == pytest.approx(1, abs=1e-6)


class TestProfiles:
    def test_calibrated_settings_run_the_policy(self, magi: Magi, tmp_path: Path) -> None:
        profile_of(magi).save(tmp_path / "magi.json")
        with warnings.catch_warnings(), apply_scope(magi.model, Profile.load(tmp_path / "magi.json")) as scope:
            warnings.simplefilter("error", ScopeWarning)
            magi.latents()
        assert scope.report.speedup_evaluations > 1.9

    @pytest.mark.parametrize(
        ("field", "changes", "prefix"),
        [
            ("num_inference_steps", {"num_steps": 16}, 0),
            ("ar_step", {"window_size": 2}, 0),
            ("guidance_scale", {"cfg_number": 1}, 0),
            ("scheduler", {"text_scales": [5.0, 5.0, 5.0, 0.0, 0.0]}, 0),
            ("prefix", {"num_frames": 8}, 4),
        ],
    )
    def test_other_settings_run_exact(self, build: Any, field: str, changes: Any, prefix: int) -> None:
        profile = profile_of(build())
        magi = build(**changes)
        magi.model.engine_config.distill = False
        stock = magi.latents(prefix=prefix)
        with apply_scope(magi.model, profile) as scope, pytest.warns(ScopeWarning, match=field):
            ours = magi.latents(prefix=prefix)
        assert (ours - stock).abs().max() <= 5e-5
        assert field in scope.report.notes[0]

    def test_another_model_is_refused(self, build: Any) -> None:
        profile, other = profile_of(build()), build()
        with torch.no_grad():
            other.model.phase += 1
        with pytest.raises(ProfileMismatch, match="model.weights"):
            apply_scope(other.model, profile)
        assert "forward_dispatcher" not in vars(other.model)

    def test_a_model_changed_while_attached_runs_exact(self, magi: Magi) -> None:
        profile = profile_of(magi)
        with apply_scope(magi.model, profile) as scope:
            magi.latents()
            assert scope.report.speedup_evaluations > 1.9
            magi.model.phase.data += 1e-3
            with pytest.warns(ScopeWarning, match="weights: .*phase has other values"):
                magi.latents()
        assert set(scope.report.modes[-1]) <= set("R.")

    def test_a_model_that_is_held_is_not_copied(self, magi: Magi) -> None:
        with exact(magi.model), pytest.raises(AttachError, match="before attaching or after closing"):
            copy.deepcopy(magi.model)
        copy.deepcopy(magi.model)

    def test_a_pipeline_is_accelerated_while_it_runs(self, package: ModuleType, build: Any, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config_json(**SHORT)))
        pipe = package.MagiPipeline(str(tmp_path / "config.json"))
        profile, get_dit = profile_of(build()), package.get_dit
        videos = {}
        for name in ("stock", "exact", "policy", "after"):
            scope = {"exact": lambda: exact(pipe), "policy": lambda: apply_scope(pipe, profile)}.get(name)
            attached = scope() if scope else None
            pipe.run_text_to_video("a red circle", str(tmp_path / name))
            videos[name] = (tmp_path / name).read_bytes()
            assert package.get_dit is get_dit
            if attached:
                assert attached.report.evaluations < attached.report.stock_evaluations
                attached.close()
                attached.close()
        assert videos["stock"] == videos["exact"] == videos["after"] != videos["policy"]
        assert set(vars(pipe)) == {"config"}

        other = Profile(
            profile.policy, profile.settings, ModelIdentity("MagiPipeline", "a", "b", "c"), profile.evidence
        )
        with apply_scope(pipe, other), pytest.raises(ProfileMismatch, match="model.transformer"):
            pipe.run_text_to_video("a red circle", str(tmp_path / "refused"))
        assert package.get_dit is get_dit


class TestAttaching:
    def test_pipeline_parallelism_is_refused_by_name(self, build: Any) -> None:
        with pytest.raises(AttachError, match="engine_config.pp_size is 2"):
            exact(build(pp_size=2).model)

    def test_setting_it_up_otherwise_is_refused_by_name(self, build: Any) -> None:
        magi = build()
        said = r"^settings\.preparation: int8 weights cannot be set on MAGI-1"
        with pytest.raises(AttachError, match=said), prepare(magi.model, Preparation(weights="int8")):
            pass
        with prepare(magi.model, Preparation()):
            pass

    @pytest.mark.parametrize(
        ("policy", "field"),
        [
            ({"granularity": "block"}, "policy.granularity"),
            ({"stale_tolerance": 0.1}, "policy.stale_tolerance"),
            ({"context_window": 2}, "policy.context_window"),
            ({"context_dtype": "bfloat16"}, "policy.context_dtype"),
        ],
    )
    def test_what_the_family_cannot_do_is_refused(self, magi: Magi, policy: Any, field: str) -> None:
        stock = magi.latents()
        with run_policy(magi.model, Policy(**policy)), pytest.raises(ProfileError, match=field):
            magi.latents()
        assert torch.equal(magi.latents(), stock)

    def test_context_is_bounded_but_not_moved(self, magi: Magi) -> None:
        with exact(magi.model, max_context_bytes=1000), pytest.raises(ContextTooLarge):
            magi.latents()
        with pytest.raises(AttachError, match="kv_offload"):
            exact(magi.model, offload_context=True)

    def test_context_is_what_one_rank_keeps_on_its_device(self, build: Any) -> None:
        """Ranks share the heads, and what is kept in host memory takes none of the device's."""
        magi = build(num_query_groups=2)
        config, blocks, tokens = magi.model.model_config, 3, 2 * 2 * 2
        whole = 2 * config.num_layers * 2 * config.kv_channels * tokens * blocks * 4
        for limit, cp_size, offloaded, fits in (
            (whole, 1, False, True),
            (whole - 1, 1, False, False),
            (whole // 2, 2, False, True),
            (whole // 2 - 1, 2, False, False),
            (0, 1, True, True),
        ):
            vars(magi.model.engine_config).update(cp_size=cp_size, kv_offload=offloaded)
            with exact(magi.model, max_context_bytes=limit):
                if fits:
                    next(magi.chunks())
                else:
                    with pytest.raises(ContextTooLarge):
                        next(magi.chunks())

    def test_an_exception_leaves_a_clean_model(self, magi: Magi) -> None:
        stock = magi.latents()
        with run_policy(magi.model, TWICE) as scope:
            chunks = magi.chunks()
            next(chunks)
            chunks.close()
            first = magi.latents()
            assert len(scope.report.modes) == 48
            assert torch.equal(magi.latents(), first)
        assert torch.equal(magi.latents(), stock)

    def test_generations_that_take_turns_are_not_mixed(self, magi: Magi) -> None:
        with run_policy(magi.model, TWICE):
            alone = [magi.latents(seed=seed) for seed in (1, 2)]
            turns = [magi.chunks(seed=seed) for seed in (1, 2)]
            parts: list[list[torch.Tensor]] = [[], []]
            for pair in zip(*turns, strict=True):
                for part, chunk in zip(parts, pair, strict=True):
                    part.append(chunk)
        assert all(torch.equal(torch.cat(part, dim=2), whole) for part, whole in zip(parts, alone, strict=True))

    def test_attached_or_detached_in_mid_generation_it_steps_aside(self, magi: Magi) -> None:
        stock = magi.latents()
        chunks = magi.chunks()
        begun = [next(chunks)]
        with run_policy(magi.model, TWICE) as scope:
            begun.append(next(chunks))
            assert not scope.report.windows
        assert torch.equal(torch.cat([*begun, *chunks], dim=2), stock)
        with exact(magi.model):
            chunks = magi.chunks()
            begun = [next(chunks)]
        assert (torch.cat([*begun, *chunks], dim=2) - stock).abs().max() <= 5e-5

    def test_a_loop_that_does_otherwise_is_refused(self, magi: Magi, monkeypatch: pytest.MonkeyPatch) -> None:
        import inference.loop as loop

        times_of = loop.times_of
        monkeypatch.setattr(loop, "times_of", lambda *mode: times_of(*mode) ** 1.01)
        with exact(magi.model), pytest.raises(ScopeError, match="call 1 of this generation"):
            magi.latents()


def _rank(rank: int, folder: str) -> None:
    """One of two processes that compute one video and round differently."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with imported(STAND_IN) as package:
        for shared in (True, False):
            magi = Magi.stand_in(package, **SHORT | {"cp_size": 2 if shared else 1})
            with torch.no_grad():
                magi.model.phase += 0.3 * rank
            policy = Policy(
                indicator=MODULATED_INPUT, warmup=1, max_skip=9, cache_threshold=0.05, predict_threshold=0.2
            )
            with run_policy(magi.model, policy) as scope:
                magi.latents()
            Path(folder, f"{shared}-{rank}").write_text("\n".join(scope.report.modes))
    torch.distributed.destroy_process_group()


def test_one_rank_decides_for_all(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    plans = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "store"}
    assert plans["True-0"] == plans["True-1"]
    assert plans["False-0"] != plans["False-1"]


TINY = {"num_steps": 8, "num_frames": 32}
TINY_DISTILLED = {"num_steps": 16, "num_frames": 32}


SHARED = {"cp_ulysses": {"cfg_number": 3}, "cp_shuffle_overlap": {"cfg_number": 1}}
"""Strategies of sharing a video, the second of which knows no batches and so no three branches."""


def _official_rank(rank: int, folder: str, strategy: str) -> None:
    """One of two processes that share one video, on the official code."""
    from tests.magi_1_official import official, official_model

    torch.set_num_threads(1)
    own = Path(folder, str(rank))
    own.mkdir()
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    with official(Path(str(CHECKOUT)), store, rank, 2) as package:
        guidance = SHARED[strategy]
        size = TINY if guidance["cfg_number"] == 3 else TINY_DISTILLED
        magi = official_model(package, own, **size, **guidance, cp_size=2, cp_strategy=strategy)
        stock, stock_work = counted(magi, prefix=3)
        need = kept_context(magi)
        with exact(magi.model, max_context_bytes=need) as scope:
            ours, work = counted(magi, prefix=3)
        assert (scope.report.evaluations, scope.report.stock_evaluations) == (work, stock_work)
        with exact(magi.model, max_context_bytes=need - 1), pytest.raises(ContextTooLarge):
            magi.latents(prefix=3)
        policy = Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=9, cache_threshold=0.5, predict_threshold=2.0)
        with run_policy(magi.model, policy) as scope:
            skipped = magi.latents(prefix=3)
        assert torch.isfinite(skipped).all()
        found = {"difference": float((ours - stock).abs().max()), "std": float(stock.std()), "work": work}
        found |= {"stock_work": stock_work, "modes": scope.report.modes}
        (own / "found.json").write_text(json.dumps(found))


def kept_context(magi: Magi) -> int:
    """Bytes of keys and values that a model of the official code really keeps in a generation."""
    kept: list[Any] = []
    forward = magi.model.forward

    def keep(*args: Any, **options: Any) -> torch.Tensor:
        if options["inference_params"] is not None:
            kept[:] = [options["inference_params"]]
        return forward(*args, **options)

    magi.model.forward = keep
    try:
        magi.latents(prefix=3)
    finally:
        del magi.model.forward
    return sum(t.numel() * t.element_size() for t in kept[0].key_value_memory_dict.values())


@needs_checkout
class TestOfficialCode:
    """On the unmodified code, with the smallest model that it can build."""

    @pytest.fixture
    def official(self) -> Iterator[ModuleType]:
        from tests.magi_1_official import official

        with official(Path(str(CHECKOUT))) as found:
            yield found

    @guidances
    @windows
    @prefixes
    def test_exact_policy_and_detached(
        self, official: ModuleType, tmp_path: Path, guidance: Any, window: Any, prefix: int
    ) -> None:
        from tests.magi_1_official import official_model

        size = TINY if guidance["cfg_number"] == 3 else TINY_DISTILLED
        magi = official_model(official, tmp_path, **size, **guidance, **window)
        stock, stock_work = counted(magi, prefix=prefix)
        with exact(magi.model) as scope:
            ours, work = counted(magi, prefix=prefix)
        assert stock.std() > 0.1
        difference = float((ours - stock).abs().max())
        assert difference <= 5e-5
        assert (scope.report.evaluations, scope.report.stock_evaluations) == (work, stock_work)
        assert work < stock_work or guidance["cfg_number"] == 1
        with run_policy(magi.model, Policy(warmup=1, max_skip=3)) as scope:
            skipped, skipped_work = counted(magi, prefix=prefix)
        assert scope.report.evaluations == skipped_work
        assert scope.report.speedup_evaluations >= 2
        assert torch.isfinite(skipped).all()
        assert torch.equal(magi.latents(prefix=prefix), stock)
        print(
            f"\n{guidance} {window} prefix {prefix}: exact {work} of {stock_work} evaluations, off by "
            f"{difference:.1e}; policy {scope.report.speedup_evaluations:.2f}x, {psnr(skipped, stock):.1f} dB"
        )

    @guidances
    @pytest.mark.parametrize("mode", ["8,16,16", "16,16,8"])
    def test_twelve_steps(self, official: ModuleType, tmp_path: Path, guidance: Any, mode: str) -> None:
        from tests.magi_1_official import official_model

        magi = official_model(official, tmp_path, num_steps=12, num_frames=32, **guidance, shortcut_mode=mode)
        check_twelve_steps(magi)

    def test_eight_bits(self, official: ModuleType, tmp_path: Path) -> None:
        """With what flashinfer would do stood in for; three layers, of which only the middle one is quantised."""
        from tests.magi_1_official import official_model

        magi = official_model(
            official, tmp_path, **TINY_DISTILLED, cfg_number=1, fp8_quant=True, num_layers=3,
            params_dtype="torch.bfloat16",
        )  # fmt: skip
        assert {p.dtype for p in magi.model.parameters()} >= {torch.float8_e4m3fn, torch.bfloat16}
        stock = magi.latents(prefix=3)
        assert stock.std() > 0.1
        with exact(magi.model):
            assert torch.equal(magi.latents(prefix=3), stock)
        profile = profile_of(magi, Policy(indicator=MODULATED_INPUT, warmup=1, max_skip=3, cache_threshold=0.2))
        with apply_scope(magi.model, profile) as scope:
            assert torch.isfinite(magi.latents()).all()
        assert scope.report.speedup_evaluations > 1
        middle = magi.model.videodit_blocks.layers[1].mlp.linear_fc1
        middle.weight.data = (-middle.weight.data.float()).to(torch.float8_e4m3fn)
        with pytest.raises(ProfileMismatch, match="model.weights"):
            apply_scope(magi.model, profile)

    @pytest.mark.parametrize("strategy", SHARED)
    def test_two_processes_share_a_video(self, tmp_path: Path, strategy: str) -> None:
        torch.multiprocessing.start_processes(
            _official_rank, args=(str(tmp_path), strategy), nprocs=2, start_method="fork"
        )
        one, other = (json.loads((tmp_path / str(rank) / "found.json").read_text()) for rank in range(2))
        assert one == other
        assert one["std"] > 0.1
        assert one["difference"] <= 5e-5
        assert one["work"] < one["stock_work"] or SHARED[strategy]["cfg_number"] == 1
        assert any("P" in row or "C" in row for row in one["modes"])

    def test_context_is_what_the_model_keeps(self, official: ModuleType, tmp_path: Path) -> None:
        from tests.magi_1_official import official_model

        magi = official_model(official, tmp_path, **TINY)
        need = kept_context(magi)
        with exact(magi.model, max_context_bytes=need):
            magi.latents(prefix=3)
        with exact(magi.model, max_context_bytes=need - 1), pytest.raises(ContextTooLarge):
            magi.latents(prefix=3)

    def test_other_branches_are_refused(self, official: ModuleType, tmp_path: Path) -> None:
        from tests.magi_1_official import official_model

        magi = official_model(official, tmp_path, **TINY)
        stock = magi.model.forward_3cfg

        def doubled(*args: Any, **options: Any) -> Any:
            text, *others = stock(*args, **options)
            return (2 * text, *others)

        magi.model.forward_3cfg = doubled
        with pytest.raises(AttachError, match="forward_3cfg"):
            exact(magi.model)

    @guidances
    def test_content_indicator(
        self, official: ModuleType, tmp_path: Path, guidance: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tests.magi_1_official import official_model

        check_indicator(official_model(official, tmp_path, **TINY, **guidance, window_size=1), monkeypatch)

    @pytest.mark.parametrize(("steps", "mode"), [(64, ""), (16, ""), (12, "8,16,16"), (12, "16,16,8")])
    def test_the_grid_is_the_loops(self, official: ModuleType, steps: int, mode: str) -> None:
        from inference.pipeline.video_generate import init_t

        theirs = init_t({}, steps, torch.device("cpu"), shortcut_mode=mode)
        assert time_grid(steps, mode) == pytest.approx(theirs.tolist(), abs=1e-6)

    @pytest.mark.parametrize(("chunks", "window", "prefix"), [(8, 4, 0), (8, 8, 0), (8, 4, 2), (3, 4, 0), (8, 1, 0)])
    def test_the_window_is_the_loops(self, official: ModuleType, chunks: int, window: int, prefix: int) -> None:
        from inference.pipeline.video_generate import generate_sequences

        runtime = SimpleNamespace(**config_json(window_size=window)["runtime_config"])
        engine = SimpleNamespace(**config_json()["engine_config"])
        schedule = Plan.of(runtime, engine, 8, chunks, prefix).schedule
        starts, ends, *_ = generate_sequences(chunks, window, prefix)
        theirs = [tuple(range(a, b)) for a, b in zip(starts, ends, strict=True) for _ in range(8 // window)]
        assert [schedule.active(row) for row in range(schedule.rows)] == theirs
