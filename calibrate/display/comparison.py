"""Stock, exact mode and SCOPE in one table: the figures that an export, a check and a report begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADERS = ("", "stock", "exact", "SCOPE")

# Label, figure, format; how far the mean may be off is told of those that an interval is kept of.
_QUALITY = (
    ("PSNR, mean (dB)", "psnr_db", ".1f"),
    ("PSNR, worst prompt (dB)", "psnr_worst_prompt_db", ".1f"),
    ("PSNR, worst block (dB)", "psnr_worst_block_db", ".1f"),
    ("PSNR, worst frame (dB)", "psnr_worst_frame_db", ".1f"),
    ("SSIM", "ssim", ".4f"),
    ("PSNR of motion (dB)", "temporal_psnr_db", ".1f"),
)
_WITH_INTERVAL = ("psnr_db", "speedup_denoise")


def comparison(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows under `HEADERS`; what older evidence does not hold is left out.

    Args:
        figures: A profile's evidence, or what `calibrate.measure.paired.verdict` returns.
    """
    exact = figures.get("exact", {})
    rows = [
        ("fewer block evaluations", "1.00x", "", f"{figures['speedup_evaluations']:.2f}x"),
        (
            "denoising faster",
            "1.00x",
            number(exact.get("speedup_denoise"), ".2f", "x"),
            f"{figures['speedup_denoise']:.2f}x{interval(figures, 'speedup_denoise', '.2f')}",
        ),
        ("end to end faster", "1.00x", "", f"{figures['speedup_end_to_end']:.2f}x"),
    ]
    for label, name, form in _QUALITY:
        if name in figures:
            rows.append((label, "", "", number(figures[name], form) + interval(figures, name, form)))
    if "max_abs_diff" in exact:
        # How far stock is from itself with other rounding is what exact mode has to be measured against.
        rounding = number(exact.get("stock_rounding"), ".1e", " (rounding)")
        rows.append(("largest latent difference", rounding, f"{exact['max_abs_diff']:.1e}", ""))
    return rows + [(name, "", "", f"{value:.4g}") for name, value in figures.get("scores", {}).items()]


def interval(figures: Mapping[str, Any], name: str, form: str) -> str:
    """The bootstrap interval of a figure's mean, in parentheses; empty where none is told."""
    ends = figures.get("intervals", {}).get(name) if name in _WITH_INTERVAL else None
    if not isinstance(ends, Mapping):
        return ""
    return f" ({number(ends.get('mean_low'), form)} to {number(ends.get('mean_high'), form)})"


def number(value: object, form: str, unit: str = "") -> str:
    """A value that should be a number, as people read it; empty if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:{form}}{unit}"
