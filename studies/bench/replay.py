"""Replay against real runs: are its counts exact, its ranking right, its picks better than chance?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from calibrate.progress import Narrator
from calibrate.replay.replay import Replay
from calibrate.replay.sensitivity import Observed, Sensitivity
from calibrate.spec.generation import Case
from scope_runtime import NOISE_LEVEL, Policy
from studies.bench.real_runs import Bench, Run, Size

# Picks compete at a cost, give or take this share.
_COST_WIDTH = 0.05
_POOL_PER_PICK = 20


def measure(size: Size, policies: int, fitted: int, picks: int, speedup: float) -> dict[str, Any]:
    """The figures of ``python -m studies.bench replay``.

    Args:
        size: Of the generations.
        policies: Random policies to compare on, on held-out prompts.
        fitted: Other random policies, run on the search prompts, that the sensitivity is fitted to.
        picks: Candidates picked by replay, and as many at random, at the same cost.
        speedup: That cost, as a speed-up in block evaluations.

    Returns:
        `evaluations_exact`: whether replay counts the block evaluations of policies that look at the noise level alone;
        `rank_correlation`: Spearman's, of estimated and measured mean PSNR; `seconds_per_replay` of all held-out cases
        and `seconds_per_run` of one; `picked_minus_random_db`: best picked candidate's mean PSNR less the best random
        one's.
    """
    with Narrator() as narrator:
        bench = Bench(size, narrator)
        searched, held_out = bench.replay(bench.searched), bench.replay(bench.held_out)
        sensitivity = _fit(bench, searched, bench.draw(searched, fitted, seed=1))
        drawn = bench.draw(held_out, policies, seed=2)
        real = _run_all(bench, "Random policies on held-out prompts", drawn)
        start = time.perf_counter()
        replayed = [bench.replay(bench.held_out).run(policy) for policy in drawn]
        seconds_per_replay = (time.perf_counter() - start) / len(drawn)
        exact = all(
            played.evaluations == tuple(run.evaluations for run in runs)
            for policy, played, runs in zip(drawn, replayed, real, strict=True)
            if policy.indicator == NOISE_LEVEL
        )
        estimated = [float(sensitivity.psnr_db(played).mean()) for played in replayed]
        correlation = float(spearmanr(estimated, [_mean_psnr(runs) for runs in real]).statistic)
        picked, random = _compete(bench, sensitivity, held_out, picks, speedup)
        narrator.say(f"Best of {picks} at {speedup:g}x: {picked:.1f} dB picked by replay, {random:.1f} dB at random")
        return {
            "evaluations_exact": exact,
            "rank_correlation": correlation,
            "seconds_per_replay": seconds_per_replay,
            "seconds_per_run": float(np.mean([run.seconds for runs in real for run in runs])),
            "picked_minus_random_db": picked - random,
        }


def _fit(bench: Bench, replay: Replay, policies: Sequence[Policy]) -> Sensitivity:
    real = _run_all(bench, "Policies to fit on", policies, bench.searched)
    return Sensitivity.fit(
        [
            Observed.of(replay.run(policy), case, run.metrics["psnr_db"])
            for policy, runs in zip(policies, real, strict=True)
            for case, run in enumerate(runs)
        ]
    )


def _compete(bench: Bench, sensitivity: Sensitivity, replay: Replay, picks: int, speedup: float) -> tuple[float, float]:
    """Best measured PSNR of candidates picked by replay, and of random ones of the same cost."""
    bounds = (speedup * (1 - _COST_WIDTH), speedup * (1 + _COST_WIDTH))
    pool = bench.draw(replay, picks * _POOL_PER_PICK, seed=3, speedup=bounds)
    by_estimate = sorted(pool, key=lambda policy: -float(sensitivity.psnr_db(replay.run(policy)).mean()))
    best = [
        max(_mean_psnr(runs) for runs in _run_all(bench, f"Candidates at {speedup:g}x, {how}", chosen[:picks]))
        for how, chosen in (("picked by replay", by_estimate), ("at random", pool))
    ]
    return best[0], best[1]


def _run_all(
    bench: Bench, stage: str, policies: Sequence[Policy], cases: Sequence[Case] | None = None
) -> list[list[Run]]:
    bench.narrator.stage(stage, len(policies))
    results = []
    for policy in policies:
        runs = bench.runs(policy, cases or bench.held_out)
        bench.narrator.advance(f"{runs[0].stock_evaluations / runs[0].evaluations:.2f}x, {_mean_psnr(runs):.1f} dB")
        results.append(runs)
    return results


def _mean_psnr(runs: Sequence[Run]) -> float:
    return float(np.mean([run.metrics["psnr_db"] for run in runs]))
