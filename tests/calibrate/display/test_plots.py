from __future__ import annotations

import json

import numpy as np
import pytest

from calibrate.display.data import feasible, front
from calibrate.display.front import Reference, compared_fronts, front_figure
from calibrate.display.measures import QUALITY, SPEED
from calibrate.display.mode_map import mode_map
from calibrate.display.theme import DARK, LIGHT
from calibrate.display.trial import block_quality, frame_quality, prediction_errors, time_spent
from calibrate.display.weights import weight_map
from scope_runtime import Policy, Scheduler, Settings
from scope_runtime.gap_weights import GapWeights
from tests.made import Made

SPEEDUP, PSNR = SPEED["speedup_evaluations"], QUALITY["psnr_db"]


@pytest.mark.parametrize("quality", QUALITY.values(), ids=lambda q: q.key)
def test_every_point_of_the_front_carries_its_trial(made: Made, quality) -> None:
    points = made.data.points
    figure = front_figure(
        points, feasible(points, made.data.study.floors), SPEEDUP, quality, LIGHT, selected=made.best,
        references=[Reference("stock", 1.0, "square")],
    )  # fmt: skip
    numbered = [int(number) for trace in figure.data if trace.customdata is not None for number in trace.customdata]
    assert sorted(numbered) == sorted(points["trial"])
    assert "fastest above the floors" not in [trace.name for trace in figure.data]
    ring = next(trace for trace in figure.data if trace.name == f"selected: trial {made.best}")
    assert ring.x[0] == made.data.results[made.best].speedup_evaluations
    assert "Infinity" not in json.dumps(json.loads(figure.to_json()))


def test_the_line_stands_where_the_search_draws_it(made: Made) -> None:
    floors = made.data.study.floors
    asked = floors.demands(margin=True)["psnr_db"]
    points, told = made.data.points, floors.told("psnr_db", margin=True)
    holds = feasible(points, floors)
    drawn = front_figure(points, holds, SPEEDUP, PSNR, LIGHT, floor=asked, floor_text=told)
    assert [shape.y0 for shape in drawn.layout.shapes] == [36.0]
    assert [note.text for note in drawn.layout.annotations] == ["floor 35 dB with its margin of 1 dB"]


def test_blocks_are_drawn_over_their_frames() -> None:
    drawn = block_quality({"a": {9: 40.0, 21: 30.0, 33: 20.0}}, 25.0, LIGHT)
    assert (list(drawn.data[0].x), list(drawn.data[0].y)) == ([0, 9, 21, 33], [40.0, 30.0, 20.0, 20.0])
    assert drawn.layout.annotations[0].text == "worst-block floor"


def test_the_fastest_above_the_floors_is_marked_whatever_is_selected(made: Made) -> None:
    points = made.data.points
    other = next(trial for trial in points["trial"] if trial != made.best)
    holds = feasible(points, made.data.study.floors)
    figure = front_figure(points, holds, SPEEDUP, PSNR, LIGHT, selected=other, best=made.best)
    star = next(trace for trace in figure.data if trace.name == "fastest above the floors")
    assert star.x[0] == made.data.results[made.best].speedup_evaluations
    assert star.hoverinfo == "skip"  # a click goes to the point beneath


def test_of_a_crowd_points_that_cover_each_other_are_drawn_once(made: Made) -> None:
    many = made.data.points.loc[made.data.points.index.repeat(100)].reset_index(drop=True)
    holds = feasible(many, made.data.study.floors)
    figure = front_figure(many, holds, SPEEDUP, PSNR, LIGHT)
    drawn = {trace.name: len(trace.x) for trace in figure.data}
    (above,) = (name for name in drawn if name.startswith("above the floors"))
    best = len(front(many[holds], SPEEDUP.key, PSNR.key))
    assert above == f"above the floors ({int(holds.sum()) - best:,})"
    assert drawn[above] <= len(made.data.points)


def test_estimates_are_marked_and_never_feasible(made: Made) -> None:
    points = made.data.points.copy()
    points.loc[points.index[:5], "estimated"] = True
    holds = feasible(points, made.data.study.floors)
    assert not holds.iloc[:5].any()
    names = [trace.name for trace in front_figure(points, holds, SPEEDUP, PSNR, DARK).data]
    assert "estimate, not measured (5)" in names


def test_expected_errors_are_told_apart_and_explained_once() -> None:
    figure = prediction_errors([[1, 0, 1, 0.2], [2, 0, 1, 0.1, 0.15], [3, 1, 1, 0.1, 0.2]], LIGHT)
    expected = [trace for trace in figure.data if trace.name == "expected beforehand"]
    assert [trace.y for trace in expected] == [(0.15,), (0.2,)]
    assert [trace.showlegend for trace in expected] == [True, False]


