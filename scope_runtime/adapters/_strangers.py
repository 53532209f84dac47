"""What others have put on a model: caches, patched forwards, hooks. Offloading and its like are no strangers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING,
    _LAYER_EXECUTION_TRACKER,
    _LAZY_PREFETCH_GROUP_OFFLOADING,
)
from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK, _PEFT_AUTOCAST_DISABLE_HOOK

# Hooks of diffusers that change where weights are and what they are stored in, and nothing else.
_HARMLESS = (
    _GROUP_OFFLOADING,
    _LAYER_EXECUTION_TRACKER,
    _LAZY_PREFETCH_GROUP_OFFLOADING,
    _LAYERWISE_CASTING_HOOK,
    _PEFT_AUTOCAST_DISABLE_HOOK,
)
# Whose attention processors are no strangers.
_KNOWN = {"diffusers", "scope_runtime"}
# Longer than any chain of wrappers around one forward.
_LONGEST_CHAIN = 100


@dataclass
class Strangers:
    """What others have put on a model.

    Attributes:
        answering: What may answer a call without computing it, or compute it over all tokens in its own way: with only
            some blocks in a pass, that can be exact no longer.
        altering: What may change what is computed. It is asked for every block that is computed, so exact mode stays
            exact if it treats every token alike; the model is another one.
    """

    answering: list[str] = field(default_factory=list)
    altering: list[str] = field(default_factory=list)


def strangers(
    modules: Mapping[str, torch.nn.Module], parts: Collection[torch.nn.Module], own: Any, own_hook: str
) -> Strangers:
    """Looks for what others have put on a model.

    Args:
        modules: The model (its name is empty) and all that is in it, by name.
        parts: What a cache can stand in for: the model, its blocks, their attention and feed-forward layers.
        own: Whose methods are no strangers.
        own_hook: Nor is diffusers' hook of this name.
    """
    found = Strangers()
    known = {id(part) for part in parts}
    for name, module in modules.items():
        entries = vars(module)
        where = f"transformer.{name}" if name else "transformer"
        registry = entries.get("_diffusers_hook")
        hooks = registry.hooks if registry is not None else ()
        found.answering += [f"hook {hook!r} on {where}" for hook in hooks if hook not in (*_HARMLESS, own_hook)]
        forward = _strange_forward(module, in_parts=id(module) in known)
        if forward is not None:
            place = f"{where}.forward, which is {_place(forward)}"
            (found.answering if id(module) in known else found.altering).append(place)
        processor = getattr(module, "processor", None)
        if callable(processor) and _strange_class(type(processor)):
            found.altering.append(f"attention processor {_place(processor)} on {where}")
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for hook in entries[kind].values():
                if getattr(hook, "__self__", None) is not own:
                    found.altering.append(f"hook {_place(hook)} on {where}")
    return found


def _strange_forward(module: torch.nn.Module, in_parts: bool) -> Callable[..., Any] | None:
    """What runs in place of the module's own forward, underneath what offloading and diffusers' hooks put around it."""
    forward = vars(module).get("forward")
    if hasattr(module, "_orig_mod"):
        return None  # compiled by torch.compile: the module inside is looked at as well
    for _ in range(_LONGEST_CHAIN):
        if not isinstance(forward, functools.partial):
            break
        package = forward.func.__module__
        if package == "accelerate.hooks":
            forward = vars(module).get("_old_forward")
        elif package == "diffusers.hooks.hooks":
            cells = dict(zip(forward.func.__code__.co_freevars, forward.func.__closure__ or (), strict=True))
            reference = cells["function_reference"].cell_contents
            forward = reference.original_forward or reference.forward
        else:
            break
    stock = type(module).forward
    if forward is not None and not (inspect.ismethod(forward) and forward.__func__ is stock):
        return forward
    # A patch of the class, or a class of somebody's own.
    return stock if in_parts and _package(stock) != "diffusers" else None


def _strange_class(processor: type[Any]) -> bool:
    """Whether a processor's class, or what it does when it is called, is somebody else's."""
    return not {_package(processor), _package(processor.__call__)} <= _KNOWN


def _package(kind: Any) -> str:
    """The topmost package that a class or a function is from."""
    return str(kind.__module__).partition(".")[0]


def _place(function: Any) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    function = function if hasattr(function, "__qualname__") else type(function)
    return f"{function.__module__}.{function.__qualname__}"
