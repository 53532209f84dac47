"""The plot of the front, as bytes that are ready to be written."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from calibrate.quality.metrics import METRIC_VERSION, psnr_meaning
from calibrate.results.result import Result, front
from calibrate.spec.floors import Floors


def front_plot(results: Sequence[Result], picked: Result, floors: Floors, title: str) -> bytes:
    """A PNG of every measured policy, the front and the one that was picked; all of one metric version.

    Colours are from the Okabe-Ito palette, and no two kinds of point differ in colour alone.
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    feasible = [result for result in results if result.feasible(floors)]
    groups = (
        ([r for r in results if r not in feasible], "x", "#999999", "below a floor"),
        (feasible, "o", "#0072B2", f"above the floors{floors.with_margin}"),
    )
    for points, marker, colour, label in groups:
        axes.scatter(*_xy(points), marker=marker, color=colour, s=36, label=f"{label} ({len(points)})", zorder=2)
    axes.plot(*_xy(front(feasible)), color="#0072B2", linewidth=1.2, zorder=1)
    axes.scatter(*_xy([picked]), marker="*", color="#D55E00", s=220, label=f"picked: trial {picked.trial}", zorder=3)
    if floors.psnr_db is not None:
        axes.axhline(
            floors.psnr_db, color="#000000", linewidth=0.8, linestyle="--", label=f"floor {floors.psnr_db:g} dB"
        )
    by = "seconds of denoising, stock / taken" if picked.paired else "stock block evaluations / evaluations made"
    axes.set_xlabel(f"Speed-up ({by})")
    meaning = "" if picked.metric_version == METRIC_VERSION else f",\n{psnr_meaning(picked.metric_version)}"
    axes.set_ylabel(f"Mean PSNR on search prompts (dB){meaning}")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _xy(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [r.speed for r in results], [r.figures["psnr_db"] for r in results]
