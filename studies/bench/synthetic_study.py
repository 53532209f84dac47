"""A study of any size with made-up figures, for tests and benchmarks.

Generations go through the store. Trials are written to Optuna's tables at once: its own calls take 15 ms for each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from numpy.typing import NDArray
from optuna.trial import TrialState
from sqlalchemy import MetaData, func, insert, select, text

from calibrate.measure.detail import describe
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import ESTIMATE, RESULT, THRESHOLDS, Result
from calibrate.search.optuna_study import open_optuna_study
from calibrate.search.plans import Captures, Plan
from calibrate.spec.generation import Case
from calibrate.spec.score_floor import SCORES
from calibrate.store import Generation, Storage, Store
from calibrate.study.study_file import Study
from scope_runtime import ChangeMap, Policy, Report, Schedule, Scheduler, Settings, plan_of
from scope_runtime.gap_weights import GapWeights
from scope_runtime.report import WindowReport

_STEPS, _LAG, _BLOCKS = 16, 2, 5
# 97 frames, of which the first block has three less.
_SPANS = list(pairwise((0, *range(17, 98, 20))))
_ROWS = _STEPS + _LAG * (_BLOCKS - 1)
_STOCK_EVALUATIONS = 2 * _ROWS * _BLOCKS
_DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "cache_quantile": optuna.distributions.FloatDistribution(0.0, 0.4),
    "predict_quantile": optuna.distributions.FloatDistribution(0.3, 1.0),
    "max_skip": optuna.distributions.IntDistribution(1, 6),
    "warmup": optuna.distributions.IntDistribution(1, 6),
    "tail": optuna.distributions.IntDistribution(0, 1),
    "order": optuna.distributions.CategoricalDistribution((1, 2)),
    "axis": optuna.distributions.CategoricalDistribution(("noise-level", "step")),
    # What `calibrate.search.plans.Plan` tells Optuna.
    "kind": optuna.distributions.CategoricalDistribution(("learned",)),
    "period": optuna.distributions.IntDistribution(1, _ROWS),
    "extra_evaluations": optuna.distributions.IntDistribution(0, _ROWS * _BLOCKS),
    "extra_rows": optuna.distributions.IntDistribution(0, _ROWS),
    "captures": optuna.distributions.CategoricalDistribution(("clean", "last")),
    "depth": optuna.distributions.IntDistribution(1, 16),
}


# A score of the made-up studies that have one, and the floor on it.
_SCORED = {
    "quality": {"scores": [{"name": "caption", "function": "made.up:caption"}]},
    "floors": {"scores": {"caption": {"at_least": 0.3}}},
}


def study_text(name: str, *, trials: int, storage: str | None = None, scores: bool = False) -> str:
    """The study's YAML."""
    return yaml.safe_dump(
        {
            "name": name,
            "model": {"path": "pipe"},
            "generation": {
                "height": 64, "width": 64, "num_frames": 97, "num_inference_steps": 20, "guidance_scale": 4.0,
                "ar_step": 5, "causal_block_size": 5,
            },
            "search_cases": [{"prompt": "a red circle", "seed": 1}, {"prompt": "a blue square", "seed": 2}],
            "held_out_cases": [{"prompt": "a green circle moving up", "seed": 3}],
            "budget": {"trials": max(1, trials)},
            **({"storage": storage} if storage else {}),
            **(_SCORED if scores else {}),
        },
        sort_keys=False,
    )  # fmt: skip


