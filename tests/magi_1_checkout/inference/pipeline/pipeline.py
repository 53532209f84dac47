"""From a configuration and a prompt to frames."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from inference.loop import generate_per_chunk
from inference.model import VideoDiTModel
from safetensors.torch import load_file

_PIXELS, _FRAMES = 8, 4


class MagiConfig(SimpleNamespace):
    """`model_config`, `runtime_config` and `engine_config`."""

    @classmethod
    def from_json(cls, path: str) -> MagiConfig:
        parts = json.loads(Path(path).read_text())
        parts["model_config"]["params_dtype"] = getattr(torch, parts["model_config"]["params_dtype"].split(".")[1])
        return cls(**{name: SimpleNamespace(**part) for name, part in parts.items()})


def dist_init(config: Any) -> None:
    """One process needs nothing."""


def get_dit(config: Any) -> VideoDiTModel:
    """Builds the model and loads its weights, or draws them where none are named."""
    random_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = VideoDiTModel(config).eval()
    finally:
        torch.random.set_rng_state(random_state)
    if config.runtime_config.load:
        kind = "inference_weight.distill" if config.engine_config.distill else "inference_weight"
        model.load_state_dict(load_file(Path(config.runtime_config.load) / kind / "model.safetensors"))
    return model


def get_txt_embeddings(prompt: str, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Caption embeddings [1, 1, L, channels] and mask [1, L]."""
    length, channels = config.model_config.caption_max_length, config.model_config.caption_channels
    words = prompt.split()[:length]
    embeddings = torch.zeros(1, 1, length, channels)
    for i, word in enumerate(words):
        generator = torch.Generator().manual_seed(int.from_bytes(word.encode()[:7], "little"))
        embeddings[0, 0, i] = 2 * torch.randn(channels, generator=generator)
    return embeddings, (torch.arange(length) < len(words)).float().unsqueeze(0)


def post_chunk_process(chunk: torch.Tensor, config: Any) -> torch.Tensor:
    """Frames [T, 3, H, W], uint8."""
    frames = chunk[0, :3].transpose(0, 1).repeat_interleave(_FRAMES, dim=0)
    frames = torch.nn.functional.interpolate(frames, scale_factor=_PIXELS, mode="bilinear")
    return (frames * 40 + 127.5).clamp(0, 255).to(torch.uint8)


class MagiPipeline:
    """Text to a file of raw frames."""

    def __init__(self, config_path: str) -> None:
        self.config = MagiConfig.from_json(config_path)
        dist_init(self.config)

    def run_text_to_video(self, prompt: str, output_path: str) -> None:
        self._run(prompt, None, output_path)

    def _run(self, prompt: str, prefix_video: torch.Tensor | None, output_path: str) -> None:
        embeddings, masks = get_txt_embeddings(prompt, self.config)
        model = get_dit(self.config)
        torch.manual_seed(self.config.runtime_config.seed)
        chunks = generate_per_chunk(model, prefix_video, embeddings, masks)
        frames = torch.cat([post_chunk_process(chunk, self.config) for chunk in chunks])
        Path(output_path).write_bytes(frames.numpy().tobytes())
