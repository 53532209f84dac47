"""The scores of stock clips, which floors may be set beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calibrate.families.target import Target
from calibrate.measure.baseline import Reference
from calibrate.quality.scores import Scores
from calibrate.spec.generation import Case
from calibrate.spec.running import Score


@dataclass(frozen=True, eq=False)
class ScoreStock:
    """The job of scoring the stock clip of a case.

    Attributes:
        case: Prompt and seed.
        scores: By which scores.
        reference: The stock clip.
    """

    case: Case
    scores: tuple[Score, ...]
    reference: Reference | None = None

    def __str__(self) -> str:
        return f"scores of stock: {self.case.label}"

    def run(self, target: Target, stopping: Callable[[], bool]) -> dict[str, float]:
        """Scores of single clips by name; see `calibrate.quality.scores.Scores.of_stock`.

        Raises:
            CalibrateError: If a score fails.
        """
        assert self.reference is not None
        return Scores(self.scores).of_stock(self.case.prompt, self.reference.frames)