def write_study(
    storage: Storage,
    name: str,
    trials: int,
    *,
    learned: int = 0,
    seed: int = 0,
    generations: int | None = None,
    estimates: bool = False,
    scores: bool = False,
) -> Store:
    """Writes a study whose figures follow the trade-off of a real one, with noise.

    Args:
        storage: Open for writing.
        name: Of the study.
        trials: How many complete trials it has; one more is running and one has failed.
        learned: How many further ones have a plan with learned weights.
        seed: Of the figures.
        generations: How many trials have their generations recorded too; all by default.
        estimates: Whether every trial without learned weights carries an estimate beside its result.
        scores: Whether there is a floor on a score, `caption`, which is a hundredth of the PSNR.
    """
    text = study_text(name, trials=trials, scores=scores)
    study = Study.model_validate(yaml.safe_load(text))
    store = Store.open_study(
        storage,
        name=name,
        yaml_text=text,
        fixed_parts=study.fixed_parts(),
        settings=study.generation.model_dump(mode="json"),
        model={"pipeline": "SkyReelsV2DiffusionForcingPipeline", "transformer": "SkyReelsV2Transformer3DModel"},
    )
    optuna_study = open_optuna_study(store, create=True)
    # Before the others: asking an Optuna study for a trial reads all that it has.
    failed = optuna_study.ask()
    failed.set_user_attr("failure", "RuntimeError: out of memory")
    optuna_study.tell(failed, state=TrialState.FAIL)
    first = optuna_study.ask().number + 1
    environment = store.environment({"processor": "made up", "device": "cpu"}, {"torch": "made up"})
    for case in study.search_cases:
        for kind, seconds, evaluations in (("stock", 8.0, _STOCK_EVALUATIONS), ("exact", 5.0, _STOCK_EVALUATIONS // 2)):
            store.add(_generation(kind, environment, case, evaluations, seconds))
    random = np.random.default_rng(seed)
    written = []
    for number in range(first, first + trials + learned):
        parameters, policy = _thresholds(random) if number < first + trials else _learned(random)
        rows = [_candidate(number, environment, case, policy, parameters, random) for case in study.search_cases]
        if scores:
            for row in rows:
                metrics = row.metrics or {}
                row.metrics = {**metrics, SCORES: {"caption": metrics["psnr_db"] / 100, "caption_stock": 0.6}}
        result = Result.of(number, policy.to_dict(), rows, None)
        written.append((parameters, result, _attributes(result, estimates and result.kind == THRESHOLDS, random)))
        if generations is None or number < first + generations:
            for row in rows:
                store.add(row, describe(_report(policy, random), _frame_errors(row, random), _SPANS))
    _write_trials(storage, optuna_study._study_id, written)
    return store


def _frame_errors(row: Generation, random: np.random.Generator) -> NDArray[np.float64]:
    """Frames of a clip are alike: their quality wanders."""
    wandering = np.cumsum(random.normal(0, 0.5, _SPANS[-1][1]))
    return 10 ** (-((row.metrics or {})["psnr_db"] + wandering - wandering.mean()) / 10)


def _write_trials(
    storage: Storage, study_id: int, written: Sequence[tuple[dict[str, Any], Result, dict[str, Any]]]
) -> None:
    """Records complete trials."""
    tables = MetaData()
    tables.reflect(storage.engine, only=["trials", "trial_params", "trial_values", "trial_user_attributes"])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables.tables}
    now = datetime.now(UTC).replace(tzinfo=None)
    with storage.engine.connect() as connection:
        first = 1 + (connection.execute(select(func.max(tables.tables["trials"].c.trial_id))).scalar() or 0)
    for trial_id, (parameters, result, attributes) in enumerate(written, start=first):
        own = {"trial_id": trial_id}
        times = {"datetime_start": now, "datetime_complete": now}
        rows["trials"].append({**own, "number": result.trial, "study_id": study_id, "state": "COMPLETE", **times})
        rows["trial_user_attributes"] += [
            {**own, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
        ]
        rows["trial_values"] += [
            {**own, "objective": objective, "value": value, "value_type": "FINITE"}
            for objective, value in enumerate((result.speedup_evaluations, result.figures["psnr_db"]))
        ]
        rows["trial_params"] += [
            {
                **own,
                "param_name": name,
                "param_value": distribution.to_internal_repr(parameters[name]),
                "distribution_json": optuna.distributions.distribution_to_json(distribution),
            }
            for name, distribution in _DISTRIBUTIONS.items()
            if name in parameters
        ]
    with storage.engine.begin() as connection:
        for table in tables.sorted_tables:
            if rows.get(table.name):
                connection.execute(insert(table), rows[table.name])
        if storage.url.get_backend_name() == "postgresql":
            # Numbers that were given do not move the counter that gives the next one.
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), :last)"),
                {"last": first + len(written) - 1},
            )


def _thresholds(random: np.random.Generator) -> tuple[dict[str, Any], Policy]:
    parameters = _parameters(random)
    return parameters, _policy(parameters)


def _learned(random: np.random.Generator) -> tuple[dict[str, Any], Policy]:
    """A plan with made-up weights: the newest output, further along the line through it and the one before."""
    schedule, depth = _schedule(), 3
    extras = tuple((int(row), int(random.integers(0, _BLOCKS))) for row in range(1, 12) if random.random() < 0.3)
    captures: Captures = "last" if random.random() < 0.5 else "clean"
    plan = Plan(period=int(random.integers(2, 6)), extras=extras, captures=captures, depth=depth)
    policy = plan.policy(schedule)
    weights = {}
    for block in range(_BLOCKS):
        letters = [row[block] for row in policy.plan or () if row[block] != "."]
        recomputed = [step for step, letter in enumerate(letters) if letter == "R"]
        for count, step in enumerate(recomputed):
            for branch in ("cond", "uncond"):
                beyond = [float(random.normal(0.3, 0.2)), *random.normal(0, 0.05, depth - 2).tolist()][:count]
                weights[block, step, branch] = (1 + sum(beyond), *(-share for share in beyond))
    settings = Settings(
        height=64, width=64, num_frames=97, num_inference_steps=20, guidance_scale=4.0, ar_step=5,
        causal_block_size=5, dtype="float32", scheduler=Scheduler("UniPCMultistepScheduler"),
    )  # fmt: skip
    found = GapWeights.fitted(policy.plan or (), settings, depth=depth, classes=range(_BLOCKS), weights=weights)
    return plan.parameters(schedule), replace(policy, gap_weights=found)


