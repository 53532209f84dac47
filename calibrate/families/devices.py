"""Which devices this machine has."""

from __future__ import annotations

import torch

from calibrate.errors import CalibrateError


def has_device(device: str) -> bool:
    """Whether a device that a study names (`cpu`, `mps`, `cuda`, `cuda:1`) is there."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        return torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    return kind == "cpu" or bool(torch.backends.mps.is_available())


def require_device(device: str) -> None:
    """Makes sure that a device is there.

    Raises:
        CalibrateError: If it is not, naming those that are.
    """
    if has_device(device):
        return
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["mps"] * has_device("mps")
    raise CalibrateError(
        f"model.device: this machine has no {device}, only {', '.join(there)}; take one of them, or run on a machine "
        f"that has {device}."
    )
