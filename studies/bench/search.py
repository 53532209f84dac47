"""Search by replay against plain Optuna: what fronts they reach on held-out prompts, and for how many generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import optuna

from calibrate.progress import Narrator
from calibrate.quality.metrics import Quality, floor_figures
from calibrate.results.result import RESULT, Result, front, results_of
from calibrate.search.hypervolume import hypervolume
from calibrate.search.optuna_study import plain_sampler
from calibrate.search.plans import EXTRAS, Plans
from calibrate.search.replay_sampler import Measured, ReplaySampler
from calibrate.spec.floors import Floors
from calibrate.spec.search_space import Learned
from scope_runtime import Policy
from studies.bench.generations import Generations
from studies.bench.real_runs import Bench, Run, Size

# Fronts count from here: no speed-up, and a video that has little to do with the stock one.
REFERENCE = (1.0, 20.0)
_NO_FLOORS = Floors(psnr_db=None, psnr_worst_prompt_db=None)


def measure(
    size: Size, budgets: Sequence[float], trials: Sequence[int], *, learned: bool = False
) -> dict[str, list[list[float]]]:
    """The figures of ``python -m studies.bench search``.

    Args:
        size: Of the generations.
        budgets: Full generations per prompt, baselines included, at which the search by replay is judged.
        trials: Trials at which plain Optuna is judged.
        learned: Whether the search by replay tries plans with learned weights as well, as the study says.

    Returns:
        ``{"replay": [[equivalents, hypervolume], ...], "plain": [[trials, equivalents, hypervolume], ...]}``.
    """
    with Narrator() as narrator:
        bench = Bench(size, narrator)
        plans = _LearnedPlans(bench, size) if learned else None
        return {"replay": list(_by_replay(bench, sorted(budgets), plans)), "plain": list(_plain(bench, sorted(trials)))}


class _LearnedPlans:
    """Plans as a study tries them, and the weights that they get."""

    def __init__(self, bench: Bench, size: Size) -> None:
        """Makes the full-compute runs of the fit prompts."""
        self._made = Generations(size.study, size.cache, bench.target)
        cases = bench.study.fit_cases
        bench.narrator.stage("Full-compute runs of fit prompts", len(cases))
        self._baselines = []
        for case in cases:
            self._baselines.append(self._made.baseline(case))
            bench.narrator.advance(case.label)
        asked = bench.study.search.learned or Learned()
        schedule = self._baselines[0].trace.windows[0].schedule
        self.plans = Plans(asked, schedule, self._made.target.generation.ar_step, bench.study.seed)
        # What is spent beside candidates' own runs counts per search prompt.
        self._prompts = len(bench.searched)
        self.baselines_per_prompt = len(cases) / self._prompts

    def fitted(self, trial: optuna.Trial) -> tuple[Policy, float]:
        """The policy of a trial of a plan, and what fitting it took in full generations per search prompt."""
        plan = self.plans.suggest(trial)
        policy, equivalents = self._made.fitted(plan.policy(self.plans.schedule), plan.depth, self._baselines)
        return policy, equivalents / self._prompts


def _by_replay(bench: Bench, budgets: Sequence[float], learned: _LearnedPlans | None) -> Iterator[list[float]]:
    measured: list[Measured] = []
    sampler = ReplaySampler(
        bench.space, bench.replay(bench.searched), lambda: measured, _NO_FLOORS, seed=bench.study.seed
    )
    study = _new_study(sampler)
    bench.narrator.stage("Search by replay", len(budgets))
    search = _Search(bench, study, measured, learned)
    if learned:
        for plan in learned.plans.first():
            learned.plans.queue(study, plan)
    for budget in budgets:
        before = search.equivalents, results_of(study)
        while search.equivalents <= budget:
            before = search.equivalents, results_of(study)
            if learned:
                learned.plans.take_turn(study, sampler.promise)
            search.step()
        # The last candidate went over the budget: it belongs to the next one.
        yield [before[0], held_out_hypervolume(bench, before[1])]
        bench.narrator.advance(f"{before[0]:.1f} full generations")


def _plain(bench: Bench, trials: Sequence[int]) -> Iterator[list[float]]:
    study = _new_study(plain_sampler(bench.study.seed))
    bench.narrator.stage("Plain Optuna", len(trials))
    search = _Search(bench, study, [])
    for count in trials:
        while len(study.trials) < count:
            search.step()
        yield [count, search.equivalents, held_out_hypervolume(bench, results_of(study))]
        bench.narrator.advance(f"{count} trials, {search.equivalents:.1f} full generations")


class _Search:
    """One search, trial by trial."""

    def __init__(
        self, bench: Bench, study: optuna.Study, measured: list[Measured], learned: _LearnedPlans | None = None
    ) -> None:
        self.bench, self.study, self.measured, self.learned = bench, study, measured, learned
        # Baselines: one stock run per prompt, and one exact run, which evaluates what the trace says.
        replayed = bench.replay(bench.searched).run(Policy(warmup=10_000))
        prompts = 1.0 + (learned.baselines_per_prompt if learned else 0.0)
        self.equivalents = (1.0 + 1.0 / replayed.speedup_evaluations) * prompts
        for parameters in bench.space.first_candidates():
            study.enqueue_trial(parameters)

    def step(self) -> None:
        self.study.optimize(self._objective, n_trials=1)

    def _objective(self, trial: optuna.Trial) -> tuple[float, float]:
        if self.learned and EXTRAS in trial.user_attrs:
            policy, spent = self.learned.fitted(trial)
            self.equivalents += spent
        else:
            policy = self.bench.space.suggest(trial)
        repeated = any(result.policy == policy.to_dict() for result in results_of(self.study))
        runs = self.bench.runs(policy, self.bench.searched)
        result = _result(trial.number, policy, runs)
        if not repeated:
            self.equivalents += 1 / result.speedup_evaluations
            if policy.gap_weights is None:  # replay cannot tell the errors of others
                self.measured += [Measured(policy, case, run.metrics) for case, run in enumerate(runs)]
        trial.set_user_attr(RESULT, result.to_dict())
        self.bench.narrator.say(f"Trial {trial.number}: {result}")
        return result.speedup_evaluations, result.figures["psnr_db"]


def held_out_hypervolume(bench: Bench, results: Sequence[Result]) -> float:
    """What the front, chosen on the search prompts alone, is worth on the held-out ones."""
    points = []
    for result in front(results):
        held_out = _result(result.trial, Policy.from_dict(result.policy), _held_out_runs(bench, result))
        points.append((held_out.speedup_evaluations, held_out.figures["psnr_db"]))
    return hypervolume(points, REFERENCE)


def _held_out_runs(bench: Bench, result: Result) -> list[Run]:
    return bench.runs(Policy.from_dict(result.policy), bench.held_out)


def _result(trial: int, policy: Policy, runs: Sequence[Run]) -> Result:
    speedup = sum(run.stock_evaluations for run in runs) / sum(run.evaluations for run in runs)
    figures = floor_figures([Quality.of(run.metrics) for run in runs])
    return Result(trial, policy.to_dict(), speedup, speedup, figures, len(runs), None)


def _new_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
