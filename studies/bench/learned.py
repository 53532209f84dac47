"""Plans with learned weights against Taylor extrapolation, paired on fresh prompts, at the same speed-ups.

Three sets of prompts, none of them the study's: weights are fitted on the first, candidates of both kinds are chosen on
the second, and what was chosen is judged once on the third. Speed-ups are in block evaluations; quality is the PSNR of
a clip's mean squared error against the clip of a full-compute run.

All kinds are chosen in the same way. For every target speed-up those candidates compete that reach it (2 % less is
near enough): all of them on two tuning prompts, the best of these on all tuning prompts, by the mean PSNR of latents,
which ranks policies as that of clips does. Taylor's candidates are periodic and threshold schedules, of which replay on
the fit prompts' traces picks the most promising ones of every order and axis. What weights add to a plan is told apart
by a third kind: Taylor on the learned plans' own rows and captures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.measure.baseline import Baseline
from calibrate.progress import Narrator
from calibrate.replay.replay import Replay
from calibrate.search.plans import Extras, Plan, Plans
from calibrate.spec.generation import Case
from calibrate.spec.search_space import Learned
from scope_runtime import Policy, Profile, Schedule, plan_of
from studies.bench.generations import Generations, Outcome, mean_db, speedup_of
from studies.reference.world import held_out_prompts

# Neither the study nor another benchmark draws prompts with this seed, or generates with seeds from there on.
PROMPT_SEED = 29
FIRST_SEED = 2901
MOST_FIT, TUNING = 6, 6

TARGETS = (4.6, 5.5, 6.0, 7.0)
# The fronts need a slower point, at which both kinds are good.
_ALL_TARGETS = (3.5, *TARGETS)
_NEAR_ENOUGH = 0.98
# Schedules that are much faster than a target belong to the next one.
_WIDTH = 1.12
_LEVELS = (35, 33, 31)
_GOOD_DB = 30.0

_FIRST_PROMPTS, _KEPT = 2, 3
_DEPTH = 3
_EXTRAPOLATIONS = ((0, "noise-level"), (1, "noise-level"), (1, "step"), (2, "noise-level"), (2, "step"))
# On the learned plans' rows, where replay says nothing; the noise level does worse than the steps there.
_ON_PLANS = ((0, "noise-level"), (1, "step"), (2, "step"))
_PICKED = 2
_THRESHOLDS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25)

_BOLD: Extras = ((1, 0), (3, 0), (8, 1), (13, 2), (18, 3))
_BOLDER: Extras = ((2, 0), (8, 0), (9, 0), (18, 2))
_CAREFUL: Extras = (
    (1, 0), (2, 0), (3, 0), (7, 1), (8, 1), (12, 2), (13, 2), (17, 3), (18, 3), (22, 4), (23, 4), (28, 4),
)  # fmt: skip
# Beside the first plans of every search: period, extra rows, whether there are captures.
BY_HAND: tuple[tuple[int, Extras, bool], ...] = (
    (5, (*_CAREFUL, (9, 1)), False),
    (5, _CAREFUL, True),
    (5, (*_BOLD, (23, 4), (28, 4)), False),
    (5, (*_BOLD, (2, 0), (9, 0), (23, 4)), True),
    (5, ((2, 0), (8, 1), (9, 0), (18, 2), (23, 4)), False),
    (5, (*_BOLDER, (1, 0), (3, 0)), True),
    (5, ((1, 0), (3, 0), (8, 1), (13, 2)), False),
    (5, ((2, 0), (8, 1)), True),
    (6, ((2, 0), (8, 0), (9, 0), (18, 1)), False),
)
# The last has its period alone.
_ABLATED: tuple[Extras, ...] = ((*_BOLD, (23, 4)), _BOLD, _BOLDER, ())

Line = dict[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Three sets without a prompt in common.

    Attributes:
        fit: What weights are fitted on.
        tuning: What candidates are chosen on.
        test: What judges the chosen ones.
    """

    fit: tuple[Case, ...]
    tuning: tuple[Case, ...]
    test: tuple[Case, ...]

    @classmethod
    def fresh(cls, count: int, fit: int, used: Sequence[Case]) -> Prompts:
        """So many test prompts and fit prompts; more of either leave the other sets as they are.

        Args:
            count: Of test prompts.
            fit: Of fit prompts, at most `MOST_FIT`.
            used: Cases of a study, whose prompts are left out.
        """
        taken = {case.prompt for case in used}
        apart = MOST_FIT + TUNING
        drawn = held_out_prompts(apart + count + len(taken), seed=PROMPT_SEED)
        free = [prompt for prompt in drawn if prompt not in taken][: apart + count]
        cases = [Case(prompt=prompt, seed=FIRST_SEED + number) for number, prompt in enumerate(free)]
        assert len({case.prompt for case in cases} - taken) == apart + count
        return cls(tuple(cases[:fit]), tuple(cases[MOST_FIT:apart]), tuple(cases[apart:]))


