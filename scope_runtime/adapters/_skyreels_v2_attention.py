"""Self-attention of SkyReels-V2 over a block's own prefix of keys, eager and in compiled blocks alike.

A compiled block must not be recompiled for every layer, every row and every set of blocks, and torch gives up after
eight recompilations. So dynamo sees no number of a layer, no pass and no block: attending is one operator of torch's,
which is handed tensors alone and finds the pass that is running by the processor's number, a tensor as well.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2Attention,
    SkyReelsV2AttnProcessor,
    _get_qkv_projections,
)

from scope_runtime.context import Pass

_NUMBERS = itertools.count()
_PROCESSORS: weakref.WeakValueDictionary[int, PrefixAttention] = weakref.WeakValueDictionary()


class PassHolder(Protocol):
    """Who knows which pass is running.

    Attributes:
        current_pass: The pass, or None between passes.
        attends_to_prefix: Whether a pass is running whose blocks attend to their own prefix of keys: a plain truth
            value, because compiled blocks are specialised for it.
    """

    current_pass: Pass | None
    attends_to_prefix: bool


class PrefixAttention:
    """Self-attention of the blocks of a pass, each over its own prefix of keys: no S x S mask is ever built.

    Outside such a pass it steps aside for the original processor.

    Args:
        holder: Knows the pass.
        layer: Number of the attention layer, under which its keys and values are kept.
        original: The processor in whose place it stands.
    """

    def __init__(self, holder: PassHolder, layer: int, original: SkyReelsV2AttnProcessor) -> None:
        self.holder = holder
        self.layer = layer
        self.original = original
        number = next(_NUMBERS)
        self.number = torch.tensor(number)
        _PROCESSORS[number] = self

    # diffusers sets these on processors to choose the attention backend and context parallelism.
    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.original._parallel_config = value

    def __call__(
        self,
        attn: SkyReelsV2Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        if not self.holder.attends_to_prefix:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if torch.compiler.is_compiling():
            output = _prefix_attention(query, key, value, rotary_emb, self.number)
        else:
            output = self.attend(query, key, value, rotary_emb)
        return attn.to_out[1](attn.to_out[0](output.flatten(2, 3)))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """Each block of the pass attends to itself, the blocks before it and the context; keeps what is to be kept.

        Args:
            query: ``[batch, tokens of the pass, heads, head_dim]``, before the rotary embedding.
            key: The same shape.
            value: The same shape.
            rotary: Complex ``[1, tokens of the pass, 1, head_dim / 2]``.

        Returns:
            The shape and type of ``query``.
        """
        request = self.holder.current_pass
        assert request is not None
        query, key = _rotate(query, rotary), _rotate(key, rotary)
        tokens = query.shape[1] // len(request.blocks)
        for i, block in enumerate(request.blocks):
            if block in request.keep:
                own = slice(i * tokens, (i + 1) * tokens)
                request.context.store(self.layer, block, key[:, own], value[:, own])
        outputs: list[torch.Tensor] = []
        past: tuple[int, ...] = ()
        keys, values = key, value
        for i, block in enumerate(request.blocks):
            held = request.context.before(block, request.blocks)
            if held != past:
                past_key, past_value = request.context.gather(self.layer, held, like=key)
                past, keys, values = held, torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
            reach = (len(past) + i + 1) * tokens
            outputs.append(
                dispatch_attention_fn(
                    query[:, i * tokens : (i + 1) * tokens],
                    keys[:, :reach],
                    values[:, :reach],
                    backend=self._attention_backend,
                    parallel_config=self._parallel_config,
                )
            )
        return torch.cat(outputs, dim=1).type_as(query)


def _rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, in the model's interleaved layout and, as there, in float32.

    Args:
        x: ``[batch, tokens, heads, head_dim]``.
        rotary: Complex ``[1, tokens, 1, head_dim / 2]``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(x)


# A captured CUDA graph would attend to the context of the row in which it was captured, for ever.
_TAGS = tuple(tag for name in ("cudagraph_unsafe",) if (tag := getattr(torch.Tag, name, None)) is not None)


@torch.library.custom_op("scope_runtime::prefix_attention", mutates_args=(), tags=_TAGS)
def _prefix_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    return _PROCESSORS[int(number)].attend(query, key, value, rotary).contiguous()


@_prefix_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
