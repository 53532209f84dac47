"""What a viewer would notice in a clip of the synthetic world, as a score that needs no clip to compare with.

The caption says what there is to see; nothing else is known of the clip. Five things are looked at, each from 0 to 1:

- **objects**: every captioned object is there in every frame, in its colour, and no others are;
- **shape**: its outline is about that of the captioned shape, sharp, and it keeps its size;
- **motion**: between bounces it goes on moving along the captioned axis, at about the captioned speed;
- **background**: around the objects lies the captioned texture, with its contrast, and nothing else;
- **stillness**: the background keeps its brightness and its texture from frame to frame.

Their product is the score: one flaw is enough to spoil a clip. Each is the average of its mean over the clip and of its
mean over the worst eighth, because what goes wrong for half a second is seen, however good the rest is. Outlines that
waver a little and speeds that vary a little are let pass: the reference pipeline's own do, at full compute.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from studies.reference import world
from studies.reference.world import Frames

Series = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Lengths are in pixels of the 64-pixel world, brightness in [-1, 1].
_SATURATION = 0.75
_DARK = -0.62
_MIN_AREA = 40.0
# Frames between which motion is measured: two latent frames.
_STRIDE = 8
_WORST_SHARE = 8
# How far an object may be from a border to be taken for one that bounces, and the most of a clip that bounces take.
_BOUNCE_PX = 3.0
_MOST_BOUNCING = 0.4
# An outline drawn by the world rises by about this share of its height per pixel.
_SHARP = 0.35
# Shares of the captioned speed between which nobody takes offence, and of two outlines' areas that they have in common.
_SLOWEST, _FASTEST = 0.6, 1.6
_SAME_OUTLINE, _OTHER_OUTLINE = 0.8, 0.4
# What halves a score: a way aside of half of what is gone ahead; a size that is off by two fifths; a texture of which
# a half is missing or wrong, in power; a change of the picture that the eye begins to see.
_ASIDE_HALF, _SIZE_HALF, _TEXTURE_HALF, _CHANGE_HALF, _FLICKER_HALF = 0.5, 0.4, 0.5, 0.06, 0.02
_NEAR_OBJECT_PX = 3


@dataclass(frozen=True)
class Viewed:
    """What was looked at, each from 0 to 1; see the module's text."""

    objects: float
    shape: float
    motion: float
    background: float
    stillness: float

    @property
    def score(self) -> float:
        """Their product."""
        return float(np.prod(astuple(self)))


@dataclass(frozen=True)
class _Seen:
    """An object in pixels.

    Attributes:
        mask: Its pixels [frames, size, size].
        area: Of each frame [frames], in the world's pixels.
        centre: Of each frame [frames, 2] as x and y, in the world's pixels; interpolated where nothing is seen.
        hidden: Frames [frames] in which the other object may be in front of it.
    """

    mask: Mask
    area: Series
    centre: Series
    hidden: Mask


def viewer_score(prompt: str, frames: Frames) -> float:
    """The score, for `quality.scores` of a study: 1 for what the world draws, less for what a viewer would notice.

    Args:
        prompt: a caption of this world.
        frames: float frames [frames, size, size, 3] in [0, 1], at least 12 of them.
    """
    return view(prompt, frames).score


def view(prompt: str, frames: Frames) -> Viewed:
    """The five parts of the score; arguments as for `viewer_score`."""
    spec = world.parse_caption(prompt)
    clip = np.asarray(frames, dtype=np.float32) * 2 - 1
    to_world = world.SIZE / clip.shape[2]
    seen, stray = _find(spec, clip, to_world)
    outlines = [_shape(clip, one, kind, to_world) for one, (_, kind) in zip(seen, spec.objects, strict=True)]
    courses = [_motion(one, spec, to_world) for one in seen]
    free = _free(clip, seen, spec, to_world)
    texture = _texture(clip, free, spec.background)
    return Viewed(
        objects=_pooled(np.min([_presence(one, stray) for one in seen], axis=0)),
        shape=_pooled(np.min(outlines, axis=0)),
        motion=_pooled(np.min(courses, axis=0)),
        background=_pooled(texture),
        stillness=_pooled(_stillness(clip, free)),
    )


