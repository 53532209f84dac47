"""Stock masked attention against per-block prefix attention, on one layer's queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.profiler import ProfilerActivity, profile

from studies.bench.timing import interleaved

BLOCKS = 5
FRAMES_PER_BLOCK = 5
HEADS, HEAD_DIM = 4, 32
TOKENS_PER_FRAME = (16, 64, 144, 256)
"""The largest are 6,400 tokens; a clip of 544x960 and 97 frames has 51,000."""


def measure(repeats: int) -> list[dict[str, Any]]:
    """One line per sequence length: seconds, peak bytes allocated, ratios, largest difference."""
    return [_measure_length(tokens, repeats) for tokens in TOKENS_PER_FRAME]


@torch.no_grad()
def _measure_length(tokens_per_frame: int, repeats: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    length = BLOCKS * FRAMES_PER_BLOCK * tokens_per_frame
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, length, HEADS, HEAD_DIM, generator=generator).to(device, dtype) for _ in range(3)
    )

    def masked() -> torch.Tensor:
        return dispatch_attention_fn(query, key, value, attn_mask=stock_mask(tokens_per_frame, device))

    def prefix() -> torch.Tensor:
        step = FRAMES_PER_BLOCK * tokens_per_frame
        parts = [
            dispatch_attention_fn(
                query[:, i * step : (i + 1) * step], key[:, : (i + 1) * step], value[:, : (i + 1) * step]
            )
            for i in range(BLOCKS)
        ]
        return torch.cat(parts, dim=1)

    seconds = interleaved({"masked": masked, "prefix": prefix}, repeats)
    memory = {"masked": _peak_bytes(masked, device), "prefix": _peak_bytes(prefix, device)}
    return {
        "tokens": length,
        "masked_seconds": seconds["masked"],
        "prefix_seconds": seconds["prefix"],
        "speedup": seconds["masked"] / seconds["prefix"],
        "masked_peak_bytes": memory["masked"],
        "prefix_peak_bytes": memory["prefix"],
        "memory_ratio": memory["masked"] / memory["prefix"],
        "max_abs_diff": float((masked() - prefix()).abs().max()),
        "device": device.type,
    }


def stock_mask(tokens_per_frame: int, device: torch.device) -> torch.Tensor:
    """The dense mask that the stock transformer builds in every call, ``[1, 1, tokens, tokens]``."""
    blocks = torch.arange(BLOCKS, device=device).repeat_interleave(FRAMES_PER_BLOCK)
    frames = blocks.unsqueeze(0) <= blocks.unsqueeze(1)
    return frames.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)[None, None]


def _peak_bytes(run: Any, device: torch.device) -> int:
    """Most memory that was allocated at once beyond the inputs."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
