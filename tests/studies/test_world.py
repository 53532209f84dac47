"""The synthetic world: deterministic, inside its borders, measurable, and with combinations kept out of training."""

from __future__ import annotations

import numpy as np
import pytest

from studies.reference import world


def _scenes(count: int, split: world.Split = "any") -> list[world.Scene]:
    rng = np.random.default_rng(11)
    return [world.sample_scene(rng, split) for _ in range(count)]


def test_same_seed_gives_the_same_clip() -> None:
    first, second = (world.render(world.sample_scene(np.random.default_rng(3)), frames=9) for _ in range(2))
    other = world.render(world.sample_scene(np.random.default_rng(4)), frames=9)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_frames_leave_room_below_the_clamp_of_the_decoder() -> None:
    for scene in _scenes(12):
        frames = world.render(scene, frames=3)
        assert frames.dtype == np.float32
        assert frames.shape == (3, world.SIZE, world.SIZE, 3)
        assert np.abs(frames).max() <= 0.9 + 1e-6


def test_captions_say_what_the_scene_is() -> None:
    for scene in _scenes(50):
        assert world.parse_caption(scene.caption) == scene.spec
        assert set(scene.caption.split()) <= set(world.vocabulary())


@pytest.mark.parametrize("caption", ["", "a red circle", "a red circle moving left on a striped background today"])
def test_other_text_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        world.parse_caption(caption)


def test_measure_is_right_on_ground_truth() -> None:
    for scene in _scenes(40):
        verdict = world.judge(scene.spec, world.measure(world.render(scene)))
        assert verdict == world.Verdict(colours=True, direction=True), scene.caption


def test_measure_tells_wrong_clips() -> None:
    spec = world.SceneSpec((("red", "circle"), ("blue", "square")), "left", "", "smooth")
    right = (world.Track("red", "left", 200.0), world.Track("blue", "left", 150.0))
    assert world.judge(spec, right) == world.Verdict(True, True)
    assert world.judge(spec, right[:1]) == world.Verdict(False, False)
    assert world.judge(spec, (right[0], world.Track("blue", "up", 150.0))) == world.Verdict(True, False)
    assert world.judge(spec, (*right, world.Track("cyan", "left", 90.0))) == world.Verdict(False, True)


def test_background_alone_shows_no_object() -> None:
    for scene in _scenes(12):
        empty = world.Scene(scene.spec, (), scene.background)
        assert world.measure(world.render(empty, frames=12)) == ()


def test_objects_bounce_inside_the_frame() -> None:
    for scene in _scenes(40):
        frames = world.render(scene)
        saturated = frames.max(-1) - frames.min(-1) > 0.75
        area = saturated.sum((1, 2))
        if len(scene.objects) == 1:
            # A part outside the frame would be a smaller area; antialiasing moves it by a few pixels.
            assert area.min() > 0.85 * area.max(), scene.caption


def test_a_trail_lies_behind_its_object_also_after_a_bounce() -> None:
    spec = world.SceneSpec((("red", "circle"),), "left", "quickly", "smooth")
    scene = world.Scene(
        spec,
        (world.Shape("red", "circle", 9.0, 42.0, 32.0, world.COLOURS["red"]),),
        world.Background("smooth", (0.0,) * 3),
    )
    frames = world.render(scene, frames=60)
    centres = []
    for frame in frames:
        trail = (frame.max(-1) < -0.6).nonzero()[1].mean()
        red = ((frame[..., 0] > 0.5) & (frame[..., 1] < -0.5)).nonzero()[1].mean()
        centres.append((red, trail))
    for (red, _), (later, trail) in zip(centres[::6], centres[1::6], strict=False):
        assert (trail - later) * (red - later) > 0
    assert min(red for red, _ in centres) == pytest.approx(9.0, abs=1.5)


def test_held_out_combinations_are_never_sampled_for_training() -> None:
    assert not any(scene.spec.held_out for scene in _scenes(300, "train"))
    assert all(scene.spec.held_out for scene in _scenes(50, "held_out"))


def test_one_triple_in_six_is_held_out_and_every_word_is_trained() -> None:
    triples = [(c, s, d) for c in world.COLOURS for s in world.SHAPES for d in world.DIRECTIONS]
    held_out = [triple for triple in triples if world.is_held_out(*triple)]
    assert len(held_out) * 6 == len(triples)
    words = {word for scene in _scenes(300, "train") for word in scene.caption.split()}
    assert words == set(world.vocabulary())


def test_held_out_prompts_are_fixed_and_different() -> None:
    prompts = world.held_out_prompts(30)
    assert prompts == world.held_out_prompts(30)
    assert prompts[:10] == world.held_out_prompts(10)
    assert len(set(prompts)) == 30
    assert all(world.parse_caption(prompt).held_out for prompt in prompts)
