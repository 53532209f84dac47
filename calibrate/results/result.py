"""What a candidate came to, which candidates are worth a look, and which one becomes the profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import FIRST_METRIC_VERSION, METRIC_VERSION, Quality, floor_figures, psnr_meaning
from calibrate.quality.score_figures import score_figures
from calibrate.spec.floors import Floors
from calibrate.spec.running import Rule
from calibrate.spec.score_floor import SCORES, is_score_mean, score_of
from calibrate.store import PAIRED, PREPARATION, Generation, Store
from calibrate.store.optuna_tables import RESULT, attributes_of, complete_attributes
from scope_runtime import Preparation, ProfileError

if TYPE_CHECKING:
    import optuna

# The study's user attribute that holds how well each indicator's change map fits.
CHANGE_MAPS = "change_maps"
# The study's user attribute that holds what became of each preparation of the pipeline: `preparation` as JSON, the
# `exact_speedup` of one case beside stock, and why it was `dropped`, or None.
PREPARATIONS = "preparations"
# User attribute that holds what replay expected of the trial's policy: `speedup_evaluations` and, under `figures`, a
# part of a result's.
ESTIMATE = "estimate"
# The memory that a generation took, among its metrics.
MEMORY = "memory_bytes"
# How many blocks the figures of a clip are of that was not finished, among its metrics.
BLOCKS = "blocks"

Kind = Literal["thresholds", "learned"]
THRESHOLDS: Kind = "thresholds"
LEARNED: Kind = "learned"
KINDS = (THRESHOLDS, LEARNED)


@dataclass(frozen=True)
class Result:
    """A candidate's figures from real generations of the search cases.

    Attributes:
        trial: Optuna's trial number.
        policy: The policy, as JSON.
        speedup_evaluations: Stock block evaluations over the ones made.
        speedup_denoise: Denoising seconds of stock over the candidate's; where that is not `paired`, of stored stock
            runs, so only a hint.
        figures: See `calibrate.quality.metrics.floor_figures`; of the scores that floors are set on, those of
            `calibrate.quality.score_figures`.
        cases: How many cases were measured.
        stopped: Why not all cases were measured, or None.
        metric_version: What the figures mean; see `quality.metrics.METRIC_VERSION`. Results of different versions
            are never compared.
        preparation: What the pipeline was set up with beyond how it was loaded, as JSON; None for nothing.
        paired: Whether stock and candidate were timed beside each other, as where the pipeline may be set up otherwise.
    """

    trial: int
    policy: dict[str, Any]
    speedup_evaluations: float
    speedup_denoise: float
    figures: dict[str, float]
    cases: int
    stopped: str | None
    metric_version: int = METRIC_VERSION
    preparation: dict[str, Any] | None = None
    paired: bool = False

    @classmethod
    def of(cls, trial: int, policy: dict[str, Any], rows: Sequence[Generation], stopped: str | None) -> Self:
        """Sums up the complete generations of one policy, at least one."""
        timed = [row for row in rows if (row.metrics or {}).get(PAIRED)]
        return cls(
            trial=trial,
            policy=policy,
            speedup_evaluations=_ratio([row.stock_evaluations for row in rows], [row.evaluations for row in rows]),
            speedup_denoise=_ratio(
                [row.stock_seconds_denoise for row in timed or rows], [row.seconds_denoise for row in timed or rows]
            ),
            figures=_figures([row.metrics or {} for row in rows]),
            cases=len(rows),
            stopped=stopped,
            preparation=rows[0].settings.get(PREPARATION),
            paired=bool(timed),
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, of records from before there were versions too."""
        return cls(**{"metric_version": FIRST_METRIC_VERSION, **fields})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return dataclasses.asdict(self)

    @property
    def speed(self) -> float:
        """What it is ranked by: evaluations, or the time of denoising, where the pipeline may be set up otherwise."""
        return self.speedup_denoise if self.paired else self.speedup_evaluations

    @property
    def set_up(self) -> Preparation:
        """What its pipeline is set up with."""
        return Preparation() if self.preparation is None else Preparation.from_dict(self.preparation)

    @property
    def kind(self) -> Kind:
        """What decides when blocks are computed: thresholds, or a plan with learned weights."""
        return LEARNED if self.policy.get("gap_weights") else THRESHOLDS

    def feasible(self, floors: Floors) -> bool:
        """Whether all cases were measured and every floor holds with its safety margin."""
        return self.stopped is None and max(floors.shortfalls(self.figures, margin=True).values(), default=0.0) <= 0

    def __str__(self) -> str:
        return (
            f"{self.speedup_evaluations:.2f}x fewer evaluations{self._told_time} at {self.figures['psnr_db']:.1f} dB "
            f"(worst prompt {self.figures['psnr_worst_prompt_db']:.1f} dB{told_scores(self.figures)})"
            + ("" if self.metric_version == METRIC_VERSION else f", {psnr_meaning(self.metric_version)}")
        )

    @property
    def _told_time(self) -> str:
        return f", {self.speedup_denoise:.2f}x faster ({told_preparation(self.preparation)})" if self.paired else ""


