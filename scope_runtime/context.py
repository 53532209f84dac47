"""Keys and values of complete blocks: constants of a generation, captured once and attended to ever after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scope_runtime.errors import ContextTooLarge

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one block in one layer, each ``[batch, tokens, heads, head_dim]``."""


@dataclass(frozen=True)
class ContextOptions:
    """Where context is kept and how much of it; neither changes a result.

    Attributes:
        offload: Keep it in host memory and bring each layer's to the device while the layer before is computed.
        max_bytes: Refuse a generation whose context will take more, before it starts. None: no limit.
    """

    offload: bool = False
    max_bytes: int | None = None


def context_bytes(
    *, layers: int, width: int, tokens: int, blocks: int, branches: int, batch: int, itemsize: int
) -> int:
    """Bytes that the context of a generation takes, from its configuration alone.

    Args:
        layers: Self-attention layers.
        width: Heads times head dimension.
        tokens: Tokens per block: latent frames per block times patches per frame.
        blocks: Blocks held at once.
        branches: Guidance branches, 2 with guidance.
        batch: Videos per call.
        itemsize: Bytes per stored number.
    """
    keys_and_values = 2
    return keys_and_values * layers * width * tokens * blocks * branches * batch * itemsize


def refuse_if_over(need: int, options: ContextOptions) -> None:
    """Stops a generation whose context would not fit.

    Raises:
        ContextTooLarge: With the figure and what can be done about it.
    """
    if options.max_bytes is not None and need > options.max_bytes:
        raise ContextTooLarge(
            f"The context of this generation takes {need / 2**30:.3g} GiB, more than max_context_bytes allows "
            f"({options.max_bytes / 2**30:.3g} GiB): raise the limit, use a profile with a context_window or a "
            "smaller context_dtype, or generate fewer frames."
        )


class Context:
    """K/V of blocks outside a pass, for every attention layer of one guidance branch.

    Keys are kept after normalisation and rotary embedding, so they can be used as they are. Rotary positions are those
    of the absolute frame.

    Args:
        window: Complete blocks to hold, the newest ones; None holds all. A smaller context is an approximation.
        dtype: What K/V are stored in; None stores them as they are. A smaller type is an approximation.
        offload: Hold them in host memory.
    """

    def __init__(self, window: int | None = None, dtype: torch.dtype | None = None, *, offload: bool = False) -> None:
        self.blocks: list[int] = []
        self.captured: set[int] = set()
        self._window = window
        self._dtype = dtype
        self._offload = offload
        self._layers: dict[int, dict[int, Pair]] = {}
        self._prefetched: dict[int, tuple[dict[int, Pair], torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        pairs = (pair for held in self._layers.values() for pair in held.values())
        return sum(t.numel() * t.element_size() for pair in pairs for t in pair)

    def before(self, block: int, computed: Sequence[int]) -> tuple[int, ...]:
        """Held blocks that ``block`` attends to besides those computed with it."""
        return tuple(b for b in self.blocks if b < block and b not in computed)

    def store(self, layer: int, block: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps one block's keys and values of one layer, in place of what was held of it."""
        pair = key.to(self._dtype or key.dtype), value.to(self._dtype or value.dtype)
        if self._offload and key.is_cuda:
            pair = self._to_host(pair[0]), self._to_host(pair[1])
        else:
            # Views of a pass's tensors would keep all of them alive.
            pair = pair[0].clone(), pair[1].clone()
        self._layers.setdefault(layer, {})[block] = pair

    def gather(self, layer: int, blocks: Sequence[int], like: torch.Tensor) -> Pair:
        """Keys and values of ``blocks`` in one layer, joined along the tokens, with device and dtype of ``like``."""
        held = self._on_device(layer, like.device)
        pairs = [held[block] for block in blocks]
        return (
            torch.cat([key for key, _ in pairs], dim=1).to(like.dtype),
            torch.cat([value for _, value in pairs], dim=1).to(like.dtype),
        )

    def close_pass(self, kept: Sequence[int], captured: Sequence[int]) -> None:
        """After a pass: makes what it stored attendable, and lets go of what the window no longer holds.

        Args:
            kept: Blocks that the pass stored.
            captured: Those among them that are complete: their K/V are final.
        """
        self.blocks = sorted({*self.blocks, *kept})
        self.captured.update(captured)
        self._prefetched.clear()
        if self._window is None:
            return
        complete = [b for b in self.blocks if b in self.captured]
        for block in complete[: max(0, len(complete) - self._window)]:
            self.blocks.remove(block)
            for held in self._layers.values():
                held.pop(block, None)

    @staticmethod
    def _to_host(tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _on_device(self, layer: int, device: torch.device) -> dict[int, Pair]:
        if not (self._offload and device.type == "cuda"):
            return self._layers[layer]
        fetched = self._prefetched.pop(layer, None) or self._fetch(layer, device)
        if layer + 1 in self._layers:
            self._prefetched[layer + 1] = self._fetch(layer + 1, device)
        pairs, arrived = fetched
        current = torch.cuda.current_stream(device)
        current.wait_event(arrived)
        for pair in pairs.values():
            for tensor in pair:
                tensor.record_stream(current)
        return pairs

    def _fetch(self, layer: int, device: torch.device) -> tuple[dict[int, Pair], torch.cuda.Event]:
        """Starts copying a layer to the device beside the computation."""
        self._stream = self._stream or torch.cuda.Stream(device)
        # What was just copied to the host must have left the device before it is read again.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            pairs = {
                block: (key.to(device, non_blocking=True), value.to(device, non_blocking=True))
                for block, (key, value) in self._layers[layer].items()
            }
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return pairs, arrived


@dataclass(frozen=True)
class Pass:
    """One trip of some blocks through the transformer.

    Attributes:
        blocks: The blocks computed, in ascending order.
        context: What they attend to besides each other.
        keep: The blocks among ``blocks`` whose K/V join the context.
        causal: Whether a block attends to itself and earlier blocks only.
    """

    blocks: tuple[int, ...]
    context: Context
    keep: tuple[int, ...] = ()
    causal: bool = True
