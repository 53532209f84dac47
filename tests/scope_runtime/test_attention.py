"""Attention of a pass, block by block: what it attends to, what it keeps, and by which kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from torch.nn.functional import scaled_dot_product_attention

from scope_runtime.adapters import _skyreels_v2_attention as attention
from scope_runtime.context import Context, Pass

TOKENS, HEADS, WIDTH = 4, 2, 6


@dataclass
class Holder:
    current_pass: Pass | None
    attends_to_prefix: bool = True


def attend(request: Pass, parts: list[torch.Tensor]) -> torch.Tensor:
    processor = attention.PrefixAttention(Holder(request), 0, SkyReelsV2AttnProcessor())
    no_turn = torch.ones(1, parts[0].shape[1], 1, WIDTH // 2, dtype=torch.complex64)
    return processor.attend(*parts, no_turn)


def parts_of(blocks: int, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values of so many blocks."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(1, blocks * TOKENS, HEADS, WIDTH, generator=chance) for _ in range(3)]


def by_hand(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    turned = (tensor.transpose(1, 2) for tensor in (query, keys, values))
    return scaled_dot_product_attention(*turned).transpose(1, 2)


def test_a_block_attends_to_itself_and_what_comes_before_it() -> None:
    query, keys, values = parts_of(2)
    made = attend(Pass((0, 1), Context()), [query, keys, values])
    first = by_hand(query[:, :TOKENS], keys[:, :TOKENS], values[:, :TOKENS])
    second = by_hand(query[:, TOKENS:], keys, values)
    torch.testing.assert_close(made, torch.cat([first, second], dim=1))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_kept_block_keeps_its_own_tokens_alone(kept: int) -> None:
    context, (query, keys, values) = Context(), parts_of(3)
    attend(Pass((0, 1, 2), context, keep=(kept,)), [query, keys, values])
    context.close_pass((kept,), (kept,))
    own = slice(kept * TOKENS, (kept + 1) * TOKENS)
    key, value = context.gather(0, [kept], like=keys)
    assert torch.equal(key, keys[:, own])
    assert torch.equal(value, values[:, own])


def test_later_blocks_attend_to_the_context_before_them() -> None:
    context, (query, keys, values) = Context(), parts_of(3)
    attend(Pass((0,), context, keep=(0,)), [part[:, :TOKENS] for part in (query, keys, values)])
    context.close_pass((0,), (0,))
    made = attend(Pass((1, 2), context), [part[:, TOKENS:] for part in (query, keys, values)])
    whole = attend(Pass((0, 1, 2), Context()), [query, keys, values])
    torch.testing.assert_close(made, whole[:, TOKENS:])


def test_the_pipelines_kernel_and_parallelism_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def dispatch(query: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(options)
        return query

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    processor = attention.PrefixAttention(Holder(Pass((0,), Context())), 0, SkyReelsV2AttnProcessor())
    processor._attention_backend, processor._parallel_config = "a kernel", "a mesh"
    assert processor.original._attention_backend == "a kernel"
    processor.attend(*parts_of(1), torch.ones(1, TOKENS, 1, WIDTH // 2, dtype=torch.complex64))
    assert seen == [{"backend": "a kernel", "parallel_config": "a mesh"}]
