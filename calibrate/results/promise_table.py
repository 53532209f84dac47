"""What can be promised: the study's own wish and a table of others, from what was measured on the guarantee cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibrate.quality.metrics import Quality
from calibrate.results.guarantee import Promise, Tried, cases_needed, passed_in_turn
from calibrate.results.likeness import Likeness, likeness
from calibrate.results.promises import declared_wish, plain_floors, promises_of, told
from calibrate.results.result import Result, told_preparation
from calibrate.results.sequence import Sequenced
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.guarantee import Guarantee
from calibrate.spec.score_floor import SCORES
from calibrate.store import CANDIDATE, GUARANTEE, Generation


def tried_on(results: Sequence[Result], cases: Sequence[Case], rows: Sequence[Generation]) -> list[Tried]:
    """What the policies of some trials came to on the guarantee cases.

    Args:
        results: What they came to on the search cases.
        cases: The study's, in order.
        rows: The complete generations of kind `GUARANTEE`, of the present metric version.
    """
    known = {(case.prompt, case.seed): case for case in cases}
    found: dict[int, dict[Case, Generation]] = {result.trial: {} for result in results}
    for row in rows:
        case = known.get((row.prompt, row.seed))
        if case is not None and row.trial_number in found:
            found[row.trial_number].setdefault(case, row)
    return [tried(result, cases, found[result.trial]) for result in results]


def tried(result: Result, cases: Sequence[Case], rows: Mapping[Case, Generation], failed: str | None = None) -> Tried:
    """What one policy came to; see `tried_on`."""
    measured = [rows[case] for case in cases if case in rows]
    speedup = (
        sum(row.stock_evaluations or 0 for row in measured) / sum(row.evaluations or 0 for row in measured)
        if measured
        else None
    )
    figures = [_figures(rows[case].metrics or {}) if case in rows else None for case in cases]
    return Tried(
        result.trial, speedup, figures, failed, result.speedup_denoise if result.paired else None, result.preparation
    )


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What floors look at in one clip's metrics."""
    return Quality.of(metrics).to_dict() | ({SCORES: metrics[SCORES]} if metrics.get(SCORES) else {})


@dataclass(frozen=True)
class Cell:
    """One promise of the table.

    Attributes:
        promise: What is promised, with the study's confidence.
        corrected: The same at a confidence that is corrected for the number of cells, for who picks one after looking.
        best: The fastest policy that passes, or None.
        corrected_best: The same at the corrected confidence.
    """

    promise: Promise
    corrected: Promise
    best: Tried | None
    corrected_best: Tried | None

    @property
    def floor_db(self) -> float:
        """What the PSNR of every prompt's clip has to reach."""
        return float(self.promise.floors.psnr_worst_prompt_db or 0.0)

    @property
    def name(self) -> str:
        """How the command line names it."""
        return f"{self.floor_db:g},{self.promise.share:g}"


