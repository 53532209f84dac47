"""The figures that can be put on an axis: how they are called, what unit they have and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calibrate.quality import METRIC_VERSION, REDEFINED, psnr_meaning


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


def quality_measures(metric_version: int) -> Mapping[str, Measure]:
    """`QUALITY` for figures of a metric version: what means something else than today says so on its axis."""
    if metric_version == METRIC_VERSION:
        return QUALITY
    told = f" - {psnr_meaning(metric_version)}"
    return {
        key: replace(measure, label=measure.label + told) if key in REDEFINED else measure
        for key, measure in QUALITY.items()
    }