def _pooled(values: Series) -> float:
    """The average of the mean of a clip and of its worst eighth."""
    worst = np.sort(values)[: max(1, len(values) // _WORST_SHARE)]
    return float((values.mean() + worst.mean()) / 2)


def _soft(error: Series, half: float) -> Series:
    """1 where there is no error, falling; one half where the error is `half`."""
    return 1 / (1 + np.square(error / half))


def _find(spec: world.SceneSpec, clip: Frames, to_world: float) -> tuple[list[_Seen], Series]:
    """The captioned objects, and the area [frames] of saturated pixels in other colours."""
    palette = np.asarray(list(world.COLOURS.values()), dtype=np.float32)
    nearest = np.square(clip[..., None, :] - palette).sum(-1).argmin(-1)
    saturated = clip.max(-1) - clip.min(-1) > _SATURATION
    names = list(world.COLOURS)
    masks = [saturated & (nearest == names.index(colour)) for colour, _ in spec.objects]
    captioned = np.any(masks, axis=0)
    # At the seam of two colours, or of a colour and its trail, others may show for a pixel.
    stray = (saturated & ~_grown(captioned, round(2 / to_world))).sum((1, 2)) * to_world**2
    areas = [mask.sum((1, 2)) * to_world**2 for mask in masks]
    centres = [_centres(mask, to_world) for mask in masks]
    seen = []
    for index, mask in enumerate(masks):
        hidden = np.zeros(len(clip), dtype=bool)
        for other, centre in enumerate(centres):
            if other != index:
                hidden |= np.hypot(*(centre - centres[index]).T) < 2 * 11.0
        seen.append(_Seen(mask, areas[index], centres[index], hidden))
    return seen, stray.astype(np.float64)


def _centres(mask: Mask, to_world: float) -> Series:
    axis = np.arange(mask.shape[1]) + 0.5
    count = mask.sum((1, 2))
    shown = count * to_world**2 >= _MIN_AREA
    if not shown.any():
        return np.full((len(mask), 2), np.inf)
    found = (
        np.stack([(mask * axis).sum((1, 2)), (mask * axis[:, None]).sum((1, 2))], axis=1)
        / np.maximum(count, 1)[:, None]
    )
    times = np.arange(len(mask))
    return np.stack([np.interp(times, times[shown], found[shown, i]) for i in (0, 1)], axis=1) * to_world


def _presence(one: _Seen, stray: Series) -> Series:
    """How much of an object is there, frame by frame, and of nothing else."""
    usual = max(float(np.median(one.area)), _MIN_AREA)
    there = np.where(one.hidden, 1.0, np.clip(one.area / (0.6 * usual), 0, 1))
    if np.median(one.area) < _MIN_AREA:
        there = np.clip(one.area / 120.0, 0, 1)
    return there * _soft(stray, 60.0)


def _shape(clip: Frames, one: _Seen, kind: str, to_world: float) -> Series:
    """Outline, sharpness and size of an object, frame by frame; 0 where there is nothing to be seen."""
    usual = float(np.median(one.area[~one.hidden])) if (~one.hidden).any() else float(np.median(one.area))
    values = np.zeros(len(clip))
    if usual < _MIN_AREA:
        return values
    values += _soft(one.area / usual - 1, _SIZE_HALF)
    whole = _template(kind, usual, one.centre, clip.shape[1], to_world)
    both, either = (one.mask & whole).sum((1, 2)), (one.mask | whole).sum((1, 2))
    overlap = both / np.maximum(either, 1)
    saturation = clip.max(-1) - clip.min(-1)
    rise = np.hypot(*np.gradient(saturation, axis=(1, 2)))
    edge = one.mask & ~_shrunk(one.mask)
    height = (saturation * one.mask).sum((1, 2)) / np.maximum(one.mask.sum((1, 2)), 1)
    steep = (rise * edge).sum((1, 2)) / np.maximum(edge.sum((1, 2)), 1) / np.maximum(height, 1e-6)
    alike = np.clip((overlap - _OTHER_OUTLINE) / (_SAME_OUTLINE - _OTHER_OUTLINE), 0, 1)
    values *= alike * np.clip(steep / (_SHARP * to_world), 0, 1)
    # Behind the other object there is no outline to look at.
    return np.where(one.hidden, _median_of(values, ~one.hidden), values)


def _median_of(values: Series, where: Mask) -> float:
    return float(np.median(values[where])) if where.any() else float(np.median(values))


def _template(kind: str, area: float, centre: Series, size: int, to_world: float) -> Mask:
    """The shape with this area around its centroid in every frame [frames, size, size]."""
    axis = (np.arange(size) + 0.5) * to_world
    dx = axis[None, None, :] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    if kind == "circle":
        return np.hypot(dx, dy) <= np.sqrt(area / np.pi)
    if kind == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) <= np.sqrt(area) / 2
    # The triangle of `world`: as wide as high; its centroid lies a third of its height above its base.
    r = np.sqrt(area / 2)
    down = dy + r / 3
    return (2 * np.abs(dx) - down - r <= 0) & (down <= r)


def _motion(one: _Seen, spec: world.SceneSpec, to_world: float) -> Series:
    """Whether an object goes on moving at about the captioned speed, there or back; bounces are left out."""
    speed = world.SPEEDS[spec.speed]
    if not np.isfinite(one.centre).all():
        return np.zeros(len(one.area) - _STRIDE)
    velocity = (one.centre[_STRIDE:] - one.centre[:-_STRIDE]) / _STRIDE
    along = np.abs(np.asarray(world.DIRECTIONS[spec.direction], dtype=np.float64))
    ahead, aside = np.abs(velocity @ along) / speed, np.abs(velocity @ (1 - along)) / speed
    near = _at_border(one.mask, along, to_world)
    bouncing = np.max([near[i : len(near) - _STRIDE + i] for i in range(_STRIDE + 1)], axis=0)
    if bouncing.mean() > _MOST_BOUNCING:  # what hardly leaves a border does not bounce
        bouncing = np.zeros_like(bouncing)
    # Where one object covers the other, its centroid is not that of what is seen of it.
    unseen = bouncing | one.hidden[_STRIDE:] | one.hidden[:-_STRIDE]
    values = np.clip(ahead / _SLOWEST, 0, 1) * np.clip(_FASTEST / np.maximum(ahead, 1e-6), 0, 1)
    values *= _soft(aside, _ASIDE_HALF)
    return np.where(unseen, _median_of(values, ~unseen), values)


def _at_border(mask: Mask, along: Series, to_world: float) -> Mask:
    """Frames in which an object comes near a border that it moves towards."""
    lines: Mask = np.asarray(mask.any(axis=1 if along[0] else 2))
    reach = max(1, round(_BOUNCE_PX / to_world))
    at_start, at_end = lines[:, :reach].any(axis=1), lines[:, -reach:].any(axis=1)
    return np.logical_or(at_start, at_end)


def _free(clip: Frames, seen: list[_Seen], spec: world.SceneSpec, to_world: float) -> Mask:
    """Pixels that show the background: neither an object nor the dark trail beside it."""
    size = clip.shape[1]
    axis = (np.arange(size) + 0.5) * to_world
    # The longest way from a centroid to the end of its trail.
    reach = 11.0 + world.SPEEDS[spec.speed] * world.TRAIL_FRAMES + 4
    dark = clip.max(-1) < _DARK
    covered = np.zeros(dark.shape, dtype=bool)
    for one in seen:
        dx = axis[None, None, :] - one.centre[:, 0, None, None]
        dy = axis[None, :, None] - one.centre[:, 1, None, None]
        near = np.hypot(dx, dy) <= reach if np.isfinite(one.centre).all() else np.zeros(dark.shape, dtype=bool)
        covered |= one.mask | (dark & near)
    return ~_grown(covered, round(_NEAR_OBJECT_PX / to_world))


def _texture(clip: Frames, free: Mask, kind: str) -> Series:
    """How much of the background is the captioned texture, frame by frame."""
    size = clip.shape[1]
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (world.SIZE / size)
    drawn = world.texture(kind, axis)
    grey = clip - drawn[None, :, :, None]
    # One brightness for the whole clip: it lies still.
    error = np.square(grey - np.median(grey[free])).mean(-1)
    power = float(np.square(drawn - drawn.mean()).mean())
    wrong = (error * free).sum((1, 2)) / np.maximum(free.sum((1, 2)), 1) / power
    return _soft(np.sqrt(wrong), np.sqrt(_TEXTURE_HALF))


def _stillness(clip: Frames, free: Mask) -> Series:
    """How little the background changes from one frame to the next, pixel by pixel and as a whole."""
    both = free[1:] & free[:-1]
    count = np.maximum(both.sum((1, 2)), 1)
    change = np.diff(clip, axis=0).mean(-1)
    by_pixel = np.sqrt((np.square(change) * both).sum((1, 2)) / count)
    whole = np.abs((change * both).sum((1, 2))) / count
    return _soft(by_pixel, _CHANGE_HALF) * _soft(whole, _FLICKER_HALF)


def _grown(mask: Mask, pixels: int) -> Mask:
    """With so many more pixels to all sides."""
    out = mask.copy()
    for _ in range(pixels):
        step = out.copy()
        step[:, 1:] |= out[:, :-1]
        step[:, :-1] |= out[:, 1:]
        step[:, :, 1:] |= out[:, :, :-1]
        step[:, :, :-1] |= out[:, :, 1:]
        out = step
    return out


def _shrunk(mask: Mask) -> Mask:
    return ~_grown(~mask, 1)
