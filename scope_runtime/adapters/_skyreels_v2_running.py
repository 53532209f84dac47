"""What is peculiar to a running SkyReels-V2 pipeline: whose attention it is, and what windows a call has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2AttnProcessor,
    SkyReelsV2Transformer3DModel,
)

from scope_runtime.adapters._running import refuse_kind, refuse_others
from scope_runtime.errors import AttachError
from scope_runtime.schedule import window_lengths


def refuse(transformer: Any, hook: str, holder: Any = None, processors: Sequence[Any] = ()) -> list[str]:
    """Refuses a transformer that cannot be run exactly.

    Args:
        transformer: The pipeline's.
        hook: Name of the attachment's own hook.
        holder: The attachment, where it holds this transformer already.
        processors: Those that it has put on the transformer's self-attention, one per block.

    Returns:
        What others do to what the model computes, one phrase each: with these exact mode is exact, but the model is
        another one.

    Raises:
        AttachError: Naming what is in the way, and the mend.
    """
    refuse_kind(transformer, SkyReelsV2Transformer3DModel, hook, held=holder is not None)
    if holder is not None:
        _refuse_other_processors(transformer, processors)
    _refuse_unknown_processors(transformer, cross_only=holder is not None)
    layers = [layer for block in transformer.blocks for layer in (block, block.attn1, block.attn2, block.ffn)]
    return refuse_others(transformer, layers, hook, holder)


def _refuse_other_processors(transformer: Any, processors: Sequence[Any]) -> None:
    """Refuses what has been put in the place of the attachment's own."""
    for i, (block, own) in enumerate(zip_longest(transformer.blocks, processors)):
        if block is None or block.attn1.processor is not own:
            now = f"its self-attention has a {type(block.attn1.processor).__name__}" if block is not None else "is gone"
            raise AttachError(
                f"blocks.{i} was changed while the pipeline was accelerated ({now}): close the scope and attach again"
            )


def _refuse_unknown_processors(transformer: Any, *, cross_only: bool) -> None:
    for i, block in enumerate(transformer.blocks):
        for attention in (block.attn2,) if cross_only else (block.attn1, block.attn2):
            kind = type(attention.processor)
            if kind is not SkyReelsV2AttnProcessor or kind.__call__.__module__ != kind.__module__:
                raise AttachError(
                    f"the attention of blocks.{i} uses {kind.__name__}, which this adapter does not know as it is: "
                    "restore SkyReelsV2AttnProcessor first"
                )


def windows_of_call(pipe: Any, given: dict[str, Any], block: int) -> tuple[int, int, int]:
    """What a call's windows are like.

    Args:
        pipe: The pipeline.
        given: All arguments of the call.
        block: Latent frames per block.

    Returns:
        Frames of the first window, frames of the last, and with how many finished latent frames a window starts.
    """
    scale = pipe.vae_scale_factor_temporal

    def latent(frames: int) -> int:
        return (frames - 1) // scale + 1

    # The pipeline rounds the whole video, up or down, and its windows down.
    whole = given["num_frames"] // scale * scale + 1
    overlap = None if given["overlap_history"] is None else latent(given["overlap_history"])
    lengths = [*window_lengths(latent(whole), latent(given["base_num_frames"] or whole), overlap)]
    ready = 1 if given.get("image") is not None else 0
    if overlap is not None and (len(lengths) > 1 or given.get("video") is not None):
        ready = max(ready, overlap - overlap % block)
    if given.get("last_image") is not None:
        lengths[-1] += ready  # its frames stand behind those that are asked for
    # Frames behind the last whole block are never denoised.
    first, last = ((max(block, n - n % block) - 1) * scale + 1 for n in (lengths[0], lengths[-1]))
    return first, last, ready
