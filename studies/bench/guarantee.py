"""Whether promises that the tests on guarantee cases let pass are kept on prompts that nobody has looked at.

A matrix of policies and prompts is measured once by real runs. Then search prompts, guarantee prompts and a rest are
drawn from it many times; each time policies are chosen as the product does it, by the first two alone, and the rest
says whether what is promised of the chosen one is true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.errors import CalibrateError
from calibrate.progress import Narrator
from calibrate.replay.sensitivity import between
from calibrate.results.guarantee import Promise, Tried, cases_needed, passed_in_turn
from calibrate.results.promises import FLOORS_DB, SHARES, prompts_alone
from calibrate.results.result import Result, pick
from calibrate.results.sequence import sequence_of
from calibrate.search.plans import Extras, Plan
from calibrate.search.population import Population
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.guarantee import Guarantee
from scope_runtime import Policy, Schedule
from studies.bench.generations import Generations, speedup_of
from studies.reference.world import held_out_prompts

# Neither the study nor another benchmark draws prompts with this seed, or generates with seeds from there on.
PROMPT_SEED = 31
FIRST_SEED = 3101

_SEARCH_PROMPTS = 3
# What the rule without a guarantee asks for on top of the floors.
_MARGIN_DB = 2.0
_DEPTH = 3

# From careful to bold. The extra rows of plans with learned weights are those of `calibrate.search.plans`, and more.
_PERIODIC = ((6, 1), (4, 1), (6, 2), (4, 2))  # warm-up, skips
_BOLD: Extras = ((1, 0), (3, 0), (8, 1), (13, 2), (18, 3))
_PLANS: tuple[tuple[Extras, bool], ...] = (
    ((*_BOLD, (2, 0), (7, 1), (12, 2), (17, 3), (22, 4), (23, 4), (28, 4)), True),
    ((*_BOLD, (2, 0), (9, 0), (23, 4)), True),
    ((*_BOLD, (23, 4), (28, 4)), False),
    ((*_BOLD, (23, 4)), False),
    (_BOLD, False),
    (((2, 0), (8, 0), (9, 0), (18, 2)), False),
)


@dataclass(frozen=True)
class Wish:
    """What is to be promised.

    Attributes:
        guarantee: Share and confidence.
        floors: Of which those on PSNR count.
    """

    guarantee: Guarantee
    floors: Floors


def measure(study: Path, prompts: int, draws: int, cache: Path, asked: tuple[float, float] | None) -> dict[str, Any]:
    """The figures of ``python -m studies.bench guarantee``.

    Args:
        study: Whose pipeline, settings, fit prompts and wish are used; its other prompts are not.
        prompts: Fresh ones.
        draws: How often search and guarantee prompts are drawn from them.
        cache: Where generations are kept, so that an interrupted command goes on.
        asked: A floor on every prompt's PSNR in dB, and a share, in place of the study's wish.

    Returns:
        See `simulate`, for the wish and under ``table`` for each of the table's; with ``policies``, each one's speed-up
        with mean, tenth percentile and share at 30 dB over all prompts.
    """
    made = Generations(study, cache)
    wish = _wish(made, asked)
    # The study's own guarantee cases are as fresh as others here: nothing that is measured looks at them.
    used = {case.prompt for case in (*made.study.search_cases, *made.study.held_out_cases, *made.study.fit_cases)}
    drawn = [p for p in held_out_prompts(prompts + len(used), seed=PROMPT_SEED) if p not in used][:prompts]
    cases = [Case(prompt=prompt, seed=FIRST_SEED + number) for number, prompt in enumerate(drawn)]
    with Narrator() as narrator:
        narrator.stage("Weights and periodic schedules", len(_PERIODIC) + len(_PLANS))
        policies = _policies(made, narrator)
        narrator.stage(f"Policies on {len(cases)} prompts", len(policies))
        rows, speedups = [], []
        for policy in policies:
            outcomes = made.clips(policy, cases)
            rows.append([outcome.db for outcome in outcomes])
            speedups.append(speedup_of(outcomes))
            narrator.advance(f"{speedups[-1]:.2f}x, {np.mean(rows[-1]):.2f} dB")
    matrix = np.array(rows)
    found = simulate(matrix, speedups, wish, draws)
    found["table"] = {
        f"{floor:g},{share:g}": simulate(
            matrix,
            speedups,
            Wish(
                wish.guarantee.model_copy(update={"share": share}),
                prompts_alone(floor),
            ),
            draws,
        )
        for floor in FLOORS_DB
        for share in SHARES
    }
    found["policies"] = [
        {
            "speedup": round(speedup, 2),
            "mean_db": round(float(row.mean()), 2),
            "p10_db": round(float(np.percentile(row, 10)), 2),
            "share_30": round(float((row >= 30).mean()), 3),
        }
        for speedup, row in zip(speedups, matrix, strict=True)
    ]
    return found


def simulate(matrix: NDArray[np.float64], speedups: Sequence[float], wish: Wish, draws: int) -> dict[str, Any]:
    """Chooses policies for so many draws of prompts, and looks whether what is promised of them is true.

    Args:
        matrix: PSNR in dB [policies, prompts].
        speedups: Of the policies.
        wish: What is to be promised. As many guarantee prompts are drawn as the test takes at least.
        draws: How many.

    Returns:
        ``share``, ``confidence`` and ``guarantee_prompts``; ``broken_share``: of the draws, those in which less than
        the share of the rest holds the floor, or its mean misses the floor on means, of the policy that was promised
        (``_of_all``: of all prompts, which is the population that was drawn from); ``nothing_promised``: of the
        draws; ``median_speedup`` of what was promised, without it 1; and the same of two rules that look at the search
        prompts alone and promise as much for what they pick: one that takes them for a sample of a population, as the
        search does, and picks the fastest policy that holds with the confidence; and one that asks for 2 dB more.
    """
    chance = np.random.default_rng(0)
    count = cases_needed(wish.guarantee.share, wish.guarantee.confidence)
    prompts = matrix.shape[1]
    if prompts < _SEARCH_PROMPTS + 2 * count:
        raise CalibrateError(
            f"--prompts: {prompts} are too few; {_SEARCH_PROMPTS + 2 * count} leave a rest that tells."
        )
    tested: list[int | None] = []
    by_population: list[int | None] = []
    by_margin: list[int | None] = []
    rests = []
    for _ in range(draws):
        order = chance.permutation(prompts)
        search, guarantee, rest = np.split(order, [_SEARCH_PROMPTS, _SEARCH_PROMPTS + count])
        results = [_result(number, row[search], speedups[number]) for number, row in enumerate(matrix)]
        tested.append(_tested(results, matrix[:, guarantee], speedups, wish))
        by_population.append(_by_population(matrix[:, search], speedups, wish))
        by_margin.append(_by_margin(results, wish))
        rests.append(rest)
    everything = np.arange(prompts)
    figures: dict[str, Any] = {
        "share": wish.guarantee.share,
        "confidence": wish.guarantee.confidence,
        "guarantee_prompts": count,
    }
    for suffix, chosen in (("", tested), ("_of_population_rule", by_population), ("_of_margin_rule", by_margin)):
        broken = [n is not None and not _true(matrix[n, rest], wish) for n, rest in zip(chosen, rests, strict=True)]
        of_all = [n is not None and not _true(matrix[n, everything], wish) for n in chosen]
        figures[f"broken_share{suffix}"] = round(float(np.mean(broken)), 3)
        figures[f"broken_share_of_all{suffix}"] = round(float(np.mean(of_all)), 3)
        figures[f"nothing_promised{suffix}"] = round(float(np.mean([n is None for n in chosen])), 3)
        figures[f"median_speedup{suffix}"] = round(
            float(np.median([1.0 if n is None else speedups[n] for n in chosen])), 2
        )
    return figures


def _tested(
    results: Sequence[Result], matrix: NDArray[np.float64], speedups: Sequence[float], wish: Wish
) -> int | None:
    """The fastest policy that passes in turn on guarantee prompts [policies, prompts]."""
    sequence = [
        Tried(r.trial, speedups[r.trial], [_figures(db) for db in matrix[r.trial]])
        for r in sequence_of(results, wish.guarantee, wish.floors)
    ]
    promise = Promise(wish.guarantee.share, wish.guarantee.confidence, wish.floors)
    passed = passed_in_turn(promise, sequence)
    return passed[-1].trial if passed else None


def _by_population(searched: NDArray[np.float64], speedups: Sequence[float], wish: Wish) -> int | None:
    """The fastest policy that holds on all prompts with the confidence, by the search prompts [policies, prompts]."""
    means = searched.mean(axis=1)
    offsets = (searched - means[:, None]).mean(axis=0)
    left = float(np.sqrt(np.mean((searched - means[:, None] - offsets) ** 2)))
    spread = math.hypot(between(list(offsets)), left)
    each, mean = wish.floors.psnr_worst_prompt_db, wish.floors.psnr_db
    holding = [
        number
        for number, own in enumerate(means)
        if min(
            1.0 if each is None else Population(own, spread, searched.shape[1]).share_holds(each, wish.guarantee.share),
            1.0 if mean is None else Population(own, spread, searched.shape[1]).mean_holds(mean),
        )
        >= wish.guarantee.confidence
    ]
    return max(holding, key=lambda number: speedups[number], default=None)


def _by_margin(results: Sequence[Result], wish: Wish) -> int | None:
    """The fastest policy that holds the floors with a margin on the search prompts."""
    try:
        return pick(results, wish.floors.model_copy(update={"safety_margin_db": _MARGIN_DB}), "fastest", None).trial
    except CalibrateError:
        return None


def _true(row: NDArray[np.float64], wish: Wish) -> bool:
    """Whether a promise is kept on some prompts [prompts]."""
    held = np.mean([not wish.floors.missed_by_prompt(_figures(db)) for db in row])
    mean = wish.floors.psnr_db
    return bool(held >= wish.guarantee.share and (mean is None or row.mean() >= mean))


def _figures(db: float) -> dict[str, float]:
    return {"psnr_db": float(db)}


def _result(number: int, row: NDArray[np.float64], speedup: float) -> Result:
    figures = {"psnr_db": float(row.mean()), "psnr_worst_prompt_db": float(row.min())}
    return Result(number, {}, speedup, speedup, figures, len(row), None)


def _wish(made: Generations, asked: tuple[float, float] | None) -> Wish:
    asked_for = made.study.guarantee
    share, confidence = (asked_for.share, asked_for.confidence) if asked_for else (0.9, 0.9)
    guarantee = Guarantee(share=share, confidence=confidence)  # as many policies as studies test by default
    if asked is None:
        floors = made.study.floors
        kept = Floors(
            psnr_db=floors.psnr_db, psnr_worst_prompt_db=floors.psnr_worst_prompt_db, safety_margin_db=0.0
        )  # what the matrix has
        return Wish(guarantee, kept)
    floor, share = asked
    return Wish(
        guarantee.model_copy(update={"share": share}),
        prompts_alone(floor),
    )


def _policies(made: Generations, narrator: Narrator) -> list[Policy]:
    """From careful to bold."""
    found = []
    for warmup, skips in _PERIODIC:
        found.append(Policy(warmup=warmup, max_skip=skips, axis="step"))
        narrator.advance(f"warm-up {warmup}, {skips} skips")
    baselines = [made.baseline(case) for case in made.study.fit_cases]
    schedule: Schedule = baselines[0].trace.windows[0].schedule
    for extras, captures in _PLANS:
        plan = Plan(made.study.generation.ar_step, tuple(sorted(extras)), "clean" if captures else "last", _DEPTH)
        found.append(made.fitted(plan.policy(schedule), _DEPTH, baselines)[0])
        narrator.advance(f"{len(extras)} extra rows")
    return found
