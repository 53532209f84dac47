"""Whether the evidence that a profile carries still holds for figures that were measured anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.families.rounding import EXACT_MULTIPLE
from calibrate.quality.metrics import METRIC_VERSION, REDEFINED, metric_version, psnr_meaning
from calibrate.results.promises import promise_in

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


# A promise is taken for broken when so many misses, or more, would be this unlikely if it held.
BROKEN_BELOW = 0.01


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
        figures: As `calibrate.measure.paired.verdict` returns them.
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


def against_promise(guarantee: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts how many cases hold what a profile promises for each prompt.

    Those with a prompt that the promise was tested on are left out: they say nothing new.

    Args:
        guarantee: The part of that name of a profile's evidence.
        cases: Lines of evidence; see `calibrate.measure.paired.PairedCase.figures`.

    Returns:
        `statement`, `share`, `confidence`, how many cases were counted (`n`), `held` and `misses` among them, the
        `chance` of so many misses or more if just that share held, and whether the promise is `broken`: whether that
        chance is below `BROKEN_BELOW`.
    """
    from scipy.stats import binom

    promise = promise_in(guarantee)
    tested = {case["prompt"] for case in guarantee["cases"]}
    counted = [case for case in cases if case["prompt"] not in tested]
    misses = sum(bool(promise.floors.missed_by_prompt(case)) for case in counted)
    chance = float(binom.sf(misses - 1, len(counted), 1 - promise.share)) if counted else 1.0
    return {
        "statement": guarantee["statement"],
        "share": promise.share,
        "confidence": promise.confidence,
        "n": len(counted),
        "held": len(counted) - misses,
        "misses": misses,
        "chance": chance,
        "broken": chance < BROKEN_BELOW,
    }
