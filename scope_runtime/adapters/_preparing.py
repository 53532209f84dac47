"""Sets the transformer of a diffusers pipeline up as a profile asks, and gives it back as it was, bit for bit.

Everything is changed in place and remembered: processors, parameters and layers are the same objects before and after.
What cannot be set is refused by name, and what had been set until then is taken back.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend

from scope_runtime.adapters._calls import Shadow
from scope_runtime.adapters._hooks import is_offloaded, storage_dtype
from scope_runtime.errors import AttachError
from scope_runtime.identity import parts_of
from scope_runtime.preparation import ATTENTION_BACKENDS, BFLOAT16, DYNAMIC_INT8, WEIGHTS, Preparation

# Held from the time that they are prepared until they are given back.
_PREPARED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_QUANTISED = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}


@contextmanager
def prepared(pipe: Any, preparation: Preparation) -> Iterator[None]:
    """See `scope_runtime.preparation.prepare`."""
    if not preparation:
        yield
        return
    transformer = pipe.transformer
    if transformer in _PREPARED:
        raise AttachError("this pipeline is already prepared by scope_runtime: close the other scope first")

    def refuse_copy(_memo: Any) -> NoReturn:
        raise AttachError(f"this pipeline is prepared ({preparation}): copy it before or after")

    with ExitStack() as undo:
        _PREPARED.add(transformer)
        undo.callback(_PREPARED.discard, transformer)
        for owner in (pipe, transformer):
            undo.callback(Shadow(owner, "__deepcopy__", refuse_copy).remove)
        _set("weights", preparation.weights, lambda kind: _set_weights(transformer, kind, undo))
        _set("attention_backend", preparation.attention_backend, lambda name: _set_backend(transformer, name, undo))
        _set("compiled", preparation.compiled, lambda _: _compile(transformer, undo))
        yield


def _set(field: str, value: Any, change: Callable[[Any], None]) -> None:
    """Makes one change, if it is asked for."""
    if not value:
        return
    try:
        change(value)
    except (ImportError, RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        if isinstance(error, AttachError):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AttachError(
            f"settings.preparation.{field}: {value} cannot be set here ({why}): install what it needs, or do without it"
        ) from error


def preparation_of(transformer: torch.nn.Module) -> Preparation:
    """What a transformer is set up with now, as far as that can be read off it; several kinds are named together."""
    default, _ = _AttentionBackendRegistry.get_active_backend()
    backends, kinds, compiled = set(), set(), False
    for processor in _processors(transformer):
        chosen = processor._attention_backend or default
        backends.add(str(getattr(chosen, "value", chosen)))
    for module in transformer.modules():
        kinds.add(_kind_of(module))
        compiled |= module._compiled_call_impl is not None
    found = sorted(kinds - {None})
    return Preparation(" and ".join(sorted(backends)) or None, " and ".join(found) or None, compiled)


def _kind_of(module: torch.nn.Module) -> Any:
    """What a layer's weights are quantised to; None for plain ones."""
    if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"):
        return DYNAMIC_INT8
    weight = module._parameters.get("weight")
    if weight is None or not hasattr(weight, "__tensor_flatten__"):
        return None
    try:
        stored = next(tensor for _, tensor in parts_of("", weight))
    except Exception:  # whatever a foreign kind of tensor may raise
        return type(weight).__name__
    return _QUANTISED.get(stored.dtype, str(stored.dtype).removeprefix("torch."))


def _set_backend(transformer: torch.nn.Module, name: str, undo: ExitStack) -> None:
    if name not in ATTENTION_BACKENDS:
        raise AttachError(
            f"settings.preparation.attention_backend: {name!r} is none of {', '.join(ATTENTION_BACKENDS)}: set it "
            "yourself before attaching, without prepare=True"
        )
    # Says what the backend lacks, and leaves the process-wide default as it was.
    with attention_backend(name):
        backend, _ = _AttentionBackendRegistry.get_active_backend()
    for processor in _processors(transformer):
        undo.callback(Shadow(processor, "_attention_backend", backend).remove)


