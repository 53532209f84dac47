"""How the runtime's hook lives beside the hooks that offloading puts on a model, and reaches offloaded weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK

from scope_runtime.errors import ProfileError


class Interception:
    """A diffusers hook that answers a model's calls and stays in place whatever offloading does to ``model.forward``.

    accelerate keeps the forward that it found and puts it back when its hook is removed, which a pipeline with model
    offloading does after every generation: a hook that came later is lost with it, without an error.

    Args:
        model: Whose calls to answer.
        hook: With a ``new_forward``.
        name: In the model's registry of hooks.
    """

    def __init__(self, model: torch.nn.Module, hook: ModelHook, name: str) -> None:
        self.model = model
        self.hook = hook
        self.name = name
        self._register()

    def _register(self) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(self.model)
        registry.register_hook(self.hook, self.name)
        registry.invalidate_child_registries_cache()
        self._hooked = self.model.forward
        self._answering = self.hook.fn_ref.forward

    def _unregister(self) -> None:
        """Takes the hook out of the registry; the model's forward stays as it is, where others have changed it."""
        registry = HookRegistry.check_if_exists_or_initialize(self.model)
        if registry.get_hook(self.name) is not self.hook:
            return
        if self.hook.fn_ref.forward is not self._answering:
            # An older hook was removed, and the registry has linked this one to what came before that.
            self.hook.fn_ref.original_forward = self.hook.fn_ref.forward
        forward, original = self.model.forward, self.hook.fn_ref.original_forward
        registry.remove_hook(self.name, recurse=False)
        registry.invalidate_child_registries_cache()
        if forward is not self._hooked:
            self.model.forward = forward
        if self.model.__dict__.get("_old_forward") is self._hooked:
            self.model._old_forward = original

    def keep(self) -> None:
        """Puts the hook back if it was lost, and around hooks that came later: a call it answers runs none of them."""
        if self.model.forward is not self._hooked or self.hook.fn_ref.forward is not self._answering:
            self._unregister()
            self._register()

    def remove(self) -> None:
        """Gives the model's forward back; harmless when called twice."""
        self._unregister()


@contextmanager
def loaded(*modules: torch.nn.Module) -> Iterator[None]:
    """Weights of ``modules``, which offloading brings to their device only while it runs them, for use from outside.

    Args:
        modules: Those whose own parameters or plain submodules are used; modules that are called load themselves.
    """
    with ExitStack() as stack:
        for module in modules:
            hooks = [getattr(module, "_hf_hook", None)]
            registry = getattr(module, "_diffusers_hook", None)
            if isinstance(registry, HookRegistry):
                hooks.append(registry.get_hook(_GROUP_OFFLOADING))
            for hook in hooks:
                if hook is not None:
                    hook.pre_forward(module)
                    stack.callback(hook.post_forward, module, None)
        yield


def _hooks(modules: Iterable[torch.nn.Module], name: str) -> Iterator[Any]:
    registries = (vars(module).get("_diffusers_hook") for module in modules)
    hooks = (registry.get_hook(name) for registry in registries if registry is not None)
    return (hook for hook in hooks if hook is not None)


def storage_dtype(model: torch.nn.Module) -> torch.dtype | None:
    """What layerwise casting stores a model's weights in; None without it."""
    return next((hook.storage_dtype for hook in _hooks(model.modules(), _LAYERWISE_CASTING_HOOK)), None)


def is_offloaded(model: torch.nn.Module) -> bool:
    """Whether hooks of offloading move a model's weights."""
    modules = list(model.modules())
    return any(hasattr(module, "_hf_hook") for module in modules) or any(_hooks(modules, _GROUP_OFFLOADING))


def stored_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters with their values, wherever accelerate keeps those of an offloaded module."""
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        stored = _stored(model.get_submodule(owner), own_name, parameter) if parameter.is_meta else parameter
        if stored.is_meta:
            raise ProfileError("model.weights", f"cannot be checked: {name} holds no values (it is on the meta device)")
        yield name, stored


def stored_tensors(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Parameters and buffers, and whether they hold their values: those that are offloaded to disk do not."""
    groups = (hook.group for hook in _hooks(modules.values(), _GROUP_OFFLOADING))
    on_disk = {id(tensor) for group in groups for tensor in getattr(group, "tensor_to_key", ())}
    for owner, module in modules.items():
        for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                yield f"{owner}.{name}".lstrip("."), _stored(module, name, tensor), id(tensor) not in on_disk


def _stored(owner: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor
    hook = getattr(owner, "_hf_hook", None)
    stores = [getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,))]
    return next((store[name] for store in stores if store is not None), tensor)
