"""Whether the evidence that a profile carries still holds for figures that were measured anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibrate.quality import METRIC_VERSION, REDEFINED, metric_version, psnr_meaning
from calibrate.rounding import EXACT_MULTIPLE

# By how much a figure may fall behind the recorded one: relative for speeds, absolute for quality.
_SPEEDS = {"speedup_evaluations": 0.01, "speedup_denoise": 0.15, "speedup_end_to_end": 0.15}
_QUALITY = {
    "psnr_db": 0.5,
    "psnr_worst_prompt_db": 0.5,
    "psnr_worst_frame_db": 1.0,
    "psnr_worst_block_db": 1.0,
    "ssim": 0.005,
    "temporal_psnr_db": 0.5,
}


@dataclass(frozen=True)
class Recheck:
    """One figure, then and now.

    Attributes:
        figure: Its name.
        recorded: In the profile.
        measured: On this machine.
        tolerance: How far it may fall behind, in its own unit.
        holds: Whether it does not fall further behind than that.
    """

    figure: str
    recorded: float
    measured: float
    tolerance: float
    holds: bool


def recheck(
    evidence: Mapping[str, Any], figures: Mapping[str, Any], here: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Compares figures with a profile's evidence on the same cases.

    Args:
        evidence: The profile's.
        figures: As `calibrate.paired.verdict` returns them.
        here: This machine's `hardware` and `versions`, and the `content` of the model's parts, as evidence has them.

    Returns:
        `holds` (all figures), `figures` (each with recorded, measured, tolerance, holds), and `differs`: what is other
        than when the profile was made, as [recorded, here]. `not_comparable` holds by name what figures meant when they
        were recorded that mean something else now; with one of these, not all figures hold.
    """
    found = []
    version = metric_version(evidence)
    redefined = REDEFINED if version != METRIC_VERSION else ()
    for name, share in _SPEEDS.items():
        if name in evidence:
            found.append(_at_least(name, evidence[name], figures[name], share * evidence[name]))
    for name, tolerance in _QUALITY.items():
        if name in evidence and name not in redefined:
            found.append(_at_least(name, evidence[name], figures[name], tolerance))
    rounding = figures["exact"]["stock_rounding"]
    if "exact" in evidence and rounding is not None:
        # Rounding differs between machines, so what counts is what it does to stock on this one.
        recorded, measured = evidence["exact"]["max_abs_diff"], figures["exact"]["max_abs_diff"]
        tolerance = EXACT_MULTIPLE * rounding - recorded
        found.append(Recheck("exact.max_abs_diff", recorded, measured, tolerance, figures["exact"]["holds"]))
    return {
        "holds": all(entry.holds for entry in found) and not redefined,
        "figures": [vars(entry) for entry in found],
        "not_comparable": dict.fromkeys(redefined, psnr_meaning(version)),
        "differs": {
            name: values
            for part, found_here in here.items()
            if part in evidence
            for name, values in _differences(part, evidence[part], found_here).items()
        },
    }


def _at_least(name: str, recorded: float, measured: float, tolerance: float) -> Recheck:
    return Recheck(name, recorded, measured, tolerance, measured >= recorded - tolerance)


def _differences(part: str, recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        f"{part}.{name}": [recorded.get(name), here.get(name)]
        for name in sorted({*recorded, *here})
        if recorded.get(name) != here.get(name)
    }