def _parameters(random: np.random.Generator) -> dict[str, Any]:
    drawn = {
        "cache_quantile": float(random.uniform(0, 0.4)),
        "predict_quantile": float(random.uniform(0.3, 1.0)),
        "max_skip": int(random.integers(1, 7)),
        "warmup": int(random.integers(1, 7)),
        "tail": int(random.integers(0, 2)),
        "order": int(random.integers(1, 3)),
    }
    # As in the search's space: order 2 leaves no choice.
    return {**drawn, "axis": str(random.choice(("noise-level", "step")))} if drawn["order"] == 1 else drawn


def _policy(parameters: dict[str, Any]) -> Policy:
    return Policy(
        granularity="prefix",
        indicator="noise-level",
        noise_map=ChangeMap((0.0, 1.0), (0.0, 2.0)),
        cache_threshold=parameters["cache_quantile"] * 0.1,
        predict_threshold=parameters["predict_quantile"],
        max_skip=parameters["max_skip"],
        order=parameters["order"],
        axis=parameters.get("axis", "step"),
        warmup=parameters["warmup"],
        tail=parameters["tail"],
    )


def _candidate(
    number: int, environment: int, case: Case, policy: Policy, parameters: dict[str, Any], random: np.random.Generator
) -> Generation:
    """A longer skip is faster and worse; warm-up is slower and better."""
    if policy.gap_weights is None:
        speed = 1.6 + 0.5 * parameters["max_skip"] - 0.12 * parameters["warmup"] + 0.4 * parameters["predict_quantile"]
        psnr = 52 - 5.5 * speed + 1.2 * parameters["warmup"] + float(random.normal(0, 1.5))
    else:
        speed = 1.2 + 0.7 * parameters["period"] - 0.03 * parameters["extra_evaluations"]
        psnr = 56 - 5.5 * speed + float(random.normal(0, 1.5))
    row = _generation("candidate", environment, case, round(_STOCK_EVALUATIONS / speed), 8.0 / speed)
    row.trial_number, row.policy, row.metric_version = number, policy.to_dict(), METRIC_VERSION
    row.metrics = {
        "psnr_db": psnr, "psnr_worst_frame_db": psnr - 6, "psnr_worst_block_db": psnr - 3,
        "ssim": min(1.0, 0.6 + psnr / 110), "temporal_psnr_db": psnr + 2, "flicker": 0.2, "motion_error_px": 0.1,
    }  # fmt: skip
    return row


def _generation(kind: str, environment: int, case: Case, evaluations: int, seconds: float) -> Generation:
    now = datetime.now(UTC)
    return Generation(
        kind=kind, environment_id=environment, prompt=case.prompt, seed=case.seed, policy=None, settings={},
        evaluations=evaluations, stock_evaluations=_STOCK_EVALUATIONS, seconds_denoise=seconds, seconds_decode=1.0,
        seconds_end_to_end=seconds + 1.1, stock_seconds_denoise=8.0, state="complete", started=now, finished=now,
    )  # fmt: skip


def _schedule() -> Schedule:
    """Blocks that start after each other."""
    index = [[min(max(r - _LAG * b + 1, 0), _STEPS + 1) for b in range(_BLOCKS)] for r in range(_ROWS)]
    update = [[0 < k <= _STEPS for k in row] for row in index]
    return Schedule.from_step_index(index, update, [1 - k / _STEPS for k in range(_STEPS)], block_frames=5)


def _report(policy: Policy, random: np.random.Generator) -> Report:
    """What the runtime would report: modes, captures, and errors that fall with sigma."""
    schedule = _schedule()
    modes = [list(row) for row in plan_of(policy, schedule) or ()]
    for block in range(_BLOCKS - 1 if policy.captures == "clean" else 0):
        modes[_LAG * block + _STEPS][block] = "K"
    window = WindowReport(
        schedule, ["".join(row) for row in modes], evaluations=100, stock_evaluations=_STOCK_EVALUATIONS
    )
    for block in range(_BLOCKS):
        column = "".join(row[block] for row in modes).replace("C", "P")
        window.max_skip_seen = max(window.max_skip_seen, *map(len, re.findall("P*", column)))
        for row in [r for r, letter in enumerate(column) if letter == "R"][1:]:
            sigma = schedule.sigma[row][block]
            error = (0.02 + 0.4 * sigma**3) * float(random.lognormal(0, 0.3))
            window.add_prediction_error(row, block, "cond", policy.order, 1.0, torch.tensor(error))
    return Report(windows=[window])


def _attributes(result: Result, estimate: bool, random: np.random.Generator) -> dict[str, Any]:
    attributes: dict[str, Any] = {RESULT: result.to_dict()}
    if estimate:
        attributes[ESTIMATE] = {
            "speedup_evaluations": result.speedup_evaluations,
            "figures": {"psnr_db": result.figures["psnr_db"] + float(random.normal(1, 2))},
            "metric_version": result.metric_version,
        }
    return attributes
