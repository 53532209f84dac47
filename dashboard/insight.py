"""What the search says about the space it searched: importance, curves, progress. Figures come from libraries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kruskal, spearmanr

from calibrate.results.result import front_indices

# More trials than this do not change an importance, they only make it slow.
IMPORTANCE_TRIALS = 1000
_BINS = 12
_CHECKPOINTS = 60

Parameters = Mapping[int, Mapping[str, tuple[Any, optuna.distributions.BaseDistribution]]]


@dataclass(frozen=True)
class Curve:
    """How a figure depends on one number, the other parameters being whatever they were.

    Attributes:
        x: Centres of the bins.
        low: First quartile in each bin.
        median: Median in each bin.
        high: Third quartile.
        chance: Probability that bins of one and the same distribution would differ as much (Kruskal and Wallis); 1
            where there is nothing to compare.
    """

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]
    chance: float

    @property
    def range(self) -> float:
        """How far the median moves over the range that was tried."""
        return float(np.ptp(self.median)) if len(self.median) else 0.0


def importance(parameters: Parameters, values: Mapping[int, float]) -> dict[str, float]:
    """How much of what sets good values apart each parameter explains (PED-ANOVA), most first; adds up to 1.

    Args:
        parameters: See `calibrate.store.browse.parameters`.
        values: More is better, by trial number. At most `IMPORTANCE_TRIALS` of them, evenly spread, are looked at.

    Returns:
        Empty when there are too few trials to tell, or all values are equal.
    """
    usable = [number for number in values if parameters.get(number)]
    stride = max(1, len(usable) // IMPORTANCE_TRIALS)
    tried: dict[str, set[Any]] = {}
    for number in usable:
        for name, (value, _) in parameters[number].items():
            tried.setdefault(name, set()).add(value)
    # The evaluator would also find that what never varied matters, by how much more could have been tried.
    kept = {
        number: {name: found for name, found in parameters[number].items() if len(tried[name]) > 1}
        for number in usable[::stride]
    }
    trials = [
        optuna.trial.create_trial(
            params={name: value for name, (value, _) in kept[number].items()},
            distributions={name: distribution for name, (_, distribution) in kept[number].items()},
            value=-values[number],  # the evaluator takes low values for good
        )
        for number in kept
    ]
    if len(trials) < 4 or len({trial.value for trial in trials}) < 2:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(storage=None)
        study.add_trials(trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(study)
    finally:
        optuna.logging.set_verbosity(verbosity)


def varied(parameters: Parameters, trials: Sequence[int]) -> pd.DataFrame:
    """A row per trial and a column per parameter that varied, without gaps.

    A parameter that some trials do not have (there was nothing to choose) is left out if its values are numbers; among
    names "none" is one more.
    """
    table = pd.DataFrame([{name: value for name, (value, _) in parameters.get(trial, {}).items()} for trial in trials])
    for name in table.columns:
        if any(isinstance(value, str) for value in table[name]):
            table[name] = table[name].fillna("none")
    changing = [name for name in table.columns if table[name].nunique(dropna=False) > 1]
    return table[changing].dropna(axis="columns")


def curve(x: Sequence[float], y: Sequence[float]) -> Curve:
    """Quartiles of `y` over bins of `x`; bins without values are left out."""
    values, figures = np.asarray(x, np.float64), np.asarray(y, np.float64)
    distinct = np.unique(values)
    if len(distinct) <= _BINS:
        edges = np.concatenate([[-np.inf], (distinct[1:] + distinct[:-1]) / 2, [np.inf]])
        centres = distinct
    else:
        edges = np.linspace(values.min(), values.max(), _BINS + 1)
        centres = (edges[1:] + edges[:-1]) / 2
    number = np.clip(np.digitize(values, edges[1:-1]), 0, len(centres) - 1)
    filled = np.flatnonzero(np.bincount(number, minlength=len(centres)))
    groups = [figures[number == n] for n in filled]
    quartiles = np.array([np.percentile(group, (25, 50, 75)) for group in groups]).reshape(-1, 3)
    told_apart = len(groups) > 1 and len(np.unique(figures)) > 1
    chance = float(kruskal(*groups).pvalue) if told_apart else 1.0
    return Curve(centres[filled], quartiles[:, 0], quartiles[:, 1], quartiles[:, 2], chance)


def hypervolume(points: pd.DataFrame, speed: str, quality: str, floor: float) -> tuple[list[int], list[float]]:
    """The area that the front covers above stock's speed and a quality, after so many measured policies.

    Args:
        points: Measured policies in the order of their trials.
        speed: Column; the area counts from 1x.
        quality: Column; the area counts from `floor`.
        floor: In the unit of `quality`.

    Returns:
        Numbers of policies, and the area after each.
    """
    x = np.maximum(points[speed].to_numpy(np.float64) - 1.0, 0.0)
    y = np.maximum(points[quality].to_numpy(np.float64) - floor, 0.0)
    counts: Sequence[int] = (
        np.unique(np.linspace(1, len(x), min(_CHECKPOINTS, len(x))).astype(int)).tolist() if len(x) else []
    )
    return list(counts), [_area(x[:n], y[:n]) for n in counts]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(a, b).statistic)


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Area under the staircase of the front, from the origin."""
    line = front_indices(x, y)
    widths = x[line] - np.append(x[line][1:], 0.0)
    return float(np.sum(widths * y[line]))
