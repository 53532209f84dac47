"""Scores as a user would write them, and how often each was asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np

from calibrate.quality.metrics import Frames

CALLS: Counter[str] = Counter()


def error(stock: Frames, frames: Frames) -> float:
    """Mean absolute difference; less is better."""
    CALLS["error"] += 1
    return float(np.abs(stock - frames).mean())


def brightness(prompt: str, frames: Frames) -> float:
    """Mean value."""
    CALLS["brightness"] += 1
    return float(frames.mean())


def contrast(prompt: str, frames: Frames, scale: float = 1.0) -> float:
    """Standard deviation."""
    CALLS["contrast"] += 1
    return scale * float(frames.std())
