"""What scores without a reference make of stock, of policies and of spoilt clips, on fresh prompts.

Clips are kept, so that another score, or another version of one, is measured in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save

from calibrate.families import load_target
from calibrate.files import digest, write_atomically
from calibrate.progress import Narrator
from calibrate.quality.metrics import Frames, frame_errors, psnr
from calibrate.spec.generation import Case
from calibrate.study.study_file import StudyFile
from scope_runtime import Policy, exact, run_policy
from studies.reference import world
from studies.reference.viewer import view

# Neither the study nor another benchmark draws prompts with this seed, or generates with seeds from there on.
PROMPT_SEED = 47
FIRST_SEED = 4701

# Warm-up, most skips in a row and order: about three to eleven times fewer evaluations at 36 steps. Order 0 does best
# from five times on; the last one shows what the wrong order does.
SCHEDULES = ((4, 3, 0), (3, 4, 0), (2, 5, 0), (1, 6, 0), (1, 8, 0), (1, 10, 0), (1, 8, 1))

Line = dict[str, Any]


def blurred(clip: Frames) -> Frames:
    """Every frame through a Gaussian of 1.5 pixels."""
    axis = np.arange(-4, 5)
    kernel = np.exp(-np.square(axis / 1.5) / 2)
    kernel /= kernel.sum()
    out = np.pad(clip, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    out = sum(weight * out[:, i : i + clip.shape[1]] for i, weight in enumerate(kernel))
    return np.asarray(sum(weight * out[:, :, i : i + clip.shape[2]] for i, weight in enumerate(kernel)), np.float32)


def frozen(clip: Frames) -> Frames:
    """From its middle on one frame."""
    half = len(clip) // 2
    return np.concatenate([clip[:half], np.repeat(clip[half : half + 1], len(clip) - half, axis=0)])


def flickering(clip: Frames) -> Frames:
    """Every other frame brighter by 5 of 255 steps, the others darker."""
    signs = np.where(np.arange(len(clip)) % 2, 1.0, -1.0)[:, None, None, None]
    return np.clip(clip + signs * 5 / 255, 0, 1).astype(np.float32)


def half_repainted(clip: Frames) -> Frames:
    """In its second half, what was one colour is another: red as green, green as blue, blue as red."""
    half = len(clip) // 2
    return np.concatenate([clip[:half], np.roll(clip[half:], 1, axis=-1)])


def half_washed(clip: Frames) -> Frames:
    """The right half of the picture half as bright in its texture: painted over with its own mean grey."""
    out = clip.copy()
    right = out[:, :, out.shape[2] // 2 :]
    right[:] = (right + np.median(right)) / 2
    return out


SPOILT: dict[str, Callable[[Frames], Frames]] = {
    "blurred": blurred,
    "frozen": frozen,
    "flickering": flickering,
    "half repainted": half_repainted,
    "half washed out": half_washed,
}


def measure(study: Path, prompts: int, cache: Path) -> list[Line]:
    """Scores stock, the policies of `SCHEDULES`, and spoilt stock clips.

    Args:
        study: Pipeline and settings, of the reference world.
        prompts: Fresh prompts.
        cache: Where clips are kept.

    Returns:
        Per kind of clip the mean over prompts of `viewer` and `caption` with the least of any prompt, the mean of each
        part of `viewer`, and for policies the speed-up in block evaluations and the mean `psnr_db` against stock.
    """
    with Narrator() as narrator:
        clips = _Clips(study, cache, narrator)
        drawn = world.held_out_prompts(prompts, seed=PROMPT_SEED)
        cases = [Case(prompt=prompt, seed=FIRST_SEED + number) for number, prompt in enumerate(drawn)]
        narrator.stage("Clips", (1 + len(SCHEDULES)) * len(cases))
        stock = [clips.of(None, case)[0] for case in cases]
        lines = [_line("stock", cases, stock, stock)]
        for warmup, skip, order in SCHEDULES:
            policy = Policy(warmup=warmup, max_skip=skip, order=order, axis="step")
            made = [clips.of(policy, case) for case in cases]
            line = _line(f"policy, order {order}", cases, [frames for frames, _ in made], stock)
            lines.append(line | {"speedup_evaluations": round(float(np.mean([speed for _, speed in made])), 2)})
    lines += [_line(name, cases, [spoil(clip) for clip in stock], stock) for name, spoil in SPOILT.items()]
    return lines


def _line(name: str, cases: Sequence[Case], clips: Sequence[Frames], stock: Sequence[Frames]) -> Line:
    seen = [view(case.prompt, clip) for case, clip in zip(cases, clips, strict=True)]
    caption = [world.caption_score(case.prompt, clip) for case, clip in zip(cases, clips, strict=True)]
    viewer = [one.score for one in seen]
    errors = [frame_errors(whole, clip).mean() for whole, clip in zip(stock, clips, strict=True)]
    return {
        "clips": name,
        "psnr_db": round(float(psnr(np.array(errors)).mean()), 1),
        "viewer": round(float(np.mean(viewer)), 3),
        "viewer_least": round(min(viewer), 3),
        "caption": round(float(np.mean(caption)), 3),
        "caption_least": min(caption),
        **{part: round(float(np.mean([vars(one)[part] for one in seen])), 3) for part in vars(seen[0])},
    }


class _Clips:
    """Clips of a study's pipeline, kept in files."""

    def __init__(self, study: Path, cache: Path, narrator: Narrator) -> None:
        file = StudyFile(study)
        self._target = load_target(file.model_path, file.study.model, file.study.generation)
        self._cache = cache
        self._narrator = narrator

    def of(self, policy: Policy | None, case: Case) -> tuple[Frames, float]:
        """A policy's clip of a case (None: stock's, by a full-compute run) and its speed-up in block evaluations."""
        key = {
            "model": self._target.model,
            "settings": self._target.settings.to_dict(),
            "policy": None if policy is None else policy.to_dict(),
            "case": case.model_dump(mode="json"),
        }
        path = self._cache / f"viewer-{digest(key)}.safetensors"
        kept = _read(path)
        if kept is None:
            with exact(self._target.pipe) if policy is None else run_policy(self._target.pipe, policy) as scope:
                latents = self._target.denoise(case).latents
            frames = np.round(self._target.decode(latents)[0] * 255).astype(np.uint8)
            speed = 1.0 if policy is None else scope.report.speedup_evaluations
            kept = {"frames": torch.from_numpy(frames), "speed": torch.tensor(speed, dtype=torch.float64)}
            write_atomically(path, save(kept))
        self._narrator.advance(case.label)
        return (kept["frames"].numpy() / 255).astype(np.float32), float(kept["speed"])


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (FileNotFoundError, safetensors.SafetensorError):
        return None
