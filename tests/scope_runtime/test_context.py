"""Memory of the captured context: bounded, foretold, and exact where it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scope_runtime import ContextTooLarge, Policy, context_bytes, exact, run_policy
from scope_runtime.context import Context, ContextOptions, refuse_if_over
from tests.tiny import latents


def kv(value: float, tokens: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, tokens, 1, 4), value), torch.full((1, tokens, 1, 4), -value)


def filled(context: Context, blocks: int) -> Context:
    for block in range(blocks):
        context.store(0, block, *kv(float(block)))
        context.close_pass([block], [block])
    return context


def test_gather_joins_blocks_in_order() -> None:
    key, value = filled(Context(), 3).gather(0, (0, 2), like=torch.empty(0))
    assert key[0, :, 0, 0].tolist() == [0.0, 0.0, 2.0, 2.0]
    assert torch.equal(value, -key)


def test_a_window_holds_the_newest_blocks_and_never_forgets_what_was_captured() -> None:
    context = filled(Context(window=2), 4)
    assert context.blocks == [2, 3]
    assert context.captured == {0, 1, 2, 3}
    assert context.before(3, computed=()) == (2,)
    assert context.bytes == 2 * 2 * (2 * 4) * 4


def test_a_stored_dtype_halves_the_memory() -> None:
    assert filled(Context(dtype=torch.bfloat16), 2).bytes * 2 == filled(Context(), 2).bytes


def test_the_need_is_the_one_published_for_the_real_models() -> None:
    """20 completed frames at 544x960 in bfloat16 with guidance: 14 GiB for 1.3B, 62 GiB for 14B."""
    frame_tokens = (544 // 16) * (960 // 16)
    common = {"tokens": 5 * frame_tokens, "blocks": 4, "branches": 2, "batch": 1, "itemsize": 2}
    assert context_bytes(layers=30, width=1536, **common) / 2**30 == pytest.approx(14.0, abs=0.1)
    assert context_bytes(layers=40, width=5120, **common) / 2**30 == pytest.approx(62.3, abs=0.1)


def test_every_factor_of_the_need_is_one() -> None:
    ones = dict.fromkeys(("layers", "width", "tokens", "blocks", "branches", "batch", "itemsize"), 1)
    assert context_bytes(**ones) == 2
    for name in ones:
        assert context_bytes(**{**ones, name: 3}) == 6


def test_the_foretold_need_is_what_is_really_held(pipe: Any) -> None:
    with exact(pipe) as scope:
        latents(pipe)
    held = scope.report.context_bytes
    assert held == context_bytes(layers=2, width=24, tokens=3, blocks=2, branches=2, batch=1, itemsize=4)
    with exact(pipe, max_context_bytes=held):
        latents(pipe)
    with exact(pipe, max_context_bytes=held - 1), pytest.raises(ContextTooLarge, match="context_window"):
        latents(pipe)


def test_a_windowed_context_is_smaller_and_an_approximation(pipe: Any) -> None:
    changes = {"num_frames": 69, "num_inference_steps": 4}  # six blocks
    stock = latents(pipe, **changes)
    with run_policy(pipe, Policy(max_skip=0, context_window=1)) as narrow:
        approximate = latents(pipe, **changes)
    with run_policy(pipe, Policy(max_skip=0, context_window=5)) as wide:
        same = latents(pipe, **changes)
    assert narrow.report.context_bytes < wide.report.context_bytes
    assert (approximate - stock).abs().max() > 1e-4
    assert (same - stock).abs().max() <= 1e-4


def test_a_bfloat16_context_is_close(pipe: Any) -> None:
    stock = latents(pipe)
    with run_policy(pipe, Policy(max_skip=0, context_dtype="bfloat16")) as scope:
        ours = latents(pipe)
    assert scope.report.context_bytes == 2 * 2 * 24 * 3 * 2 * 2 * 2
    assert 0 < (ours - stock).abs().max() < 0.05


def test_offloading_changes_nothing(pipe: Any) -> None:
    with exact(pipe):
        on_device = latents(pipe)
    with exact(pipe, offload_context=True):
        assert torch.equal(latents(pipe), on_device)


def test_a_window_fits_where_all_of_it_does_not(pipe: Any) -> None:
    changes = {"num_frames": 69, "num_inference_steps": 4}  # six blocks
    limit = context_bytes(layers=2, width=24, tokens=3, blocks=2, branches=2, batch=1, itemsize=4)
    with run_policy(pipe, Policy(max_skip=0), max_context_bytes=limit), pytest.raises(ContextTooLarge, match="GiB"):
        latents(pipe, **changes)
    with run_policy(pipe, Policy(max_skip=0, context_window=1), max_context_bytes=limit) as scope:
        latents(pipe, **changes)
    assert 0 < scope.report.context_bytes <= limit


def test_what_is_kept_does_not_hold_the_pass_it_came_from_alive() -> None:
    whole = torch.arange(24.0).reshape(1, 6, 1, 4)
    context = Context()
    context.store(0, 0, whole[:, :2], whole[:, 2:4])
    whole.zero_()
    key, value = context.gather(0, (0,), like=whole)
    assert key.sum() == sum(range(8))
    assert value.sum() == sum(range(8, 16))
    for held in context._layers[0][0]:
        assert held.untyped_storage().nbytes() == held.numel() * held.element_size(), "a view of the pass's tensors"


def test_a_block_that_is_stored_again_takes_the_place_of_what_was_held() -> None:
    context = filled(Context(), 2)
    context.store(0, 0, *kv(9.0))
    context.store(1, 0, *kv(5.0))
    context.close_pass([0], [])
    assert context.blocks == [0, 1]
    assert context.gather(0, (0, 1), like=torch.empty(0))[0][0, :, 0, 0].tolist() == [9.0, 9.0, 1.0, 1.0]
    assert context.gather(1, (0,), like=torch.empty(0))[0][0, :, 0, 0].tolist() == [5.0, 5.0]
    assert context.bytes == 3 * 2 * (2 * 4) * 4


def test_only_earlier_blocks_that_are_not_computed_along_are_attended_to() -> None:
    context = filled(Context(), 4)
    assert context.before(2, computed=()) == (0, 1)
    assert context.before(3, computed=(1, 2)) == (0,)
    assert context.before(0, computed=()) == ()


def test_blocks_are_held_in_order_whatever_the_order_of_their_passes() -> None:
    context = Context()
    for block in (2, 0, 1):
        context.store(0, block, *kv(float(block)))
    context.close_pass([2], [2])
    context.close_pass([1, 0], [])
    assert (context.blocks, context.captured) == ([0, 1, 2], {2})


def test_a_window_counts_complete_blocks_only_and_drops_them_in_every_layer() -> None:
    context = Context(window=1)
    for block in range(3):
        for layer in range(2):
            context.store(layer, block, *kv(float(block)))
    context.close_pass([0, 1, 2], [0, 1])
    assert (context.blocks, context.captured) == ([1, 2], {0, 1})
    assert [sorted(context._layers[layer]) for layer in range(2)] == [[1, 2], [1, 2]]
    # What a window was told of but does not hold is let go of without a word.
    context.close_pass([3], [3])
    assert (context.blocks, context.captured) == ([2, 3], {0, 1, 3})
    context.close_pass([4], [4])
    assert (context.blocks, context.captured) == ([2, 4], {0, 1, 3, 4})


def test_a_stored_dtype_is_that_of_keys_and_values_and_is_given_back_in_the_calls_own() -> None:
    context = Context(dtype=torch.bfloat16)
    context.store(0, 0, *kv(1 + 2**-10))
    assert {held.dtype for held in context._layers[0][0]} == {torch.bfloat16}
    for found, sign in zip(context.gather(0, (0,), like=torch.empty(0, dtype=torch.float64)), (1, -1), strict=True):
        assert found.dtype == torch.float64
        assert found.unique().tolist() == [sign * 1.0]


def test_the_limit_is_what_may_be_taken() -> None:
    refuse_if_over(10, ContextOptions())
    refuse_if_over(10, ContextOptions(max_bytes=10))
    gib = 2**30
    with pytest.raises(ContextTooLarge, match=r"takes 3 GiB, more than max_context_bytes allows \(2 GiB\)"):
        refuse_if_over(3 * gib, ContextOptions(max_bytes=2 * gib))
    with pytest.raises(ContextTooLarge):
        refuse_if_over(1, ContextOptions(max_bytes=0))
