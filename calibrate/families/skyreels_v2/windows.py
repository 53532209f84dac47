"""Frames of a study of SkyReels-V2: whole latent frames in whole blocks in whole windows, or one sentence."""

from __future__ import annotations

from calibrate.errors import CalibrateError
from calibrate.spec.generation import Generation
from scope_runtime.schedule import window_lengths

# Values beside a wrong one that are looked through for one that works, in latent frames, and how many are named.
_REACH = 200
_NAMED = 2


def windows_of(generation: Generation, per_latent_frame: int) -> tuple[int, ...]:
    """Latent frames of each window of a generation.

    Args:
        generation: A study's settings.
        per_latent_frame: Frames that the VAE makes one latent frame of.

    Raises:
        CalibrateError: If the pipeline cannot run them, rounds them, or would leave the last frames as noise; with the
            nearest values that work.
    """
    found = _problem(generation, per_latent_frame)
    if found is not None:
        field, what = found
        values = _working(generation, per_latent_frame, field)
        raise CalibrateError(f"generation.{field}: {what}; set it to {' or '.join(map(str, values))}.")
    frames, base, overlap = _latent(generation, per_latent_frame)
    return window_lengths(frames, base, overlap)


def block_ends(generation: Generation, per_latent_frame: int) -> list[int]:
    """The frame after each block's last, block by block, in the decoded clip of a generation.

    Of a later window only the part that it adds counts; its beginning is what the one before it has made.

    Args:
        generation: A study's settings.
        per_latent_frame: Frames that the VAE makes one latent frame of; of the first one it makes one frame.
    """
    block, overlap = generation.causal_block_size, _latent(generation, per_latent_frame)[2] or 0
    ends: list[int] = []
    for length in windows_of(generation, per_latent_frame):
        start, known = (ends[-1] - overlap, overlap) if ends else (0, 0)
        ends += [start + end for end in range(block, length + 1, block) if end > known]
    return [(end - 1) * per_latent_frame + 1 for end in ends]


def _latent(generation: Generation, per_latent_frame: int) -> tuple[int, int, int | None]:
    """Latent frames of the video, of a window and of the overlap, as the pipeline computes them."""
    overlap = generation.overlap_history
    frames, base = ((n - 1) // per_latent_frame + 1 for n in (generation.num_frames, generation.base_num_frames))
    return frames, base, None if overlap is None else (overlap - 1) // per_latent_frame + 1


def _problem(generation: Generation, per_latent_frame: int) -> tuple[str, str] | None:
    """The first field that is wrong, and what about it; None if all is well."""
    block = generation.causal_block_size
    frames, base, overlap = _latent(generation, per_latent_frame)
    long = generation.num_frames > generation.base_num_frames

    def rounded(field: str) -> tuple[str, str] | None:
        value = getattr(generation, field)
        if value is None or (value - 1) % per_latent_frame == 0:
            return None
        return field, f"{value} frames are no whole latent frames (1, {1 + per_latent_frame}, ...)"

    def uneven(field: str, what: str, count: int) -> tuple[str, str] | None:
        if count % block == 0:
            return None
        return field, (
            f"{what} has {count} latent frames, no multiple of causal_block_size {block}, so that the pipeline would "
            f"leave the last {count % block} as noise"
        )

    if found := rounded("num_frames"):
        return found
    if not long:
        return uneven("num_frames", "the video", frames)
    if overlap is None:
        return "overlap_history", (
            f"num_frames {generation.num_frames} exceeds base_num_frames {generation.base_num_frames}, so that windows "
            "must overlap"
        )
    for found in (rounded("base_num_frames"), rounded("overlap_history"), uneven("base_num_frames", "a window", base)):
        if found:
            return found
    if overlap < block:
        return "overlap_history", (
            f"{generation.overlap_history} frames are {overlap} latent frames, less than a block of "
            f"{block}, so that windows would not continue each other"
        )
    if overlap >= base:
        return "overlap_history", (
            f"windows of {generation.base_num_frames} frames cannot overlap by {generation.overlap_history}"
        )
    return uneven("num_frames", "the last window", window_lengths(frames, base, overlap)[-1])


def _working(generation: Generation, per_latent_frame: int, field: str) -> list[int]:
    """The nearest values of a field with which all is well; or, where others are wrong too, this field."""
    given = getattr(generation, field)
    if given is None:
        # The shortest overlap that there can be.
        given = (generation.causal_block_size - 1) * per_latent_frame + 1
    least = 1 if field == "overlap_history" else 1 + per_latent_frame
    around = given - (given - 1) % per_latent_frame
    near = (around + beyond * per_latent_frame for beyond in range(-_REACH, _REACH + 1))
    problems = {
        value: _problem(generation.model_copy(update={field: value}), per_latent_frame)
        for value in sorted(near, key=lambda value: abs(value - given))
        if value >= least
    }
    well = [value for value, found in problems.items() if found is None]
    better = [value for value, found in problems.items() if found is not None and found[0] != field]
    return (well or better)[:_NAMED]