def _figures(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures that floors and ceilings are set on."""
    qualities = [Quality.of(metrics) for metrics in measured]
    memory = {MEMORY: max(metrics[MEMORY] for metrics in measured)} if MEMORY in measured[0] else {}
    return floor_figures(qualities) | memory | score_figures([metrics.get(SCORES, {}) for metrics in measured])


def told_preparation(preparation: Mapping[str, Any] | None) -> str:
    """What a pipeline was set up with, as a record has it, in words."""
    try:
        return str(Preparation() if preparation is None else Preparation.from_dict(preparation))
    except ProfileError:
        return "in a way that cannot be read"


def change_map_name(indicator: str, preparation: Mapping[str, Any] | None) -> str:
    """The name under which `CHANGE_MAPS` says how well an indicator's map fits, of a pipeline that is set up so."""
    return indicator if preparation is None else f"{indicator}, {told_preparation(preparation)}"


def told_scores(figures: Mapping[str, float]) -> str:
    """The means of scores among figures, as a part of a sentence; empty where there are none."""
    means = {name: value for name, value in figures.items() if is_score_mean(name)}
    return "".join(f", {score_of(name)} {value:.3g}" for name, value in means.items())


def of_metric(results: Iterable[Result], version: int = METRIC_VERSION) -> list[Result]:
    """Those results whose figures have one version, by default the one that is measured now."""
    return [result for result in results if result.metric_version == version]


def load_results(store: Store) -> list[Result]:
    """The results of all completed trials, one per policy: a repeat carries the result of the trial it repeats.

    Figures may have several versions; see `of_metric`.
    """
    return _distinct(complete_attributes(store.storage, store.study.name, RESULT))


def results_of(study: optuna.Study) -> list[Result]:
    """The results that can be compared with new ones, of a study that need not be in our database."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return of_metric(results_in(trial.user_attrs for trial in trials))


def results_in(attributes: Iterable[Mapping[str, Any]]) -> list[Result]:
    """The results in the user attributes of completed trials, one per policy; see `load_results`."""
    return _distinct(found[RESULT] for found in attributes if RESULT in found)


def survey(store: Store) -> list[Result]:
    """As `load_results`, with empty policies, which make up most of a result; `with_policies` adds those wanted."""
    found = complete_attributes(store.storage, store.study.name, RESULT, without="policy")
    return _distinct({**fields, "policy": {}} for fields in found)


def with_policies(store: Store, results: Sequence[Result]) -> list[Result]:
    """A few of the results of `survey` in full, in the order given."""
    return results_of_trials(store, [result.trial for result in results])


def results_of_trials(store: Store, trials: Sequence[int]) -> list[Result]:
    """The results of some trials that were measured, in the order given.

    Raises:
        CalibrateError: If one of them is not there.
    """
    found = _distinct(attributes_of(store.storage, store.study.name, RESULT, trials))
    full = {result.trial: result for result in found}
    for number in trials:
        if number not in full:
            name = store.study.name
            raise CalibrateError(f"The records of study {name!r} are damaged: trial {number} has no result.")
    return [full[number] for number in trials]


def _distinct(found: Iterable[dict[str, Any]]) -> list[Result]:
    return list({fields["trial"]: Result.from_dict(fields) for fields in found}.values())


def front(results: Sequence[Result]) -> list[Result]:
    """The results, all of one metric version, that no other one beats in both speed-up and mean PSNR, fastest first."""
    speed = np.array([result.speed for result in results])
    quality = np.array([result.figures["psnr_db"] for result in results])
    return [results[index] for index in front_indices(speed, quality)]


def front_indices(speed: NDArray[np.float64], quality: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which points no other one beats in both, fastest first; of equal points the first.

    Args:
        speed: More is better [n].
        quality: More is better [n].
    """
    order = np.lexsort((-quality, -speed))
    if not len(order):
        return order
    sorted_quality = quality[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(sorted_quality)[:-1]])
    return order[sorted_quality > best_before]


