"""Which model runs: by name, for a profile that travels, and in detail, for a model that is being held."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from scope_runtime import _check
from scope_runtime.digest import config_digest
from scope_runtime.errors import ProfileError
from scope_runtime.families import adapter_class

_SAMPLES_PER_TENSOR = 64


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a policy belongs to.

    Attributes:
        pipeline: Class name of the pipeline.
        transformer: Class name of the transformer.
        config: Digest of the transformer's configuration.
        weights: Digest of a sample of every weight tensor (names, shapes and 64 values each, in bfloat16, so that
            loading the same checkpoint in another dtype gives the same digest). A changed or merged weight shows, and
            a 14B model takes about a second.
        adapters: Active LoRA adapters (of peft) with their scales. None: there are none, or, in profiles of version 1,
            their scales are not known (their weights are among ``weights``).
    """

    pipeline: str
    transformer: str
    config: str
    weights: str
    adapters: str | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "adapters" or self.adapters is not None:
                _check.string(vars(self), f.name, "model")

    @classmethod
    def of(cls, pipe: Any) -> ModelIdentity:
        """Identity of a loaded pipeline.

        Raises:
            ProfileError: If weights cannot be read.
        """
        return adapter_class(pipe).identity(pipe)

    def mismatches(self, actual: ModelIdentity) -> list[str]:
        """One phrase per field in which ``actual`` is another model."""
        return [
            f"model.{f.name} is {getattr(actual, f.name)}, calibrated for {getattr(self, f.name)}"
            for f in fields(self)
            # Adapters that this identity knows nothing of are seen by their weights.
            if getattr(self, f.name) not in (getattr(actual, f.name), None)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        data = asdict(self)
        if self.adapters is None:
            del data["adapters"]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> ModelIdentity:
        """Inverse of `to_dict`; every field but ``adapters`` must be there."""
        known = {"adapters": None, **_check.mapping(data, "model")}
        return cls(**_check.complete(known, [f.name for f in fields(cls)], "model"))


def weights_digest(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A short name for a model's weights, from a sample of every tensor; see `ModelIdentity.weights`.

    Of a quantised tensor that is made of several (torchao's), every one is sampled, as it is stored.

    Raises:
        ProfileError: If values cannot be read.
    """
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        try:
            stored = [(part, tensor, _sample(tensor).cpu()) for part, tensor in parts_of(name, parameter)]
        except Exception as error:  # whatever a foreign kind of tensor may raise
            raise ProfileError(
                "model.weights",
                f"cannot be read: {name} is a {type(parameter).__name__}, which does not give its values away "
                f"({type(error).__name__}): load the model with plain weights, or run it with exact(pipe)",
            ) from error
        for part, tensor, sample in stored:
            if part == name:
                digest.update(_bytes(sample.to(torch.bfloat16)))
            else:
                digest.update(f"{part}{tuple(tensor.shape)}{tensor.dtype}".encode() + _bytes(sample))
    return digest.hexdigest()[:16]


def parts_of(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that hold the values of ``tensor``, by name: itself, or those that a wrapper is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    for part in flatten()[0]:
        yield from parts_of(f"{name}.{part}", getattr(tensor, part))


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """A few values, evenly spread: ``[64 to 127]``, or all of a smaller tensor."""
    # Subclasses of tensors (GGUF) make one of their own of everything that is taken out of them.
    with torch._C.DisableTorchFunctionSubclass():
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)].contiguous()


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.view(torch.uint8).numpy().data)


def _form(tensor: torch.Tensor) -> str:
    # Offloading keeps a parameter's values in a plain tensor.
    kind = "Tensor" if type(tensor) is torch.nn.Parameter else type(tensor).__name__
    return f"{kind} of {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def adapters_of(modules: Mapping[str, torch.nn.Module]) -> str | None:
    """The active adapters of peft with their scales, such as ``style at 0.8``; None without any.

    Args:
        modules: The model and all that is in it, by name.
    """
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")
    layers = [(name, m) for name, m in modules.items() if isinstance(m, peft.BaseTunerLayer)] if peft else []
    if not layers:
        return None
    states = {name: _adapters_of_layer(layer) for name, layer in layers}
    different = sorted(set(states.values()))
    if len(different) == 1:
        return different[0]
    # Layers may have scales of their own: which has which is told by a digest.
    return f"{'; '.join(different[:3])}{'; ...' if len(different) > 3 else ''} ({config_digest(states)})"


def _adapters_of_layer(layer: Any) -> str:
    if layer.disable_adapters:
        return "disabled"
    scales = getattr(layer, "scaling", {})
    own = [name for name in layer.active_adapters if name in scales or not scales]
    active = " + ".join(f"{name} at {scales[name]:g}" if name in scales else name for name in own)
    merged = f"merged {', '.join(layer.merged_adapters)}" if layer.merged_adapters else ""
    return ", ".join(part for part in (active, merged) if part) or "none active"


@dataclass(frozen=True)
class _Weight:
    """One tensor of a held model: which it is, how often it was written to, and a sample of what is in it."""

    held: weakref.ref[torch.Tensor]
    version: int | None
    form: str
    sample: bytes | None

    def changed(self, now: _Weight) -> str | None:
        """What happened to the tensor, or None."""
        if self.form != now.form:
            return f"is {now.form}, was {self.form}"
        if None not in (self.sample, now.sample) and self.sample != now.sample:
            return "has other values"
        # Offloading moves values without writing to a tensor, and may put another tensor in its place.
        if self.held() is not None and self.held() is now.held() and self.version != now.version:
            return "was written to"
        return None


@dataclass(frozen=True)
class ModelState:
    """What a model consists of at one moment, as far as a change of it would make another model of it.

    Cheap enough for the start of every generation: of each tensor the same sample is taken as for the digest, all in
    one copy to the host, and versions tell of writing that no sample shows.
    """

    config: Mapping[str, Any]
    adapters: str | None
    modules: Mapping[str, str]
    weights: Mapping[str, _Weight]

    @classmethod
    def of(
        cls,
        modules: Mapping[str, torch.nn.Module],
        config: Mapping[str, Any],
        tensors: Iterable[tuple[str, torch.Tensor, bool]],
    ) -> ModelState:
        """The state of a model.

        Args:
            modules: The model (its name is empty) and all that is in it, by name.
            config: The part of its configuration that makes it the model it is.
            tensors: Its parameters and buffers by name, and whether they hold their values at the moment: offloaded
                ones may not.
        """
        parts: dict[str, torch.Tensor] = {}
        samples: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor, readable in tensors:
            parts[name] = tensor
            # A foreign kind of tensor may raise anything; that it is of another kind shows in its form.
            with contextlib.suppress(Exception):
                for part, stored in parts_of(name, tensor):
                    parts[part] = stored
                    if not readable or stored.is_meta:
                        continue
                    sample = _sample(stored).view(torch.uint8)
                    samples.setdefault(sample.device, []).append((part, sample))
        taken: dict[str, bytes] = {}
        for found in samples.values():
            values = bytes(torch.cat([sample for _, sample in found]).cpu().numpy().data)
            start = 0
            for part, sample in found:
                taken[part] = values[start : start + sample.numel()]
                start += sample.numel()
        weights = {
            part: _Weight(
                weakref.ref(tensor),
                None if tensor.is_inference() else tensor._version,
                _form(tensor),
                taken.get(part),
            )
            for part, tensor in parts.items()
        }
        kinds = {name: type(module).__name__ for name, module in modules.items()}
        return cls(dict(config), adapters_of(modules), kinds, weights)

    def differences(self, now: ModelState) -> list[str]:
        """One phrase per kind of change between this state and a later one, beginning with what it is about."""
        found = []
        for key in sorted(self.config.keys() | now.config.keys()):
            if self.config.get(key) != now.config.get(key):
                found.append(f"config.{key} is {now.config.get(key)!r}, was {self.config.get(key)!r}")
        if now.adapters != self.adapters:
            found.append(f"adapters are {now.adapters or 'absent'}, were {self.adapters or 'absent'}")
        modules = {
            name or "transformer": f"is a {now.modules.get(name, 'nothing')}, was a {self.modules.get(name, 'nothing')}"
            for name in dict.fromkeys([*self.modules, *now.modules])
            if self.modules.get(name) != now.modules.get(name)
        }
        weights = {name: self._change(name, now) for name in dict.fromkeys([*self.weights, *now.weights])}
        for about, changes in (("modules", modules), ("weights", weights)):
            named = [(name, change) for name, change in changes.items() if change]
            if named:
                name, change = named[0]
                more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
                found.append(f"{about}: {name} {change}{more}")
        return found

    def _change(self, name: str, now: ModelState) -> str | None:
        if name not in now.weights:
            return "is gone"
        return self.weights[name].changed(now.weights[name]) if name in self.weights else "is new"
