"""Floors on scores: what is refused, what they ask of figures, and when they end a candidate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.errors import CalibrateError
from calibrate.measure.early_stop import out_of_reach
from calibrate.quality.metrics import PERFECT
from calibrate.quality.score_figures import at_best, score_figures
from calibrate.spec.floors import Floors
from calibrate.spec.running import Score
from calibrate.study.study_file import StudyFile

NO_PSNR = {"psnr_db": None, "psnr_worst_prompt_db": None}
SCORES = [
    {"name": "caption", "function": "m:f", "best": 1.0},
    {"name": "lpips", "function": "m:g", "of": "pair", "best": 0.0},
]


def _floors(**scores: Any) -> Floors:
    return Floors.model_validate(NO_PSNR | {"scores": scores})


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            {"captoin": {"at_least": 1}},
            "floors.scores.captoin names no score of quality.scores (there: caption, lpips); add it there, or drop it.",
        ),
        ({"caption": {}}, "floors.scores.caption: should say at_least, at_most, below_stock or above_stock."),
        ({"caption": {"below_stok": 0.1}}, "floors.scores.caption.below_stok: unknown field; known here: at_least, "),
        ({"caption": {"below_stock": -1}}, "floors.scores.caption.below_stock: input should be greater than or equal"),
        ({"caption": {"at_least": "high"}}, "floors.scores.caption.at_least: input should be a valid number"),
        ({"caption": {"at_least": math.inf}}, "floors.scores.caption.at_least: input should be a finite number"),
        ({"caption": {"at_least": 1, "per": "frame"}}, "floors.scores.caption.per: input should be 'prompt' or 'mean'"),
        (
            {"lpips": {"above_stock": 0.1}},
            "floors.scores.lpips.above_stock asks for the stock clip's own score, which one of pairs (of: pair) does",
        ),
        ({"caption": {"at_least": 2}}, "quality.scores.caption.best does not hold floors.scores.caption; correct one"),
        ({"lpips": {"at_most": -0.1}}, "quality.scores.lpips.best does not hold floors.scores.lpips; correct one"),
        ([{"caption": 1}], "floors.scores: should be a mapping"),
        ({"caption": 0.9}, "floors.scores.caption: should be a mapping"),
    ],
)
def test_what_is_wrong_with_a_floor_is_one_sentence_that_names_it(
    tmp_path: Path, tiny_study: dict[str, Any], scores: Any, sentence: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study | {"floors": {"scores": scores}, "quality": {"scores": SCORES}}))
    with pytest.raises(CalibrateError) as refused:
        StudyFile(path)
    told = str(refused.value)
    assert told.startswith(f"{path}: {sentence}")
    assert told.endswith(".")
    assert "\n" not in told


def test_a_score_cannot_have_the_name_of_another_ones_stock_value(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    scores = [{"name": "caption", "function": "m:f"}, {"name": "caption_stock", "function": "m:f"}]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study | {"quality": {"scores": scores}}))
    with pytest.raises(CalibrateError, match="'caption_stock' is taken"):
        StudyFile(path)


@pytest.mark.parametrize(
    ("floor", "clips", "shortfall", "told"),
    [
        # Own scores and stock's, prompt by prompt.
        ({"at_least": 0.9}, [(1.0, 1.0), (0.7, 1.0)], 0.05, "at least 0.9 in the mean"),
        ({"at_least": 0.9, "per": "prompt"}, [(1.0, 1.0), (0.7, 1.0)], 0.2, "at least 0.9 for every prompt"),
        ({"at_most": 0.1}, [(0.1, 0.0), (0.3, 0.0)], 0.1, "at most 0.1 in the mean"),
        ({"at_most": 0.1, "per": "prompt"}, [(0.1, 0.0), (0.3, 0.0)], 0.2, "at most 0.1 for every prompt"),
        ({"below_stock": 0.02}, [(0.9, 1.0), (0.9, 0.9)], 0.03, "at most 0.02 below stock in the mean"),
        # Beside stock's own on the same prompt: the worst prompt is not that of the lowest score.
        (
            {"below_stock": 0.02, "per": "prompt"},
            [(0.9, 1.0), (0.5, 0.5)],
            0.08,
            "at most 0.02 below stock for every prompt",
        ),
        ({"above_stock": 0.02}, [(0.2, 0.1), (0.1, 0.1)], 0.03, "at most 0.02 above stock in the mean"),
        (
            {"above_stock": 0.0, "per": "prompt"},
            [(0.3, 0.1), (0.9, 0.9)],
            0.2,
            "at most 0 above stock for every prompt",
        ),
    ],
)
def test_a_floor_asks_for_a_score_or_for_its_distance_to_stock(
    floor: dict[str, Any], clips: list[tuple[float, float]], shortfall: float, told: str
) -> None:
    floors = _floors(s=floor)
    figures = score_figures([{"s": own, "s_stock": stock} for own, stock in clips])
    (bound,) = floor.keys() - {"per"}
    assert floors.shortfalls(figures, margin=True) == pytest.approx({f"scores.s.{bound}": shortfall})
    assert floors.told_missed(figures, margin=False) == [f"scores.s.{bound} by {shortfall:.3g} ({told})"]
    held = score_figures([{"s": stock, "s_stock": stock} for _, stock in clips])
    assert "stock" not in bound or not floors.told_missed(held, margin=False)


def test_what_was_not_measured_does_not_hold_and_is_told_from_what_is_missed() -> None:
    floors = _floors(s={"at_least": 0.5}, t={"at_least": 0.5})
    some = score_figures([{"s": 0.6, "t": 0.6}, {"s": 0.7}])
    assert "score.t.min" not in some
    assert floors.told_missed(some, margin=False) == ["scores.t.at_least unmeasured (at least 0.5 in the mean)"]
    assert floors.unmeasured(some)
    assert not floors.unmeasured(score_figures([{"s": 0.1}]))
    assert not floors.unmeasured(score_figures([{"s": 0.6, "t": 0.1}]))


def test_scores_never_get_in_the_way_of_built_in_figures() -> None:
    assert {name.split(".")[0] for name in score_figures([{"psnr_db": 1.0, "ssim": 0.5}])} == {"score"}


class TestEarlyStops:
    """Of four prompts, some are measured."""

    BEST = at_best([Score.model_validate(score) for score in SCORES], {"caption_stock": 0.9})

    def _reason(
        self, floors: Floors, *measured: dict[str, float], unknown: dict[str, float] | None = None
    ) -> str | None:
        rest = [self.BEST if unknown is None else unknown] * (4 - len(measured))
        return out_of_reach(floors, [PERFECT] * len(measured), 4, scores=[*measured, *rest])

    def test_one_prompt_ends_a_candidate_that_every_prompt_must_hold(self) -> None:
        floors = _floors(caption={"below_stock": 0.1, "per": "prompt"})
        assert self._reason(floors, {"caption": 0.85, "caption_stock": 0.9}) is None
        told = self._reason(floors, {"caption": 0.85, "caption_stock": 0.9}, {"caption": 0.5, "caption_stock": 0.9})
        assert told == (
            "stopped early: at best it misses scores.caption.below_stock by 0.3 (at most 0.1 below stock for every "
            "prompt)"
        )

    def test_a_mean_ends_it_as_soon_as_the_best_of_the_others_cannot_mend_it(self) -> None:
        floors = _floors(caption={"at_least": 0.9})
        assert self._reason(floors, {"caption": 0.61}) is None
        assert self._reason(floors, {"caption": 0.61}, {"caption": 0.99}) is None
        assert self._reason(floors, {"caption": 0.61}, {"caption": 0.98}) is not None
        assert self._reason(floors, {"caption": 0.59}) is not None
        relative = _floors(caption={"below_stock": 0.0})
        # Each of the others can gain a tenth on stock.
        assert self._reason(relative, {"caption": 0.65, "caption_stock": 0.9}) is None
        assert self._reason(relative, {"caption": 0.55, "caption_stock": 0.9}) is not None
        assert self._reason(_floors(lpips={"at_most": 0.1}), {"lpips": 0.41}) is not None
        assert self._reason(_floors(lpips={"at_most": 0.1}), {"lpips": 0.39}) is None

    def test_without_a_best_value_a_mean_stays_open_and_a_prompt_does_not(self) -> None:
        floors = _floors(caption={"at_least": 0.9})
        assert self._reason(floors, {"caption": -100.0}, unknown={}) is None
        assert (
            self._reason(_floors(caption={"at_least": 0.9, "per": "prompt"}), {"caption": 0.8}, unknown={}) is not None
        )
        assert self._reason(floors, unknown={}) is None
