"""What a SkyReels-V2 pipeline really runs: the one place that looks, when attaching and before every generation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2AttnProcessor,
    SkyReelsV2Transformer3DModel,
)
from torch.nn.modules.dropout import _DropoutNd

from scope_runtime.adapters._hooks import storage_dtype, stored_tensors
from scope_runtime.adapters._strangers import strangers
from scope_runtime.errors import AttachError
from scope_runtime.identity import ModelState, adapters_of
from scope_runtime.schedule import window_lengths
from scope_runtime.settings import Scheduler


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
    if hasattr(transformer, "_orig_mod") or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise AttachError(
            "pipe.transformer is compiled as a whole, so its calls cannot be answered without running it: compile "
            "its blocks instead, with pipe.transformer.compile_repeated_blocks()"
        )
    if not isinstance(transformer, SkyReelsV2Transformer3DModel):
        raise AttachError(
            f"pipe.transformer is a {type(transformer).__name__}, not a SkyReelsV2Transformer3DModel: "
            "attach before wrapping the transformer"
        )
    if holder is None and HookRegistry.check_if_exists_or_initialize(transformer).get_hook(hook) is not None:
        raise AttachError("this pipeline is already accelerated by scope_runtime: close the other scope first")
    if transformer.is_cache_enabled:
        raise AttachError(
            f"another cache is enabled on the transformer ({type(transformer._cache_config).__name__}): "
            "call pipe.transformer.disable_cache() first"
        )
    if holder is not None:
        _refuse_other_processors(transformer, processors)
    _refuse_unknown_processors(transformer, cross_only=holder is not None)
    modules = dict(transformer.named_modules())
    if any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in modules.values()):
        raise AttachError(
            "the transformer is in training mode and has dropout, so no two calls of it give the same: call "
            "pipe.transformer.eval() first"
        )
    layers = [layer for block in transformer.blocks for layer in (block, block.attn1, block.attn2, block.ffn)]
    found = strangers(modules, [transformer, *layers], holder, hook)
    if found.answering:
        more = f" (and {len(found.answering) - 1} more)" if len(found.answering) > 1 else ""
        raise AttachError(
            f"something else may answer calls of the model: {found.answering[0]}{more}. Two that leave out "
            "computation cannot run together: take it off first, or run without scope_runtime"
        )
    return found.altering


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


def model_state(transformer: Any) -> ModelState:
    """What the model consists of now."""
    modules = dict(transformer.named_modules())
    return ModelState.of(modules, model_config(transformer), stored_tensors(modules))


def model_config(transformer: Any) -> dict[str, Any]:
    """What of a configuration makes a model the one it is."""
    # Private keys hold paths and versions; the block size is a call argument that the pipeline writes there.
    return {k: v for k, v in transformer.config.items() if not k.startswith("_") and k != "num_frame_per_block"}


def dtype_of(pipe: Any) -> str:
    """What the transformer computes in, and what it makes that of where that is something else."""
    computed = pipe.transformer.dtype
    described = str(computed)
    stored, device = storage_dtype(pipe.transformer), pipe._execution_device.type
    if stored not in (None, computed):
        described += f" from {stored} (layerwise casting)"
    if torch.is_autocast_enabled(device):
        described += f" under autocast to {torch.get_autocast_dtype(device)}"
    return described.replace("torch.", "")


def lora_scale(transformer: Any, attention_kwargs: Mapping[str, Any] | None) -> float:
    """What a call multiplies the scales of adapters by; 1 where there are none."""
    scale = float((attention_kwargs or {}).get("scale", 1.0))
    return scale if scale == 1 or adapters_of(dict(transformer.named_modules())) else 1.0


def describe_scheduler(scheduler: Any) -> Scheduler:
    """What a scheduler does, read off the one that does it; its noise levels are those of its last `set_timesteps`."""
    own = vars(scheduler)
    # Some keys are attributes as well, and then it is the attribute that steps read.
    config = {key: _plain(own.get(key, value)) for key, value in scheduler.config.items() if not key.startswith("_")}
    config |= {name: "replaced" for name in own if callable(getattr(type(scheduler), name, None))}
    for method in (type(scheduler).step, type(scheduler).set_timesteps):
        if method.__module__.partition(".")[0] != "diffusers":
            config[method.__name__] = f"{method.__module__}.{method.__qualname__}"
    parameters = inspect.signature(type(scheduler).__init__).parameters
    defaults = {k: v for k, v in config.items() if k in parameters and v == _plain(parameters[k].default)}
    sigmas = [float(f"{sigma:.7g}") for sigma in scheduler.sigmas.tolist()]  # float32 has no more digits
    return Scheduler(
        name=type(scheduler).__name__,
        config={key: value for key, value in config.items() if key not in defaults},
        defaults=defaults,
        sigmas=tuple(sigmas) if all(map(math.isfinite, sigmas)) else (),
    )


def _plain(value: Any) -> Any:
    """A value of a configuration as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else type(value).__name__


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
