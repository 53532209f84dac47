"""A synthetic world of moving shapes with captions and ground truth.

A scene is one or two saturated, antialiased shapes that move over a textured, nearly grey background, draw a dark trail
and bounce off the borders. Its caption says everything that the pixels can be checked against: the colours, the shapes,
the initial direction, the speed and the kind of background. `measure` reads colours and directions back from pixels
alone.

Frames are float32 in [-1, 1], shaped [frames, height, width, 3]. Positions and lengths are in pixels of a 64 x 64
frame, speeds in pixels per frame; other sizes scale with the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float32]
Split = Literal["train", "held_out", "any"]

SIZE = 64
FRAMES = 97
FPS = 24

# Decoding clamps to [-1, 1]; colours stay inside +-0.9 so that the clamp never hides an error of the decoder.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, -0.75, -0.75),
    "green": (-0.75, 0.75, -0.75),
    "blue": (-0.75, -0.65, 0.85),
    "yellow": (0.85, 0.75, -0.75),
    "magenta": (0.85, -0.75, 0.80),
    "cyan": (-0.75, 0.75, 0.80),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS: dict[str, float] = {"slowly": 0.6, "": 0.9, "quickly": 1.2}
BACKGROUNDS = ("striped", "checkered", "dotted", "smooth")

TWO_OBJECTS_PROBABILITY = 0.25
# Textures lie still, alike in every clip of their kind, and one period is one token of the transformer: they keep PSNR
# from being flattered by flat colour, and leave training to the objects.
TEXTURE_PERIOD = 16.0
TEXTURE_CONTRAST = 0.2
# Every object draws a dark trail as long as its way in this many frames. The transformer's positions are relative: a
# direction shows in it as what lies behind an object, not as where the object is.
TRAIL_FRAMES = 12
TRAIL_COLOUR = -0.85
# The captioned direction holds for this many frames before the first bounce.
STEADY_FRAMES = 21

# `measure`: the objects' channel range is at least 1.5, the backgrounds' at most 0.3.
_SATURATION_THRESHOLD = 0.75
_MIN_AREA = 30.0
_MIN_TRAVEL = 3.0


@dataclass(frozen=True)
class Shape:
    """One moving object; `x` and `y` are its centre in frame 0, in pixels, `rgb` its colour with the scene's jitter."""

    colour: str
    shape: str
    radius: float
    x: float
    y: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Background:
    """A static, low-saturation texture of one of the kinds; `rgb` is its mean."""

    kind: str
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class SceneSpec:
    """What a caption says: (colour, shape) pairs, direction, speed word ("" for none) and kind of background."""

    objects: tuple[tuple[str, str], ...]
    direction: str
    speed: str
    background: str

    @property
    def caption(self) -> str:
        """The caption that says this."""
        subject = " and ".join(f"a {colour} {shape}" for colour, shape in self.objects)
        motion = " ".join(word for word in ("moving", self.direction, self.speed) if word)
        return f"{subject} {motion} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether the combination is kept out of training: one of its (colour, shape, direction) triples is."""
        return any(is_held_out(colour, shape, self.direction) for colour, shape in self.objects)


@dataclass(frozen=True)
class Scene:
    """A scene in full: what its caption says, and everything that the caption leaves to chance."""

    spec: SceneSpec
    objects: tuple[Shape, ...]
    background: Background

    @property
    def caption(self) -> str:
        """The scene's caption."""
        return self.spec.caption


@dataclass(frozen=True)
class Track:
    """An object found in pixels: its colour, initial direction (None when it hardly moves) and mean area in pixels."""

    colour: str
    direction: str | None
    area: float


@dataclass(frozen=True)
class Verdict:
    """Whether a clip shows exactly the captioned colours, and all of them moving in the captioned direction."""

    colours: bool
    direction: bool


def is_held_out(colour: str, shape: str, direction: str) -> bool:
    """One triple in six is never trained on: for every shape and direction one colour, each colour equally often."""
    offset = 2 * SHAPES.index(shape) + list(DIRECTIONS).index(direction)
    return list(COLOURS).index(colour) == offset % len(COLOURS)


def vocabulary() -> list[str]:
    """Every word a caption can contain, in a fixed order."""
    words = ["a", "and", "moving", "on", "background", *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *BACKGROUNDS]
    return [word for word in words if word]


def parse_caption(caption: str) -> SceneSpec:
    """Read a caption of the grammar back into what it says.

    Raises:
        ValueError: if `caption` is not exactly one that this world produces.
    """
    words = caption.split()
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    directions = [word for word in words if word in DIRECTIONS]
    backgrounds = [word for word in words if word in BACKGROUNDS]
    speed = next((word for word in words if word and word in SPEEDS), "")
    if colours and len(colours) == len(shapes) and directions and backgrounds:
        spec = SceneSpec(tuple(zip(colours, shapes, strict=True)), directions[0], speed, backgrounds[0])
        if spec.caption == caption:
            return spec
    raise ValueError(f"not a caption of the synthetic world: {caption!r}")


