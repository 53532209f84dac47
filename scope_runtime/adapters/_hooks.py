"""How the runtime's hook lives beside the hooks that offloading puts on a model, and reaches offloaded weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook

from scope_runtime.errors import ProfileError

_GROUP_OFFLOADING = "group_offloading"
"""Name under which diffusers registers its group offloading."""


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

    def _unregister(self) -> None:
        """Takes the hook out of the registry; the model's forward stays as it is, where others have changed it."""
        registry = HookRegistry.check_if_exists_or_initialize(self.model)
        forward, original = self.model.forward, self.hook.fn_ref.original_forward
        registry.remove_hook(self.name, recurse=False)
        registry.invalidate_child_registries_cache()
        if forward is not self._hooked:
            self.model.forward = forward
        if self.model.__dict__.get("_old_forward") is self._hooked:
            self.model._old_forward = original

    def keep(self) -> None:
        """Puts the hook back if it was lost, and around hooks that came later: a call it answers runs none of them."""
        if self.model.forward is not self._hooked:
            self._unregister()
            self._register()

    def remove(self) -> None:
        """Gives the model's forward back."""
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


def stored_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters with their values, wherever accelerate keeps those of an offloaded module."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            owner, _, own_name = name.rpartition(".")
            hook = getattr(model.get_submodule(owner), "_hf_hook", None)
            stores = [getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,))]
            stored = [store[own_name] for store in stores if store is not None]
            if not stored:
                raise ProfileError(
                    "model.weights", f"cannot be checked: {name} holds no values (it is on the meta device)"
                )
            yield name, stored[0]
        else:
            yield name, parameter
