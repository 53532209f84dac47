"""The figures that floors on scores are set on, from what each clip came to.

A clip's scores are a mapping by name, with that of the stock clip, where a score has one, as `<name>_stock`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from calibrate.spec.running import Score
from calibrate.spec.score_floor import Statistic, score_figure, stock_name

ClipScores = Mapping[str, float]


def score_figures(clips: Sequence[ClipScores]) -> dict[str, float]:
    """Mean, least and largest over clips of every score that all of them have, and of its lead over stock's.

    Args:
        clips: At least one.
    """
    common = set.intersection(*({*clip} for clip in clips))
    return score_figures_at_best([{name: value for name, value in clip.items() if name in common} for clip in clips])


def score_figures_at_best(clips: Sequence[ClipScores]) -> dict[str, float]:
    """The same of every score that any clip has; a figure that clips without it leave open is not a number.

    What is open fails no floor, because every comparison with what is not a number is false.
    """
    names = dict.fromkeys(name for clip in clips for name in clip)
    found: dict[str, float] = {}
    for name in names:
        if name.endswith("_stock") and name.removesuffix("_stock") in names:
            continue
        stock = stock_name(name)
        own = [clip[name] for clip in clips if name in clip]
        found |= _statistics(name, own, len(clips), over_stock=False)
        if stock in names:
            lead = [clip[name] - clip[stock] for clip in clips if name in clip and stock in clip]
            found |= _statistics(name, lead, len(clips), over_stock=True)
    return found


def at_best(scores: Sequence[Score], stock: ClipScores) -> dict[str, float]:
    """What a clip's scores can still come to, as far as a study says what is best; with those of the stock clip."""
    best = {score.name: score.best for score in scores if score.best is not None}
    return {**best, **{name: value for name, value in stock.items() if name.removesuffix("_stock") in best}}


def _statistics(name: str, values: Sequence[float], clips: int, *, over_stock: bool) -> dict[str, float]:
    found: dict[Statistic, float] = {
        "mean": sum(values) / clips if len(values) == clips else math.nan,
        "min": min(values, default=math.nan),
        "max": max(values, default=math.nan),
    }
    return {score_figure(name, statistic, over_stock=over_stock): value for statistic, value in found.items()}
