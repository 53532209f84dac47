"""One study on one device and on two: how much sooner it ends, what it finds, how long devices wait for the driver."""

from __future__ import annotations

import tempfile
import time
from contextlib import chdir
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from calibrate.families import load_target
from calibrate.measure.describe import Describe
from calibrate.pool.pool import Where, call
from calibrate.pool.ray_pool import RayPool
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import load_results
from calibrate.search.baselines import Baselines
from calibrate.search.driver import Driver
from calibrate.search.hypervolume import hypervolume
from calibrate.search.optuna_study import open_optuna_study
from calibrate.session import open_session
from calibrate.spec.floors import Floors
from calibrate.spec.running import Budget
from calibrate.store import CANDIDATE
from calibrate.store.lock import StudyLock
from studies.bench.search import REFERENCE


def measure(study: Path, candidates: int, frames: int | None) -> dict[str, Any]:
    """The figures of ``python -m studies.bench cluster``, on devices of one CPU core each.

    Args:
        study: Whose pipeline, cases and space are used; its floors are left out, so that all candidates are measured.
        candidates: How many each search measures.
        frames: Of a clip, or None for the study's.

    Returns:
        ``speedup_two_devices``: of the search, baselines apart; ``driver_seconds_share``: the share of the time of two
        devices, until the last of them got its last job, in which they had none because the driver chose, recorded or
        sent (``_one``: on one device); ``hypervolume_1`` and ``hypervolume_2``: on the search cases; with ``seconds_1``
        and ``seconds_2``.
    """
    one, two = (_search(study.absolute(), devices, candidates, frames) for devices in (1, 2))
    return {
        "speedup_two_devices": one["seconds"] / two["seconds"],
        "driver_seconds_share": two["driver_share"],
        "driver_seconds_share_one": one["driver_share"],
        "hypervolume_1": one["hypervolume"],
        "hypervolume_2": two["hypervolume"],
        "seconds_1": one["seconds"],
        "seconds_2": two["seconds"],
        "candidates": candidates,
    }


def _search(path: Path, devices: int, candidates: int, frames: int | None) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Narrator() as narrator,
        chdir(folder),
        open_session(path, narrator, create=True) as session,
    ):
        given = session.file.study
        generation = given.generation.model_copy(update={"num_frames": frames} if frames else {})
        spec = given.model.model_copy(update={"threads": 1})
        study = session.file.study = given.model_copy(
            update={
                "generation": generation, "model": spec, "budget": Budget(trials=candidates), "cache": folder,
                "floors": Floors(psnr_db=None, psnr_worst_prompt_db=None),
                "search": given.search.model_copy(update={"learned": None}),
                "storage": f"sqlite:///{folder}/search.db",
            }
        )  # fmt: skip
        load = partial(load_target, session.file.model_path.absolute(), spec, generation)
        with RayPool(load, Where(devices), cpus=1, gpus=0, told=narrator.say) as pool:
            target = call(pool, Describe())
            store = session.start(target)
            made = Baselines(pool, target, generation, store, study.cache_folder, narrator.say)
            baselines = {baseline.case: baseline for baseline, _ in made.all(study.search_cases)}
            references = {case: baselines[case].reference(made.path(case)) for case in study.search_cases}
            with StudyLock(store) as lock:
                trials = open_optuna_study(store, create=True)
                driver = Driver(study, store, lock, trials, pool, baselines, references, narrator)
                start = time.time()
                driver.run(float("inf"))
                seconds = time.time() - start
        rows = store.complete(CANDIDATE, metric_version=METRIC_VERSION)
        points = [(r.speedup_evaluations, r.figures["psnr_db"]) for r in load_results(store)]
    return {
        "seconds": seconds,
        "driver_share": _idle_share([(_seconds(r.started), _seconds(r.finished)) for r in rows], start, devices),
        "hypervolume": hypervolume(points, REFERENCE),
    }


def _idle_share(jobs: list[tuple[float, float]], start: float, devices: int) -> float:
    """The share of the devices' time until the last job began in which they had none; all in seconds."""
    end = max(began for began, _ in jobs)
    busy = sum(min(ended, end) - began for began, ended in jobs)
    return 1 - busy / (devices * (end - start))


def _seconds(moment: datetime) -> float:
    """Of a moment that is kept as UTC."""
    return moment.replace(tzinfo=UTC).timestamp()
