from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from calibrate.display.measures import QUALITY
from calibrate.display.theme import LIGHT
from calibrate.store import Storage, browse
from dashboard import insight
from dashboard.insight_plots import importance_bars, parallel_coordinates
from tests.made import TRIALS, Made


def test_the_hypervolume_is_the_area_under_the_staircase() -> None:
    points = pd.DataFrame({"x": [2.0, 3.0, 1.5], "y": [40.0, 35.0, 30.0]})
    counts, areas = insight.hypervolume(points, "x", "y", floor=30.0)
    assert counts == [1, 2, 3]
    assert areas == pytest.approx([10.0, 15.0, 15.0])


def test_importance_finds_what_decides(made: Made, read_only: Storage) -> None:
    parameters = browse.parameters(read_only, "made")
    assert len(parameters) == TRIALS
    values = {number: float(found["max_skip"][0]) for number, found in parameters.items()}
    found = insight.importance(parameters, values)
    assert next(iter(found)) == "max_skip"
    assert sum(found.values()) == pytest.approx(1.0)
    assert insight.importance(parameters, dict.fromkeys(values, 1.0)) == {}


def test_what_never_varied_does_not_matter(mixed: Made) -> None:
    storage = Storage(mixed.url, read_only=True)
    known = browse.parameters(storage, "mixed")
    storage.close()
    learned = {number: found for number, found in known.items() if "depth" in found}
    values = {number: mixed.data.results[number].speedup_evaluations for number in learned}
    found = insight.importance(learned, values)
    assert next(iter(found)) == "period"
    assert not found.keys() & {"depth", "kind"}  # one value each, of sixteen and of one
    same = {number: {"depth": found["depth"]} for number, found in learned.items()}
    assert insight.importance(same, values) == {}


def test_parameters_come_back_as_they_were_searched(made: Made, read_only: Storage) -> None:
    found = browse.parameters(read_only, "made")[made.best]
    assert found["warmup"][0] == made.data.results[made.best].policy["warmup"]
    assert found["order"][0] in (1, 2)


def test_what_varied_is_shown_also_where_some_policies_had_no_choice(made: Made, read_only: Storage) -> None:
    parameters = browse.parameters(read_only, "made")
    table = insight.varied(parameters, list(parameters))
    assert len(table) == len(parameters)
    assert not table.isna().any().any()
    assert set(table["axis"][table["order"] == 2]) == {"none"}
    assert set(table["axis"][table["order"] == 1]) == {"noise-level", "step"}
    distribution = next(iter(parameters.values()))["warmup"][1]
    gaps = {1: {"warmup": (1, distribution), "tail": (0, distribution)}, 2: {"tail": (1, distribution)}, 3: {}}
    assert insight.varied(gaps, [1, 2]).columns.tolist() == ["tail"]
    assert insight.varied({}, [1, 2, 3]).shape == (3, 0)


def test_a_curve_holds_the_median_of_every_value() -> None:
    shape = insight.curve([1, 1, 1, 2, 2, 2], [1, 2, 3, 10, 20, 30])
    assert shape.x.tolist() == [1, 2]
    assert shape.median.tolist() == [2, 20]
    assert shape.range == 18


def test_a_curve_bins_what_is_continuous_and_leaves_gaps_out() -> None:
    x = np.concatenate([np.linspace(0, 0.2, 50), np.linspace(0.8, 1, 50)])
    shape = insight.curve(x.tolist(), x.tolist())
    assert len(shape.x) < 12
    assert (np.diff(shape.median) > 0).all()


def test_a_curve_tells_an_effect_from_chance() -> None:
    random = np.random.default_rng(0)
    x, noise = random.uniform(0, 1, 300), random.normal(0, 1, 300)
    assert insight.curve(x.tolist(), noise.tolist()).chance > 0.05
    assert insight.curve(x.tolist(), (noise + 3 * x).tolist()).chance < 1e-6
    assert insight.curve([1.0, 1.0], [2.0, 3.0]).chance == 1.0
    assert insight.curve([1.0, 2.0], [3.0, 3.0]).chance == 1.0


def test_every_axis_has_a_label(made: Made) -> None:
    assert importance_bars({"PSNR": {"warmup": 1.0}}, LIGHT).layout.xaxis.title.text
    points = made.data.points
    steps = points[["ssim", "psnr_db"]].assign(max_skip=[1, 2] * (len(points) // 2))
    ssim, psnr, skips = parallel_coordinates(steps, QUALITY["psnr_db"], LIGHT).data[0].dimensions
    assert (ssim.label, psnr.label, skips.label) == ("SSIM", "PSNR, mean", "max skip")
    assert list(skips.tickvals) == [1, 2]
    assert ssim.tickvals is None
