"""The same computation with other rounding: what a difference to stock has to be measured against.

Floating-point sums depend on the order of their terms, and every kernel, batch size and number of threads has its own.
A generation amplifies such differences, some prompts hundreds of times more than others, so no bound in absolute terms
holds for exact mode. What holds is a comparison with stock itself, computed once more with its sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

EXACT_MULTIPLE = 4.0
"""Exact mode is held within so many times what stock differs from itself by when its sums are reversed."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_PRODUCTS = (torch.matmul, torch.bmm, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__)


class ReversedSums(TorchFunctionMode):
    """While entered, linear layers, products of matrices and attention add up from the last term to the first.

    The result is the same but for rounding, on every device and in every data type, and each layer rounds as often as
    it did before. Costs the memory of one layer's reversed weights and inputs at a time. Weights that are stored in a
    form of their own (quantised ones) keep the order that their kernel has.

    Attributes:
        reversed: How many calls were computed in the other order; 0 means that nothing was changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reversed = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stands in for every function of torch; see `torch.overrides`."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _PRODUCTS and not kwargs:
            return self._product(func, *args)
        return func(*args, **kwargs)

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if type(input) not in _PLAIN or type(weight) not in _PLAIN:
            return functional.linear(input, weight, bias)
        self.reversed += 1
        return functional.linear(input.flip(-1), weight.flip(-1), bias)

    def _product(self, func: Callable[..., Any], one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if type(one) not in _PLAIN or type(other) not in _PLAIN:
            return func(one, other)
        self.reversed += 1
        return func(one.flip(-1), other.flip(-2 if other.dim() > 1 else -1))

    def _attention(self, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.reversed += 1
        return functional.scaled_dot_product_attention(query.flip(-1), key.flip(-1), *args, **kwargs)
