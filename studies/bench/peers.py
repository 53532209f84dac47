"""Techniques of others beside this project's on the same prompts, by one outside counter and one clock.

Each technique has its settings tried on the study's search prompts; the front of what they come to there is its own
choice. From that front, settings are measured on fresh prompts, from one that is good towards faster and slower ones,
until the levels that are asked for lie between two of them. Work is what passes through the linear layers that every
technique leaves out or computes; quality is the PSNR of a clip's mean squared error against the stock clip.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_hook

from calibrate.families.target import Target
from calibrate.progress import Narrator
from calibrate.spec.generation import Case
from studies.bench.generations import Generations, Outcome, fresh_cases, mean_db, speedup_of
from studies.bench.learned import speedup_at
from studies.bench.techniques import Setting, Technique, techniques

# Neither a study nor another benchmark draws prompts with this seed, or generates with seeds from there on.
PROMPT_SEED = 47
FIRST_SEED = 4701

LEVELS = (35, 33)
# Fresh prompts are harder: so much more on search prompts is where measuring begins.
_BEGIN_DB = 38.0
# So far above the highest level measuring goes on, so that the level is reached when harder prompts are drawn.
_BEYOND_DB = 1.0
# Settings that are further off than that on the first search prompt are not tried on the others, nor are those that
# another one is ahead of by this much.
_BAND_DB = (24.0, 46.0)
_AHEAD_DB = 2.0
# Settings on a front whose speed-ups are nearer than that are one group, of which one is measured.
_NEAR = 1.06
_DRAWS = 1000
_PACKAGES = ("torch", "diffusers", "cache-dit")

Line = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """A setting and what it came to.

    Attributes:
        setting: Of a technique.
        outcomes: One per prompt, in the prompts' order; evaluations are floating point operations.
    """

    setting: Setting
    outcomes: Sequence[Outcome]

    @property
    def point(self) -> tuple[float, float]:
        """Speed-up in work, and mean PSNR in dB."""
        return speedup_of(self.outcomes), mean_db(self.outcomes)


class Counted:
    """Counts, in a `with` block, the work of a transformer: what passes through its query, key and feed-forward layers.

    It looks at the calls from outside of model and technique, so that what is skipped and what is computed twice both
    count as what they are.

    Attributes:
        flops: Floating point operations so far: two per token and weight.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.flops = 0
        self._weights = {
            id(module): sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)
            for name, module in network.named_modules()
            if name.rpartition(".")[2] in ("to_q", "to_k", "ffn")
        }

    def __enter__(self) -> Counted:
        self._handle = register_module_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], _output: Any) -> None:
        weights = self._weights.get(id(module))
        if weights is not None:
            self.flops += 2 * weights * (args[0].numel() // args[0].shape[-1])


def names() -> list[str]:
    """The techniques, by name."""
    return [technique.name for technique in techniques()]


def measure(study: Path, prompts: int, timed: int, chosen: Sequence[str], cache: Path) -> Line:
    """The figures of ``python -m studies.bench peers``.

    Args:
        study: Whose pipeline, settings, search prompts and fit prompts are used.
        prompts: Fresh ones.
        timed: Of these, so many are generated once more for the clock.
        chosen: Names of techniques.
        cache: Where generations are kept, so that an interrupted command goes on.

    Returns:
        See `figures_of`; with ``prompts``, ``timed_prompts``, ``versions`` of the packages that techniques are from,
        and ``search`` by technique: every setting's figures on the study's search prompts (``tried``), or on the first
        of these where that was enough to drop it (``dropped``).
    """
    measured: dict[str, list[Tried]] = {}
    search: dict[str, dict[str, list[Line]]] = {}
    with Narrator() as narrator:
        bench = _Bench(study, prompts, cache, narrator)
        for technique in techniques():
            if technique.name in chosen:
                tried, dropped = bench.search(technique)
                search[technique.name] = {"tried": [*map(_line, tried)], "dropped": [*map(_line, dropped)]}
                measured[technique.name] = bench.on_fresh(technique, front_of(tried))
        seconds = {name: bench.speedups_in_seconds(name, tried, timed) for name, tried in measured.items()}
    ours = {technique.name for technique in techniques() if technique.ours}
    return {
        **figures_of(measured, seconds, ours),
        "prompts": prompts,
        "timed_prompts": timed,
        "versions": {package: version(package) for package in _PACKAGES},
        "search": search,
    }


class _Bench:
    """The prompts, and what is generated of them."""

    def __init__(self, study: Path, prompts: int, cache: Path, narrator: Narrator) -> None:
        self.made = Generations(study, cache, beside_stock=True)
        self.narrator = narrator
        self.fresh = fresh_cases(self.made.study, prompts, PROMPT_SEED, FIRST_SEED)
        self.stock_work = self.made.kept("stock work", self._stock_work)

    def search(self, technique: Technique) -> tuple[list[Tried], list[Tried]]:
        """All settings on the search prompts, and those that the first of these was enough for."""
        cases = self.made.study.search_cases
        self.narrator.stage(f"{technique.name}: calibrating and fitting", 1)
        settings = technique.settings(self.made)
        self.narrator.advance(f"{len(settings)} settings")
        self.narrator.stage(f"{technique.name} on search prompts", len(settings))
        first = []
        for setting in settings:
            first.append(self._tried(setting, cases[:1]))
            self.narrator.advance(f"{setting.name}: {_told(first[-1])}")
        kept = worth_trying(first)
        self.narrator.stage(f"{technique.name} on search prompts: what is near enough", len(kept))
        tried = []
        for one in kept:
            tried.append(self._tried(one.setting, cases))
            self.narrator.advance(f"{one.setting.name}: {_told(tried[-1])}")
        return tried or first, [one for one in first if tried and one not in kept]

    def on_fresh(self, technique: Technique, front: Sequence[Tried]) -> list[Tried]:
        """Settings of a front on the fresh prompts, as many as it takes to have the levels between them.

        Args:
            technique: Whose settings they are.
            front: From fast to slow, as the search prompts have it.
        """
        self.narrator.stage(f"{technique.name} on fresh prompts", len(front))
        first = min(range(len(front)), key=lambda at: abs(front[at].point[1] - _BEGIN_DB))
        found: dict[int, Tried] = {}

        def measure(at: int) -> float:
            found[at] = self._tried(front[at].setting, self.fresh)
            self.narrator.advance(f"{front[at].setting.name}: {_told(found[at])}")
            return found[at].point[1]

        db, at = measure(first), first
        while at > 0 and (db > min(LEVELS) or at == first):
            at -= 1
            db = measure(at)
        at, db = first, found[first].point[1]
        while at + 1 < len(front) and db < max(LEVELS) + _BEYOND_DB:
            at += 1
            db = measure(at)
        return [found[at] for at in sorted(found)]

    def speedups_in_seconds(self, technique: str, tried: Sequence[Tried], timed: int) -> list[float]:
        """Processor time of stock over that of each setting, taken on the same prompts one after the other."""
        cases, settings = self.fresh[:timed], [one.setting for one in tried]

        def clock() -> list[list[float]]:
            return [[self._seconds(setting, case) for setting in (None, *settings)] for case in cases]

        self.narrator.stage(f"{technique} by the clock", 1)
        key = {"settings": [setting.key for setting in settings], "cases": [case.model_dump() for case in cases]}
        stock, *others = np.array(self.made.kept("processor seconds", clock, **key)).sum(axis=0)
        found = [float(stock / other) for other in others]
        self.narrator.advance(", ".join(f"{ratio:.2f}x" for ratio in found))
        return found

    def _seconds(self, setting: Setting | None, case: Case) -> float:
        """Processor time of one denoising; without a setting, of the stock pipeline's."""
        target = self.made.target
        target.encode(case.prompt)
        if setting is None:
            return _processor_seconds(target, case)
        with setting.enabled(target):
            return _processor_seconds(target, case)

    def _tried(self, setting: Setting, cases: Sequence[Case]) -> Tried:
        def generate(case: Case) -> tuple[torch.Tensor, int, int]:
            target = self.made.target
            with setting.enabled(target), Counted(target.network) as work:
                latents = target.denoise(case).latents
            return latents, work.flops, self.stock_work

        return Tried(setting, self.made.clips_of(setting.key, cases, generate))

    def _stock_work(self) -> int:
        with Counted(self.made.target.network) as work:
            self.made.target.denoise(self.made.study.search_cases[0])
        return work.flops


def _processor_seconds(target: Target, case: Case) -> float:
    start = time.process_time()
    target.denoise(case)
    return time.process_time() - start


def worth_trying(first: Sequence[Tried]) -> list[Tried]:
    """Of settings on one prompt, those that may be good at the levels: neither far off nor far behind another one."""
    return [
        one
        for one in first
        if _BAND_DB[0] <= one.point[1] <= _BAND_DB[1]
        and not any(o.point[0] >= one.point[0] and o.point[1] >= one.point[1] + _AHEAD_DB for o in first)
    ]


def front_of(tried: Sequence[Tried]) -> list[Tried]:
    """The settings that no other beats in both figures, from fast to slow; of a group of near ones, the best."""
    front: list[Tried] = []
    fastest = math.inf  # of the group that the last one is of
    for one in sorted(tried, key=lambda one: one.point, reverse=True):
        speedup, db = one.point
        if not front or db > front[-1].point[1]:
            if fastest < speedup * _NEAR:
                front[-1] = one
            else:
                front.append(one)
                fastest = speedup
    return front


def figures_of(measured: Mapping[str, list[Tried]], seconds: Mapping[str, list[float]], ours: set[str]) -> Line:
    """Curves, speed-ups at the levels, and how this project's best compares with the best of the others.

    Args:
        measured: Settings on fresh prompts, by technique.
        seconds: Their speed-ups in processor time.
        ours: Which techniques are this project's.

    Returns:
        ``curves`` by technique: one line per setting, from fast to slow. ``at_35`` and ``at_33`` by technique: the
        speed-up in work at that mean PSNR (see `level_speedup`). ``ratio_to_best_peer`` by level: the best of ours over
        the best of the others, both named in ``best``; ``ratio_range``: the 2.5 and 97.5 percentiles of it when prompts
        are drawn anew, with replacement. None where no setting reaches a level.
    """
    found: Line = {
        "curves": {
            name: [_line(one) | {"speedup_seconds": round(s, 2)} for one, s in zip(tried, seconds[name], strict=True)]
            for name, tried in measured.items()
        },
        "ratio_to_best_peer": {},
        "ratio_range": {},
        "best": {},
    }
    for level in LEVELS:
        at = {name: level_speedup(level, [one.point for one in tried]) for name, tried in measured.items()}
        found[f"at_{level}"] = {name: None if value is None else round(value, 2) for name, value in at.items()}
        found["ratio_to_best_peer"][str(level)], found["best"][str(level)] = _ratio(at, ours)
        found["ratio_range"][str(level)] = _range(level, measured, ours)
    return found


def level_speedup(level: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The speed-up of a technique at a mean PSNR.

    Between two neighbours on the front of its points the logarithm of the speed-up is interpolated linearly in dB.
    Where every point is above the level, it is that of the fastest one: what lies beyond was not measured. None where
    no point reaches the level.

    Args:
        level: In dB.
        points: Speed-up and mean PSNR.
    """
    if points and min(db for _, db in points) >= level:
        return max(speedup for speedup, _ in points)
    return speedup_at(level, points)


def _ratio(at: Mapping[str, float | None], ours: set[str]) -> tuple[float | None, dict[str, str | None]]:
    sides = {
        "ours": {name: value for name, value in at.items() if value is not None and name in ours},
        "peer": {name: value for name, value in at.items() if value is not None and name not in ours},
    }
    best = {side: max(values, key=values.__getitem__, default=None) for side, values in sides.items()}
    ours_best, peers_best = (max(values.values(), default=None) for values in sides.values())
    return None if ours_best is None or peers_best is None else round(ours_best / peers_best, 2), best


def _range(level: float, measured: Mapping[str, list[Tried]], ours: set[str]) -> list[float] | None:
    """Of the ratio when prompts are drawn anew; of those draws in which both sides reach the level."""
    matrices = {
        name: [(one.point[0], np.array([outcome.db for outcome in one.outcomes])) for one in tried]
        for name, tried in measured.items()
    }
    prompts = len(next(iter(measured.values()))[0].outcomes)
    chance = np.random.default_rng(0)
    ratios = []
    for drawn in chance.integers(prompts, size=(_DRAWS, prompts)):
        at = {
            name: level_speedup(level, [(speedup, float(dbs[drawn].mean())) for speedup, dbs in matrix])
            for name, matrix in matrices.items()
        }
        ratios.append(_ratio(at, ours)[0])
    there = [ratio for ratio in ratios if ratio is not None]
    return [round(float(value), 2) for value in np.percentile(there, (2.5, 97.5))] if there else None


def _line(tried: Tried) -> Line:
    decibels = np.array([outcome.db for outcome in tried.outcomes])
    return {
        "setting": tried.setting.name,
        "speedup": round(tried.point[0], 3),
        "psnr_db": round(float(decibels.mean()), 2),
        "psnr_worst_prompt_db": round(float(decibels.min()), 2),
    }


def _told(tried: Tried) -> str:
    speedup, db = tried.point
    return f"{speedup:.2f}x, {db:.2f} dB"