@dataclass(frozen=True)
class Candidate:
    """A policy that competes.

    Attributes:
        policy: With its weights, if it is a learned one.
        speedup: In block evaluations.
    """

    policy: Policy
    speedup: float


def measure(study: Path, prompts: int, fit_prompts: int, cache: Path, profile: Path | None = None) -> dict[str, Any]:
    """The figures of ``python -m studies.bench learned``.

    Args:
        study: Whose pipeline and settings are used; its prompts are not.
        prompts: Test prompts.
        fit_prompts: Prompts that weights are fitted on.
        cache: Where generations and weights are kept, so that an interrupted command goes on.
        profile: An exported one of these settings, to be judged on the same test prompts.

    Returns:
        ``at`` by target speed-up: means over test prompts, the gain over Taylor's schedules and over Taylor on learned
        plans' rows (``taylor_on_plans``) with their standard errors (paired by prompt), the tenth percentile, the share
        of prompts of at least 30 dB, and the speed-up that the chosen policies have; a target that one kind has no
        candidate for is left out. ``equivalents``: full generations that choosing learned plans
        took (fits and sweep, without full-compute runs) per fit prompt, and ``equivalents_taylor`` what Taylor's sweep
        took, likewise. ``speedup_at_equal_quality``: of Taylor's schedules and of learned plans by mean dB, by linear
        interpolation of the logarithm of the speed-up between neighbours on the front of all chosen policies' means on
        the test prompts; null outside the front. ``speedup_of_taylor_on_plans``: likewise. With a profile,
        ``exported``: its policy's figures, the ``speedup_of_schedules`` of its mean, and ``over_schedules``: for every
        chosen schedule its speed-up, and by how many dB the policy is above it, with the standard error.
    """
    with Narrator() as narrator:
        bench = _Bench(study, prompts, fit_prompts, cache, narrator)
        chosen = {
            "learned": bench.choose("Learned plans", bench.learned_candidates()),
            "taylor": bench.choose("Taylor schedules", bench.taylor_candidates()),
            "taylor_on_plans": bench.choose("Taylor on learned plans' rows", bench.taylor_on_plans()),
        }
        spent = {"learned": bench.spent("learned"), "taylor": bench.spent("taylor")}
        judged = {kind: bench.judge(kind, policies) for kind, policies in chosen.items()}
        exported = bench.clips(Profile.load(profile).policy) if profile else None
    both = [target for target in TARGETS if all(target in found for found in judged.values())]
    return {
        "at": {
            f"{target:g}": _compared({kind: outcomes[target] for kind, outcomes in judged.items()}) for target in both
        },
        "prompts": prompts,
        "fit_prompts": fit_prompts,
        "equivalents": round(spent["learned"] / fit_prompts, 1),
        "equivalents_taylor": round(spent["taylor"] / fit_prompts, 1),
        "speedup_at_equal_quality": {
            str(level): [speedup_at(level, _means(judged[kind].values())) for kind in ("taylor", "learned")]
            for level in _LEVELS
        },
        "speedup_of_taylor_on_plans": {
            str(level): speedup_at(level, _means(judged["taylor_on_plans"].values())) for level in _LEVELS
        },
        **({} if exported is None else {"exported": beside(exported, judged["taylor"].values())}),
    }


def ablation(study: Path, prompts: int, cache: Path) -> list[Line]:
    """The figures of ``python -m studies.bench learned --ablation``.

    Returns:
        One line per plan and captures: its speed-up, and mean PSNR over test prompts of Taylor (order 1) along the
        noise level and along the steps, and of weights that were fitted on 1, 3 and 6 prompts.
    """
    lines: list[Line] = []
    with Narrator() as narrator:
        bench = _Bench(study, prompts, MOST_FIT, cache, narrator)
        narrator.stage("Plans", len(_ABLATED) * 2)
        for extras, captures in product(_ABLATED, ("last", "clean")):
            plan = Plan(5, extras, captures, _DEPTH).policy(bench.schedule)  # type: ignore[arg-type]
            policies = {
                "taylor_sigma_db": plan,
                "taylor_step_db": dataclasses.replace(plan, axis="step"),
                **{f"learned_{count}_db": bench.fitted(plan, bench.prompts.fit[:count]) for count in (1, 3, 6)},
            }
            line: Line = {"extra_rows": [list(extra) for extra in extras], "captures": captures}
            for name, policy in policies.items():
                outcomes = bench.clips(policy)
                line["speedup"] = round(speedup_of(outcomes), 2)
                line[name] = round(mean_db(outcomes), 2)
            lines.append(line)
            narrator.advance(", ".join(f"{name} {value}" for name, value in line.items()))
    return lines


