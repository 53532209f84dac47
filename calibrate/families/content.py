"""What a model is made of, told apart by content: however its folder is laid out, and whatever else lies in there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from calibrate.files import digest

# What a configuration says about where it was read from and by which version, and not about the model.
_INCIDENTAL = ("transformers_version", "dtype", "torch_dtype", "architectures")


def parts_of(components: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each part of a loaded pipeline: every bit of its weights, its configuration, its vocabulary.

    Takes as long as reading the weights once more: they are hashed by as many threads as there are cores.

    Args:
        components: Of a diffusers pipeline: models, schedulers and tokenizers, by name; None is left out.
    """
    return {name: _part(part) for name, part in components.items() if part is not None}


def module_digest(module: torch.nn.Module) -> str:
    """A digest of a module's parameters and buffers, every bit of them, and of its configuration if it has one."""
    with ThreadPoolExecutor() as threads:
        state = module.state_dict()
        tensors = dict(zip(state, threads.map(_tensor_digest, state.values()), strict=True))
    return digest({"class": type(module).__name__, "config": _config(module), "tensors": tensors})


def _part(part: Any) -> str:
    if isinstance(part, torch.nn.Module):
        return module_digest(part)
    if hasattr(part, "config"):
        return digest({"class": type(part).__name__, "config": _config(part)})
    return digest({"class": type(part).__name__, "saved": _saved(part)})


@torch.no_grad()
def _tensor_digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    content.update(flat.view(torch.uint8).numpy().data)
    return content.hexdigest()


def _config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", {})
    # A configuration of transformers also knows its defaults, which change from version to version.
    plain = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    kept = {name: value for name, value in plain.items() if not name.startswith("_") and name not in _INCIDENTAL}
    return {name: value if isinstance(value, (int, float, str, bool)) else repr(value) for name, value in kept.items()}


def _saved(part: Any) -> dict[str, str]:
    """What a tokenizer writes when it is saved, by file."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
