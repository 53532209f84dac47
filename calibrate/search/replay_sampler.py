"""An Optuna sampler that screens candidates by replay and proposes the one that promises most.

It stands beside Optuna's own samplers: storage and bookkeeping stay Optuna's.
For every trial whose parameters are not given it

1. fits the sensitivity of this model to errors from all real runs so far (`calibrate.replay.sensitivity`);
2. screens new candidates by replay, in an inner in-memory Optuna study (NSGA-II) that climbs towards the
   front of estimated speed-up and quality, and adds them to a pool that it keeps;
3. leaves out what has been tried or is being tried, compared by what a candidate does, not by its parameters, and
   contexts that were measured to take more memory than the study allows;
4. proposes the one whose real run is expected to add most hypervolume to the measured front, weighted with the
   probability that it holds the floors: those per prompt on the worst search prompt, or on the share of all prompts
   that the study wants to be promised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from calibrate.replay.replay import Replay, Replayed
from calibrate.replay.sensitivity import Observed, Sensitivity
from calibrate.results.result import BLOCKS, MEMORY, results_of
from calibrate.search.hypervolume import Point, expected_improvement
from calibrate.search.optuna_study import PROPOSED
from calibrate.search.population import Population
from calibrate.search.quiet import quiet_optuna
from calibrate.search.space import Space
from calibrate.spec.floors import Floors
from scope_runtime import Policy

# Candidates screened for the first proposal of a process, and for each later one.
_SCREENED_FIRST, _SCREENED_LATER = 300, 100
_POPULATION = 40
# Where the front's quality counts from when no floor says so.
_REFERENCE_DB = 20.0
# What a plan's quality may fall by when its speed-up doubles.
_DB_PER_DOUBLING = 12.0
# A floor is no cliff: fronts reach a little below it.
_BELOW_FLOOR_DB = 3.0


@dataclass(frozen=True)
class Measured:
    """A real run of one candidate on one search case.

    Attributes:
        policy: The candidate's.
        case: Its number among the traces.
        figures: Metrics by name, `psnr_db` among them.
    """

    policy: Policy
    case: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Screened:
    """A candidate of the pool.

    Attributes:
        parameters: By name, as the outer trial will suggest them.
        policy: What they stand for.
        replayed: Its replay.
    """

    parameters: dict[str, Any]
    policy: Policy
    replayed: Replayed


class ReplaySampler(BaseSampler):
    """Proposes candidates by replay; see the module's text. Seed, trial number and history fix every proposal."""

    def __init__(
        self,
        space: Space,
        replay: Replay,
        measured: Callable[[], Sequence[Measured]],
        floors: Floors,
        *,
        seed: int,
        min_speedup: float | None = None,
        share: float | None = None,
        screened: tuple[int, int] = (_SCREENED_FIRST, _SCREENED_LATER),
        ahead: bool = False,
    ) -> None:
        """Prepares the sampler.

        Args:
            space: What may be chosen.
            replay: The traces of the search cases.
            measured: Gives all real runs so far, whoever made them.
            floors: Quality that is asked for.
            seed: Of the screening.
            min_speedup: What slower candidates reach does not count.
            share: Of all prompts, that the floors on each prompt are promised of; None: those of the search hold them.
            screened: Candidates screened for the first proposal and for each later one.
            ahead: Screen for the next proposal in a thread, by what is known at this one, so that devices that work
                elsewhere need not wait for it; `close` ends that thread.
        """
        self.space = space
        self.replay = replay
        self.floors = floors
        self.sensitivity = Sensitivity.fit([])
        self._measured = measured
        self._seed = seed
        self._min_speedup = min_speedup or 1.0
        self._share = share
        self._screened = screened
        self._screened_at = -1
        self._pool: dict[object, Screened] = {}
        self._needed_worst = 0.0
        self._proposals: dict[int, dict[str, Any]] = {}
        self._random = RandomSampler(seed=seed)
        self._thread = ThreadPoolExecutor(max_workers=1) if ahead else None
        self._screening: Future[dict[object, Screened]] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends what is being screened."""
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Screens ahead of the first proposal while candidates that were planned are measured."""
        if self._screening is None:
            self._screen_ahead(study, trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: the space is conditional, so parameters are handed out as they are asked for."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing; see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal's value of one parameter; the proposal is made when the first is asked for.

        A trial that is gone on with after its process died carries its proposal with it. Should some of its parameters
        be given that lead to ones that the proposal does not have, these are drawn at random.
        """
        proposed = self._proposals.get(trial.number) or trial.system_attrs.get(PROPOSED)
        if proposed is None:
            proposed = self.propose(study, trial.number).parameters
            study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, proposed)
        self._proposals = {trial.number: proposed}
        if param_name not in proposed:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return proposed[param_name]

    def propose(self, study: optuna.Study, number: int) -> Screened:
        """The most promising candidate that nobody has tried or is trying."""
        measured = self._measured()
        if len(measured) != self._screened_at:
            # Proposals for several devices are made together: what was screened for the first serves the others, which
            # keep away from it by its estimate.
            self._fit(measured)
            if self._screening is None:
                with quiet_optuna():
                    found = self._screen(self._seed + number, _best_parameters(study), self.sensitivity)
            else:
                found = self._screening.result()
            for key, screened in found.items():
                self._pool.setdefault(key, screened)
            self._screened_at = len(measured)
            self._screen_ahead(study, number + 1)
        tried = self._tried(study, number)
        too_large = self._too_large(measured)
        fitting = {key: s for key, s in self._pool.items() if _context(s.policy) not in too_large} or self._pool
        open_candidates = [s for key, s in fitting.items() if key not in tried] or list(fitting.values())
        points = self._front(study, number)
        needed = self._needed_psnr(measured)
        self._needed_worst = self._worst_psnr(measured)
        scores = [self._score(candidate.replayed, points, needed) for candidate in open_candidates]
        if max(scores) <= 0:  # nothing would add to the front: the fastest of what probably holds the floors
            scores = [self._holds(c.replayed, needed) * c.replayed.speedup_evaluations for c in open_candidates]
        return open_candidates[int(np.argmax(scores))]

    def expect(self, policy: Policy) -> tuple[float, NDArray[np.float64]] | None:
        """A policy's estimated speed-up in block evaluations and PSNR per case, as of now; None before any real run."""
        measured = self._measured()
        if len(measured) != self._screened_at:
            self._fit(measured)
        if not self.sensitivity.runs:
            return None
        replayed = self.replay.run(policy)
        return replayed.speedup_evaluations, self.estimate(replayed)

    def promise(self, policy: Policy) -> float:
        """How much a policy that was made elsewhere promises: the estimated quality that it has beyond its speed-up's.

        A plan is looked at without the weights that it has yet to get: what it recomputes is what can be told apart.
        """
        replayed = self.replay.run(dataclasses.replace(policy, order=1, axis="step"))
        estimated = self.estimate(replayed)
        by_speed = _DB_PER_DOUBLING * math.log2(replayed.speedup_evaluations)
        return float(estimated.mean() + estimated.min()) / 2 + by_speed

    def estimate(self, replayed: Replayed) -> NDArray[np.float64]:
        """Estimated PSNR per case, in dB."""
        return _estimate(self.sensitivity, replayed)

    def _fit(self, measured: Sequence[Measured]) -> None:
        self.sensitivity = Sensitivity.fit([self._observed(m) for m in measured])

    def _observed(self, measured: Measured) -> Observed:
        """A real run beside what replay says of the blocks that it finished."""
        replayed, blocks = self.replay.run(measured.policy), measured.figures.get(BLOCKS)
        finished = None if blocks is None else int(blocks)
        return Observed.of(replayed, measured.case, measured.figures["psnr_db"], finished)

    def _tried(self, study: optuna.Study, number: int) -> set[object]:
        """What all other trials do or did, by what tells candidates apart."""
        tried: set[object] = set()
        for trial in study.get_trials(deepcopy=False):
            parameters = trial.system_attrs.get(PROPOSED) or trial.system_attrs.get("fixed_params") or trial.params
            if trial.number == number or not parameters:
                continue
            # A trial of a killed process may know a part of its parameters only.
            with contextlib.suppress(ValueError):
                tried.add(self.replay.run(self.space.suggest(FixedTrial(parameters))).key)
        return tried

    def _screen_ahead(self, study: optuna.Study, number: int) -> None:
        if self._thread is not None:
            known = _best_parameters(study), self.sensitivity
            self._screening = self._thread.submit(self._screen, self._seed + number, *known)

    def _screen(
        self, seed: int, start: Sequence[Mapping[str, Any]], sensitivity: Sensitivity
    ) -> dict[object, Screened]:
        """Candidates for the pool, starting from the parameters of good ones."""
        found: dict[object, Screened] = {}

        def look(trial: optuna.Trial) -> tuple[float, float]:
            """Speed-up, and estimated PSNR between the mean and the worst prompt's."""
            if self._closed:
                trial.study.stop()
            policy = self.space.suggest(trial)
            replayed = self.replay.run(policy)
            found.setdefault(replayed.key, Screened(dict(trial.params), policy, replayed))
            estimated = _estimate(sensitivity, replayed)
            return replayed.speedup_evaluations, float(estimated.mean() + estimated.min()) / 2

        inner = optuna.create_study(
            directions=["maximize", "maximize"], sampler=NSGAIISampler(population_size=_POPULATION, seed=seed)
        )
        for parameters in start[: _POPULATION // 2]:
            inner.enqueue_trial(dict(parameters))
        inner.optimize(look, n_trials=self._screened[1] if self._pool else self._screened[0])
        return found

    def _front(self, study: optuna.Study, number: int) -> list[Point]:
        """Measured points, and the estimates of what is running in their place."""
        points = [
            (result.speedup_evaluations, result.figures["psnr_db"])
            for result in results_of(study)
            if result.feasible(self.floors)
        ]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            parameters = trial.system_attrs.get(PROPOSED)
            if trial.number != number and parameters:
                replayed = self.replay.run(self.space.suggest(FixedTrial(parameters)))
                points.append((replayed.speedup_evaluations, float(self.estimate(replayed).mean())))
        return points

    def _too_large(self, measured: Sequence[Measured]) -> set[object]:
        """Contexts, by what bounds them, of which a run was over the study's ceiling."""
        ceiling = self.floors.max_memory
        if ceiling is None:
            return set()
        return {_context(m.policy) for m in measured if m.figures.get(MEMORY, 0.0) > ceiling}

    def _needed_psnr(self, measured: Sequence[Measured]) -> float:
        """The mean PSNR at which every floor on a mean holds; other metrics are translated by what runs showed."""
        margin = self.floors.safety_margin_db
        needed = [0.0 if self.floors.psnr_db is None else self.floors.psnr_db + margin]
        for name in ("psnr_worst_frame_db", "psnr_worst_block_db", "ssim", "temporal_psnr_db"):
            floor = getattr(self.floors, name)
            if floor is not None and measured:
                needed.append(_equivalent_psnr(measured, name, floor))
        return max(*needed, *self._psnr_for_scores(measured, per_prompt=False))

    def _worst_psnr(self, measured: Sequence[Measured]) -> float:
        """The PSNR at which every floor holds that is asked of each prompt, translated likewise."""
        worst = self.floors.psnr_worst_prompt_db
        asked = 0.0 if worst is None else worst + self.floors.safety_margin_db
        return max(asked, *self._psnr_for_scores(measured, per_prompt=True))

    def _psnr_for_scores(self, measured: Sequence[Measured], *, per_prompt: bool) -> list[float]:
        """What floors on scores come to in PSNR; 0 while nothing was measured."""
        needed = [0.0]
        for demand in self.floors.score_demands():
            runs = [m for m in measured if demand.figure in m.figures] if demand.per_prompt == per_prompt else []
            if runs:
                needed.append(_equivalent_psnr(runs, demand.figure, demand.value, demand.sign))
        return needed

    def _holds(self, replayed: Replayed, needed: float) -> float:
        """Probability that the floors hold: on all prompts, if a share of these is promised, else on the search's."""
        estimated, spread = self.estimate(replayed), self.sensitivity.spread_db
        worst = self._needed_worst
        if self._share is not None:
            everyone = Population.of(estimated, self.sensitivity)
            return everyone.mean_holds(needed) * (everyone.share_holds(worst, self._share) if worst else 1.0)
        of_mean = ndtr((estimated.mean() - needed) / (spread / math.sqrt(len(estimated))))
        of_worst = ndtr((estimated.min() - worst) / spread) if worst else 1.0
        return float(of_mean * of_worst)

    def _score(self, replayed: Replayed, points: Sequence[Point], needed: float) -> float:
        estimated, holds = self.estimate(replayed), self._holds(replayed, needed)
        if self._share is not None and self._needed_worst:
            needed = max(
                needed, Population.of(estimated, self.sensitivity).needed_mean(self._needed_worst, self._share)
            )
        reference = (self._min_speedup, needed - _BELOW_FLOOR_DB if needed else _REFERENCE_DB)
        spread = self.sensitivity.spread_db / math.sqrt(len(estimated))
        candidate = replayed.speedup_evaluations, float(estimated.mean())
        return holds * expected_improvement(points, candidate, spread, reference)


def _estimate(sensitivity: Sensitivity, replayed: Replayed) -> NDArray[np.float64]:
    return sensitivity.psnr_db(replayed, range(len(replayed.errors)))


def _context(policy: Policy) -> object:
    """What bounds a policy's context, which is what memory depends on."""
    return policy.context_window, policy.context_dtype


def _best_parameters(study: optuna.Study) -> list[dict[str, Any]]:
    """Parameters of the front's trials, or of all complete ones while there is no front."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [trial.params for trial in (study.best_trials if complete else []) or complete]
    # Plans with learned weights have parameters of their own.
    return [parameters for parameters in found if "warmup" in parameters]


def _equivalent_psnr(measured: Sequence[Measured], metric: str, floor: float, sign: float = 1.0) -> float:
    """The PSNR from which runs showed a metric, times its sign, above its floor, by isotonic regression on PSNR."""
    ordered = sorted(measured, key=lambda m: m.figures["psnr_db"])
    psnr = [m.figures["psnr_db"] for m in ordered]
    fitted = isotonic_regression([sign * m.figures[metric] for m in ordered]).x
    above = np.flatnonzero(fitted >= floor)
    return psnr[above[0]] if len(above) else psnr[-1]


def draw(space: Space, sampler: BaseSampler, count: int) -> Iterator[Policy]:
    """Candidates of a space, drawn by a sampler that is told nothing of what they come to."""
    with quiet_optuna():
        study = optuna.create_study(sampler=sampler)
        for _ in range(count):
            yield space.suggest(study.ask())
