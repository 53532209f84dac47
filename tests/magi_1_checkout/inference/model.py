"""The model of a stand-in for MAGI-1's official package: the same call contract, shapes and names, none of its code.

The model is analytic: its data are moving wave patterns with a little spread, and its velocity is the exact posterior
mean of the flow for a mixture of them. Text and attention over the chunks before say which pattern is likely, so
skipping, lost context and wrong guidance all show in what is generated. As in the official package there is no
`__init__.py` in the topmost folder.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import nn

PATTERNS = 5
SPREAD = 0.15


class InferenceParams:
    """Context of one request."""

    def __init__(self, max_batch_size: int, max_sequence_length: int) -> None:
        self.max_batch_size = max_batch_size
        self.max_sequence_length = max_sequence_length
        self.key_value_memory_dict: dict[int, torch.Tensor] = {}
        self.update_kv_cache = False


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(8, width)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.arange(1, 5)[None] * math.pi / 2
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class CaptionEmbedder(nn.Module):
    def __init__(self, length: int, channels: int, width: int) -> None:
        super().__init__()
        self.null_caption_embedding = nn.Parameter(0.1 * torch.randn(length, channels))
        self.y_proj_adaln = nn.Sequential(nn.Linear(channels, width))
        self.y_proj_xattn = nn.Linear(channels, PATTERNS)

    def caption_drop_single_token(self, dropped: torch.Tensor) -> torch.Tensor:
        null = self.null_caption_embedding
        return torch.where(dropped[:, None, None], null[None, -1], null[None, -2])


class Layer(nn.Module):
    def __init__(self, number: int, hidden: int, width: int) -> None:
        super().__init__()
        self.number = number
        self.ada_modulate_layer = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * hidden))
        self.self_attention = nn.Module()
        self.self_attention.linear_qkv = nn.Module()
        self.self_attention.linear_qkv.layer_norm = nn.LayerNorm(hidden)

    def forward(
        self,
        content: torch.Tensor,  # [batch, tokens, hidden]
        trust: torch.Tensor,  # [batch, tokens, 1], how clean the content is
        condition: torch.Tensor,  # [batch, tokens, width]
        place: torch.Tensor,  # [tokens, places], one-hot
        kv_range: torch.Tensor,
        inference_params: InferenceParams | None,
        meta: dict[str, Any],
    ) -> torch.Tensor:
        batch, tokens, hidden = content.shape
        normed = self.self_attention.linear_qkv.layer_norm(content)
        content = trust * content
        key = 6 * place.expand(batch, -1, -1) + 0.0 * normed[..., : place.shape[1]]
        stored = torch.cat([key, content], dim=-1).transpose(0, 1).flatten(0, 1).unsqueeze(1)  # [(s b), 1, k + v]
        ranges, own = meta["denoising_range_num"], tokens // meta["denoising_range_num"]
        if inference_params is not None and (
            meta.get("extract_prefix_video_feature") or meta["fwd_extra_1st_chunk"] or meta["slice_point"] > 0
        ):
            memory = inference_params.key_value_memory_dict.setdefault(
                self.number, torch.full((inference_params.max_sequence_length, *stored.shape[1:]), float("nan"))
            )
            start = meta["slice_point"] * own
            kept = memory[:start].clone()
            if inference_params.update_kv_cache:
                length = len(stored) - (own if meta.get("distill_nearly_clean_chunk") else 0)
                assert start + length <= len(memory)
                memory[start : start + length] = stored[:length]
            stored = torch.cat([kept, stored])
        assert not (batch > 1 and ranges > 1)
        read = []
        for i in range(ranges):
            first, end = kv_range[i].tolist()
            context = stored.reshape(-1, batch, stored.shape[-1]).transpose(0, 1)[:, first:end]
            assert context.shape[1] == end - first
            keys, values = context.split([place.shape[1], hidden], dim=-1)
            query = 6 * place[i * own : (i + 1) * own].expand(batch, -1, -1)
            read.append((query @ keys.transpose(1, 2) / 6).softmax(dim=-1) @ values)
        gate = self.ada_modulate_layer(condition).tanh().chunk(2, dim=-1)[0]
        return content + 0.5 * torch.cat(read, dim=1) * (1 + 0.3 * gate)


class VideoDiTModel(nn.Module):
    """The model; see `scope_runtime.adapters.magi_1` for what is relied on."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.model_config = config.model_config
        self.runtime_config = config.runtime_config
        self.engine_config = config.engine_config
        model, patch = self.model_config, self.model_config.patch_size
        hidden, width = model.hidden_size, int(model.hidden_size * model.cond_hidden_ratio)
        assert hidden == model.in_channels * patch**2
        self.x_embedder = nn.Conv3d(model.in_channels, hidden, (1, patch, patch), (1, patch, patch), bias=False)
        self.x_embedder.weight.data = torch.eye(hidden).reshape(self.x_embedder.weight.shape)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = CaptionEmbedder(model.caption_max_length, model.caption_channels, width)
        self.videodit_blocks = nn.Module()
        self.videodit_blocks.layers = nn.ModuleList(Layer(i, hidden, width) for i in range(model.num_layers))
        # Amplitude [patterns, channels], wave numbers and speed [patterns, 3], phase [patterns, channels].
        self.amplitude = nn.Parameter(0.6 + 0.6 * torch.rand(PATTERNS, model.in_channels))
        self.waves = nn.Parameter(torch.cat([2 * torch.rand(PATTERNS, 2) - 1, 0.25 * torch.rand(PATTERNS, 1)], dim=1))
        self.phase = nn.Parameter(2 * math.pi * torch.rand(PATTERNS, model.in_channels))

    def patterns(self, first_frame: int, shape: torch.Size) -> torch.Tensor:
        """The clean patterns [patterns, C, T, H, W] from an absolute frame on."""
        _, _, frames, height, width = shape
        h, w = torch.arange(height), torch.arange(width)
        t = first_frame + torch.arange(frames)
        u, v, speed = (self.waves[:, i, None, None, None, None] for i in range(3))
        angle = u * h[:, None] + v * w + speed * t[:, None, None]
        return self.amplitude[:, :, None, None, None] * torch.cos(angle + self.phase[:, :, None, None, None])

    def generate_kv_range_for_uncondition(self, uncond_x: torch.Tensor) -> torch.Tensor:
        """One range a batch entry, each over its own tokens [batch, 2]."""
        batch, _, frames, height, width = uncond_x.shape
        tokens = frames * (height // self.model_config.patch_size) * (width // self.model_config.patch_size)
        starts = torch.arange(batch, dtype=torch.int32) * tokens
        return torch.stack([starts, starts + tokens], dim=1)

    @torch.no_grad()
    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        caption_dropout_mask: torch.Tensor | None = None,
        xattn_mask: torch.Tensor | None = None,
        kv_range: torch.Tensor | None = None,
        inference_params: InferenceParams | None = None,
        **meta: Any,
    ) -> torch.Tensor:
        """Velocity [N, C, T, H, W] of ``denoising_range_num`` chunks."""
        batch, _, frames, _, _ = x.shape
        ranges = meta["denoising_range_num"]
        assert t.shape == (batch, ranges)
        assert len(y) == len(xattn_mask) == len(kv_range) == batch * ranges
        assert meta["range_num"] == meta["slice_point"] + ranges
        assert caption_dropout_mask.shape == (1,)
        chunk_frames = frames // ranges
        level = t.repeat_interleave(chunk_frames, dim=1)[:, None, :, None, None]  # [N, 1, T, 1, 1]

        content = self.x_embedder(x * self.model_config.x_rescale_factor)
        places = content.shape[3] * content.shape[4]
        tokens = content.flatten(3).permute(0, 2, 3, 1).flatten(1, 2)
        condition = self.t_embedder(t.flatten()).reshape(batch, ranges, -1)
        if self.engine_config.distill:
            steps = meta["num_steps"]
            jump = 4 / meta["distill_interval"] if steps == 12 else steps / 4
            condition = condition + self.t_embedder(torch.full((1,), 2.0 * jump))
        condition = condition + self.y_embedder.y_proj_adaln(
            self.y_embedder.caption_drop_single_token(caption_dropout_mask)
        )
        condition = condition.repeat_interleave(chunk_frames * places, dim=1)
        place = torch.eye(places).repeat(frames, 1)
        trust = level.flatten(1).repeat_interleave(places, dim=1).unsqueeze(-1)
        for layer in self.videodit_blocks.layers:
            tokens = layer(tokens, trust, condition, place, kv_range, inference_params, meta)
        # Back to [N, C, T, H, W]: what the chunk and its context look like.
        seen = tokens.unflatten(1, (frames, places)).transpose(2, 3).unflatten(3, content.shape[3:])
        seen = torch.pixel_shuffle(seen, self.model_config.patch_size).transpose(1, 2)

        clean = self.patterns(meta["slice_point"] * chunk_frames, x.shape)
        variance = level**2 * SPREAD**2 + (1 - level) ** 2
        distance = (x[:, None] - level[:, None] * clean[None]) ** 2 / (2 * variance[:, None])
        evidence = -self._per_chunk(distance, ranges) / 8  # tempered: real models are less sure
        evidence = evidence + 0.25 * self._per_chunk(seen[:, None] * clean[None], ranges) / 8
        evidence = evidence + self._text(y, xattn_mask).reshape(batch, ranges, PATTERNS)
        weights = evidence.softmax(dim=-1).repeat_interleave(chunk_frames, dim=1)  # [N, T, patterns]
        mean = torch.einsum("ntk,kcthw->ncthw", weights, clean)
        return mean + (level * SPREAD**2 - (1 - level)) / variance * (x - level * mean)

    @staticmethod
    def _per_chunk(values: torch.Tensor, ranges: int) -> torch.Tensor:
        """Sums [N, patterns, C, T, H, W] over each chunk: [N, ranges, patterns]."""
        return values.sum(dim=(2, 4, 5)).unflatten(2, (ranges, -1)).sum(dim=3).transpose(1, 2)

    def _text(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-weights [chunks, patterns] that the caption gives the patterns."""
        words = self.y_embedder.y_proj_xattn(y.squeeze(1).float())
        mask = mask.squeeze(1).float().unsqueeze(-1)
        return (words * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)

    def forward_dispatcher(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor,
        kv_range: torch.Tensor,
        inference_params: InferenceParams,
        **meta: Any,
    ) -> torch.Tensor:
        """Guided velocity, twice the same: [2, C, T, H, W]."""
        assert x.shape[0] == timestep.shape[0] == 2
        half, width, skipped = len(y) // 2, meta["chunk_width"], int(meta["fwd_extra_1st_chunk"])
        texts, nulls = (y[:half], mask[:half]), (y[half:], mask[half:])

        def run(text: tuple[torch.Tensor, torch.Tensor], dropped: bool, writes: bool) -> torch.Tensor:
            inference_params.update_kv_cache = writes
            return self.forward(
                x[:1], timestep[:1], text[0], torch.tensor([dropped]), text[1], kv_range, inference_params, **meta
            )

        if self.runtime_config.cfg_number == 1:
            return self._single(x, timestep, texts, kv_range, inference_params, meta)
        text, context = run(texts, False, False), run(nulls, True, True)
        count = meta["denoising_range_num"] - skipped
        chunks = torch.cat(x[:1, :, skipped * width :].split(width, dim=2))
        alone = {"slice_point": 0, "range_num": 1, "denoising_range_num": 1, "fwd_extra_1st_chunk": False}
        unconditional = self.forward(
            chunks,
            timestep[0, skipped:, None],
            nulls[0][skipped:],
            torch.tensor([True]),
            nulls[1][skipped:],
            self.generate_kv_range_for_uncondition(chunks),
            None,
            **meta | alone,
        )
        config = self.runtime_config
        scales = [torch.tensor(s) for s in (config.cfg_t_range, config.prev_chunk_scales, config.text_scales)]
        guided = x[:1].clone()
        for i in range(count):
            previous, words = self.get_cfg_scale(timestep[0, skipped + i], *scales)
            part = slice((skipped + i) * width, (skipped + i + 1) * width)
            guided[:, :, part] = (
                (1 - previous) * unconditional[i : i + 1]
                + (previous - words) * context[:, :, part]
                + words * text[:, :, part]
            )
        return torch.cat([guided, guided])

    def get_cfg_scale(
        self, t: torch.Tensor, cfg_t_range: torch.Tensor, prev_chunk_scale_s: torch.Tensor, text_scale_s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales of earlier chunks and of the text at ``t``."""
        index = int((cfg_t_range <= t + 1e-7).sum()) - 1
        return prev_chunk_scale_s[index], text_scale_s[index]

    def _single(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        texts: tuple[torch.Tensor, torch.Tensor],
        kv_range: torch.Tensor,
        inference_params: InferenceParams,
        meta: dict[str, Any],
    ) -> torch.Tensor:
        """One branch; a nearly clean first chunk is mixed with what it is without context."""
        width, front = meta["chunk_width"], int(meta["fwd_extra_1st_chunk"])
        inference_params.update_kv_cache = True
        inputs, levels, (words, word_mask) = x[:1], timestep[:1], texts
        count = meta["denoising_range_num"]
        near = meta.get("distill_nearly_clean_chunk", False)
        if near:
            copied = slice(front * width, (front + 1) * width)
            ranges = torch.cat([kv_range, self.generate_kv_range_for_uncondition(x[:1, :, copied]) + kv_range.max()])
            output = self.forward(
                torch.cat([inputs, x[:1, :, copied]], dim=2),
                torch.cat([levels, levels[:, front : front + 1]], dim=1),
                torch.cat([words, words[front : front + 1]]),
                torch.tensor([False]),
                torch.cat([word_mask, word_mask[front : front + 1]]),
                ranges,
                inference_params,
                **meta | {"denoising_range_num": count + 1, "range_num": meta["range_num"] + 1},
            )
            output, alone = output.split([count * width, width], dim=2)
            output = output.clone()
            share = float(os.environ.get("prev_chunks_scale", "0.7"))  # noqa: SIM112 - the official name
            output[:, :, copied] = share * output[:, :, copied] + (1 - share) * alone
        else:
            output = self.forward(
                inputs, levels, words, torch.tensor([False]), word_mask, kv_range, inference_params, **meta
            )
        output = torch.cat([x[:1, :, : front * width], output[:, :, front * width :]], dim=2)
        return torch.cat([output, output])
