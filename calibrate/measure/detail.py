"""What is kept of one generation beside its figures: enough to draw what happened, and only a few kilobytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.quality.metrics import Span, block_errors, psnr
from scope_runtime import PredictionError, Report

_DECIBEL_DIGITS = 2
_ERROR_DIGITS = 3


def describe(report: Report, errors: NDArray[np.float64], blocks: Sequence[Span]) -> dict[str, Any]:
    """Plain JSON of a few kilobytes.

    Args:
        report: What the generation did.
        errors: Mean squared error of every frame [T] against the stock clip.
        blocks: The frames of each block.

    Returns:
        `Report.to_dict`, and beside it ``frame_psnr_db`` [T], ``block_psnr_db`` and ``block_ends`` (the frame after
        each block's last) [blocks], and ``prediction_errors``, one
        ``[row, block, order, relative error]`` per recompute that had a history: the larger of the guidance branches',
        and after it the error that was predicted beforehand, where there was one.
    """
    return {
        **report.to_dict(),
        "frame_psnr_db": decibels(errors),
        "block_psnr_db": decibels(block_errors(errors, blocks)),
        "block_ends": [end for _, end in blocks],
        "prediction_errors": _prediction_errors(report),
    }


def decibels(errors: NDArray[np.float64]) -> list[float]:
    """A series of mean squared errors as PSNR in dB, to the digits that are worth keeping."""
    return [round(value, _DECIBEL_DIGITS) for value in psnr(errors).tolist()]


def _prediction_errors(report: Report) -> list[list[float]]:
    larger: dict[tuple[int, int], PredictionError] = {}
    start = 0
    for window in report.windows:
        for found in window.prediction_errors:
            key = start + found.row, found.block
            if math.isfinite(found.error) and (key not in larger or found.error > larger[key].error):
                larger[key] = found
        start += len(window.modes)
    return [
        [*key, found.order, _rounded(found.error), *([] if found.predicted is None else [_rounded(found.predicted)])]
        for key, found in sorted(larger.items())
    ]


def _rounded(error: float) -> float:
    return float(f"{error:.{_ERROR_DIGITS}g}")
