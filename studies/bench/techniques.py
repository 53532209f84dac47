"""Ways to accelerate a SkyReels-V2 pipeline, as their users enable them, and the settings of each that are tried.

Those of others are as diffusers and cache-dit ship them; what it takes to make them run on this pipeline is said where
it is done. Those of this project are exact mode, periodic schedules, and plans with learned weights.
"""

from __future__ import annotations

import ast
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import cache_dit
import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, SeaCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock

from calibrate.files import digest
from calibrate.search.plans import Plan, Plans
from calibrate.spec.search_space import Learned
from scope_runtime import Policy, exact, run_policy
from studies.bench.generations import Generations
from studies.bench.learned import BY_HAND

# The sweeps. MagCache and SeaCache skip by thresholds up to a longest run; with a large threshold it alone counts.
_SCHEDULES = tuple(product((1, 2, 3, 4), (2, 4), ((1, "noise-level"), (1, "step"), (2, "step"))))
_TAYLORSEER = tuple(product((2, 3, 4, 5), (1, 2, 3)))
_SEACACHE = tuple(product((1, 2, 3, 4), (0.1, 0.2, 0.4, 0.8)))
_MAGCACHE = tuple(product((1, 2, 3, 4), (0.1, 0.5), (0.1, 0.2)))
_CACHE_DIT = tuple(product((3, 8), (2, 4), (0.2, 1.0), (1, 2)))
_FIRST_BLOCK = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
_SHARES_OF_STEPS = (0.9, 0.75, 0.6, 0.5)
_DEPTH = 3
_PERIODS = (3, 4, 5)


@dataclass(frozen=True)
class Setting:
    """One setting of a technique.

    Attributes:
        name: In words.
        enabled: Takes a target and gives the context in which its generations are made with it.
        key: What its generations are kept by.
    """

    name: str
    enabled: Callable[[Any], AbstractContextManager[Any]]
    key: str


@dataclass(frozen=True)
class Technique:
    """A technique and the settings that it is searched over.

    Attributes:
        name: What figures call it.
        ours: Whether it is this project's.
        settings: Gives them; what has to be calibrated or fitted for them is kept.
    """

    name: str
    ours: bool
    settings: Callable[[Generations], Sequence[Setting]]


def techniques() -> tuple[Technique, ...]:
    """All of them, in the order in which they are measured."""
    return (
        Technique("learned", True, _learned),
        Technique("TaylorSeer lite", False, _taylorseer),
        Technique("periodic", True, _periodic),
        Technique("exact", True, _exact),
        Technique("SeaCache", False, _seacache),
        Technique("MagCache", False, _magcache),
        Technique("cache-dit + TaylorSeer", False, _cache_dit),
        Technique("FirstBlockCache", False, _first_block),
        Technique("fewer steps", False, _fewer_steps),
    )


def _exact(_made: Generations) -> list[Setting]:
    return [Setting("exact", lambda target: exact(target.pipe), "exact")]


def _periodic(_made: Generations) -> list[Setting]:
    """Schedules of this project's engine: warm-up, most skips in a row, and what is extrapolated along."""
    return [
        _under(
            f"warm-up {warmup}, {skip} skips, order {order} along the {axis}",
            Policy(warmup=warmup, max_skip=skip, order=order, axis=axis),
        )
        for skip, warmup, (order, axis) in _SCHEDULES
    ]


def _learned(made: Generations) -> list[Setting]:
    """Plans with weights that are fitted on the study's fit prompts: those a study begins with, and others."""
    baselines = [made.baseline(case) for case in made.study.fit_cases]
    schedule = baselines[0].trace.windows[0].schedule
    stride = made.study.generation.ar_step
    found: dict[Plan, None] = {}
    for period in _PERIODS:
        first = Plans(Learned(period=period, depth=[_DEPTH]), schedule, stride, made.study.seed).first()
        found |= dict.fromkeys(first if period == stride else (first[0], first[-1]))
    for period, extras, captures in BY_HAND:
        found[Plan(period, tuple(sorted(extras)), "clean" if captures else "last", _DEPTH)] = None
    settings = []
    for plan in found:
        policy, _ = made.fitted(plan.policy(schedule), _DEPTH, baselines)
        rows = ", ".join(f"{row}:{last}" for row, last in plan.extras) or "none"
        settings.append(_under(f"every {plan.period} steps, rows more: {rows}; captures {plan.captures}", policy))
    return settings


def _under(name: str, policy: Policy) -> Setting:
    return Setting(name, lambda target: run_policy(target.pipe, policy), digest(policy.to_dict()))


def taylorseer_lite(interval: int, order: int) -> TaylorSeerCacheConfig:
    """Lite mode, which predicts the whole model's output. With factors in float32: by default they are in bfloat16.

    Args:
        interval: Every so many calls the model is computed.
        order: Of the Taylor polynomial.
    """
    return TaylorSeerCacheConfig(
        cache_interval=interval, max_order=order, use_lite_mode=True, taylor_factors_dtype=torch.float32
    )


def _taylorseer(_made: Generations) -> list[Setting]:
    settings = []
    for interval, order in _TAYLORSEER:
        name = f"TaylorSeer lite, interval {interval}, order {order}"
        settings.append(_with(name, with_cache, config=taylorseer_lite(interval, order)))
    return settings


