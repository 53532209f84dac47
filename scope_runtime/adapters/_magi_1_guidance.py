"""How MAGI-1 combines its guidance branches for a chunk, and whether a model really does."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from scope_runtime.errors import AttachError

# Guidance branches with three of them, in the order of the schedule's `branches`.
TEXT, CONTEXT, UNCONDITIONAL = range(3)
# The official code reads it from the environment (with one branch): how much of a nearly clean chunk is computed with
# context.
PREVIOUS_CHUNKS_SCALE = "prev_chunks_scale"
_TOLERANCE = 1e-4
_PROBING = threading.Lock()


@dataclass(frozen=True)
class Guidance:
    """How the three branches are combined for a chunk: ``text t + context c + unconditional u``."""

    text: float
    context: float
    unconditional: float


def guidance_by_step(runtime: Any, times: Sequence[float]) -> list[Guidance]:
    """The branches' weights at each of ``times``, from the scales that hold from each edge of ``cfg_t_range`` on."""
    edges = torch.tensor(runtime.cfg_t_range) - 1e-7
    found = []
    for index in (torch.searchsorted(edges, torch.tensor(times)) - 1).tolist():
        previous, text = runtime.prev_chunk_scales[index], runtime.text_scales[index]
        found.append(Guidance(text=text, context=previous - text, unconditional=1 - previous))
    return found


def refuse_other_guidance(model: Any, stock: Callable[..., torch.Tensor], times: Sequence[float]) -> None:
    """Makes sure that a model combines three guidance branches by the weights of `guidance_by_step`.

    With one branch it is the model's own dispatcher that is called.

    Args:
        model: The model.
        stock: Its own ``forward_dispatcher``.
        times: t of every step.

    Raises:
        AttachError: If it combines them otherwise.
    """
    runtime = model.runtime_config
    if runtime.cfg_number != 3:
        return
    told = torch.randn(3, len(times), generator=torch.Generator().manual_seed(0))
    found, computed = _dispatched(model, stock, times, told, nearly_clean=False)
    for t, guidance, values, velocity in zip(
        times, guidance_by_step(runtime, times), told.T.tolist(), found, strict=True
    ):
        weights = (guidance.text, guidance.context, guidance.unconditional)
        terms = [weight * value for weight, value in zip(weights, values, strict=True)]
        if abs(velocity - sum(terms)) > _TOLERANCE * (1 + sum(abs(term) for term in terms)):
            raise AttachError(
                f"this model does not combine its guidance branches by cfg_t_range, prev_chunk_scales and text_scales "
                f"as the official code does (at t = {t:.3g}): its get_cfg_scale, forward_3cfg or forward_dispatcher is "
                "another one, so put the official one back or run without scope_runtime"
            )
    if computed != {(TEXT, False), (CONTEXT, True), (UNCONDITIONAL, False)}:
        raise AttachError(
            "this model's guidance branches are others than the official code's (forward_3cfg): put the official one "
            "back or run without scope_runtime"
        )


def previous_chunks_scale(named: str, model: Any = None, stock: Callable[..., torch.Tensor] | None = None) -> float:
    """How much of a nearly clean chunk's velocity is computed with context, with one branch.

    Args:
        named: What the environment says.
        model: A model to ask; None believes the environment.
        stock: The model's own ``forward_dispatcher``.

    Raises:
        AttachError: If the environment says no number, or the dispatcher fails.
    """
    try:
        scale = float(named)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise AttachError(
            f"the environment variable {PREVIOUS_CHUNKS_SCALE} must be a number, not {named!r}: MAGI-1 reads it"
        )
    if stock is not None:
        (scale,), _ = _dispatched(model, stock, [0.9], torch.tensor([[1.0], [1.0], [0.0]]), nearly_clean=True)
    return round(scale, 6)


def _dispatched(
    model: Any, stock: Callable[..., torch.Tensor], times: Sequence[float], told: torch.Tensor, *, nearly_clean: bool
) -> tuple[list[float], set[tuple[int, bool]]]:
    """What a model's dispatcher makes of known numbers that stand in for forward passes: it costs no evaluation.

    Args:
        model: The model.
        stock: Its own ``forward_dispatcher``.
        times: t of each chunk.
        told: What each branch says of each chunk ``[3, chunks]``; of a chunk that comes twice, the second time the last
            branch is asked.
        nearly_clean: Whether the first chunk is to be mixed with what it is without context.

    Returns:
        The velocity of each chunk, and which branches were computed and whether they may write context.

    Raises:
        AttachError: If the dispatcher fails.
    """
    count, patch = len(times), model.model_config.patch_size
    device = next(model.parameters()).device
    told = told.to(device)
    computed: set[tuple[int, bool]] = set()
    thread, real, own = threading.get_ident(), model.forward, vars(model).get("forward")

    def forward(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if threading.get_ident() != thread:
            return real(x, t, y, *args, **options)
        context = options["inference_params"] if "inference_params" in options else args[3]
        branch = UNCONDITIONAL if context is None else CONTEXT if y[0].item() else TEXT
        computed.add((branch, context is not None and context.update_kv_cache))
        values = told[branch]
        if x.shape[0] * x.shape[2] > count:
            values = torch.cat([values, told[UNCONDITIONAL, :1]])
        return values.reshape(x.shape[0], 1, x.shape[2], 1, 1).expand(x.shape).clone()

    with _PROBING, torch.no_grad():
        model.forward = forward
        try:
            velocity = stock(
                x=torch.zeros(2, 1, count, patch, patch, device=device),
                timestep=torch.tensor(list(times), device=device).repeat(2, 1),
                y=torch.arange(2, device=device).repeat_interleave(count).reshape(-1, 1, 1, 1),
                mask=torch.ones(2 * count, 1, 1, device=device),
                kv_range=torch.arange(count + 1, device=device, dtype=torch.int32).unfold(0, 2, 1),
                inference_params=SimpleNamespace(update_kv_cache=False),
                chunk_width=1,
                slice_point=0,
                range_num=count,
                denoising_range_num=count,
                fwd_extra_1st_chunk=False,
                num_steps=model.runtime_config.num_steps,
                distill_nearly_clean_chunk=nearly_clean,
                distill_interval=torch.ones((), device=device),
            )
        except Exception as error:  # whatever code of others may raise
            raise AttachError(
                "the model's forward_dispatcher fails, so how it combines guidance branches cannot be told: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            del model.forward
            if own is not None:
                model.forward = own
    return velocity[0, 0, :, 0, 0].tolist(), computed