def fastest_feasible(results: Sequence[Result], floors: Floors) -> Result | None:
    """The fastest feasible result (see `Result.speed`); of equals the one whose worst prompt is better."""
    return fastest([result for result in results if result.feasible(floors)])


def fastest(results: Sequence[Result]) -> Result | None:
    """The fastest result (see `Result.speed`); of equals the one whose worst prompt is better."""
    return max(results, key=_speed_then_quality, default=None)


def pick(results: Sequence[Result], floors: Floors, rule: Rule, min_speedup: float | None) -> Result:
    """Chooses the result to export, on search cases alone.

    Args:
        results: What the search measured, all of one metric version.
        floors: Quality that must hold, with its safety margin.
        rule: `fastest` above the floors; `best-quality` above `min_speedup`; `knee`: the point of the feasible front
            that lies farthest from the line between its ends.
        min_speedup: As `Result.speed` has it; with any rule, slower results are left out.

    Raises:
        CalibrateError: If no result qualifies; says how close the search came.
    """
    feasible = [result for result in results if result.feasible(floors)]
    if not feasible:
        raise CalibrateError(f"floors: {_closest(results, floors)}")
    fast_enough = [result for result in feasible if result.speed >= (min_speedup or 0.0)]
    if not fast_enough:
        fastest = max(feasible, key=_speed_then_quality)
        below = [r for r in results if r.stopped is None and r.speed >= (min_speedup or 0.0)]
        best = max(below, key=lambda r: r.figures["psnr_db"], default=None)
        above = f", above them{floors.with_margin}" if floors.with_margin else ""
        raise CalibrateError(
            f"export.min_speedup: no policy above the floors reaches {min_speedup:g}x; the fastest (trial "
            f"{fastest.trial}) gives {fastest}{above}"
            + (f", and the best that reaches it (trial {best.trial}) {best}, {_misses(best, floors)}" if best else "")
            + "; lower min_speedup or the floors, or raise the budget."
        )
    return by_rule(fast_enough, rule)


def by_rule(results: Sequence[Result], rule: Rule) -> Result:
    """Chooses among results, at least one, that all may be exported; see `pick`."""
    if rule == "fastest":
        return max(results, key=_speed_then_quality)
    if rule == "best-quality":
        return max(results, key=lambda r: (r.figures["psnr_db"], r.speed))
    return _knee(front(results))


def find(results: Sequence[Result], trial: int) -> Result:
    """The result of a trial.

    Raises:
        CalibrateError: If the trial was not measured, or repeats another one.
    """
    for result in results:
        if result.trial == trial:
            return result
    known = ", ".join(str(result.trial) for result in front(of_metric(results) or results)[:6]) or "none yet"
    raise CalibrateError(f"--trial: {trial} is not a measured trial of this study; the best are {known}.")


def _closest(results: Sequence[Result], floors: Floors) -> str:
    mend = "lower the floors or raise budget.trials."
    if any(result.stopped is None and floors.unmeasured(result.figures) for result in results):
        mend = "it was measured before the score was asked for: raise budget.trials and run the study again."
    whole = [result for result in results if result.stopped is None]
    if not whole:
        stopped = f" (the last one {results[-1].stopped})" if results else ""
        return f"no policy was measured on all search cases{stopped}; {mend}"
    closest = min(whole, key=lambda r: max(floors.shortfalls(r.figures, margin=True).values()))
    if not any(short > 0 for short in floors.shortfalls(closest.figures, margin=False).values()):
        mend = (
            "it holds the floors themselves: export it with --trial, lower floors.safety_margin_db, or raise "
            "budget.trials."
        )
    return (
        f"no measured policy holds them{floors.with_margin}; the closest (trial {closest.trial}, {closest}) "
        f"{_misses(closest, floors)}; {mend}"
    )


def _misses(result: Result, floors: Floors) -> str:
    return f"misses {' and '.join(floors.told_missed(result.figures, margin=True))}"


def _speed_then_quality(result: Result) -> tuple[float, float]:
    return result.speed, result.figures["psnr_worst_prompt_db"]


def _knee(points: Sequence[Result]) -> Result:
    xy = np.array([[r.speed, r.figures["psnr_db"]] for r in points])
    span = np.ptp(xy, axis=0)
    if len(points) < 3 or (span == 0).any():
        return points[0]
    unit = (xy - xy.min(axis=0)) / span
    # Both ends of a front lie on the falling diagonal of the unit square; the sum measures the distance from it.
    return points[int(unit.sum(axis=1).argmax())]


def _ratio(above: Sequence[float | None], below: Sequence[float | None]) -> float:
    return sum(value or 0.0 for value in above) / sum(value or 0.0 for value in below)