def test_the_mode_map_counts_its_letters() -> None:
    figure = mode_map(["R.", "PR", "CP", "KR"], LIGHT)
    assert figure.data[0].z.shape == (2, 4)
    assert {trace.name for trace in figure.data[1:]} == {
        "left out (1)", "C cache (1)", "P predict (2)", "K capture context (1)", "R recompute (3)",
    }  # fmt: skip


def test_a_mode_map_has_holes_where_a_shorter_window_has_no_block() -> None:
    figure = mode_map(["RR", "P.", "R"], LIGHT)
    drawn = figure.data[0]
    assert drawn.z.shape == (2, 3)
    assert np.argwhere(np.isnan(drawn.z)).tolist() == [[1, 2]]
    assert drawn.customdata[1].tolist() == ["recompute", "left out", ""]
    assert {trace.name for trace in figure.data[1:]} == {"left out (1)", "P predict (1)", "R recompute (3)"}


def test_kinds_are_told_apart_by_shape_and_name(made: Made, mixed: Made) -> None:
    points, floors = mixed.data.points, mixed.data.study.floors
    drawn = front_figure(points, feasible(points, floors), SPEEDUP, PSNR, LIGHT)
    numbered = [int(number) for trace in drawn.data if trace.customdata is not None for number in trace.customdata]
    assert sorted(numbered) == sorted(points["trial"])
    for trace in drawn.data:
        if trace.customdata is not None:
            kinds = {mixed.data.results[int(number)].kind for number in trace.customdata}
            assert kinds == {"learned" if trace.marker.symbol.startswith("triangle-up") else "thresholds"}
            assert (", learned weights (" in trace.name) == (kinds == {"learned"})
    best = front(points[feasible(points, floors)], SPEEDUP.key, PSNR.key)
    assert list(drawn.data[-3].x) == best[SPEEDUP.key].tolist()  # one line through both kinds
    alone = front_figure(made.data.points, feasible(made.data.points, floors), SPEEDUP, PSNR, LIGHT)
    assert not any("thresholds" in trace.name for trace in alone.data)


def test_hovering_a_learned_policy_does_not_show_thresholds_that_nobody_reads(mixed: Made) -> None:
    points, policies = mixed.data.points, {number: result.policy for number, result in mixed.data.results.items()}
    drawn = front_figure(points, feasible(points, mixed.data.study.floors), SPEEDUP, PSNR, LIGHT, policies=policies)
    for trace in drawn.data:
        for text in trace.text or ():
            assert ("warmup" in text) == ("learned weights" not in text)


def test_a_weight_holds_over_its_gap() -> None:
    settings = Settings(
        height=64, width=64, num_frames=97, num_inference_steps=4, guidance_scale=4.0, ar_step=1, causal_block_size=5,
        dtype="float32", scheduler=Scheduler("UniPCMultistepScheduler"),
    )  # fmt: skip
    plan = ("R.", "PR", "RP", "PR", ".R")
    weights = {(0, 0, "cond"): [1.5], (0, 2, "cond"): [1.25, -0.5, 0.25], (1, 2, "<b>"): [0.5]}
    found = GapWeights.fitted(plan, settings, depth=3, classes=[0, 1], weights=weights)
    newest, older = (weight_map(Policy(plan=plan, gap_weights=found), LIGHT, older=o).data[0] for o in (False, True))
    assert newest.y == ("block 0, &lt;b&gt;", "block 0, cond", "block 1, &lt;b&gt;", "block 1, cond")
    assert newest.z.tolist() == [[1, 1, 1, 1], [1.5, 1.5, 1.25, 1.25], [1, 1, 0.5, 1], [1, 1, 1, 1]]
    assert older.z.tolist()[1] == [0, 0, -0.25, -0.25]
    assert older.text[1].tolist() == ["0.00", "", "-0.25", ""]
    assert newest.customdata[1][3] == "1.250, -0.500, 0.250"
    assert (newest.zmin + newest.zmax) / 2 == 1
    assert (older.zmin + older.zmax) / 2 == 0


def test_every_axis_has_a_label(made: Made) -> None:
    points = made.data.points
    figures = [
        compared_fronts({"made": front(points, SPEEDUP.key, PSNR.key)}, SPEEDUP, PSNR, LIGHT),
        frame_quality({"a": [40.0, 41.0]}, 30.0, LIGHT),
        prediction_errors([[0, 0, 1, 0.1], [1, 0, 1, 0.2, 0.15]], LIGHT),
        mode_map(["R"], LIGHT),
    ]
    for figure in figures:
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
    assert time_spent({"stock": {"denoising": 2.0, "decoding": 1.0}}, LIGHT).layout.xaxis.title.text
