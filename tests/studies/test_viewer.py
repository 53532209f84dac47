"""The score of what a viewer would notice: high for what the world draws, clearly lower for every way to spoil it."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.quality.metrics import Frames
from studies.bench.viewer import SPOILT
from studies.reference import world
from studies.reference.viewer import view, viewer_score


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, Frames]]:
    """Captions with clips in [0, 1], one and two objects among them."""
    rng = np.random.default_rng(5)
    scenes = [world.sample_scene(rng) for _ in range(5)]
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    return [(scene.caption, (world.render(scene) + 1) / 2) for scene in scenes]


@pytest.fixture(scope="module")
def clean(drawn: list[tuple[str, Frames]]) -> list[float]:
    return [viewer_score(caption, clip) for caption, clip in drawn]


def test_what_the_world_draws_is_all_but_perfect(clean: list[float]) -> None:
    assert min(clean) > 0.8
    assert max(clean) <= 1


@pytest.mark.parametrize("name", SPOILT)
def test_every_way_to_spoil_a_clip_shows_in_each_clip(
    name: str, drawn: list[tuple[str, Frames]], clean: list[float]
) -> None:
    spoilt = [viewer_score(caption, SPOILT[name](clip)) for caption, clip in drawn]
    falls = np.array(clean) - spoilt
    assert falls.min() > 0.1
    assert falls.mean() > 0.25


@pytest.mark.parametrize(
    ("name", "part"),
    [("blurred", "shape"), ("frozen", "motion"), ("flickering", "stillness"), ("half repainted", "objects")],
)
def test_the_part_that_is_to_blame_falls_furthest_below_its_own(
    name: str, part: str, drawn: list[tuple[str, Frames]]
) -> None:
    caption, clip = drawn[0]
    whole, spoilt = vars(view(caption, clip)), vars(view(caption, SPOILT[name](clip)))
    assert whole[part] - spoilt[part] > 0.2


def test_another_caption_does_not_fit(drawn: list[tuple[str, Frames]]) -> None:
    caption, clip = drawn[0]
    (colour, shape), *rest = (spec := world.parse_caption(caption)).objects
    others = ((("cyan" if colour != "cyan" else "red", shape), *rest), spec.direction, spec.background), (
        spec.objects, "up" if spec.direction in ("left", "right") else "left", spec.background,
    ), (spec.objects, spec.direction, "striped" if spec.background != "striped" else "dotted")  # fmt: skip
    for objects, direction, background in others:
        wrong = world.SceneSpec(objects, direction, spec.speed, background)
        assert viewer_score(wrong.caption, clip) < 0.5


def test_an_empty_picture_scores_nothing() -> None:
    empty = np.full((24, 64, 64, 3), 0.5, dtype=np.float32)
    assert viewer_score("a red circle moving left on a smooth background", empty) < 0.01
