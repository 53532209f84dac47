"""Keys and values of complete blocks: constants of a generation, captured once and attended to ever after."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import torch


class Context:
    """K/V of complete blocks, for every attention layer of one guidance branch.

    Keys are kept after normalisation and rotary embedding, so they can be used as they are. Rotary positions are those
    of the absolute frame.
    """

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def before(self, block: int) -> int:
        """How many of the captured blocks come before ``block``."""
        return bisect_left(self.blocks, block)

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Adds captured keys and values of one layer, each ``[batch, tokens, heads, head_dim]``."""
        held = self._layers.get(layer)
        if held is not None:
            key, value = torch.cat([held[0], key], dim=1), torch.cat([held[1], value], dim=1)
        else:
            key, value = key.clone(), value.clone()
        self._layers[layer] = key, value

    def prefix(self, layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first ``tokens`` keys and values of one layer, each ``[batch, tokens, heads, head_dim]``."""
        key, value = self._layers[layer]
        return key[:, :tokens], value[:, :tokens]


@dataclass(frozen=True)
class Pass:
    """One trip of some blocks through the transformer.

    Attributes:
        blocks: The blocks computed, in ascending order.
        context: What they attend to besides each other.
        capture: The blocks among ``blocks`` that stand at their clean level: their K/V join the context.
        causal: Whether a block attends to itself and earlier blocks only.
    """

    blocks: tuple[int, ...]
    context: Context
    capture: tuple[int, ...] = field(default=())
    causal: bool = True
