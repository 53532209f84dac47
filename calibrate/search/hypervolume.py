"""Hypervolume of fronts of speed-up and PSNR, both to be large: one number for how good a search's result is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]
"""Speed-up in block evaluations, PSNR in dB."""


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area that the points dominate beyond `reference`, which no point has to reach.

    Returns:
        Speed-up times dB; 0 without a point beyond the reference.
    """
    area, height = 0.0, reference[1]
    for x, y in sorted(points, reverse=True):
        if x > reference[0] and y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area


# Nodes and weights of a normal distribution's quadrature.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)


def expected_improvement(points: Sequence[Point], candidate: Point, spread: float, reference: Point) -> float:
    """How much hypervolume a candidate is expected to add when its PSNR is normal about the given one.

    Args:
        points: What has been measured.
        candidate: Speed-up, known, and estimated PSNR.
        spread: Standard deviation of the estimate in dB.
        reference: See `hypervolume`.
    """
    before = hypervolume(points, reference)
    gains = [
        hypervolume([*points, (candidate[0], candidate[1] + spread * node)], reference) - before for node in _NODES
    ]
    return float(np.dot(gains, _WEIGHTS) / _WEIGHTS.sum())
