"""Muon for matrices and convolution kernels, AdamW for every other parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonAdamW(torch.optim.Optimizer):
    """Muon where it applies, AdamW elsewhere.

    `torch.optim.Muon` takes matrices only; here a convolution's kernel counts as a matrix [out, in x taps]. Muon's
    update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean square of an AdamW update, so that
    one learning rate serves both.

    Args:
        muon: parameters of two dimensions or more.
        adamw: all other parameters.
        lr: learning rate of both groups.
        weight_decay: decoupled weight decay of the Muon group.
    """

    def __init__(
        self,
        muon: Iterable[torch.nn.Parameter],
        adamw: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(muon), "muon": True, "weight_decay": weight_decay},
            {"params": list(adamw), "muon": False, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["momentum"] = torch.zeros_like(parameter)
                    if not group["muon"]:
                        state["square"] = torch.zeros_like(parameter)
                state["step"] += 1
                update = _muon(parameter.grad, state) if group["muon"] else _adam(parameter.grad, state)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def split_parameters(
    parameters: Iterable[torch.nn.Parameter],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters for Muon, which are the matrices and the kernels, and for AdamW, which are all others."""
    muon: list[torch.nn.Parameter] = []
    adamw: list[torch.nn.Parameter] = []
    for parameter in parameters:
        is_matrix = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1
        (muon if is_matrix else adamw).append(parameter)
    return muon, adamw


def _muon(gradient: torch.Tensor, state: dict[str, torch.Tensor], decay: float = 0.95) -> torch.Tensor:
    """Nesterov momentum, made nearly orthogonal by five Newton-Schulz steps."""
    momentum = state["momentum"].lerp_(gradient, 1 - decay)
    matrix = gradient.lerp(momentum, decay).flatten(1)
    rows, columns = matrix.shape
    wide = matrix.T if rows > columns else matrix
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    matrix = wide.T if rows > columns else wide
    return matrix.view_as(gradient) * (0.2 * max(rows, columns) ** 0.5)


def _adam(
    gradient: torch.Tensor, state: dict[str, torch.Tensor], decay: tuple[float, float] = (0.9, 0.99)
) -> torch.Tensor:
    """The bias-corrected Adam direction."""
    step = int(state["step"])
    momentum = state["momentum"].lerp_(gradient, 1 - decay[0]) / (1 - decay[0] ** step)
    square = state["square"].lerp_(gradient.square(), 1 - decay[1]) / (1 - decay[1] ** step)
    return momentum / (square.sqrt() + 1e-8)
