"""What the pipeline may be set up with: tried on one case, and dropped if it does not load or is slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import Baseline, NotUsable, Timings
from calibrate.measure.describe import Description
from calibrate.pool.pool import Pool
from calibrate.progress import Narrator
from calibrate.results.result import PREPARATIONS
from calibrate.search.baselines import Baselines
from calibrate.spec.generation import Case
from calibrate.spec.running import Budget
from calibrate.store import PAIRED_STOCK, Store
from calibrate.study.study_file import Study
from scope_runtime import Preparation

# Times of one case scatter; what is this much slower than the first preparation is slower.
_SLOWER = 0.95


@dataclass(frozen=True)
class Prepared:
    """A way to set the pipeline up that is worth searching with.

    Attributes:
        preparation: What is set up.
        baselines: Where its files are.
        made: The baselines of all cases; traces are those of the pipeline that is set up so.
    """

    preparation: Preparation
    baselines: Baselines
    made: dict[Case, Baseline]


def usable(
    study: Study,
    cases: Sequence[Case],
    store: Store,
    optuna_study: optuna.Study,
    pool: Pool,
    target: Description,
    narrator: Narrator,
) -> list[Prepared]:
    """Makes the baselines of every preparation that the study asks for, and writes down which are dropped and why.

    Raises:
        CalibrateError: If the first one cannot be used: the others are held against it.
    """
    found: list[Prepared] = []
    records: list[dict[str, Any]] = []
    for preparation in study.search.preparations:
        kinds = (PAIRED_STOCK if preparation else "stock", "exact")
        baselines = Baselines(
            pool, target, study.generation, store, study.cache_folder, narrator.say, kinds, preparation
        )
        if study.search.prepares:
            narrator.stage(f"Baselines, {preparation}: stock and exact", len(cases))
        else:
            narrator.stage("Baselines: stock and exact", len(cases))
        prepared = Prepared(preparation, baselines, {})
        try:
            _make(prepared, cases[:1], narrator)
            dropped = _slower(prepared.made, found)
        except NotUsable as error:
            if not found:
                raise CalibrateError(
                    f"search: {preparation}, the first of the choices, cannot be used ({error})."
                ) from error
            dropped = f"does not load: {error}"
        if dropped is None:
            _make(prepared, cases[1:], narrator)
            found.append(prepared)
        else:
            narrator.say(f"Dropped, {preparation}: {dropped}")
        speedup = _speedup(prepared.made[cases[0]].timings) if prepared.made else None
        records.append({"preparation": preparation.to_dict(), "exact_speedup": speedup, "dropped": dropped})
    if study.search.prepares:
        optuna_study.set_user_attr(PREPARATIONS, records)
    return found


def _make(prepared: Prepared, cases: Sequence[Case], narrator: Narrator) -> None:
    for baseline, reused in prepared.baselines.all(cases):
        prepared.made[baseline.case] = baseline
        timings = baseline.timings
        narrator.advance(
            f"{baseline.case.label}: stock {timings.stock_seconds:.1f} s, exact {timings.exact_seconds:.1f} s"
            + (" (kept from before)" if reused else "")
        )


def _slower(made: dict[Case, Baseline], others: Sequence[Prepared]) -> str | None:
    """Why a preparation is dropped for its speed, beside the first one; None if it is not."""
    if not others:
        return None
    (case,) = made
    own, first = (_speedup(entry[case].timings) for entry in (made, others[0].made))
    if own >= _SLOWER * first:
        return None
    return f"slower: exact mode denoises {own:.2f}x as fast as stock, and {first:.2f}x with {others[0].preparation}"


def _speedup(timings: Timings) -> float:
    return timings.stock_seconds / timings.exact_seconds


def share(study: Study, spent: float, number: int, count: int) -> Budget:
    """The part of a study's budget that is for one of several preparations, in their order.

    Args:
        study: The study.
        spent: Full generations per search prompt spent so far.
        number: Of the preparation.
        count: How many there are.
    """
    budget = study.budget
    trials = budget.trials // count + (number < budget.trials % count)
    equivalents = budget.equivalents
    if equivalents is not None:
        equivalents = spent + (equivalents - spent) / (count - number)
    return budget.model_copy(update={"trials": max(1, trials), "equivalents": equivalents})
