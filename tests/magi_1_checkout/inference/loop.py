"""The denoising loop over a window of chunks that stand at different noise levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from inference.model import InferenceParams
from inference.pipeline.prompt_process import get_negative_special_token_keys, get_special_token_keys, with_tokens
from tqdm import tqdm

_SHORTCUTS = {"16,16,8": ((0, 1, 2), (1, 1, 2)), "8,16,16": ((0, 2, 3), (2, 1, 1))}
"""Of every four steps the three that are made with 12 steps, and how many each stands for."""


def times_of(num_steps: int, shortcut_mode: str = "8,16,16") -> torch.Tensor:
    """t from 0 (noise) to 1 (clean)."""
    t = torch.linspace(0, 1, num_steps + 1)
    if num_steps == 12:
        made, _ = _SHORTCUTS[shortcut_mode]
        t = torch.tensor([(4 * k + m) / 16 for k in range(4) for m in made] + [1.0])
    t = t**2
    return (1 / 3) * t / (1 + (1 / 3 - 1) * t)


def intervals_of(num_steps: int, shortcut_mode: str) -> torch.Tensor:
    """How many steps of the full grid each step stands for."""
    if num_steps % 3:
        return torch.ones(num_steps)
    _, stands_for = _SHORTCUTS[shortcut_mode]
    return torch.tensor(stands_for * (num_steps // 3))


def generate_per_chunk(
    model: Any, prefix_video: torch.Tensor | None, caption_embs: torch.Tensor, emb_masks: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yields clean chunks [1, C, chunk_width, H, W] as they are completed.

    Args:
        model: The model.
        prefix_video: Latents [1, C, T, H, W] to start from, or None.
        caption_embs: [1, 1, L, channels].
        emb_masks: [1, L].
    """
    runtime, config = model.runtime_config, model.model_config
    width, window, steps = runtime.chunk_width, runtime.window_size, runtime.num_steps
    given = 0 if prefix_video is None else prefix_video.shape[2]
    prefix = given // width
    chunks = math.ceil((runtime.num_frames // runtime.temporal_downsample_factor + given) / width)
    null = model.y_embedder.null_caption_embedding.detach().expand(1, chunks, -1, -1)
    null_mask = torch.ones(1, chunks, null.shape[2])
    text, text_mask = caption_embs.repeat(1, chunks, 1, 1), emb_masks[:, None].repeat(1, chunks, 1)
    text[:, prefix:], text_mask[:, prefix:] = with_tokens(
        get_special_token_keys(), text[:, prefix:], text_mask[:, prefix:]
    )
    null, null_mask = with_tokens(get_negative_special_token_keys() or [], null, null_mask)
    text[:, :prefix], text_mask[:, :prefix] = null[:, :prefix], 0
    y, mask = torch.cat([text, null]), torch.cat([text_mask, null_mask])

    height, breadth = runtime.video_size_h // 8, runtime.video_size_w // 8
    x = torch.randn(1, config.in_channels, chunks * width, height, breadth).repeat(2, 1, 1, 1, 1)
    tokens = width * (height // config.patch_size) * (breadth // config.patch_size)
    inference_params = InferenceParams(1, chunks * tokens)
    shortcut = model.engine_config.shortcut_mode
    times, intervals, per_stage = times_of(steps, shortcut), intervals_of(steps, shortcut), steps // window
    shared = {"inference_params": inference_params, "chunk_width": width, "num_steps": steps}
    bar = tqdm(total=chunks - prefix, desc="chunks")

    if prefix:
        reach = runtime.clean_chunk_kvrange
        model.forward_dispatcher(
            x=prefix_video[:, :, : prefix * width].repeat(2, 1, 1, 1, 1),
            timestep=torch.full((2, prefix), runtime.clean_t),
            y=y[1:, :prefix].repeat(2, 1, 1, 1).flatten(0, 1).unsqueeze(1),
            mask=mask[1:, :prefix].repeat(2, 1, 1).flatten(0, 1).unsqueeze(1),
            kv_range=tokens * torch.tensor([[max(0, c + 1 - reach), c + 1] for c in range(prefix)]).int(),
            slice_point=0,
            range_num=prefix,
            denoising_range_num=prefix,
            fwd_extra_1st_chunk=False,
            extract_prefix_video_feature=True,
            distill_interval=intervals[0],
            **shared,
        )
    for stage in range(prefix, chunks + window - 1):
        first, end = max(prefix, stage - window + 1), min(chunks, stage + 1)
        for i in range(per_stage):
            index = [(stage - c) * per_stage + i for c in range(first, end)]
            extra = first > prefix and i == 0
            start = first - extra
            inputs = x[:, :, start * width : end * width].clone()
            if given > start * width:
                inputs[:, :, : given - start * width] = prefix_video[:, :, start * width :]
            words, words_mask = y[:, first:end], mask[:, first:end]
            if extra:
                words = torch.cat([y[1:, :1].expand(2, -1, -1, -1), words], dim=1)
                words_mask = torch.cat([mask[1:, 1:2].expand(2, -1, -1), words_mask], dim=1)
            t = torch.cat([torch.full((int(extra),), runtime.clean_t), times[index]])
            reaches = [runtime.clean_chunk_kvrange] * extra + [
                runtime.noise2clean_kvrange[k // (steps // len(runtime.noise2clean_kvrange))] for k in index
            ]
            velocity = model.forward_dispatcher(
                x=inputs,
                timestep=t.repeat(2, 1),
                y=words.flatten(0, 1).unsqueeze(1),
                mask=words_mask.flatten(0, 1).unsqueeze(1),
                kv_range=tokens
                * torch.tensor([[max(0, start + j + 1 - r), start + j + 1] for j, r in enumerate(reaches)]).int(),
                slice_point=start,
                range_num=end,
                denoising_range_num=end - start,
                fwd_extra_1st_chunk=extra,
                distill_nearly_clean_chunk=float(t[int(extra)])
                > model.engine_config.distill_nearly_clean_chunk_threshold,
                distill_interval=intervals[i],
                **shared,
            )
            step = (times[[k + 1 for k in index]] - times[index]).repeat_interleave(width)[:, None, None]
            active = slice(first * width, end * width)
            x[:, :, active] = inputs[:, :, extra * width :] + velocity[:, :, extra * width :] * step
        if stage - first == window - 1:
            kept = first * width if given == 1 else max(given, first * width)
            bar.update()
            yield x[:1, :, kept : (first + 1) * width].clone()
    bar.close()
