"""The baselines of a study: those that were kept are read, the others are made by the pool and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from calibrate.errors import CalibrateError
from calibrate.files import digest, remove_leftovers, write_atomically
from calibrate.measure.baseline import Baseline, MakeBaseline, Reference, read_baseline, write_baseline
from calibrate.measure.describe import Description
from calibrate.measure.stock_scores import ScoreStock
from calibrate.pool.pool import DEATH_HINT, MOST_DEATHS, Pool, call
from calibrate.replay.trace import TRACE_FORMAT
from calibrate.search.presence import keep_presence
from calibrate.spec.generation import Case
from calibrate.spec.generation import Generation as Settings
from calibrate.spec.running import Score
from calibrate.store import PREPARATION, Generation, Store
from scope_runtime import Preparation


class Baselines:
    """Makes baselines, or reads those already made."""

    def __init__(
        self,
        pool: Pool,
        target: Description,
        generation: Settings,
        store: Store,
        folder: Path,
        told: Callable[[str], None],
        kinds: tuple[str, ...] = ("stock", "exact"),
        preparation: Preparation = Preparation(),
    ) -> None:
        """Keeps the files in `folder` and the records in `store`, where the runs of a case are of these `kinds`.

        With one kind there are no full-compute runs. `told` hears of files that are damaged. Full-compute
        runs are those of a pipeline that is set up with the `preparation`; stock is stock, timed beside each.
        """
        self._pool = pool
        self._target = target
        self._generation = generation
        self._store = store
        self._folder = folder
        self._told = told
        self._kinds = kinds
        self._traced = len(kinds) > 1
        self._preparation = preparation
        self._settings = replace(target.settings, preparation=preparation)

    def path(self, case: Case) -> Path:
        """The file of a case, by everything that its content depends on."""
        key = digest(
            {
                "model": self._target.model,
                "settings": self._settings.to_dict(),
                "generation": self._generation.model_dump(mode="json"),
                "case": case.content,
                "device": self._target.device,
                "versions": self._target.versions,
                "trace": TRACE_FORMAT if self._traced else None,
            }
        )
        return self._folder / f"{key}.safetensors"

    def all(self, cases: Sequence[Case]) -> Iterator[tuple[Baseline, bool]]:
        """The baselines of all cases in the order in which they become available, and whether each was there already.

        A file that is missing or damaged, be it by one bit, is made anew.

        Raises:
            CalibrateError: If processes die over a case again and again.
            NotUsable: If the pipeline cannot be set up with the preparation.
        """
        made = 0
        for case in cases:
            path = self.path(case)
            kept = read_baseline(path, case)
            if kept is not None:
                self._record(kept)
                yield kept, True
                continue
            if path.exists():
                self._told(f"The baseline in {path} is damaged; it is made anew.")
            self._pool.submit(MakeBaseline(case, self._traced, self._preparation))
            made += 1
        deaths = dict.fromkeys(cases, 0)
        while made:
            self._pool.changed = partial(keep_presence, self._store, self._pool, "baselines")
            done = self._pool.next()
            case = done.job.case
            if done.died:
                deaths[case] += 1
                if deaths[case] >= MOST_DEATHS:
                    raise CalibrateError(f"search_cases: {MOST_DEATHS} processes died over {done.job}; {DEATH_HINT}")
                self._pool.submit(done.job)
                continue
            baseline = done.result()
            remove_leftovers(self.path(case))
            write_baseline(self.path(case), baseline)
            self._record(baseline)
            made -= 1
            yield baseline, False

    def scores(self, reference: Reference, scores: Sequence[Score]) -> dict[str, float]:
        """The scores of a stock clip, measured once and kept beside it; see `calibrate.quality.score_figures`.

        Raises:
            CalibrateError: If a score fails.
        """
        asked = tuple(score for score in scores if score.of == "clip")
        key = digest([[score.name, score.measured_by()] for score in asked])
        path = reference.path.with_name(f"{reference.path.stem}.{key}.json")
        found = _read_scores(path)
        if found is None:
            found = call(self._pool, ScoreStock(reference.case, asked, reference))
            write_atomically(path, json.dumps(found, allow_nan=False).encode())
        return found

    def _record(self, baseline: Baseline) -> None:
        """Makes sure that the store has a row for each of the runs."""
        timings = baseline.timings
        stock = timings.stock_seconds, timings.stock_evaluations if self._traced else None
        of_exact = timings.exact_seconds, timings.exact_evaluations
        for number, (kind, (seconds, evaluations)) in enumerate(zip(self._kinds, (stock, of_exact), strict=False)):
            settings = self._settings.to_dict()
            preparation = settings.get(PREPARATION)
            if self._store.measured(kind, None, baseline.case.prompt, baseline.case.seed, preparation=preparation):
                continue
            self._store.record(
                Generation(
                    kind=kind,
                    environment_id=self._store.environment(self._target.hardware, self._target.versions),
                    prompt=baseline.case.prompt,
                    seed=baseline.case.seed,
                    settings=settings,
                    evaluations=evaluations,
                    stock_evaluations=timings.stock_evaluations if self._traced else None,
                    seconds_denoise=seconds,
                    seconds_decode=timings.decode_seconds,
                    seconds_end_to_end=timings.encode_seconds + seconds + timings.decode_seconds,
                    stock_seconds_denoise=timings.stock_seconds,
                    metrics={"max_abs_diff": timings.max_abs_diff} if number else None,
                    state="complete",
                    started=datetime.fromisoformat(timings.started),
                    finished=datetime.fromisoformat(timings.finished),
                )
            )


def _read_scores(path: Path) -> dict[str, float] | None:
    """The scores in a file, or None if there is no file that can be used."""
    try:
        found = json.loads(path.read_text())
        return {str(name): float(value) for name, value in found.items() if math.isfinite(value)}
    except (FileNotFoundError, AttributeError, TypeError, ValueError):
        return None