def _seacache(made: Generations) -> list[Setting]:
    """The path for models that it does not know: block registered, latents by a callback, noise levels fed."""
    _register_block()
    settings, rows = [], _rows(made)
    for most, threshold in _SEACACHE:
        config = SeaCacheConfig(
            threshold=threshold,
            residual_order=1,
            max_consecutive_cached=most,
            raw_vision_callback=lambda _module, _args, kwargs: list(kwargs["hidden_states"]),
        )
        name = f"SeaCache, order 1, threshold {threshold:g}, at most {most} reused in a row"
        settings.append(_with(name, _fed, config=config, rows=rows))
    return settings


def _magcache(made: Generations) -> list[Setting]:
    """Ratios by its own calibration on one search prompt. What it counts as steps are the rows of the schedule."""
    _register_block()
    ratios = made.kept("magcache ratios", lambda: _calibrated(made), case=made.study.search_cases[0].model_dump())
    settings = []
    for most, threshold, retention in _MAGCACHE:
        config = MagCacheConfig(
            threshold=threshold,
            max_skip_steps=most,
            retention_ratio=retention,
            num_inference_steps=len(ratios),
            mag_ratios=ratios,
        )
        name = f"MagCache, threshold {threshold:g}, at most {most} skips in a row, retention {retention:g}"
        settings.append(_with(name, with_cache, config=config))
    return settings


def _cache_dit(_made: Generations) -> list[Setting]:
    """DBCache with TaylorSeer as its calibrator; it looks at the first layer, by default at eight, of which six are."""
    settings = []
    for warmup, most, threshold, order in _CACHE_DIT:
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=warmup,
            max_continuous_cached_steps=most,
            residual_diff_threshold=threshold,
        )
        name = (
            f"cache-dit, threshold {threshold:g}, warm-up {warmup}, at most {most} in a row, TaylorSeer order {order}"
        )
        settings.append(_with(name, _by_cache_dit, config=config, order=order))
    return settings


def _first_block(_made: Generations) -> list[Setting]:
    _register_block()
    return [
        _with(f"FirstBlockCache, threshold {one:g}", with_cache, config=FirstBlockCacheConfig(threshold=one))
        for one in _FIRST_BLOCK
    ]


def _fewer_steps(made: Generations) -> list[Setting]:
    """The stock pipeline with fewer steps, and with blocks as many steps apart as before, or nearer like the steps."""
    steps, stride = made.study.generation.num_inference_steps, made.study.generation.ar_step
    found: dict[tuple[int, int], None] = {}
    for share in _SHARES_OF_STEPS:
        found |= dict.fromkeys([(round(steps * share), stride), (round(steps * share), max(1, round(stride * share)))])
    return [
        _with(f"{fewer} steps, ar_step {apart}", _calling, num_inference_steps=fewer, ar_step=apart)
        for fewer, apart in found
    ]


def _with(name: str, context: Callable[..., AbstractContextManager[Any]], **options: Any) -> Setting:
    return Setting(name, partial(context, **options), name)


def _register_block() -> None:
    """Lets diffusers' caches know what a block of this model takes and gives; a few models' are known to it."""
    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    TransformerBlockRegistry.register(SkyReelsV2TransformerBlock, metadata)


@contextmanager
def with_cache(target: Any, config: Any) -> Iterator[None]:
    """A cache of diffusers on a target's transformer, new for this generation."""
    target.network.enable_cache(config)
    try:
        yield
    finally:
        target.network.disable_cache()


@contextmanager
def _fed(target: Any, config: SeaCacheConfig, rows: int) -> Iterator[None]:
    """SeaCache, told row, noise level and rows in every cache context: the pipeline gives its name alone.

    SeaCache knows one noise level per call, and here every block of frames stands at its own; it is told their mean.
    """
    network, pipe = target.network, target.pipe
    scale = pipe.scheduler.config.num_train_timesteps
    stock, row = network.cache_context, -1

    def cache_context(name: str) -> Any:
        nonlocal row
        row += name == "cond"
        level = float(pipe._current_timestep.double().mean()) / scale
        return stock(name, step_index=row, sigma=level, num_inference_steps=rows)

    with with_cache(target, config):
        network.cache_context = cache_context
        try:
            yield
        finally:
            del network.cache_context


@contextmanager
def _by_cache_dit(target: Any, config: Any, order: int) -> Iterator[None]:
    for handler in logging.getLogger("CACHE_DIT").handlers:  # those of all its loggers, on standard output
        handler.setLevel(logging.ERROR)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    # A copy: the configuration is filled in while it is in use.
    cache_dit.enable_cache(target.pipe, cache_config=replace(config), calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(target.pipe)


@contextmanager
def _calling(target: Any, **changes: Any) -> Iterator[None]:
    stock = target.call
    target.call = stock | changes
    try:
        yield
    finally:
        target.call = stock


def _calibrated(made: Generations) -> list[float]:
    """The ratios that MagCache prints at the end of a generation, for both guidance branches; their mean."""
    config = MagCacheConfig(calibrate=True, num_inference_steps=_rows(made))
    printed = io.StringIO()
    with with_cache(made.target, config), redirect_stdout(printed):
        made.target.denoise(made.study.search_cases[0])
    branches = [ast.literal_eval(found) for found in re.findall(r"^\[[\d.e, +-]+\]$", printed.getvalue(), re.MULTILINE)]
    return [float(ratio) for ratio in np.mean(branches, axis=0)]


def _rows(made: Generations) -> int:
    """Rows of the schedule, in each of which the pipeline calls the model once per guidance branch."""
    return made.baseline(made.study.fit_cases[0]).trace.windows[0].schedule.rows
