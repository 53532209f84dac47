"""MAGI-1 for tests: the stand-in of our own, or the official package where a checkout is named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from calibrate.families.magi_1.checkout import forget_package, import_pipeline
from scope_runtime import ModelIdentity, Policy, Profile, Settings

STAND_IN = Path(__file__).parent / "magi_1_checkout"
CHECKOUT = os.environ.get("MAGI_1_PATH")
needs_checkout = pytest.mark.skipif(
    not CHECKOUT, reason="MAGI_1_PATH names no checkout of github.com/SandAI-org/MAGI-1: its own code was not run"
)
TWICE = Policy(warmup=2, max_skip=2)

MODEL: dict[str, Any] = {
    "model_name": "stand-in", "num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 16, "num_attention_heads": 1,
    "num_query_groups": 1, "kv_channels": 20, "x_rescale_factor": 1.0, "half_channel_vae": False,
    "params_dtype": "torch.float32", "patch_size": 2, "t_patch_size": 1, "in_channels": 4, "out_channels": 4,
    "cond_hidden_ratio": 0.5, "caption_channels": 8, "caption_max_length": 12,
}  # fmt: skip
RUNTIME: dict[str, Any] = {
    "cfg_number": 3, "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999], "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
    "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0], "noise2clean_kvrange": [5, 4, 3, 2], "clean_chunk_kvrange": 1,
    "clean_t": 0.9999, "seed": 1234, "num_frames": 48, "video_size_h": 32, "video_size_w": 32, "num_steps": 32,
    "window_size": 4, "fps": 24, "chunk_width": 2, "load": None, "t5_pretrained": "t5", "t5_device": "cpu",
    "vae_pretrained": "vae", "scale_factor": 0.18215, "temporal_downsample_factor": 4,
}  # fmt: skip
ENGINE: dict[str, Any] = {
    "distributed_backend": "gloo", "distributed_timeout_minutes": 15, "pp_size": 1, "cp_size": 1, "cp_strategy": "none",
    "ulysses_overlap_degree": 1, "fp8_quant": False, "distill_nearly_clean_chunk_threshold": 0.3,
    "shortcut_mode": "8,16,16", "distill": False, "kv_offload": False, "enable_cuda_graph": False,
}  # fmt: skip
"""Six chunks of two latent frames, four at a time, 32 updates each."""


def config_json(**changes: Any) -> dict[str, dict[str, Any]]:
    """The configuration file's content; ``changes`` are fields of any of its parts."""
    parts = {"model_config": MODEL, "runtime_config": RUNTIME, "engine_config": ENGINE}
    changed = {name: {k: changes.pop(k, v) for k, v in part.items()} for name, part in parts.items()}
    assert not changes, f"no such fields: {changes}"
    if changed["runtime_config"]["cfg_number"] == 1:
        changed["engine_config"]["distill"] = True
    return changed


_IMPORTED: dict[Path, dict[str, ModuleType]] = {}


@contextmanager
def imported(checkout: Path) -> Iterator[ModuleType]:
    """`inference.pipeline.pipeline` of a checkout, and afterwards whatever was there before.

    Each checkout is imported once, and only one of them is there at a time, in whatever order tests come.
    """
    with set_aside():
        sys.modules.update(_IMPORTED.get(checkout, {}))
        try:
            yield import_pipeline(checkout)
        finally:
            _IMPORTED[checkout] = forget_package()


@contextmanager
def set_aside() -> Iterator[None]:
    """No package of that name has been imported, and afterwards whatever was there before."""
    kept = forget_package()
    try:
        yield
    finally:
        forget_package()
        sys.modules.update(kept)


class Magi:
    """A model with what it takes to generate.

    Args:
        package: `inference.pipeline.pipeline` of the stand-in or of the official code.
        model: Built by it.
        encode: Gives a prompt's embeddings and mask; None takes the package's own.
    """

    def __init__(self, package: ModuleType, model: Any, encode: Any = None) -> None:
        self.package = package
        self.model = model
        self.encode = encode or package.get_txt_embeddings

    @classmethod
    def stand_in(cls, package: ModuleType, **changes: Any) -> Magi:
        parts = config_json(**changes)
        parts["model_config"]["params_dtype"] = torch.float32
        config = package.MagiConfig(**{name: SimpleNamespace(**part) for name, part in parts.items()})
        return cls(package, package.get_dit(config))

    def prefix(self, frames: int) -> torch.Tensor:
        """Latents of a given video [1, C, frames, h, w]."""
        runtime, config = self.model.runtime_config, self.model.model_config
        size = (1, config.in_channels, frames, runtime.video_size_h // 8, runtime.video_size_w // 8)
        return torch.randn(size, generator=torch.Generator().manual_seed(7))

    def chunks(
        self, prompt: str = "a red circle moving left", seed: int = 0, prefix: int = 0
    ) -> Iterator[torch.Tensor]:
        """Generates chunk by chunk with ``prefix`` given latent frames."""
        embeddings, masks = self.encode(prompt, self.model)
        given = self.prefix(prefix) if prefix else None
        chunks = self.package.generate_per_chunk(self.model, given, embeddings, masks)
        torch.manual_seed(seed)
        while True:
            with torch.inference_mode():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk.clone()

    def latents(self, **call: Any) -> torch.Tensor:
        """All chunks of `chunks`: [1, C, generated frames, h, w]."""
        return torch.cat(list(self.chunks(**call)), dim=2)


def psnr(ours: torch.Tensor, stock: torch.Tensor) -> float:
    return float(10 * torch.log10(stock.abs().max() ** 2 / ((ours - stock) ** 2).mean()))


def counted(magi: Magi, **call: Any) -> tuple[torch.Tensor, int]:
    """Latents, and how many chunks really went through the model, branches counted separately."""
    forward, count = magi.model.forward, 0

    def count_and_run(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal count
        count += x.shape[0] * x.shape[2] // magi.model.runtime_config.chunk_width
        return forward(x, *args, **options)

    magi.model.forward = count_and_run
    try:
        return magi.latents(**call), count
    finally:
        del magi.model.forward


def profile_of(magi: Magi, policy: Policy = TWICE) -> Profile:
    """A profile for what the model would run with."""
    figures = (
        "speedup_evaluations", "speedup_denoise", "speedup_end_to_end", "psnr_db", "psnr_worst_prompt_db",
        "psnr_worst_frame_db", "ssim", "n",
    )  # fmt: skip
    return Profile(
        policy, Settings.of(magi.model), ModelIdentity.of(magi.model), dict.fromkeys(figures, 1.0) | {"n": 1}
    )


def save_checkout(folder: Path, **changes: Any) -> Path:
    """Writes the stand-in with a configuration and weights as in an official checkout; returns the folder."""
    shutil.copytree(STAND_IN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    with imported(STAND_IN) as package:
        weights = Magi.stand_in(package, **changes).model.state_dict()
    parts = config_json(
        **changes | {"load": "downloads/base", "t5_pretrained": "downloads/t5", "vae_pretrained": "downloads/vae"}
    )
    kind = "inference_weight.distill" if parts["engine_config"]["distill"] else "inference_weight"
    for part in ("base/" + kind, "t5", "vae"):
        (folder / "downloads" / part).mkdir(parents=True)
        save_file(weights, folder / "downloads" / part / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(parts))
    return folder