def speedup_at(level: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The speed-up at which a front has a quality; None outside of it.

    Args:
        level: In dB.
        points: Speed-up and dB of policies; those that another one beats in both do not count.
    """
    front: list[tuple[float, float]] = []
    for speedup, db in sorted(points, reverse=True):
        if not front or db > front[-1][1]:
            front.append((speedup, db))
    if not front or not front[0][1] <= level <= front[-1][1]:
        return None
    logs = np.interp(level, [db for _, db in front], [math.log(speedup) for speedup, _ in front])
    return round(math.exp(float(logs)), 2)


class _Bench:
    """The prompts, and what is generated of them."""

    def __init__(self, study: Path, prompts: int, fit_prompts: int, cache: Path, narrator: Narrator) -> None:
        self.made = Generations(study, cache)
        self.study, self.narrator = self.made.study, narrator
        used = (*self.study.search_cases, *self.study.held_out_cases, *self.study.fit_cases)
        self.prompts = Prompts.fresh(prompts, fit_prompts, used)
        narrator.stage("Full-compute runs of fit prompts", fit_prompts)
        self.baselines: list[Baseline] = []
        for case in self.prompts.fit:
            self.baselines.append(self.made.baseline(case))
            narrator.advance(case.label)
        self.schedule: Schedule = self.baselines[0].trace.windows[0].schedule
        self._replay = Replay([baseline.trace for baseline in self.baselines])
        self._spent: dict[str, dict[object, float]] = {"learned": {}, "taylor": {}}

    def spent(self, kind: str) -> float:
        """Full generations that choosing one kind took, whenever they were made."""
        return sum(self._spent[kind].values())

    def learned_candidates(self) -> list[Candidate]:
        """Plans with their weights."""
        plans = self._plans()
        self.narrator.stage("Fitting weights", len(plans))
        found = []
        for policy in plans:
            fitted = self.fitted(policy, self.prompts.fit)
            found.append(Candidate(fitted, self._speedup(policy)))
            self.narrator.advance(f"{found[-1].speedup:.2f}x")
        return found

    def taylor_candidates(self) -> list[Candidate]:
        """Schedules that replay picks."""
        found: dict[Policy, Candidate] = {}
        schedules = [(policy, self._speedup(policy)) for policy in _schedules(self.schedule)]
        for target in _ALL_TARGETS:
            near = [p for p, speedup in schedules if target * _NEAR_ENOUGH <= speedup <= target * _WIDTH]
            for order, axis in _EXTRAPOLATIONS:
                policies = [dataclasses.replace(policy, order=order, axis=axis) for policy in near]
                policies.sort(key=lambda policy: float(self._replay.run(policy).errors.sum()))
                found |= {policy: Candidate(policy, self._speedup(policy)) for policy in policies[:_PICKED]}
        return list(found.values())

    def taylor_on_plans(self) -> list[Candidate]:
        """The learned plans without their weights."""
        return [
            Candidate(dataclasses.replace(plan, order=order, axis=axis), self._speedup(plan))
            for plan, (order, axis) in product(self._plans(), _ON_PLANS)
        ]

    def choose(self, kind: str, candidates: Sequence[Candidate]) -> dict[float, Policy]:
        """The best candidate for every target that one reaches, by the tuning prompts."""
        first, tuning = self.prompts.tuning[:_FIRST_PROMPTS], self.prompts.tuning
        self.narrator.stage(f"{kind} on {len(first)} tuning prompts", len(candidates))
        at_first = {}
        for candidate in candidates:
            at_first[candidate] = self._latent_db(candidate.policy, first)
            self.narrator.advance(f"{candidate.speedup:.2f}x, latents at {at_first[candidate]:.1f} dB")
        chosen = {}
        self.narrator.stage(f"{kind} on {len(tuning)} tuning prompts", len(_ALL_TARGETS))
        for target in _ALL_TARGETS:
            fast = [candidate for candidate in candidates if candidate.speedup >= target * _NEAR_ENOUGH]
            kept = sorted(fast, key=at_first.__getitem__, reverse=True)[:_KEPT]
            if kept:
                best = max(kept, key=lambda candidate: self._latent_db(candidate.policy, tuning))
                chosen[target] = best.policy
                self.narrator.advance(f"For {target:g}x: {best.speedup:.2f}x, {_told(best.policy)}")
        return chosen

    def judge(self, kind: str, chosen: dict[float, Policy]) -> dict[float, list[Outcome]]:
        """What the chosen policies come to on the test prompts, by target."""
        self.narrator.stage(f"Test prompts, {kind}", len(chosen))
        found = {}
        for target, policy in chosen.items():
            found[target] = self.clips(policy)
            self.narrator.advance(f"{speedup_of(found[target]):.2f}x, {mean_db(found[target]):.2f} dB")
        return found

    def clips(self, policy: Policy) -> list[Outcome]:
        """A policy's clips of the test prompts."""
        return self.made.clips(policy, self.prompts.test)

    def fitted(self, policy: Policy, cases: Sequence[Case]) -> Policy:
        """A plan's policy with weights that are fitted on some of the fit prompts."""
        found, equivalents = self.made.fitted(policy, _DEPTH, self.baselines[: len(cases)])
        self._spent["learned"][policy, len(cases)] = equivalents
        return found

    def _plans(self) -> list[Policy]:
        """Policies of the plans that weights are fitted to, without weights."""
        first = Plans(Learned(depth=[_DEPTH]), self.schedule, self.study.generation.ar_step, seed=0).first()
        by_hand = [
            Plan(period, tuple(sorted(extras)), "clean" if captures else "last", _DEPTH)
            for period, extras, captures in BY_HAND
        ]
        return list(dict.fromkeys(plan.policy(self.schedule) for plan in (*first, *by_hand)))

    def _speedup(self, policy: Policy) -> float:
        return self._replay.run(dataclasses.replace(policy, order=0, axis="noise-level")).speedup_evaluations

    def _latent_db(self, policy: Policy, cases: Sequence[Case]) -> float:
        outcomes = self.made.latents(policy, cases)
        kind = "taylor" if policy.gap_weights is None else "learned"
        for case, outcome in zip(cases, outcomes, strict=True):
            self._spent[kind][policy, case] = outcome.evaluations / outcome.stock_evaluations
        return mean_db(outcomes)


def _schedules(schedule: Schedule) -> Iterator[Policy]:
    """Periodic schedules and thresholds on the noise level, no two with the same plan."""
    periodic = (
        Policy(warmup=warmup, max_skip=skip, tail=tail)
        for warmup, skip, tail in product((1, 2, 3, 4, 6), range(2, 10), (0, 1))
    )
    thresholds = (
        Policy(warmup=warmup, max_skip=skip, predict_threshold=threshold)
        for warmup, skip, threshold in product((1, 2, 3, 4, 6), (3, 4, 5, 6, 8, 10), _THRESHOLDS)
    )
    seen = set()
    for policy in (*periodic, *thresholds):
        rows = plan_of(policy, schedule)
        if rows not in seen:
            seen.add(rows)
            yield policy


def _compared(judged: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """All kinds at one target, on the same prompts in the same order."""
    figures: dict[str, float] = {}
    for rival, gain in (("taylor", "gain"), ("taylor_on_plans", "gain_over_plans")):
        figures[f"{gain}_db"], figures[f"{gain}_se_db"] = _gain(judged["learned"], judged[rival])
    for kind, outcomes in judged.items():
        figures |= {f"{kind}_{name}": value for name, value in _figures(outcomes).items()}
    return figures


def beside(exported: Sequence[Outcome], schedules: Collection[Sequence[Outcome]]) -> dict[str, Any]:
    """A policy, and Taylor's schedules on the same prompts."""
    over = sorted((round(speedup_of(schedule), 2), *_gain(exported, schedule)) for schedule in schedules)
    return {
        **_figures(exported),
        "speedup_of_schedules": speedup_at(mean_db(exported), _means(schedules)),
        "over_schedules": [list(line) for line in dict.fromkeys(over)],
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    dbs = np.array([outcome.db for outcome in outcomes])
    figures = {
        "db": float(dbs.mean()),
        "p10_db": float(np.percentile(dbs, 10)),
        "share_30": float((dbs >= _GOOD_DB).mean()),
        "speedup": speedup_of(outcomes),
    }
    return {name: round(value, 2) for name, value in figures.items()}


def _gain(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[float, float]:
    """By how many dB one policy is above another on the same prompts, and the standard error of that."""
    gains = np.array([own.db - other.db for own, other in zip(ours, theirs, strict=True)])
    error = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else 0.0
    return round(float(gains.mean()), 2), round(error, 2)


def _means(judged: Any) -> list[tuple[float, float]]:
    return [(speedup_of(outcomes), mean_db(outcomes)) for outcomes in judged]


def _told(policy: Policy) -> str:
    """What tells a candidate from others, for a line."""
    captures = f"captures {policy.captures}"
    if policy.gap_weights is not None:
        return f"weights, {captures}"
    rows = "rows of a learned plan" if policy.plan else f"warm-up {policy.warmup}, at most {policy.max_skip} skips"
    return f"order {policy.order} along the {policy.axis}, {rows}, {captures}"
