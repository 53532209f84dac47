"""The official MAGI-1 code on a CPU: what it needs of a GPU and of libraries for one is stood in for.

The code itself runs as it is in the checkout; nothing of it is kept here.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest.mock import MagicMock, patch

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tests.magi_1 import Magi, config_json, imported

T = TypeVar("T")

OFFICIAL: dict[str, Any] = {
    "hidden_size": 128, "ffn_hidden_size": 64, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 16,
    "layernorm_epsilon": 1e-6, "in_channels": 4, "out_channels": 4, "caption_channels": 16, "caption_max_length": 60,
    "cond_hidden_ratio": 0.25,
    "apply_layernorm_1p": True, "xattn_cond_hidden_ratio": 1.0, "cond_gating_ratio": 1.0, "gated_linear_unit": False,
}  # fmt: skip
"""Fields in which the smallest model of the official code differs from the stand-in's."""


_SCALES = {"weight_scale": 0.01, "input_scale": 0.05, "smooth_scale": 0.05}
"""Of the eight-bit layers."""


class _OnTheCpu(TorchFunctionMode):
    """Sends to the CPU whatever is meant for a GPU, where autocast would bring both factors to one type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.nn.functional.linear and args[0].dtype != args[1].dtype:
            args = (args[0].to(args[1].dtype), *args[1:])
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*("cpu" if isinstance(a, str) and a.startswith("cuda") else a for a in args), **kwargs)


def on_the_cpu(work: Callable[[], T]) -> T:
    """Does work that belongs to another thread than that which entered `official`."""
    with _OnTheCpu():
        return work()


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """Attention of [batch, tokens, heads, width] with fewer key than query heads."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attend_to_segments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, **_: Any
) -> torch.Tensor:
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    return torch.cat(
        [
            _attend(q[None, a:b], k[None, c:d], v[None, c:d])[0] if d > c else torch.zeros_like(q[a:b])
            for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False)
        ]
    )


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the first channels of [batch, tokens, heads, width], in halves."""
    half = cos.shape[-1]
    one, other, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([one * cos - other * sin, one * sin + other * cos, rest], dim=-1)


def _gate(x: torch.Tensor, mapping: torch.Tensor, gatings: torch.Tensor) -> torch.Tensor:
    """Each token [s, b, h] times the gating that `mapping` [s, b] says."""
    return x * gatings.flatten(0, 1)[mapping]


def _multiply(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What flashinfer makes of two matrices in eight bits: [1, m, k] times [1, k, n], scaled by the first scale."""
    return (a.float() @ b.float() * a_scale.flatten()[0] * b_scale.flatten()[0]).to(dtype)


def _stand_ins() -> dict[str, ModuleType]:
    """Modules that only exist for GPUs, or that nothing here needs."""
    modules = {
        name: MagicMock(name=name)
        for name in (
            "flash_attn", "flash_attn.flash_attn_interface", "flash_attn.layers", "flash_attn.layers.rotary",
            "flashinfer", "flashinfer.gemm", "triton", "triton.language", "timm", "timm.models", "timm.models.layers",
            "ffmpeg", "ftfy", "bs4",
        )
    }  # fmt: skip
    modules["magi_attention"] = None  # the official code does without
    for name in ("flash_attn", "flash_attn.flash_attn_interface"):
        modules[name].flash_attn_func = _attend
        modules[name].flash_attn_varlen_func = _attend_to_segments
    modules["flash_attn.layers.rotary"].apply_rotary_emb = _rotate
    modules["flashinfer.gemm"].bmm_fp8 = _multiply
    return modules  # type: ignore[return-value]


@contextmanager
def _modules(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Has imports find the stand-ins; what is imported meanwhile stays."""
    kept = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def official(
    checkout: Path, store: torch.distributed.Store | None = None, rank: int = 0, ranks: int = 1
) -> Iterator[ModuleType]:
    """`inference.pipeline.pipeline` of an official checkout, able to run here.

    Args:
        checkout: Its folder.
        store: Where processes that share one video meet; one alone needs none.
        rank: Of this process.
        ranks: Processes that share one video.
    """
    # These look for some of the libraries that are stood in for, so they must have looked before.
    import diffusers  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import ConfigMixin, ModelMixin  # noqa: F401
    from transformers import T5EncoderModel  # noqa: F401

    tokens = checkout / "example" / "assets" / "special_tokens.npz"
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(patch.dict("os.environ", {"SPECIAL_TOKEN_PATH": str(tokens), "SKIP_LOAD_MODEL": "1"}))
        with _modules(_stand_ins()):
            package = stack.enter_context(imported(checkout))
        from inference.infra.distributed import parallel_state
        from inference.model.dit import dit_module

        stack.enter_context(patch.object(dit_module, "range_mod_triton", _gate))
        for name, result in (
            ("current_device", torch.device("cpu")), ("get_device_capability", (8, 0)), ("synchronize", None),
            ("memory_allocated", 0), ("memory_reserved", 0),
        ):  # fmt: skip
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, result=result: result))
        torch.distributed.init_process_group(
            "gloo", store=store or torch.distributed.HashStore(), rank=rank, world_size=ranks
        )
        try:
            parallel_state.initialize_model_parallel(cp_size=ranks)
            stack.enter_context(_OnTheCpu())
            yield package
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


def official_model(package: ModuleType, folder: Path, **changes: Any) -> Magi:
    """A small model of the official code with random weights, in eight bits where ``fp8_quant`` asks for it."""
    parts = config_json(**changes)
    parts["model_config"] |= OFFICIAL | {k: v for k, v in changes.items() if k in parts["model_config"]}
    path = folder / "config.json"
    path.write_text(json.dumps(parts))
    model = package.get_dit(package.MagiConfig.from_json(str(path)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        values = scale * torch.randn(parameter.shape, generator=generator)
        if name.endswith(tuple(_SCALES)):
            values = torch.full(parameter.shape, _SCALES[name.rpartition(".")[2]])
        elif parameter.dtype == torch.float8_e4m3fn:
            values = values / _SCALES["weight_scale"]
        parameter.data = values.to(parameter.dtype)
    return Magi(package, model, encode=_encode)


def _encode(prompt: str, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Caption embeddings [1, 1, L, channels] and mask [1, L], in place of a T5."""
    length, channels = config.model_config.caption_max_length, config.model_config.caption_channels
    generator = torch.Generator().manual_seed(len(prompt))
    return torch.randn(1, 1, length, channels, generator=generator), (torch.arange(length) < 9).long().unsqueeze(0)