def _processors(transformer: torch.nn.Module) -> list[Any]:
    """The attention processors that choose their backend themselves."""
    found = [getattr(module, "processor", None) for module in transformer.modules()]
    return [processor for processor in found if hasattr(processor, "_attention_backend")]


def _compile(transformer: Any, undo: ExitStack) -> None:
    modules = list(transformer.modules())
    if any(module._compiled_call_impl is not None for module in modules):
        return  # by somebody who may have had wishes of his own
    transformer.compile_repeated_blocks()
    for module in modules:
        undo.callback(vars(module).pop, "_compiled_call_impl", None)


# Weights.


def _set_weights(transformer: Any, kind: str, undo: ExitStack) -> None:
    if kind not in WEIGHTS:
        raise AttachError(
            f"settings.preparation.weights: {kind!r} is none of {', '.join(WEIGHTS)}: load the model so yourself, "
            "and calibrate it as it is loaded"
        )
    if is_offloaded(transformer) or storage_dtype(transformer) is not None:
        raise AttachError(
            "settings.preparation.weights: the transformer's weights are offloaded or stored in another dtype by "
            "hooks, so they cannot be replaced: load the pipeline without that"
        )
    if any(_kind_of(module) for module in transformer.modules()):
        raise AttachError("settings.preparation.weights: the weights are quantised already: load them as they were")
    if kind == BFLOAT16:
        _cast(transformer, torch.bfloat16, undo)
    elif kind == DYNAMIC_INT8:
        _quantise_dynamically(transformer, undo)
    else:
        _quantise(transformer, kind, undo)


def _cast(transformer: Any, dtype: torch.dtype, undo: ExitStack) -> None:
    """Casts what `from_pretrained` would have loaded in this dtype."""
    kept = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    for name, parameter in transformer.named_parameters():
        if parameter.is_floating_point() and not kept & set(name.split(".")):
            original, cast = parameter.data, parameter.data.to(dtype)
            undo.callback(_put_back_values, parameter, original.cpu())
            parameter.data = cast


def _put_back_values(parameter: torch.nn.Parameter, original: torch.Tensor) -> None:
    parameter.data = original.to(parameter.device)


def _quantise(transformer: torch.nn.Module, kind: str, undo: ExitStack) -> None:
    """Stores the weights of linear layers in eight bits, with torchao; they compute in their own dtype."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layers = {layer: layer._parameters["weight"] for _, _, layer in _linear_layers(transformer)}
    for layer, weight in layers.items():
        undo.callback(_put_back_weight, layer, weight, set(vars(layer)))
    config = Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(transformer, config, filter_fn=lambda module, _: module in layers)
    for weight in layers.values():
        assert weight is not None
        weight.data = weight.data.cpu()


def _put_back_weight(layer: torch.nn.Linear, weight: Any, known: set[str]) -> None:
    weight.data = weight.data.to(layer.weight.device)
    layer._parameters["weight"] = weight
    for name in vars(layer).keys() - known:
        delattr(layer, name)  # torchao's own way to be printed


def _quantise_dynamically(transformer: torch.nn.Module, undo: ExitStack) -> None:
    """Puts torch's own layers with weights and inputs in eight bits in the place of linear ones."""
    layers = list(_linear_layers(transformer))
    for parent, name, layer in layers:
        if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
            raise AttachError(
                f"settings.preparation.weights: {DYNAMIC_INT8} is for float32 on a CPU, and this model is in "
                f"{str(layer.weight.dtype).removeprefix('torch.')} on {layer.weight.device.type}: take int8"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age
            plain = torch.nn.Sequential(layer)
            quantised = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)[0]
        parent._modules[name] = quantised
        undo.callback(_put_back_layer, parent, name, quantised, layer)


def _put_back_layer(parent: torch.nn.Module, name: str, ours: torch.nn.Module, original: torch.nn.Module) -> None:
    if parent._modules.get(name) is ours:
        parent._modules[name] = original


def _linear_layers(transformer: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Plain linear layers in the transformer's lists of blocks: the module that each is in, its name there, itself."""
    lists = [child for child in transformer.children() if isinstance(child, torch.nn.ModuleList)]
    for parent in [module for blocks in lists for module in blocks.modules()]:
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                yield parent, name, child
