"""What searching on several devices at once costs: they propose without knowing what the others are about to find.

The search is the product's own, driver and sampler included; its devices are made up. Each takes as long for a
generation as that has block evaluations, so that what ends when is as on real ones, and figures come from real runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from calibrate.measure.baseline import Reference
from calibrate.measure.candidate import Measure, Measurement
from calibrate.pool.pool import Activity, Done, Job
from calibrate.progress import Narrator
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import MEMORY, load_results
from calibrate.search.driver import Driver
from calibrate.search.optuna_study import open_optuna_study
from calibrate.spec.floors import Floors
from calibrate.spec.running import Budget
from calibrate.store import Generation, Storage, Store
from calibrate.store.lock import StudyLock
from scope_runtime import Policy
from studies.bench.real_runs import Bench, Size, observations
from studies.bench.search import held_out_hypervolume

_NO_FLOORS = Floors(psnr_db=None, psnr_worst_prompt_db=None)


def measure(size: Size, devices: Sequence[int], equivalents: float, seeds: int) -> dict[str, Any]:
    """The figures of ``python -m studies.bench search --devices``.

    Args:
        size: Of the generations.
        devices: How many there are, case by case.
        equivalents: Full generations per prompt, baselines included.
        seeds: How often each search is made.

    Returns:
        ``{"equivalents": ..., "hypervolume": {devices: [one per seed]}, "time": {devices: [...]}}``: hypervolume on the
        held-out cases, and how long the candidates took in full generations one after the other.
    """
    found: dict[str, Any] = {"equivalents": equivalents, "hypervolume": {}, "time": {}}
    with Narrator() as narrator:
        bench = Bench(size, narrator)
        for count in devices:
            searches = [_search(bench, count, equivalents, seed) for seed in range(seeds)]
            found["hypervolume"][str(count)] = [hypervolume for hypervolume, _ in searches]
            found["time"][str(count)] = [time for _, time in searches]
            narrator.say(f"{count} devices: {searches}")
    return found


class MadeUpDevices:
    """A pool whose devices take as long for a job as its generation has block evaluations."""

    here = False

    def __init__(self, size: int, bench: Bench) -> None:
        """`size` devices that read what a job comes to from the real runs of `bench`."""
        self.size = size
        self.now = 0.0
        self.changed: Callable[[], None] = lambda: None
        self._bench = bench
        self._running: list[tuple[float, Measure]] = []

    def submit(self, job: Any) -> None:
        """See `calibrate.pool.pool.Pool`."""
        self._running.append((self.now + self._bench.run(job.policy, job.case).evaluations, job))

    def next(self) -> Done:
        """See `calibrate.pool.pool.Pool`."""
        ended = min(self._running, key=lambda running: running[0])
        self._running.remove(ended)
        self.now, job = ended
        run, now = self._bench.run(job.policy, job.case), datetime.now(UTC)
        fields = {
            "prompt": job.case.prompt, "seed": job.case.seed, "policy": job.policy.to_dict(), "settings": {},
            "metric_version": METRIC_VERSION, "stock_seconds_denoise": 1.0, "started": now, "finished": now,
            "reason": None, "metrics": run.metrics | {MEMORY: 0.0}, "evaluations": run.evaluations,
            "stock_evaluations": run.stock_evaluations, "seconds_denoise": 1.0, "seconds_decode": 0.0,
            "seconds_end_to_end": 1.0, "state": "complete",
        }  # fmt: skip
        return Done(job, Measurement(fields, {}, {}, {}))

    def stop(self, job: Job) -> None:
        """Nothing: without floors no candidate is ended early."""

    def activity(self) -> Sequence[Activity]:
        """See `calibrate.pool.pool.Pool`."""
        return [Activity(f"device {number}", job) for number, (_, job) in enumerate(self._running)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None


def _search(bench: Bench, devices: int, equivalents: float, seed: int) -> tuple[float, float]:
    """Held-out hypervolume of one search, and its time in full generations."""
    study = bench.study.model_copy(
        update={
            "search_cases": bench.searched, "floors": _NO_FLOORS, "seed": seed, "clip_megabytes": 0.0,
            "search": bench.study.search.model_copy(update={"learned": None}),
            "budget": Budget(trials=1000, equivalents=equivalents),
        }
    )  # fmt: skip
    exact = bench.replay(bench.searched).run(Policy(warmup=10_000))
    stock = bench.run(Policy(warmup=10_000), bench.searched[0]).stock_evaluations
    timings = SimpleNamespace(
        exact_seconds=1.0, decode_seconds=0.0, stock_evaluations=stock,
        exact_evaluations=stock / exact.speedup_evaluations,
    )  # fmt: skip
    baselines: Any = {
        case: SimpleNamespace(observations=observations(bench.trace(case)), trace=bench.trace(case), timings=timings)
        for case in bench.searched
    }
    nothing = np.zeros((1, 2, 2, 3), np.float32)
    references = {case: Reference(case, nothing, 1.0, stock, Path()) for case in bench.searched}
    pool = MadeUpDevices(devices, bench)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{folder}/search.db")
        store = Store.open_study(storage, name="bench", yaml_text="", fixed_parts={}, settings={}, model={})
        for case in bench.searched:
            for kind, evaluations in (("stock", stock), ("exact", round(timings.exact_evaluations))):
                now = datetime.now(UTC)
                store.add(
                    Generation(
                        kind=kind, environment_id=store.environment({}, {}), prompt=case.prompt, seed=case.seed,
                        settings={}, evaluations=evaluations, stock_evaluations=stock, state="complete", started=now,
                        finished=now,
                    )
                )  # fmt: skip
        with StudyLock(store) as lock:
            trials = open_optuna_study(store, create=True)
            Driver(study, store, lock, trials, pool, baselines, references, bench.narrator).run(float("inf"))
        results = load_results(store)
        storage.close()
    return held_out_hypervolume(bench, results), pool.now / stock
