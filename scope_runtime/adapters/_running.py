"""What a diffusers pipeline really runs: the one place that looks, when attaching and before every generation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from scope_runtime.adapters._hooks import storage_dtype, stored_tensors
from scope_runtime.adapters._strangers import strangers
from scope_runtime.errors import AttachError
from scope_runtime.identity import ModelState, adapters_of
from scope_runtime.settings import Scheduler


def refuse_kind(transformer: Any, kind: type[torch.nn.Module], hook: str, *, held: bool) -> None:
    """Refuses a transformer whose calls cannot be answered, or that others answer already.

    Args:
        transformer: The pipeline's.
        kind: What it has to be.
        hook: Name of the attachment's own hook.
        held: Whether the attachment holds this transformer already.

    Raises:
        AttachError: Naming what is in the way, and the mend.
    """
    if hasattr(transformer, "_orig_mod") or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise AttachError(
            "pipe.transformer is compiled as a whole, so its calls cannot be answered without running it: compile "
            "its blocks instead, with pipe.transformer.compile_repeated_blocks()"
        )
    if not isinstance(transformer, kind):
        raise AttachError(
            f"pipe.transformer is a {type(transformer).__name__}, not a {kind.__name__}: "
            "attach before wrapping the transformer"
        )
    if not held:
        refuse_accelerated(transformer, hook)
    if transformer.is_cache_enabled:
        raise AttachError(
            f"another cache is enabled on the transformer ({type(transformer._cache_config).__name__}): "
            "call pipe.transformer.disable_cache() first"
        )


def refuse_accelerated(transformer: torch.nn.Module, hook: str) -> None:
    """Refuses a transformer that another attachment holds, by the name of its hook; raises `AttachError`."""
    registry = vars(transformer).get("_diffusers_hook")
    if registry is not None and registry.get_hook(hook) is not None:
        raise AttachError("this pipeline is already accelerated by scope_runtime: close the other scope first")


def refuse_others(
    transformer: torch.nn.Module, layers: Collection[torch.nn.Module], hook: str, holder: Any = None
) -> list[str]:
    """Refuses a transformer of which two calls do not give the same, or that others answer already.

    Args:
        transformer: The pipeline's.
        layers: What in it a cache can stand in for.
        hook: Name of the attachment's own hook.
        holder: The attachment, where it holds this transformer already.

    Returns:
        What others do to what the model computes, one phrase each: the model is another one with them.

    Raises:
        AttachError: Naming what is in the way, and the mend.
    """
    modules = dict(transformer.named_modules())
    if any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in modules.values()):
        raise AttachError(
            "the transformer is in training mode and has dropout, so no two calls of it give the same: call "
            "pipe.transformer.eval() first"
        )
    found = strangers(modules, [transformer, *layers], holder, hook)
    if found.answering:
        more = f" (and {len(found.answering) - 1} more)" if len(found.answering) > 1 else ""
        raise AttachError(
            f"something else may answer calls of the model: {found.answering[0]}{more}. Two that leave out "
            "computation cannot run together: take it off first, or run without scope_runtime"
        )
    return found.altering


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