def sample_spec(rng: np.random.Generator, split: Split = "any") -> SceneSpec:
    """Draw what a caption says, from the combinations of `split`; two objects always differ in colour."""
    while True:
        count = 2 if rng.random() < TWO_OBJECTS_PROBABILITY else 1
        colours = rng.choice(list(COLOURS), size=count, replace=False)
        shapes = rng.choice(SHAPES, size=count)
        spec = SceneSpec(
            tuple((str(colour), str(shape)) for colour, shape in zip(colours, shapes, strict=True)),
            direction=str(rng.choice(list(DIRECTIONS))),
            speed=str(rng.choice(list(SPEEDS))),
            background=str(rng.choice(BACKGROUNDS)),
        )
        if split == "any" or spec.held_out == (split == "held_out"):
            return spec


def sample_scene(rng: np.random.Generator, split: Split = "any") -> Scene:
    """Draw a scene from the combinations of `split`."""
    spec = sample_spec(rng, split)
    return Scene(spec, _sample_objects(rng, spec), _sample_background(rng, spec.background))


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` different captions whose combination was never trained on; the same for the same seed."""
    rng = np.random.default_rng([seed, 0x5C09E])
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[sample_spec(rng, "held_out").caption] = None
    return list(prompts)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE, kept: slice | Sequence[int] = slice(None)) -> Frames:
    """Render a scene.

    Args:
        scene: what to render.
        frames: the clip's length.
        size: height and width in pixels.
        kept: which of these frames are rendered; all of them, if nothing is said.

    Returns:
        Float32 frames [frames or as many as are kept, size, size, 3] in [-1, 1].
    """
    scale = size / SIZE
    # Pixel centres, in the units of the 64-pixel world.
    axis = (np.arange(size, dtype=np.float32) + 0.5) / scale
    x, y = axis[None, None, :], axis[None, :, None]
    count = len(np.arange(frames)[kept])
    out: Frames = np.repeat(_render_background(scene.background, x[0], y[0])[None], count, axis=0)
    reach = SPEEDS[scene.spec.speed] * TRAIL_FRAMES
    seen = []
    for shape, (path, heading) in zip(scene.objects, _courses(scene, frames), strict=True):
        dx, dy = (axis - path[kept][:, i, None, None] for i, axis in enumerate((x, y)))
        _paint(out, _trail_distance(shape, dx, dy, heading[kept], reach) * scale, (TRAIL_COLOUR,) * 3)
        seen.append((shape, dx, dy))
    for shape, dx, dy in seen:
        _paint(out, _signed_distance(shape, dx, dy) * scale, shape.rgb)
    return out.astype(np.float32)


def measure(frames: Frames) -> tuple[Track, ...]:
    """Find the objects in pixels: colour by segmentation, initial direction by the centroid's course.

    Only the clip's beginning counts, for which a caption's direction holds.

    Args:
        frames: float frames [frames, height, width, 3] in [-1, 1], at least 12 of them.

    Returns:
        One track per colour seen, the largest first.
    """
    steady = frames[: max(2, round(len(frames) * STEADY_FRAMES / FRAMES))]
    to_world = SIZE / steady.shape[2]
    palette = np.asarray(list(COLOURS.values()), dtype=np.float32)
    nearest = np.square(steady[..., None, :] - palette).sum(-1).argmin(-1)
    saturated = steady.max(-1) - steady.min(-1) > _SATURATION_THRESHOLD

    tracks = []
    for index, colour in enumerate(COLOURS):
        mask = saturated & (nearest == index)
        area = mask.sum((1, 2)) * to_world**2
        if area.mean() >= _MIN_AREA:
            tracks.append(Track(colour, _initial_direction(mask, area, to_world), float(area.mean())))
    return tuple(sorted(tracks, key=lambda track: -track.area))


def judge(spec: SceneSpec, tracks: Sequence[Track]) -> Verdict:
    """Compare measured tracks with what a caption says; with two objects both must be right."""
    expected = {colour for colour, _ in spec.objects}
    found = {track.colour: track.direction for track in tracks}
    return Verdict(
        colours=set(found) == expected,
        direction=all(found.get(colour) == spec.direction for colour in expected),
    )


def caption_score(prompt: str, frames: Frames) -> float:
    """How far a clip shows what its caption says, for `quality.scores` of a study: 1, 0.5 or 0.

    Half of it is for exactly the captioned colours, half for their moving in the captioned direction.

    Args:
        prompt: a caption of this world.
        frames: float frames [frames, height, width, 3] in [0, 1], at least 12 of them.
    """
    verdict = judge(parse_caption(prompt), measure(np.asarray(frames, dtype=np.float32) * 2 - 1))
    return (verdict.colours + verdict.direction) / 2


def _sample_objects(rng: np.random.Generator, spec: SceneSpec) -> tuple[Shape, ...]:
    """Place the objects apart, and so that none bounces while the caption's direction holds."""
    velocity = SPEEDS[spec.speed] * np.asarray(DIRECTIONS[spec.direction], dtype=np.float64)
    travel = velocity * STEADY_FRAMES
    while True:
        shapes = []
        for colour, kind in spec.objects:
            radius = rng.uniform(8.5, 11.0)
            low = radius - np.minimum(travel, 0.0)
            high = SIZE - radius - np.maximum(travel, 0.0)
            x, y = rng.uniform(low, high)
            rgb = np.asarray(COLOURS[colour]) + rng.uniform(-0.05, 0.05, size=3)
            shapes.append(Shape(colour, kind, radius, x, y, (float(rgb[0]), float(rgb[1]), float(rgb[2]))))
        first, last = shapes[0], shapes[-1]
        if first is last or np.hypot(first.x - last.x, first.y - last.y) > first.radius + last.radius:
            return tuple(shapes)


def _sample_background(rng: np.random.Generator, kind: str) -> Background:
    grey = rng.uniform(-0.3, 0.3)
    return Background(kind, (float(grey), float(grey), float(grey)))


def _render_background(background: Background, x: Frames, y: Frames) -> Frames:
    """The texture as [height, width, 3]: its mean colour plus a pattern in [-TEXTURE_CONTRAST, TEXTURE_CONTRAST]."""
    pattern = _pattern(background.kind, x, y)
    return (np.asarray(background.rgb) + TEXTURE_CONTRAST * pattern[..., None]).astype(np.float32)


def texture(kind: str, axis: Frames) -> Frames:
    """What a kind of background adds to its mean brightness [n, n], at pixel centres `axis` [n] in both directions."""
    return (TEXTURE_CONTRAST * _pattern(kind, axis[None, :], axis[:, None])).astype(np.float32)


def _pattern(kind: str, x: Frames, y: Frames) -> Frames:
    """The texture in [-1, 1], at pixel centres `x` and `y` in the world's pixels."""
    u, v = 2 * np.pi * x / TEXTURE_PERIOD, 2 * np.pi * y / TEXTURE_PERIOD
    # Steep sigmoids of waves give nearly two-valued patterns with soft edges.
    if kind == "striped":
        return np.tanh(4.0 * np.sin(u)) + 0 * v
    if kind == "checkered":
        return np.tanh(6.0 * np.sin(u) * np.sin(v))
    if kind == "dotted":
        return np.tanh(4.0 * (np.cos(u) + np.cos(v) - 0.8))
    return np.asarray((x + y) / SIZE - 1, dtype=np.float32)


def _paint(frames: Frames, distance: Frames, rgb: tuple[float, ...]) -> None:
    """Colours the inside of an outline in place; `distance` [frames, height, width] is to it, in pixels."""
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    frames += cover * (np.asarray(rgb, dtype=np.float32) - frames)


def _courses(scene: Scene, frames: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Centres and headings, both [frames, 2], of every object, reflected at the borders so that no part leaves."""
    direction = np.asarray(DIRECTIONS[scene.spec.direction], dtype=np.float64)
    time = np.arange(frames, dtype=np.float64)[:, None]
    courses = []
    for shape in scene.objects:
        span = SIZE - 2 * shape.radius
        start = np.asarray([shape.x, shape.y]) - shape.radius
        unfolded = (start + SPEEDS[scene.spec.speed] * direction * time) % (2 * span)
        centre = shape.radius + np.minimum(unfolded, 2 * span - unfolded)
        heading = np.where(unfolded <= span, direction, -direction)
        courses.append((centre.astype(np.float32), heading.astype(np.float32)))
    return courses


def _signed_distance(shape: Shape, dx: Frames, dy: Frames) -> Frames:
    """Signed distance to the shape's outline, negative inside; every shape fits into its radius's square."""
    r = shape.radius
    if shape.shape == "circle":
        distance = np.hypot(dx, dy) - r
    elif shape.shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * r
    else:
        # An isosceles triangle, apex up: from the middle of the top side of a square of side 2r to its bottom corners.
        distance = np.maximum((2 * np.abs(dx) - dy - r) / np.sqrt(5.0), dy - r)
    return distance.astype(np.float32)


def _trail_distance(shape: Shape, dx: Frames, dy: Frames, heading: NDArray[np.float32], reach: float) -> Frames:
    """Signed distance to a bar from the centre backwards, `reach` beyond the radius; `heading` is [frames, 2]."""
    ahead_x, ahead_y = heading[:, 0, None, None], heading[:, 1, None, None]
    length = shape.radius + reach
    along, across = dx * ahead_x + dy * ahead_y, dx * ahead_y - dy * ahead_x
    distance = np.maximum(np.abs(across) - 0.6 * shape.radius, np.abs(along + length / 2) - length / 2)
    return distance.astype(np.float32)


def _initial_direction(mask: NDArray[np.bool_], area: NDArray[np.float64], to_world: float) -> str | None:
    """The direction in which a colour's centroid travels between the first and the last frames that show it."""
    shown = np.flatnonzero(area >= _MIN_AREA / 3)
    if len(shown) < 2:
        return None
    ends = []
    for index in (shown[0], shown[-1]):
        rows, columns = np.nonzero(mask[index])
        ends.append((columns.mean(), rows.mean()))
    dx, dy = (float(end - start) * to_world for start, end in zip(*ends, strict=True))
    if max(abs(dx), abs(dy)) < _MIN_TRAVEL:
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"
