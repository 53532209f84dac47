"""How long a large study takes to be looked at: what `status`, `front` and a page of generations read."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages._rdb import models as optuna_tables
from sqlalchemy import insert

from calibrate.export.listing import render
from calibrate.files import digest
from calibrate.quality.metrics import METRIC_VERSION, METRICS
from calibrate.results.result import RESULT, front, survey, with_policies
from calibrate.search.optuna_study import open_optuna_study
from calibrate.store import Generation, Storage, Store
from calibrate.store.optuna_tables import trial_states

_CASES = 3
_ROWS_AT_ONCE = 5000
_PAGE = 100


def measure(generations: int) -> dict[str, Any]:
    """Fills an SQLite file with one synthetic study and times reading it.

    Args:
        generations: How many, three to a trial.
    """
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{Path(folder) / 'large.db'}")
        store = Store.open_study(storage, name="large", yaml_text="", fixed_parts={}, settings={}, model={})
        _fill(store, generations // _CASES)
        figures = {
            "generations": sum(store.counts().values()),
            "status_seconds": _seconds(
                lambda: (
                    store.counts(),
                    store.equivalents(),
                    trial_states(storage, store.study.name),
                    store.last_activity(),
                )
            ),
            "front_seconds": _seconds(lambda: with_policies(store, front(survey(store)))),
            "page_seconds": _seconds(lambda: list(islice(render(store, "csv"), _PAGE))),
        }
        storage.close()
    return figures


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fill(store: Store, trials: int) -> None:
    """Writes complete trials with their results and generations, many rows at once."""
    study_id = open_optuna_study(store, create=True)._study_id
    environment = store.environment({"cpu_count": 2}, {"torch": "2"})
    chance = np.random.default_rng(0)
    now = datetime.now(UTC)
    for first in range(0, trials, _ROWS_AT_ONCE):
        rows: dict[Any, list[dict[str, Any]]] = {
            optuna_tables.TrialModel: [], optuna_tables.TrialUserAttributeModel: [], Generation: [],
        }  # fmt: skip
        for number in range(first, min(trials, first + _ROWS_AT_ONCE)):
            policy = {"warmup": number, "change_map": chance.random(32).round(6).tolist()}
            metrics = dict.fromkeys(METRICS, float(30 + 10 * chance.random()))
            speed = float(1 + 4 * chance.random())
            result = {
                "trial": number, "policy": policy, "speedup_evaluations": speed, "speedup_denoise": speed,
                "figures": metrics | {"psnr_worst_prompt_db": metrics["psnr_db"]},
                "cases": _CASES, "stopped": None, "metric_version": METRIC_VERSION,
            }  # fmt: skip
            trial_id = number + 1
            rows[optuna_tables.TrialModel].append(
                {"trial_id": trial_id, "number": number, "study_id": study_id, "state": "COMPLETE"}
            )
            rows[optuna_tables.TrialUserAttributeModel].append(
                {"trial_id": trial_id, "key": RESULT, "value_json": json.dumps(result)}
            )
            rows[Generation] += [
                {
                    "study_id": store.study.id, "environment_id": environment, "kind": "candidate",
                    "trial_number": number, "prompt": f"prompt {case}", "prompt_digest": digest(f"prompt {case}"),
                    "seed": case, "policy": policy, "policy_digest": digest(policy), "settings": {"height": 64},
                    "evaluations": 100, "stock_evaluations": 400, "seconds_denoise": 1.0, "metrics": metrics,
                    "metric_version": METRIC_VERSION, "state": "complete", "started": now,
                    "finished": now + timedelta(seconds=number),
                }
                for case in range(_CASES)
            ]  # fmt: skip
        with store.storage.sessions.begin() as session:
            for table, values in rows.items():
                session.execute(insert(table), values)
