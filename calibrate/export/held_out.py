"""The held-out measurement: what `export` writes into a profile and `verify` holds against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.measure.paired import MeasurePair, Paired, PairedCase, StockRounding, TimeAgain, verdict
from calibrate.measure.timing import Steadiness, repeat_until_steady
from calibrate.pool.pool import Pool, call
from calibrate.progress import Narrator
from calibrate.spec.generation import Case
from calibrate.spec.running import Score, Timing
from scope_runtime import Profile


@dataclass(frozen=True)
class HeldOut:
    """What a profile came to on cases.

    Attributes:
        pairs: The cases, with the mean of their times.
        steadiness: How well repeated times agree.
        rounding: See `calibrate.measure.paired.StockRounding`, of the case where exact mode is furthest from stock.
        worst_clip: Stock, SCOPE and their difference for the case with the worst PSNR, as mp4.
    """

    pairs: list[PairedCase]
    steadiness: Steadiness
    rounding: float | None
    worst_clip: bytes

    @property
    def figures(self) -> dict[str, Any]:
        """See `calibrate.measure.paired.verdict`."""
        return verdict(self.pairs, self.rounding)


def measure_held_out(
    pool: Pool,
    profile: Profile,
    cases: Sequence[Case],
    scores: Sequence[Score],
    timing: Timing,
    fps: int,
    narrator: Narrator,
    told: Callable[[PairedCase], None] = lambda _: None,
) -> HeldOut:
    """Measures a profile on one device, one case after the other, so that times of stock and SCOPE can be compared.

    Args:
        pool: Where.
        profile: What is attached.
        cases: At least one.
        scores: What to measure beside the built-in proxies.
        timing: When times are believed.
        fps: Of the clips.
        narrator: Told of every case.
        told: Given every case as soon as it is measured.

    Raises:
        ProfileError: If the profile cannot be applied to the pool's target.
    """
    narrator.stage("Held-out prompts: stock, exact, SCOPE", len(cases))
    applied = profile.to_dict()
    pairs: list[PairedCase] = []
    furthest = worst = None
    for case in cases:
        paired: Paired = call(pool, MeasurePair(applied, case, tuple(scores), fps))
        pair = paired.case
        told(pair)
        narrator.advance(str(pair))
        pairs.append(pair)
        if furthest is None or pair.max_abs_diff > furthest.case.max_abs_diff:
            furthest = paired
        if worst is None or pair.quality.psnr_db < worst.case.quality.psnr_db:
            worst = paired
    assert furthest is not None
    assert worst is not None
    rounding = call(pool, StockRounding(furthest.case.case, furthest.stock_latents))
    if rounding is not None:
        narrator.say(
            f"Exact mode is within {furthest.case.max_abs_diff:.1e} of stock, stock with other rounding within "
            f"{rounding:.1e}"
        )
    pairs, steadiness = repeat_until_steady(pairs, lambda case: call(pool, TimeAgain(applied, case)), timing, narrator)
    return HeldOut(pairs, steadiness, rounding, worst.clip)
