"""A candidate while it is being measured: which cases it has, which it still needs, and whether it need go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import optuna

from calibrate.measure.baseline import Reference
from calibrate.measure.candidate import Measure
from calibrate.measure.early_stop import out_of_reach
from calibrate.measure.gap_fit import FitWeights, Truth
from calibrate.pool.pool import Deaths
from calibrate.quality.metrics import Quality
from calibrate.quality.score_figures import ClipScores, at_best
from calibrate.results.result import MEMORY, Result
from calibrate.search.plans import Plan
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.running import Score
from calibrate.spec.score_floor import SCORES
from calibrate.store import Generation
from scope_runtime import Policy, Preparation


@dataclass
class Candidate:
    """One policy on all search cases.

    Attributes:
        trial: Optuna's.
        policy: What its parameters stand for; of a plan, without weights until they have been fitted.
        cases: The search cases.
        floors: What ends it early.
        deaths: Processes that died over it.
        rows: What was measured, by case.
        running: Jobs that are being run.
        stopped: Why it need not be measured to the end, or None.
        plan: The plan that weights have to be fitted to first, or None.
        followers: Later trials with the same policy, which get its result.
        seconds: What its generations took, one after the other.
        scores: Those that floors are set on.
        stock_scores: Of the stock clips, by case; see `calibrate.quality.score_figures`.
        preparation: What the pipeline is set up with.
        paired: Whether stock is timed beside it, on its first case: denoising takes as long for every prompt.
    """

    trial: optuna.Trial
    policy: Policy
    cases: Sequence[Case]
    floors: Floors
    deaths: Deaths = field(default_factory=Deaths)
    rows: dict[Case, Generation] = field(default_factory=dict)
    running: list[Measure | FitWeights] = field(default_factory=list)
    stopped: str | None = None
    plan: Plan | None = None
    followers: list[optuna.Trial] = field(default_factory=list)
    seconds: float = 0.0
    scores: tuple[Score, ...] = ()
    stock_scores: Mapping[Case, ClipScores] = field(default_factory=dict)
    preparation: Preparation = field(default_factory=Preparation)
    paired: bool = False

    def next_case(self) -> Case | None:
        """The first case that is neither measured nor being measured; None if there is none, or none is needed."""
        if self.stopped or self.plan is not None:
            return None
        busy = {job.case for job in self.running if isinstance(job, Measure)}
        return next((case for case in self.cases if case not in self.rows and case not in busy), None)

    def fit(self, cases: tuple[Case, ...], truth: Truth) -> FitWeights | None:
        """The job of fitting its weights; None if it has no need of them, or that is being done."""
        if self.plan is None or self.running:
            return None
        return FitWeights(self.trial.number, self.policy, self.plan.depth, cases, truth, self.preparation)

    def job(self, case: Case, reference: Reference, fps: int | None) -> Measure:
        """The job of measuring one of its cases."""
        others = tuple(_quality(row) for row in self._ordered())
        return Measure(
            self.trial.number, self.policy, case, self.floors, others, len(self.cases), fps, reference=reference,
            scores=self.scores, stock_scores=self.stock_scores.get(case, {}),
            other_scores=tuple(self._scores(other) for other in self.cases if other != case),
            preparation=self.preparation, paired=self.paired and case == self.cases[0],
        )  # fmt: skip

    def take(self, case: Case, row: Generation, stock_evaluations: int) -> None:
        """Counts a generation in.

        Args:
            case: Its case.
            row: What came of it.
            stock_evaluations: Those of a whole generation; one that has fewer was cut short.
        """
        self.rows[case] = row
        if (row.stock_evaluations or 0) < stock_evaluations:
            self.stopped = row.reason
        elif len(self.rows) < len(self.cases):
            self.stopped = self.hopeless()

    def hopeless(self) -> str | None:
        """Why the cases that are left need not be tried, or None."""
        rows = self._ordered()
        memory = max((row.metrics or {})[MEMORY] for row in rows)
        scores = [self._scores(case) for case in self.cases]
        return out_of_reach(self.floors, [_quality(row) for row in rows], len(self.cases), memory, scores)

    def with_row(self, case: Case, row: Generation) -> Candidate:
        """The candidate as it will be once a row is counted in."""
        return replace(self, rows={**self.rows, case: row}, running=[], followers=[])

    def lacks_scores(self, case: Case, row: Generation, stock_evaluations: int) -> bool:
        """Whether a row, of a study that asked for less, does not say what floors ask for and could not spare it."""
        known = (row.metrics or {}).get(SCORES, {})
        missing = any(score.name not in known for score in self.scores)
        whole = (row.stock_evaluations or 0) >= stock_evaluations
        return missing and whole and self.with_row(case, row).hopeless() is None

    @property
    def finished(self) -> bool:
        """Whether its result is known."""
        return self.stopped is not None or len(self.rows) == len(self.cases)

    def result(self) -> Result:
        """What it came to."""
        return Result.of(self.trial.number, self.policy.to_dict(), self._ordered(), self.stopped)

    @property
    def open_share(self) -> float:
        """The share of its cases that has not been measured."""
        return 1 - len(self.rows) / len(self.cases)

    def _scores(self, case: Case) -> ClipScores:
        """What the clip of a case came to, or can still come to."""
        if case in self.rows:
            found: ClipScores = (self.rows[case].metrics or {}).get(SCORES, {})
            return found
        return at_best(self.scores, self.stock_scores.get(case, {}))

    def _ordered(self) -> list[Generation]:
        return [self.rows[case] for case in self.cases if case in self.rows]


def _quality(row: Generation) -> Quality:
    return Quality.of(row.metrics or {})