class PromiseTable:
    """What can be promised, the wish of the study first.

    Attributes:
        cases: The guarantee cases.
        sequence: The policies that were tested, from careful to bold.
        attempt: How many sequences of policies have been tested on these cases, with this one.
        declared: Whether the study asked for its wish before anything was measured.
        likeness: Search prompts beside guarantee prompts; None if no policy was measured on all of both.
        wish: What the study asks for; at the corrected confidence, if it was not declared.
        passed: The policies that passed for it, careful ones first.
        cells: Other promises, on the PSNR of every prompt's clip alone.
        corrected_for: How many promises the confidence of one that is picked after looking is corrected for.
        corrected_confidence: What it comes to.
    """

    def __init__(
        self,
        guarantee: Guarantee,
        floors: Floors,
        cases: Sequence[Case],
        sequence: Sequence[Tried],
        attempt: int = 1,
        *,
        declared: bool = True,
        likeness: Likeness | None = None,
    ) -> None:
        self.cases = list(cases)
        self.sequence = list(sequence)
        self.attempt = attempt
        self.declared = declared
        self.likeness = likeness
        wish, *others = promises_of(guarantee, floors)
        self.corrected_for = len(others) + (not declared)
        self.corrected_confidence = 1 - (1 - guarantee.confidence) / max(1, self.corrected_for)
        self.wish = wish if declared else self._corrected(wish)
        self.passed = passed_in_turn(self.wish, self.sequence)
        self.cells = [
            Cell(
                promise,
                self._corrected(promise),
                _last(passed_in_turn(promise, self.sequence)),
                _last(passed_in_turn(self._corrected(promise), self.sequence)),
            )
            for promise in others
        ]

    def _corrected(self, promise: Promise) -> Promise:
        return Promise(promise.share, self.corrected_confidence, promise.floors)

    @property
    def best(self) -> Tried | None:
        """The fastest policy that passed for the wish."""
        return _last(self.passed)

    @property
    def timed(self) -> bool:
        """Whether policies are ranked by the time of denoising, as where their pipelines are set up differently."""
        return any(entry.speedup_denoise is not None for entry in self.sequence)

    def cell(self, floor_db: float, share: float) -> Cell | None:
        """The cell of a floor and a share, if the table has it."""
        return next((c for c in self.cells if c.floor_db == floor_db and c.promise.share == share), None)

    def nearest(self) -> list[Cell]:
        """The cells that hold at the corrected confidence and that no other one beats in both, floor and share."""
        holding = [cell for cell in self.cells if cell.corrected_best is not None]
        return [
            cell
            for cell in holding
            if not any(
                other is not cell and other.floor_db >= cell.floor_db and other.promise.share >= cell.promise.share
                for other in holding
            )
        ]

    def told_nearest(self) -> str:
        """The cells of `nearest` in words, best share first."""
        nearest = sorted(self.nearest(), key=lambda cell: -cell.promise.share)
        if not nearest:
            return "none of the promises in the table holds"
        return "what holds is " + " or ".join(
            f"{cell.floor_db:g} dB for a share of {cell.promise.share:g} ({told_trial(cell.corrected_best)}, "
            f"{cell.corrected_best.speed:.2f}x: `--promise {cell.name}`)"
            for cell in nearest
            if cell.corrected_best is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "statement": told(self.wish, len(self.cases)),
            "share": self.wish.share,
            "confidence": self.wish.confidence,
            "floors": plain_floors(self.wish.floors),
            "cases": len(self.cases),
            "attempt": self.attempt,
            "declared": self.declared,
            "passed": [entry.trial for entry in self.passed],
            "best": _told_best(self.best),
            "policies": [_told_policy(self.wish, entry) for entry in self.sequence],
            "likeness": None if self.likeness is None else asdict(self.likeness) | {"told": self.likeness.told()},
            "corrected_confidence": self.corrected_confidence,
            "corrected_for": self.corrected_for,
            "cells": [
                {
                    "name": cell.name,
                    "floor_db": cell.floor_db,
                    "share": cell.promise.share,
                    "takes": cases_needed(cell.promise.share, cell.promise.confidence),
                    "best": _told_best(cell.best),
                    "corrected_best": _told_best(cell.corrected_best),
                }
                for cell in self.cells
            ],
        }


def recorded_table(
    guarantee: Guarantee,
    floors: Floors,
    cases: Sequence[Case],
    search_cases: Sequence[Case],
    sequences: Sequence[Sequenced],
    complete: Callable[[str, Sequence[int]], Sequence[Generation]],
    results: Callable[[Sequence[int]], Sequence[Result]],
) -> PromiseTable | None:
    """The table of what was measured so far, by the newest sequence of policies; None if none was begun.

    Args:
        guarantee: The wish.
        floors: The study's.
        cases: The guarantee cases.
        search_cases: Those of the search.
        sequences: The study's, oldest first.
        complete: The complete generations of a kind, of some trials, by the present metric version.
        results: The results of some trials, in their order.
    """
    if not sequences:
        return None
    declared = sequences[0].wish == declared_wish(guarantee, floors)
    trials = sequences[-1].trials
    rows = complete(GUARANTEE, trials)
    alike = likeness(trials, search_cases, cases, [*complete(CANDIDATE, trials), *rows])
    tried = tried_on(results(trials), cases, rows)
    return PromiseTable(guarantee, floors, cases, tried, len(sequences), declared=declared, likeness=alike)


def _last(passed: Sequence[Tried]) -> Tried | None:
    return passed[-1] if passed else None


def told_trial(tried: Tried) -> str:
    """Whose policy it is, and what its pipeline is set up with, where a study has that chosen."""
    prepared = "" if tried.speedup_denoise is None else f", {told_preparation(tried.preparation)}"
    return f"trial {tried.trial}{prepared}"


def _told_best(best: Tried | None) -> dict[str, Any] | None:
    return None if best is None else _told_apart(best)


def _told_apart(tried: Tried) -> dict[str, Any]:
    """Which policy it is and how fast, as JSON; `told` names it."""
    return {
        "trial": tried.trial,
        "told": told_trial(tried),
        "speedup_evaluations": tried.speedup,
        "speedup_denoise": tried.speedup_denoise,
        "speed": tried.speed,
        "preparation": None if tried.preparation is None else dict(tried.preparation),
    }


def _told_policy(wish: Promise, tried: Tried) -> dict[str, Any]:
    """A tested policy as JSON: how many cases were measured, how many of them miss the wish, and its outcome."""
    held = wish.holds(tried.figures)
    known = [value for value in held if value is not None]
    return {
        **_told_apart(tried),
        "measured": len(known),
        "misses": known.count(False),
        "passed": wish.passed(tried),
        "failed": tried.failed,
    }
