"""The figures that can be put on an axis: how they are called, what unit they have and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calibrate.quality.metrics import METRIC_VERSION, REDEFINED, psnr_meaning
from calibrate.spec.floors import Floors
from calibrate.spec.score_floor import score_figure


@dataclass(frozen=True)
class Measure:
    """One figure of a policy.

    Attributes:
        key: Its column.
        label: On axes, with the unit.
        short: In menus and tiles.
        best: The value of a clip that equals stock, or None where that would be infinite.
        form: Format specification of a value.
    """

    key: str
    label: str
    short: str
    best: float | None
    form: str

    def text(self, value: float) -> str:
        """The value as people read it, with its unit."""
        return format(value, self.form) + (" dB" if self.key.endswith("_db") else "")


QUALITY = {
    measure.key: measure
    for measure in (
        Measure("psnr_db", "PSNR against stock, mean of the search prompts (dB)", "PSNR, mean", None, ".1f"),
        Measure("psnr_worst_prompt_db", "PSNR against stock, worst prompt (dB)", "PSNR, worst prompt", None, ".1f"),
        Measure("psnr_worst_block_db", "PSNR against stock, worst block (dB)", "PSNR, worst block", None, ".1f"),
        Measure("psnr_worst_frame_db", "PSNR against stock, worst frame (dB)", "PSNR, worst frame", None, ".1f"),
        Measure("ssim", "SSIM against stock, mean (1 is identical)", "SSIM", 1.0, ".4f"),
        Measure("temporal_psnr_db", "PSNR of frame-to-frame motion against stock (dB)", "PSNR of motion", None, ".1f"),
    )
}
SPEED = {
    measure.key: measure
    for measure in (
        Measure(
            "speedup_evaluations",
            "Speed-up: stock block evaluations / evaluations made (x)",
            "Block evaluations",
            1.0,
            ".2f",
        ),
        Measure("speedup_denoise", "Speed-up: stock denoising seconds / seconds taken (x)", "Wall clock", 1.0, ".2f"),
    )
}


def score_columns(floors: Floors) -> list[str]:
    """The figures of the scores that floors are set on: their means, and what each floor asks for."""
    means = [score_figure(name, "mean") for name in floors.scores]
    return list(dict.fromkeys([*means, *(demand.figure for demand in floors.score_demands())]))


def score_measures(floors: Floors) -> dict[str, Measure]:
    """Those of the scores with floors of which more is better; of the others no axis would point the right way."""
    names = [name for name, floor in floors.scores.items() if all(d.sign > 0 for d in floor.demands(name))]
    return {
        score_figure(name, "mean"): Measure(
            score_figure(name, "mean"), f"Score {name}, mean of the search prompts", f"Score {name}", None, ".3f"
        )
        for name in names
    }


def quality_measures(metric_version: int) -> Mapping[str, Measure]:
    """`QUALITY` for figures of a metric version: what means something else than today says so on its axis."""
    if metric_version == METRIC_VERSION:
        return QUALITY
    told = f" - {psnr_meaning(metric_version)}"
    return {
        key: replace(measure, label=measure.label + told) if key in REDEFINED else measure
        for key, measure in QUALITY.items()
    }
