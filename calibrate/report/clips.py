"""Which comparison clips a report holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.display.comparison import number
from calibrate.measure.clips import ClipShelf
from calibrate.store import CANDIDATE, PREPARATION, Generation
from calibrate.study.outputs import companions
from calibrate.study.study_file import Study
from scope_runtime import Profile


@dataclass(frozen=True)
class Clip:
    """Stock, SCOPE and their difference side by side, as an H.264 file.

    Attributes:
        case: Prompt and seed.
        told: What it shows.
        path: Where it is.
        size: Bytes.
    """

    case: tuple[str, int]
    told: str
    path: Path
    size: int


def beside_profile(profile: Profile, path: Path) -> list[Clip]:
    """The clip of the worst held-out prompt, if it still lies beside a profile."""
    worst = profile.evidence.get("worst_prompt")
    return [] if worst is None else _there(companions(path).clip, worst, "the worst held-out prompt")


def on_shelf(study: Study, rows: Sequence[Generation]) -> list[Clip]:
    """The clips that a study's cache still holds of generations under a policy, those of held-out prompts first.

    Args:
        study: By its own file: what a database says of folders is not looked at.
        rows: The generations.
    """
    shelf = ClipShelf(study.clip_folder, study.clip_megabytes)
    found = []
    for row in sorted(rows, key=lambda row: row.kind == CANDIDATE):
        kind = "a search prompt" if row.kind == CANDIDATE else "a held-out prompt"
        case = {"prompt": row.prompt, "seed": row.seed, **(row.metrics or {})}
        path = shelf.path(row.policy or {}, row.prompt, row.seed, row.settings.get(PREPARATION))
        found += _there(path, case, kind)
    return found


def fitting(clips: Sequence[Clip], room: int) -> tuple[list[Clip], list[Clip]]:
    """The clips that fit into so many bytes, and those that do not: the largest are left out first."""
    kept, left = list(clips), []
    while sum(clip.size for clip in kept) > room:
        left.append(max(kept, key=lambda clip: clip.size))
        kept.remove(left[-1])
    return kept, left


def _there(path: Path, case: Mapping[str, Any], kind: str) -> list[Clip]:
    """The clip of a case, if there is one."""
    quality = number(case.get("psnr_db"), ".1f", " dB")
    told = f"{case['prompt']} (seed {case['seed']}, {kind}{', ' if quality else ''}{quality})"
    try:
        return [Clip((case["prompt"], case["seed"]), told, path, path.stat().st_size)] if path.is_file() else []
    except OSError:
        return []
